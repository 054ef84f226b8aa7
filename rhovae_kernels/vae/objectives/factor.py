"""`Factor`: the total correlation weighs γ, estimated by a discriminator."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import softplus
from torch.optim import Adam, Optimizer

from rhovae_kernels.vae.objectives.base import Objective, Terms, not_negative
from rhovae_kernels.vae.parts import positive_integers
from rhovae_kernels.vae.precision import as_stored


class Factor(Objective):
    """FactorVAE: mean_b[KL_b + γ D(z_b) − log p(x_b|z_b)], D(z) ≈ log q(z)/Π_k q(z_k).

    The discriminator D learns to tell z from z whose dimensions were permuted over the batch, each
    by itself: its logit is then the density ratio, whose mean is the total correlation. Two
    gradients come out of one loss: that of D's own cross-entropy, at z.detach() and a fresh
    permutation, reaches D alone, and all the rest reaches everything else alone. The value of the
    loss is that of the rest. D has an optimizer of its own, which `fit` steps.

    Args:
        gamma: weight of the total correlation, not negative; at 0 this is `ELBO`.
        hidden: widths of D's layers, each followed by a leaky ReLU of slope 0.2.
        lr: step size of D's Adam, whose β are 0.5 and 0.9.

    Raises:
        ValueError: gamma is negative, a width is none, or lr is not positive.

    Source:
        Bhalodia, Lee and Elhabian, 2019, "dpVAEs: Fixing sample generation for regularized VAEs",
        https://arxiv.org/abs/1911.10506, §4.3 and appendix C: five layers of 1000. γ and the step
        size are ours; Adam's settings are the usual ones of FactorVAE.

    Example:
        >>> objective = Factor(6.4, hidden=(32,)); objective.build(latent=3)
        >>> objective.discriminator(torch.zeros(5, 3)).shape
        torch.Size([5, 1])
    """

    takes_sequences = False
    discriminator: nn.Sequential

    def __init__(
        self, gamma: float, hidden: tuple[int, ...] = (1000,) * 5, lr: float = 1e-4
    ) -> None:
        super().__init__()
        self.gamma = not_negative("gamma", gamma)
        self.hidden = positive_integers("hidden", hidden)
        if not (lr > 0 and math.isfinite(lr)):
            raise ValueError(f"lr is {lr}; it must be positive and finite")
        self.lr = lr

    def build(self, latent: int) -> None:
        layers: list[nn.Module] = []
        for pair in pairwise((latent, *self.hidden)):
            layers += [nn.Linear(*pair), nn.LeakyReLU(0.2)]
        self.discriminator = nn.Sequential(*layers, nn.Linear(self.hidden[-1], 1))

    def adversary_optimizer(self) -> Optimizer:
        return Adam(self.discriminator.parameters(), lr=self.lr, betas=(0.5, 0.9), fused=True)

    def forward(self, terms: Terms) -> Tensor:
        constant = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        z = as_stored(terms.z, self.discriminator)
        tc = functional_call(self.discriminator, constant, (z,)).float().mean()
        loss = (terms.kl - terms.log_px).mean() + self.gamma * tc
        if not torch.is_grad_enabled():
            return loss
        cross_entropy = self.cross_entropy(z.detach())
        return loss + (cross_entropy - cross_entropy.detach())

    def cross_entropy(self, z: Tensor) -> Tensor:
        """What D minimizes: its mean cross-entropy on z (B, latent) and on permuted z, in nats."""
        order = torch.rand_like(z, dtype=torch.float32).argsort(0)
        permuted = z.gather(0, order)
        logits, count = self.discriminator(torch.cat([z, permuted])).float(), z.shape[0]
        joint, factored = logits[:count], logits[count:]
        return 0.5 * (softplus(-joint) + softplus(factored)).mean()
