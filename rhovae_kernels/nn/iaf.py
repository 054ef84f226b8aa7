"""`IAF`: an inverse autoregressive flow of gated steps."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from rhovae_kernels.nn.made import MADE, expand_together
from rhovae_kernels.nn.masked_linear import positive_integer
from rhovae_kernels.ops import iaf_gate, made_inverse

# The gate's logits at the start, less what the network adds: σ = 0.82, near the identity.
INITIAL_LOGIT = 1.5


class IAF(nn.Module):
    """An inverse autoregressive flow: z → z' in parallel, z' → z in one sequential pass a step.

    (m, s) = MADE(z, c); z' = σ(s) ⊙ z + (1−σ(s)) ⊙ m, a step; log|det ∂z'/∂z| = Σ log σ(s_i)

    Each step takes the dimensions in the order that is the reverse of the one before it, and begins
    near the identity: s starts at 1.5 and what the network adds to it.

    Args:
        features: dimensions d.
        steps: gated updates.
        hidden: sizes of the hidden layers of each MADE.
        context: width of the context; 0 for none.
        activation: of the MADEs: "relu", "elu", "tanh" or "sigmoid".
        separate: whether m and s have a MADE each, as in the post, in place of one with two heads.

    Shapes: z, z' (…,d); context (…,context), whose leading dimensions broadcast with those of z;
    log_det (…).

    Raises:
        ValueError: a size or activation does not fit; in use, a context of the wrong width, missing
            or not expected.

    Source:
        IAF post, eqs. 9–17, with eqs. 16 and 17 corrected: log σ(s) in place of log s.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> iaf = rk.nn.IAF(4, steps=3, hidden=(16, 16), context=2)
        >>> c = torch.randn(5, 2)
        >>> z, log_det = iaf(torch.zeros(5, 4), c)
        >>> back, minus_log_det = iaf.inverse(z, c)
        >>> bool(back.abs().max() < 1e-5), bool((log_det + minus_log_det).abs().max() < 1e-5)
        (True, True)
    """

    def __init__(
        self,
        features: int,
        steps: int,
        hidden: Sequence[int],
        context: int = 0,
        activation: str = "elu",
        separate: bool = False,
    ) -> None:
        super().__init__()
        self.features, self.context = features, context
        step = _SeparateStep if separate else _Step
        made = (
            step(features, hidden, context, activation, reverse=i % 2 == 1)
            for i in range(positive_integer("steps", steps))
        )
        self.steps = cast(Sequence[_Step | _SeparateStep], nn.ModuleList(made))

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z' and log|det ∂z'/∂z|."""
        total: Tensor | float = 0.0
        for step in self.steps:
            z, log_det = step(z, context)
            total = total + log_det
        return z, torch.as_tensor(total)

    def call_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z' and log|det ∂z'/∂z|: the module called."""
        return self(z, context)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What `call_and_log_det` takes z from, and the log-determinant of this direction."""
        total: Tensor | float = 0.0
        for step in reversed(self.steps):
            z, log_det = step.inverse(z, context)
            total = total + log_det
        return z, torch.as_tensor(total)


class _Step(nn.Module):
    """One gated update, m and s two heads of one network."""

    def __init__(self, features, hidden, context, activation, reverse) -> None:
        super().__init__()
        self.made = MADE(features, hidden, 2, context, activation, reverse)
        nn.init.constant_(self.made.layers[-1].bias[1::2], INITIAL_LOGIT)

    def forward(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.made.call_and_log_det(z, context, "gate")

    def inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.made.inverse(z, context, "gate")


class _SeparateStep(nn.Module):
    """One gated update, m and s a network each, with hidden units of the same degrees."""

    def __init__(self, features, hidden, context, activation, reverse) -> None:
        super().__init__()
        self.m = MADE(features, hidden, 1, context, activation, reverse)
        self.s = MADE(features, hidden, 1, context, activation, reverse)
        nn.init.constant_(self.s.layers[-1].bias, INITIAL_LOGIT)

    def forward(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        m, s = self.m(z, context)[..., 0], self.s(z, context)[..., 0]
        return iaf_gate(z.expand(m.shape), m, s)

    def inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """By one network that holds both: unit j of either at 2j and 2j+1, sorted as they are."""
        m, s = self.m, self.s
        m.check("z", z, context)
        z, offset = expand_together(m.sort(z), _pairs(m.offset(context), s.offset(context)))
        layers = list(zip(m.layers, s.layers, strict=True))
        weights = [torch.stack([m.weight, s.weight], 1).flatten(0, 1) for m, s in layers[:1]]
        weights += [_side_by_side(m.weight, s.weight) for m, s in layers[1:]]
        biases = [_pairs(m.bias, s.bias) for m, s in layers[1:]]
        # Both read the inputs; of pairs of hidden units, as many as either reads units.
        prefixes = [layers[0][0].prefix.repeat_interleave(2)]
        prefixes += [2 * m.prefix.repeat_interleave(2) for m, _ in layers[1:]]
        x, log_det = made_inverse(z, offset, weights, biases, prefixes, m.activation, "gate")
        return m.unsort(x, -1), log_det


def _pairs(first: Tensor, second: Tensor) -> Tensor:
    """The last dimensions of both, interleaved."""
    return torch.stack([first, second], -1).flatten(-2)


def _side_by_side(first: Tensor, second: Tensor) -> Tensor:
    """The weight of two layers that do not read each other's inputs, rows and columns in pairs."""
    nothing = torch.zeros_like(first)
    rows = torch.stack([_pairs(first, nothing), _pairs(nothing, second)], 1)
    return rows.flatten(0, 1)
