"""`Fusion`: what was done to a flow, the way back, and the flow itself to whoever calls it."""

from typing import Any

from torch.optim import Optimizer

from rhovae_kernels.interop.holders import modules_of
from rhovae_kernels.interop.optimizers import check_optimizer, move_back
from rhovae_kernels.interop.replaced import Replaced

# What a `Fusion` holds itself; every other attribute is the flow's.
OWN = ("flow", "fused", "left", "replaced")


class Fusion:
    """What `fuse` did to a flow, and the way back. For all else it is the flow.

    Calls, attributes and their assignment go to the flow, and `isinstance` takes it for one, so
    that `flow = rk.fuse(flow)` is sampled from, trained, moved, saved, copied, and made a part of a
    module, as before.

    Attributes:
        flow: the flow, which was changed in place.
        fused: by the name of each transform, what runs in place of it.
        left: by the name of each that was left alone, why.
    """

    flow: Any
    fused: dict[str, str]
    left: dict[str, str]
    replaced: list[Replaced]

    def __init__(
        self,
        flow: Any,
        fused: dict[str, str] | None = None,
        left: dict[str, str] | None = None,
        replaced: list[Replaced] | None = None,
    ) -> None:
        self.flow = flow
        self.fused, self.left, self.replaced = fused or {}, left or {}, replaced or []

    def undo(self, optimizer: Optimizer | None = None) -> None:
        """Put the library's own modules back, with the weights that are in the flow now.

        What their masks hide is as it was before, so that the state dict of a flow that was not
        trained in between is the same to the bit.

        Args:
            optimizer: one that holds parameters of the flow: it is given those that come back, and
                their state (of what masks hide, zero).

        Raises:
            ValueError: optimizer holds none of the parameters, or a state that cannot be moved.
        """
        if optimizer is not None:
            # Where nothing was replaced, it holds the flow's own.
            held = [r.now for r in self.replaced] or modules_of(self.flow).values()
            check_optimizer(optimizer, held)
        while self.replaced:
            last = self.replaced.pop()
            now = last.now
            last.put_back()
            if optimizer is not None:
                move_back(optimizer, now, last)
        self.fused, self.left = {}, {}

    def __str__(self) -> str:
        lines = [f"{name}: {what}" for name, what in self.fused.items()]
        lines += [f"{name}: left alone, {why}" for name, why in self.left.items()]
        return "\n".join(lines) or "nothing is fused"

    def __repr__(self) -> str:
        return repr(self.flow)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.flow(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # Its own are missing while it is being copied; what Python looks for is the object's own.
        if name in OWN or name.startswith("__"):
            raise AttributeError(f"'Fusion' object has no attribute {name!r}")
        return getattr(self.flow, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self.flow, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.flow, name)

    def __dir__(self) -> list[str]:
        return sorted({*object.__dir__(self), *dir(self.flow)})

    # A module registers what `isinstance` takes for a module: a part that it did not would not be
    # trained.
    @property
    def __class__(self) -> type:
        return type(self.flow)

    @__class__.setter
    def __class__(self, value: type) -> None:
        self.flow.__class__ = value

    def __reduce_ex__(self, protocol: Any) -> Any:
        # That of `object` would make one of the flow's class.
        return Fusion, (self.flow, self.fused, self.left, self.replaced)
