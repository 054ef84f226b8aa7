"""`IWAE`: the importance weighted bound, and its doubly reparametrized gradient."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from rhovae_kernels.ops.eager import is_exporting
from rhovae_kernels.vae.decoders import Decoder
from rhovae_kernels.vae.objectives.base import Objective, Terms
from rhovae_kernels.vae.parts import positive_integers
from rhovae_kernels.vae.posteriors import Posterior
from rhovae_kernels.vae.priors import Prior

GRADIENTS = ("standard", "doubly")


@dataclass(frozen=True)
class Samples(Terms):
    """`Terms` of K samples of each datum: log_px and kl are (K, B), z is (K, B, latent).

    Attributes:
        gate: of the doubly reparametrized gradient, (K, B): its gradient is the factor by which
            the gradient that reaches z is multiplied on its way to the posterior.
    """

    gate: Tensor | None = None

    @property
    def distortion(self) -> Tensor:
        return -self._mean(self.log_px)

    @property
    def rate(self) -> Tensor:
        return self._mean(self.kl)

    def _mean(self, values: Tensor) -> Tensor:
        # Behind a gate a mean has no gradient of its own: to ask for one is an error, not a zero.
        return values.mean(0) if self.gate is None else values.detach().mean(0)


class IWAE(Objective):
    """The importance weighted bound: −mean_b log (1/K) Σ_k w_k, w_k = p(x_b|z_k) p(z_k)/q(z_k|x_b).

    K samples z_k of q(z|x_b) are drawn of each datum. The more, the tighter the bound: at K = 1 it
    is the ELBO, its KL divergence estimated at the sample. The distortion and rate that a VAE
    reports are means over the samples: their sum still estimates −ELBO.

    With w̃_k = w_k / Σ_j w_j, the gradient reaches decoder and prior as Σ_k w̃_k ∂log w_k/∂θ. Encoder
    and posterior, φ, have it in one of two forms of the same expectation:

    - "standard": Σ_k w̃_k dlog w_k/dφ, whose signal drowns in its noise as K grows;
    - "doubly": Σ_k w̃_k² ∂log w_k/∂z_k ∂z_k/∂φ, doubly reparametrized: no term of the density's own
      parameters, and no noise at all where q(z|x) is the exact posterior. It takes ∂log q/∂z, which
      of an `IAF` is a pass of its sequential direction.

    A program of `torch.export` has the standard gradient: no autograd function outlives its export.

    What φ is to a prior that depends on it (`VampPrior`), it gets as decoder and prior do.

    Inside `WarmUp`, a KL weight β is one of each sample: w_k = p(x|z_k) (p(z_k)/q(z_k|x))^β, and
    (1−β) w̃_k + β w̃_k² takes the place of w̃_k². `FreeBits` refuses it: its loss holds no mean KL
    divergence that could be free.

    Args:
        samples: K, samples of each datum.
        gradient: "standard" or "doubly".

    Raises:
        ValueError: samples is no positive integer, or the gradient is unknown.

    Source:
        Burda, Grosse, Salakhutdinov, "Importance Weighted Autoencoders" (2015),
        https://arxiv.org/abs/1509.00519. Tucker, Lawson, Gu, Maddison, "Doubly Reparameterized
        Gradient Estimators for Monte Carlo Objectives" (2019), https://arxiv.org/abs/1810.04152;
        the factor of another weight than 1 is ours, by the same derivation.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> vae = rk.VAE(rk.nets.MLP((2,)), rk.posteriors.AR1(2), rk.priors.StandardNormal(2),
        ...              rk.decoders.Gaussian(), rk.objectives.IWAE(8, gradient="doubly"))
        >>> output = vae(torch.zeros(4, 2))
        >>> bool(output.loss < (output.distortion + output.rate).mean()), output.rate.shape
        (True, torch.Size([4]))
    """

    averages_kl = False
    repeats = False

    def __init__(self, samples: int, gradient: str = "standard") -> None:
        super().__init__()
        (self.samples,) = positive_integers("samples", (samples,))
        if gradient not in GRADIENTS:
            raise ValueError(f"gradient is {gradient!r}; it must be one of {', '.join(GRADIENTS)}")
        self.gradient = gradient

    def draw(
        self,
        x: Tensor,
        h: Tensor,
        posterior: Posterior,
        prior: Prior,
        decoder: Decoder,
        step: int | None,
        data_size: int,
    ) -> Samples:
        q = posterior(h)
        z, gate = q.rsample((self.samples,)), None
        doubly = self.gradient == "doubly" and not is_exporting()
        if doubly and torch.is_grad_enabled():
            z, gate = _Gate.apply(z, len(q.event_shape))
            log_q = _log_prob_along_path(posterior, h, z)
        else:
            log_q = q.log_prob(z)
        log_px, kl = decoder.log_prob(x, z), log_q - posterior.log_prior(z, q, prior)
        return Samples(log_px, kl, x, z, h, posterior, prior, step, data_size, gate=gate)

    def forward(self, terms: Terms) -> Tensor:
        if not isinstance(terms, Samples):
            raise TypeError(
                f"IWAE was given terms of type {type(terms).__name__}; it wants the Samples that "
                "its own draw makes"
            )
        log_w = terms.log_px - terms.kl
        loss = (math.log(self.samples) - log_w.logsumexp(0)).mean()
        if terms.gate is None:
            return loss
        share, weight = log_w.detach().softmax(0), terms.kl_weight
        return _OpenGate.apply(loss, terms.gate, (1 - weight) + weight * share)


def _log_prob_along_path(posterior: Posterior, h: Tensor, z: Tensor) -> Tensor:
    """log q(z|h), whose gradient is that of z alone: q's parameters are constants."""

    def log_prob(z: Tensor) -> tuple[Tensor, Tensor]:
        value = posterior(h).log_prob(z)
        return value.sum(), value

    with torch.no_grad():
        slope, value = torch.func.grad(log_prob, has_aux=True)(z)
    of_event = tuple(range(value.dim() - z.dim(), 0))
    return value + (slope * (z - z.detach())).sum(of_event)


class _Gate(Function):
    """z and a gate, zeros: the gradient of z is what reaches z times what reaches the gate.

    Which factor it is to be is known only after z was used, when the weights are: `_OpenGate` sends
    it to the gate. As no hook is needed, one compiled graph holds both.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, event_dims: int) -> tuple[Tensor, Tensor]:
        return z.view_as(z), z.new_zeros(z.shape[: z.dim() - event_dims])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.event_dims = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor, grad_gate: Tensor) -> tuple[Tensor, None]:
        return grad_z * grad_gate.reshape(grad_gate.shape + (1,) * ctx.event_dims), None


class _OpenGate(Function):
    """The loss; the gate's gradient is the factor, whatever the loss is multiplied with."""

    generate_vmap_rule = True

    @staticmethod
    def forward(loss: Tensor, gate: Tensor, factor: Tensor) -> Tensor:
        return loss.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (factor,) = ctx.saved_tensors
        return grad, factor, None
