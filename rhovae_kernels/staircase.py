"""`staircase`: which order of units makes a mask one that `masked_linear` takes."""

import torch
from torch import Tensor


def staircase(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The orders of rows and columns in which a mask is a staircase, and that staircase.

    `mask[row_perm][:, col_perm][j, i] = (i < prefix[j])`, prefix non-decreasing. There are such
    orders if and only if the sets of inputs that the outputs read are nested: of any two, one holds
    the other. Both sorts are stable: of a mask that is a staircase, the orders are the identity.

    Args:
        mask: bool, shape (out,in), true where output j reads input i.

    Returns:
        prefix (out,), int32, for `masked_linear`; row_perm (out,) and col_perm (in,), int64, which
        the weight of the layer is indexed with once: `weight[row_perm][:, col_perm]`. All on the
        device of mask.

    Raises:
        ValueError: mask is not a boolean matrix, or two of its rows are not nested.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> mask = torch.tensor([[True, False, True], [False, False, True]])
        >>> prefix, row_perm, col_perm = rk.staircase(mask)
        >>> prefix, row_perm, col_perm
        (tensor([1, 2], dtype=torch.int32), tensor([1, 0]), tensor([2, 0, 1]))
    """
    if mask.dtype != torch.bool or mask.dim() != 2:
        raise ValueError(
            f"staircase: mask is {mask.dtype} of shape {tuple(mask.shape)}; "
            "it must be bool of shape (out, in)"
        )
    reads = mask.sum(1)
    row_perm = reads.argsort(stable=True)
    col_perm = mask.sum(0).argsort(stable=True, descending=True)
    sorted_mask = mask[row_perm]
    # In order of size, nested sets are each held by the next.
    broken = (sorted_mask[:-1] & ~sorted_mask[1:]).any(1)
    if broken.any():
        at = int(broken.nonzero()[0])
        smaller, larger = row_perm[at].item(), row_perm[at + 1].item()
        raise ValueError(
            f"staircase: rows {smaller} and {larger} of mask are not nested: each reads an input "
            "that the other does not; no order of the units makes this mask a staircase"
        )
    return reads[row_perm].int(), row_perm, col_perm
