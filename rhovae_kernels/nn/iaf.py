"""`IAF`: an inverse autoregressive flow of gated updates."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rhovae_kernels.legacy import takes_old_keywords
from rhovae_kernels.nn.autoregressive import AffineAutoregressive
from rhovae_kernels.nn.flow import Flow, Transform
from rhovae_kernels.nn.made import MADE, expand_together
from rhovae_kernels.nn.masked_linear import positive_integer
from rhovae_kernels.ops import iaf_gate, made_inverse

# The gate's logits at the start, less what the network adds: σ = 0.82, near the identity.
INITIAL_LOGIT = 1.5


class IAF(Flow):
    """An inverse autoregressive flow: z → z' in parallel, z' → z in one sequential pass a gate.

    (m, s) = MADE(z, c); z' = σ(s) ⊙ z + (1−σ(s)) ⊙ m, a gate; log|det ∂z'/∂z| = Σ log σ(s_i)

    Each gate takes the dimensions in the order that is the reverse of the one before it, and begins
    near the identity: s starts at 1.5 and what the network adds to it. Called, it gives the
    distribution of z' for which z is standard normal.

    Args:
        features: dimensions d.
        transforms: how many gated updates.
        hidden_features: sizes of the hidden layers of each MADE.
        context: width of the context; 0 for none.
        activation: of the MADEs: "relu", "elu", "tanh" or "sigmoid".
        separate: whether m and s have a MADE each, as in Keng, in place of one with two heads.

    Shapes: z, z' (…,d); context (…,context), whose leading dimensions broadcast with those of z;
    log_det (…).

    Raises:
        ValueError: a size or activation does not fit; in use, a context of the wrong width, missing
            or not expected.

    Source:
        Kingma, Salimans, Jozefowicz, Chen, Sutskever and Welling, 2016, "Improving variational
        inference with inverse autoregressive flow", https://arxiv.org/abs/1606.04934. Keng, 2017,
        "Variational autoencoders with inverse autoregressive flows",
        https://bjlkeng.io/posts/variational-autoencoders-with-inverse-autoregressive-flows/,
        eqs. 9–17, with eqs. 16 and 17 corrected: log σ(s) in place of log s.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> iaf = rk.nn.IAF(4, transforms=3, hidden_features=(16, 16), context=2)
        >>> c = torch.randn(5, 2)
        >>> z, log_det = iaf.call_and_log_det(torch.zeros(5, 4), c)
        >>> back, minus_log_det = iaf.inverse(z, c)
        >>> bool(back.abs().max() < 1e-5), bool((log_det + minus_log_det).abs().max() < 1e-5)
        (True, True)
        >>> iaf(c).rsample().shape
        torch.Size([5, 4])
    """

    samples_in_parallel = True

    @takes_old_keywords("nn.IAF")
    def __init__(
        self,
        features: int,
        transforms: int,
        hidden_features: Sequence[int],
        context: int = 0,
        activation: str = "elu",
        separate: bool = False,
    ) -> None:
        gate = _SeparateGate if separate else _gate
        positive_integer("transforms", transforms)
        gates = (
            gate(features, hidden_features, context, activation, reverse=k % 2 == 1)
            for k in range(transforms)
        )
        super().__init__(features, gates, context)


def _gate(features, hidden_features, context, activation, reverse) -> AffineAutoregressive:
    """One gated update, m and s two heads of one network."""
    made = MADE(features, hidden_features, 2, context, activation, reverse)
    nn.init.constant_(made.layers[-1].bias[1::2], INITIAL_LOGIT)
    return AffineAutoregressive(made, "gate")


class _SeparateGate(Transform):
    """One gated update, m and s a network each, with hidden units of the same degrees."""

    def __init__(self, features, hidden_features, context, activation, reverse) -> None:
        super().__init__()
        self.m = MADE(features, hidden_features, 1, context, activation, reverse)
        self.s = MADE(features, hidden_features, 1, context, activation, reverse)
        nn.init.constant_(self.s.layers[-1].bias, INITIAL_LOGIT)

    def call_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        m, s = self.m(x, context)[..., 0], self.s(x, context)[..., 0]
        return iaf_gate(x.expand(m.shape), m, s)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """By one network that holds both: unit j of either at 2j and 2j+1, sorted as they are."""
        m, s = self.m, self.s
        m.check("y", y, context)
        y, offset = expand_together(m.sort(y), _pairs(m.offset(context), s.offset(context)))
        layers = list(zip(m.layers, s.layers, strict=True))
        weights = [torch.stack([m.weight, s.weight], 1).flatten(0, 1) for m, s in layers[:1]]
        weights += [_side_by_side(m.weight, s.weight) for m, s in layers[1:]]
        biases = [_pairs(m.bias, s.bias) for m, s in layers[1:]]
        # Both read the inputs; of pairs of hidden units, as many as either reads units.
        prefixes = [layers[0][0].prefix.repeat_interleave(2)]
        prefixes += [2 * m.prefix.repeat_interleave(2) for m, _ in layers[1:]]
        x, log_det = made_inverse(y, offset, weights, biases, prefixes, m.activation, "gate")
        return m.unsort(x, -1), log_det


def _pairs(first: Tensor, second: Tensor) -> Tensor:
    """The last dimensions of both, interleaved."""
    return torch.stack([first, second], -1).flatten(-2)


def _side_by_side(first: Tensor, second: Tensor) -> Tensor:
    """The weight of two layers that do not read each other's inputs, rows and columns in pairs."""
    nothing = torch.zeros_like(first)
    rows = torch.stack([_pairs(first, nothing), _pairs(nothing, second)], 1)
    return rows.flatten(0, 1)
