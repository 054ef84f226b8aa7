"""`MaskedLinear`: a linear layer whose mask is a staircase."""

import math

import torch
from torch import Tensor, nn

from rhovae_kernels.ops import masked_linear
from rhovae_kernels.python_ref.masked_linear import staircase_mask


class MaskedLinear(nn.Module):
    """A linear layer in which output j reads the first prefix[j] inputs and no others.

    y_j = b_j + Σ_{i < prefix_j} W_ji x_i

    No mask is stored. The weight is zero outside the staircase, where its gradient is exactly 0, so
    that it stays the matrix of the layer as it is trained.

    Args:
        in_features: inputs.
        out_features: outputs.
        prefix: how many inputs each output reads: out_features integers, non-decreasing,
            0 … in_features. A buffer, saved with the weight, which means nothing without it.
        bias: whether there is a b.

    Shapes: x (…,in_features); y (…,out_features).

    Raises:
        ValueError: a size is no positive integer; prefix has another length, holds no integers,
            decreases or is out of range, at construction or in a state dict.

    Source:
        Germain, Gregor, Murray and Larochelle, 2015, "MADE: Masked autoencoder for distribution
        estimation", https://arxiv.org/abs/1502.03509, eqs. 12 and 13, with hidden units sorted by
        degree.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> layer = rk.nn.MaskedLinear(2, 3, prefix=[0, 1, 2])
        >>> (layer.weight != 0).int()
        tensor([[0, 0],
                [1, 0],
                [1, 1]], dtype=torch.int32)
        >>> layer(torch.zeros(5, 2)).shape
        torch.Size([5, 3])
    """

    prefix: Tensor
    bias: Tensor

    def __init__(self, in_features: int, out_features: int, prefix, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features = (
            positive_integer(name, size)
            for name, size in (("in_features", in_features), ("out_features", out_features))
        )
        # What is decided by values is decided on the CPU, whatever the default device is.
        prefix = torch.as_tensor(prefix, device="cpu")
        check_prefix(prefix, in_features, out_features)
        device = torch.get_default_device()
        self.register_buffer("prefix", prefix.to(device, torch.int32, copy=True))
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.register_parameter("bias", nn.Parameter(torch.empty(out_features)) if bias else None)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw weight and bias as `torch.nn.Linear` does, with zeros outside the staircase."""
        bound = 1 / math.sqrt(self.in_features)
        self.weight.uniform_(-bound, bound)
        self.weight.masked_fill_(~staircase_mask(self.prefix, self.in_features), 0)
        if self.bias is not None:
            self.bias.uniform_(-bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.bias)

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The layer with another bias, or none."""
        return masked_linear(x, self.weight, bias, self.prefix)

    def extra_repr(self) -> str:
        bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}"

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        name = prefix + "prefix"
        if name in state_dict and state_dict[name].device.type != "meta":
            try:
                check_prefix(state_dict[name], self.in_features, self.out_features)
            except ValueError as error:
                raise ValueError(f"{name} of the state dict: {error}") from None
        super()._load_from_state_dict(state_dict, prefix, *args)


def positive_integer(name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}; a positive integer is wanted")
    return value


def check_prefix(prefix: Tensor, in_features: int, out_features: int) -> None:
    """Refuse what is no staircase of `out_features` rows over `in_features` columns."""
    if prefix.shape != (out_features,):
        raise ValueError(
            f"prefix is of shape {tuple(prefix.shape)}; it must be of shape ({out_features},), "
            "one for each output"
        )
    if prefix.dtype.is_floating_point or prefix.dtype.is_complex or prefix.dtype == torch.bool:
        raise ValueError(f"prefix is of type {prefix.dtype}; it must hold integers")
    before = 0
    for j, value in enumerate(prefix.tolist()):
        if not 0 <= value <= in_features:
            raise ValueError(f"prefix is {value} at {j}; it must be within 0 … {in_features}")
        if value < before:
            raise ValueError(f"prefix is {value} at {j} after {before}; it must be non-decreasing")
        before = value
