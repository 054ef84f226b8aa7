"""Checks shared by the ops: each error names the argument, what came and what is wanted."""

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def refuse(op: str, argument: str, got: object, wanted: str) -> NoReturn:
    raise ValueError(f"rhovae::{op}: {argument} is {got}; it must be {wanted}")


def per_row_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of per-row results (kl, log q, log_det): float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def like(op: str, leader: str, x: Tensor, **others: Tensor | None) -> None:
    """`x`, named `leader`, is of a supported type and the others share its type and device."""
    _dense(op, leader, x)
    dtype, device = x.dtype, x.device
    if dtype not in FLOATING:
        refuse(op, leader, f"of type {dtype}", "float64, float32, bfloat16 or float16")
    for name, other in others.items():
        if other is None:
            continue
        _dense(op, name, other)
        if other.dtype != dtype:
            refuse(op, name, f"of type {other.dtype}", f"{dtype}, as {leader} is")
        if other.device != device:
            refuse(op, name, f"on {other.device}", f"on {device}, where {leader} is")


def _dense(op: str, name: str, x: Tensor) -> None:
    """`x` has a value at each index of a shape, and strides."""
    if x.is_nested or x.layout != torch.strided:
        refuse(op, name, "nested" if x.is_nested else f"of layout {x.layout}", "a dense tensor")


def shape(op: str, name: str, x: Tensor, wanted: tuple[int, ...], reason: str) -> None:
    if x.shape != wanted:
        refuse(op, name, f"of shape {tuple(x.shape)}", f"of shape {tuple(wanted)}, {reason}")


def of_one_along(full: torch.Size, dim: int = -1) -> tuple[int, ...]:
    """The shape `full` with a length of one in this dimension."""
    return (*full[:dim], 1, *full[dim:][1:])


def last_one_or(
    op: str, name: str, x: Tensor, full: torch.Size, leader: str, dim: int = -1
) -> None:
    """`x` has the shape `full`, or `full` with a last dimension, or dimension `dim`, of one."""
    if x.shape != full and x.shape != of_one_along(full, dim):
        refuse(
            op,
            name,
            f"of shape {tuple(x.shape)}",
            f"of shape {tuple(full)} or {of_one_along(full, dim)}, to go with {leader}",
        )


def needs(op: str, asked: Sequence[bool], count: int) -> None:
    """One flag for each gradient: the schema's `bool[n]` is not enforced by the dispatcher."""
    if len(asked) != count:
        refuse(op, "needs", f"of length {len(asked)}", f"of length {count}")


def has_values(x: Tensor) -> bool:
    """Whether `x` holds values, on any device; fake tensors and those on `meta` have none."""
    # Fake tensors, and whatever else stands for values that are elsewhere, dispatch by themselves.
    return not x.is_meta and type(x).__torch_dispatch__ is Tensor.__torch_dispatch__


def on_the_host(x: Tensor) -> bool:
    """Whether `x` holds values that can be looked at without waiting for a device."""
    return x.device.type == "cpu" and has_values(x)


def rng_state(op: str, name: str, state: Tensor, device: torch.device) -> None:
    if state.dtype != torch.int64 or state.shape != (2,):
        refuse(
            op,
            name,
            f"{state.dtype} of shape {tuple(state.shape)}",
            "int64 of shape (2,): [seed, offset]",
        )
    if state.device != device:
        refuse(op, name, f"on {state.device}", f"on {device}, where the draw happens")


def per_row(op: str, name: str, x: Tensor, leader: Tensor) -> None:
    """`x` holds one number for each row of `leader`, in the type of per-row results."""
    _result(op, name, x, leader, leader.shape[:-1])


def per_step(op: str, name: str, x: Tensor, leader: Tensor) -> None:
    """`x` holds one number for each element of `leader`, in the type of per-row results."""
    _result(op, name, x, leader, leader.shape)


def _result(op: str, name: str, x: Tensor, leader: Tensor, wanted: torch.Size) -> None:
    dtype = per_row_dtype(leader.dtype)
    if x.dtype != dtype or x.shape != wanted or x.device != leader.device:
        refuse(
            op,
            name,
            f"{x.dtype} of shape {tuple(x.shape)} on {x.device}",
            f"{dtype} of shape {tuple(wanted)} on {leader.device}",
        )
