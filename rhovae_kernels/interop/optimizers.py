"""Optimizers of a flow whose parameters were replaced: their groups and their state go along."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rhovae_kernels.interop.replaced import Moved, Replaced


def check_optimizer(optimizer: Optimizer, modules: Iterable[nn.Module]) -> None:
    """Refuse an optimizer of other parameters, or one whose state is not one for each weight."""
    if not isinstance(optimizer, Optimizer):
        raise ValueError(
            f"optimizer is of type {type(optimizer).__name__}; it must be a torch.optim.Optimizer"
        )
    parameters = {p for module in modules for p in module.parameters()}
    held = parameters.intersection(p for group in optimizer.param_groups for p in group["params"])
    if not held:
        raise ValueError("optimizer holds none of the parameters of the flow")
    for parameter in held:
        for name, value in optimizer.state.get(parameter, {}).items():
            shape = getattr(value, "shape", ())
            known = value is None or isinstance(value, Tensor | int | float)
            if not known or (shape != parameter.shape and math.prod(shape) != 1):
                of_shape = f"of shape {tuple(shape)}" if known else f"a {type(value).__name__}"
                raise ValueError(
                    f"optimizer holds {name!r}, {of_shape}, for a parameter of shape "
                    f"{tuple(parameter.shape)}; only numbers, and tensors of the parameter's own "
                    "shape, can be moved: make the optimizer after this"
                )


def move_to_stand_in(optimizer: Optimizer, replaced: Replaced) -> None:
    """Old parameters give way to the new ones that are made of them."""
    of_old: dict[nn.Parameter, list[tuple[nn.Parameter, Moved]]] = {}
    for move in replaced.moves:
        old, new = replaced.original.get_parameter(move.old), replaced.now.get_parameter(move.new)
        of_old.setdefault(old, []).append((new, move))
    for old, parts in of_old.items():
        if not _substitute(optimizer, [old], [new for new, _ in parts]):
            continue
        for new, move in parts:
            new.grad = None if old.grad is None else move.take(old.grad)
            if old in optimizer.state:
                optimizer.state[new] = {
                    name: _moved(value, old, move.take)
                    for name, value in optimizer.state[old].items()
                }
        optimizer.state.pop(old, None)
        old.grad = None


def move_back(optimizer: Optimizer, now: nn.Module, replaced: Replaced) -> None:
    """New parameters give way to the old ones that they were made of."""
    of_old: dict[nn.Parameter, list[tuple[nn.Parameter, Moved]]] = {}
    for move in replaced.moves:
        old, new = replaced.original.get_parameter(move.old), now.get_parameter(move.new)
        of_old.setdefault(old, []).append((new, move))
    for old, parts in of_old.items():
        if not _substitute(optimizer, [new for new, _ in parts], [old]):
            continue
        of_old_state: dict[str, Any] = {}
        for new, move in parts:
            if new.grad is not None:
                old.grad = torch.zeros_like(old) if old.grad is None else old.grad
                move.put(new.grad, old.grad)
            for name, value in optimizer.state.pop(new, {}).items():
                if isinstance(value, Tensor) and value.shape == new.shape:
                    whole = of_old_state.setdefault(name, value.new_zeros(old.shape))
                    move.put(value, whole)
                else:
                    of_old_state[name] = value
        if of_old_state:
            optimizer.state[old] = of_old_state


def _moved(value: Any, parameter: Tensor, take: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return take(value) if value.shape == parameter.shape else value.clone()


def _substitute(optimizer: Optimizer, out: list[nn.Parameter], by: list[nn.Parameter]) -> bool:
    """Put the parameters `by` in the place of the first of `out`, and drop the others of `out`."""
    for group in optimizer.param_groups:
        at = [i for i, p in enumerate(group["params"]) if any(p is gone for gone in out)]
        if at:
            group["params"][at[0] : at[0] + 1] = by
            for i in reversed(at[1:]):
                del group["params"][i + len(by) - 1]
            return True
    return False
