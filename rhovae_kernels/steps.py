"""Which steps of a sequence were observed, and which are its own; both are said by NaN in the data.

A sequence is (T, features). A step that was not observed holds NaN in all of its features. What
follows the last step that was observed is no part of the sequence: padding, which gives the
sequences of a batch one length.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Steps(NamedTuple):
    """What an encoder says of the steps of sequences.

    Attributes:
        features: a step's features, (B, T, features).
        observed: whether the step was observed, (B, T), bool.

    Example:
        >>> h = Steps(torch.zeros(1, 4, 2), torch.tensor([[True, False, True, False]]))
        >>> h.own
        tensor([[ True,  True,  True, False]])
    """

    features: Tensor
    observed: Tensor

    @property
    def own(self) -> Tensor:
        """Whether the step is the sequence's own, (B, T): all up to the last that was observed."""
        return up_to_last(self.observed)


def observed(x: Tensor) -> Tensor:
    """Whether each step of sequences was observed, (…, T), for x (…, T, features).

    Example:
        >>> nan = float("nan")
        >>> observed(torch.tensor([[1.0, 2.0], [nan, nan], [3.0, 4.0]]))
        tensor([ True, False,  True])
    """
    return ~x.isnan().all(-1)


def up_to_last(chosen: Tensor) -> Tensor:
    """Whether each step is the last that is chosen, or comes before it: (…, T), bool.

    Example:
        >>> up_to_last(torch.tensor([False, True, False, True, False]))
        tensor([ True,  True,  True,  True, False])
    """
    return chosen.flip(-1).cumsum(-1).flip(-1) > 0


def lengths(x: Tensor) -> Tensor:
    """How many steps sequences have, (…), for x (…, T, features).

    Example:
        >>> lengths(torch.tensor([[1.0], [float("nan")], [3.0], [float("nan")]]))
        tensor(3)
    """
    return up_to_last(observed(x)).sum(-1)


def trimmed(x: Tensor) -> Tensor:
    """Sequences (B, T, features) without the steps that are padding in all of them."""
    return x[:, : max(1, int(lengths(x).max()))]


def selected(chosen: Tensor, x: Tensor) -> Tensor:
    """x (…, T, features) where the step is chosen, (…, T), and 0 elsewhere, NaN or not."""
    return torch.where(chosen[..., None], x, 0)
