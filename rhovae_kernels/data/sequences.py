"""Sequences of several lengths as one tensor: what is beyond the end of one, or missing, is NaN."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rhovae_kernels.data.convert import refuse_mask
from rhovae_kernels.steps import lengths as lengths_of
from rhovae_kernels.steps import observed

RAGGED = (
    "sequences of several lengths become one tensor by rhovae_kernels.data.pad(sequences), in a "
    "DataLoader by collate_fn=rhovae_kernels.data.pad"
)
"""What to do with data that have no common shape."""


def pad(sequences: Any, lengths: Any = None) -> Tensor:
    """Sequences as one tensor (N, T, features), with NaN beyond the end of each.

    A step that is missing within a sequence is NaN in all of its features. The last step of one
    must not be: it would be taken for padding.

    Args:
        sequences: the N sequences, tensors or arrays (T_i, features), or (T_i,) where there is one
            feature. With `lengths`: one tensor or array (N, T, features) or (N, T), padded by
            anything.
        lengths: how many steps each of them has, (N,), integers from 1 to T.

    Returns:
        Values (N, T, features), T the greatest length, of the sequences' floating-point type.

    Raises:
        TypeError: sequences are neither tensors nor arrays.
        ValueError: there are none; a shape or type does not fit; they differ in their features; a
            length is 0, negative, over T, or no integer; a step is NaN in some of its features
            alone; a sequence's last step is missing.

    Example:
        >>> pad([torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0])])[..., 0]
        tensor([[1., 2., 3.],
                [4., nan, nan]])
        >>> pad(torch.ones(2, 3, 5), lengths=[3, 1]).shape
        torch.Size([2, 3, 5])
    """
    parts = _each(sequences) if lengths is None else _cut(sequences, lengths)
    features = [part.shape[1] for part in parts]
    if len(set(features)) > 1:
        i = next(i for i, count in enumerate(features) if count != features[0])
        raise ValueError(
            f"sequences[{i}] has {features[i]} features, sequences[0] {features[0]}: they must "
            "agree"
        )
    for i, part in enumerate(parts):
        partly = part.isnan().any(-1) & observed(part)
        if bool(partly.any()):
            raise ValueError(
                f"sequences[{i}] holds a NaN in some of the {features[0]} features of step "
                f"{int(partly.nonzero()[0])}; a step that is missing is NaN in all of them"
            )
        if int(lengths_of(part)) < len(part):
            raise ValueError(
                f"sequences[{i}] has {len(part)} steps, the last of them missing: it would be "
                "taken for padding; leave it out"
            )
    return joined([part[None] for part in parts])


def joined(batches: Sequence[Tensor]) -> Tensor:
    """Batches as one; of sequences (N_i, T_i, features), of the greatest T, NaN beyond the end."""
    if batches[0].dim() != 3 or len({batch.shape[1] for batch in batches}) == 1:
        return torch.cat(list(batches))
    steps = max(batch.shape[1] for batch in batches)
    count, features = sum(map(len, batches)), batches[0].shape[2]
    dtype = batches[0].dtype
    together = torch.full((count, steps, features), torch.nan, dtype=dtype)
    first = 0
    for batch in batches:
        together[first : first + len(batch), : batch.shape[1]] = batch
        first += len(batch)
    return together


def _each(sequences: Any) -> list[Tensor]:
    """The sequences, each (T_i, features)."""
    if isinstance(sequences, Tensor | np.ndarray):
        raise ValueError(
            f"sequences is one tensor or array of shape {tuple(sequences.shape)}: give lengths, "
            "how many steps each of its rows has, or a list of sequences"
        )
    parts = []
    for i, sequence in enumerate(sequences):
        x = _numbers(sequence, f"sequences[{i}]")
        if x.dim() == 1:
            x = x[:, None]
        if x.dim() != 2 or not x.numel():
            raise ValueError(
                f"sequences[{i}] is of shape {tuple(x.shape)}; it must be (T, features) or (T,), "
                "of one step and one feature at least"
            )
        parts.append(x)
    if not parts:
        raise ValueError("sequences is empty; one sequence at least is wanted")
    types = {part.dtype for part in parts}
    if len(types) > 1:
        raise ValueError(f"sequences are of types {', '.join(map(str, types))}: they must be alike")
    return parts


def _cut(values: Any, lengths: Any) -> list[Tensor]:
    """The own steps of each row of padded values."""
    if not isinstance(values, Tensor | np.ndarray):
        raise TypeError(
            f"values is a {type(values).__name__}; with lengths it must be one tensor or array "
            "(N, T, features); a list of sequences takes none"
        )
    x = _numbers(values, "values")
    if x.dim() == 2:
        x = x[..., None]
    if x.dim() != 3 or not x.numel():
        raise ValueError(
            f"values is of shape {tuple(x.shape)}; it must be (N, T, features) or (N, T)"
        )
    ends = torch.as_tensor(lengths)
    if ends.shape != x.shape[:1] or ends.is_floating_point() or ends.dtype == torch.bool:
        raise ValueError(
            f"lengths is of shape {tuple(ends.shape)} and {ends.dtype}; it must hold an integer "
            f"for each of the {len(x)} sequences"
        )
    for i, end in enumerate(ends.tolist()):
        if not 1 <= end <= x.shape[1]:
            raise ValueError(
                f"lengths[{i}] is {end}; it must be from 1 to {x.shape[1]}, the steps of values"
            )
    return [row[:end] for row, end in zip(x, ends.tolist(), strict=True)]


def _numbers(x: Any, what: str) -> Tensor:
    """A tensor or array as a tensor of floating-point numbers."""
    if isinstance(x, np.ndarray) and x.dtype != object:
        refuse_mask(x, what)
        x = torch.from_numpy(np.ascontiguousarray(x))
    if not isinstance(x, Tensor):
        kind = "an array of objects" if isinstance(x, np.ndarray) else f"a {type(x).__name__}"
        raise TypeError(f"{what} is {kind}; it must be a tensor or an array of numbers")
    if not x.is_floating_point():
        raise ValueError(
            f"{what} is of type {x.dtype}, which holds no NaN for what is missing; floating-point "
            "numbers are wanted: x.float(), x.astype('float32')"
        )
    return x
