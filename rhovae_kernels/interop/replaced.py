"""What stands in for a module of another library, and how their parameters become each other."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class CannotFuse(Exception):
    """Why a transform is left alone."""


def is_a(module: object, name: str) -> bool:
    return any(f"{base.__module__}.{base.__qualname__}" == name for base in type(module).__mro__)


def behaves_as(module: object, name: str) -> bool:
    """Whether a module is of this class, or of one derived from it that has no methods of its own.

    One that has may compute something else. How it is made, and shown, does not matter.
    """
    for base in type(module).__mro__:
        if f"{base.__module__}.{base.__qualname__}" == name:
            return True
        methods = {key for key, of in vars(base).items() if callable(of) or hasattr(of, "__get__")}
        if methods - _NO_BEHAVIOUR:
            return False
    return False


# What a class may have of its own and compute as before; the last two every class has.
_NO_BEHAVIOUR = {"__init__", "__repr__", "extra_repr", "__dict__", "__weakref__"}


class StandIn(nn.Module):
    """A module of this package in the place of one of another library."""


class Moved(NamedTuple):
    """A parameter of a stand-in: rows and columns of one of the original, in another order.

    Args:
        old: name of the original's parameter.
        new: name of the stand-in's.
        rows: which row of the old one each row of the new one is.
        columns: likewise; None for all, as they are.
        inside: bool, of the new one's shape: what the mask lets through. The rest is zero in the
            new one, and stays as it was in the old one. None for all.
    """

    old: str
    new: str
    rows: Tensor
    columns: Tensor | None = None
    inside: Tensor | None = None

    def take(self, x: Tensor) -> Tensor:
        """Of x, shaped like the old parameter, what the new one is."""
        part = x[self._index(x)]
        return part if self.inside is None else torch.where(self.inside.to(x.device), part, 0)

    def put(self, part: Tensor, x: Tensor) -> None:
        """Into x, in place, what `take` would take from it."""
        index = self._index(x)
        if self.inside is not None:
            part = torch.where(self.inside.to(x.device), part, x[index])
        x[index] = part

    def _index(self, x: Tensor) -> tuple[Tensor, ...]:
        rows = self.rows.to(x.device)
        return (rows,) if self.columns is None else (rows[:, None], self.columns.to(x.device))


class Replaced(NamedTuple):
    """A module that another stands in for.

    Args:
        parent: what held it.
        key: its name there.
        original: itself.
        moves: what has become of its parameters; those it shares with the stand-in are not named.
        attributes: instance attributes of `parent` that were set with it, by name, as they were; of
            those that there were not, None.
    """

    parent: nn.Module
    key: str
    original: nn.Module
    moves: Sequence[Moved] = ()
    attributes: Mapping[str, Any] = {}

    @property
    def now(self) -> nn.Module:
        stand_in = self.parent._modules[self.key]
        assert stand_in is not None
        return stand_in

    @torch.no_grad()
    def put_back(self) -> None:
        now = self.now
        leader = next(now.parameters(), None)
        if leader is not None:
            self.original.to(leader.device, leader.dtype)
        self.original.train(now.training)
        for move in self.moves:
            move.put(now.get_parameter(move.new), self.original.get_parameter(move.old))
        self.parent._modules[self.key] = self.original
        for name, value in self.attributes.items():
            if value is None:
                delattr(self.parent, name)
            else:
                setattr(self.parent, name, value)


@torch.no_grad()
def replace(parent: nn.Module, key: str, new: nn.Module, moves: Sequence[Moved] = ()) -> Replaced:
    """Put `new` in the place of a module, its parameters taken from those of that."""
    original: Any = parent._modules[key]
    for move in moves:
        old, parameter = original.get_parameter(move.old), new.get_parameter(move.new)
        parameter.copy_(move.take(old)).requires_grad_(old.requires_grad)
    parent._modules[key] = new.train(original.training)
    return Replaced(parent, key, original, moves)
