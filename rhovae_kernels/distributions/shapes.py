"""Whether the shapes of parameters go together."""

import torch
from torch import Tensor


def check_tensors(**given: object) -> None:
    """Refuse, by name, parameters that are no tensors; None stands for one that is not given."""
    for name, x in given.items():
        if x is not None and not isinstance(x, Tensor):
            raise ValueError(f"{name} is {x!r}; it must be a tensor")


def check_shapes(**given: tuple[Tensor, set[int]]) -> torch.Size:
    """Refuse parameters whose shapes do not go together.

    Args:
        given: by name a parameter, and what its last dimension may be.

    Returns:
        what their leading dimensions broadcast to.

    Raises:
        ValueError: one is no tensor, or its last dimension none of these; the others do not
            broadcast.
    """
    check_tensors(**{name: x for name, (x, _) in given.items()})
    for name, (x, widths) in given.items():
        if x.dim() == 0 or x.shape[-1] not in widths:
            wanted = " or ".join(f"(…,{width})" for width in sorted(widths))
            raise ValueError(f"{name} is of shape {tuple(x.shape)}; it must be of shape {wanted}")
    try:
        return torch.broadcast_shapes(*(x.shape[:-1] for x, _ in given.values()))
    except RuntimeError as error:
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, (x, _) in given.items())
        raise ValueError(f"leading dimensions do not broadcast: {shapes}") from error
