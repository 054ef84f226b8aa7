"""Objectives: what a VAE minimizes."""

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.func import functional_call
from torch.nn.functional import softplus
from torch.optim import Adam, Optimizer

from rhovae_kernels.vae import divergences
from rhovae_kernels.vae.parts import Part, positive_integers
from rhovae_kernels.vae.posteriors import Posterior
from rhovae_kernels.vae.priors import Prior


@dataclass(frozen=True)
class Terms:
    """What an objective may be made of, for one batch.

    Attributes:
        log_px: log p(x|z) in nats, (B,).
        kl: KL(q(z|x) ‖ p(z)) in nats, (B,), or its one-sample estimate.
        x: the data, (B, *data shape).
        z: the sample of q(z|x) that log_px was taken at, (B, latent).
        h: the encoder's features, (B, features).
        posterior: the module that makes q(z|x) of h.
        prior: the module of p(z).
        step: optimization steps taken so far.
        data_size: how many data the batch is drawn of.
    """

    log_px: Tensor
    kl: Tensor
    x: Tensor
    z: Tensor
    h: Tensor
    posterior: Posterior
    prior: Prior
    step: int
    data_size: int

    @property
    def q(self) -> Distribution:
        """q(z|x), made when asked for."""
        return self.posterior(self.h)


class Objective(Part):
    """A loss to minimize, a function of `Terms`.

    Attributes:
        needs_data_size: whether it weighs by the number of data.
    """

    needs_data_size = False

    def forward(self, terms: Terms) -> Tensor:
        """The loss, a scalar in nats: the mean over the batch."""
        raise NotImplementedError

    def build(self, latent: int) -> None:
        """Make what depends on the number of latent dimensions; a VAE calls it."""

    def check(self, posterior: Posterior) -> None:
        """Refuse a posterior that lacks what the objective asks of it; a VAE calls it.

        Raises:
            ValueError: it lacks something.
        """

    def adversary_optimizer(self) -> Optimizer | None:
        """The optimizer of those of its parameters that play against the VAE, where it has any."""
        return None


class ELBO(Objective):
    """The negative evidence lower bound: mean_b[KL_b − log p(x_b|z_b)].

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> vae = rk.recipes.recipe("rho-vae").build((2,), latent=2)
        >>> output = vae(torch.zeros(4, 2))
        >>> bool(torch.isclose(output.loss, (output.rate + output.distortion).mean()))
        True
    """

    def forward(self, terms: Terms) -> Tensor:
        return (terms.kl - terms.log_px).mean()


class BetaH(Objective):
    """β-VAE: mean_b[β KL_b − log p(x_b|z_b)].

    Args:
        beta: weight of the KL divergence, not negative; at 1 this is `ELBO`.

    Raises:
        ValueError: beta is negative.

    Source:
        rho-VAE paper, section 4, its beta-VAE; the paper does not give its β.

    Example:
        >>> BetaH(4.0).beta
        4.0
    """

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = not_negative("beta", beta)

    def forward(self, terms: Terms) -> Tensor:
        return (self.beta * terms.kl - terms.log_px).mean()


class BetaB(Objective):
    """β-VAE with a capacity: γ|mean_b KL_b − C(t)| − mean_b log p(x_b|z_b).

    C(t) rises from 0 to `capacity` in a straight line over the first `steps` steps.

    Args:
        gamma: weight of the distance, not negative.
        capacity: the KL divergence to end at, in nats.
        steps: optimization steps that it takes to get there.

    Raises:
        ValueError: gamma or capacity is negative, or steps is no positive integer.

    Source:
        dpVAE paper, §4.3 and appendix B; its γ and C are lost in our copy.

    Example:
        >>> BetaB(100.0, capacity=5.0, steps=1000).capacity_at(100)
        0.5
    """

    def __init__(self, gamma: float, capacity: float, steps: int) -> None:
        super().__init__()
        self.gamma = not_negative("gamma", gamma)
        self.capacity = not_negative("capacity", capacity)
        (self.steps,) = positive_integers("steps", (steps,))

    def capacity_at(self, step: int) -> float:
        """C after so many steps, in nats."""
        return self.capacity * min(1.0, step / self.steps)

    def forward(self, terms: Terms) -> Tensor:
        distance = (terms.kl.mean() - self.capacity_at(terms.step)).abs()
        return self.gamma * distance - terms.log_px.mean()


class BetaTC(Objective):
    """β-TC-VAE: mean_b[MI + β TC + dimension-wise KL − log p(x_b|z_b)], MI + TC + … = KL.

    MI = log q(z|x)/q(z); TC = log q(z)/Π_k q(z_k); dimension-wise KL = log Π_k q(z_k)/p(z). As the
    three add up to KL, the loss is KL + (β−1) TC − log p(x|z): KL as everywhere, under any prior
    with its Jacobian, and TC by minibatch stratified sampling.

    q(z_k) is estimated as a mixture of the q(z_k|x). A posterior that is a flow (`IAF`) knows its
    density in all dimensions together but in none by itself, and is refused.

    Args:
        beta: weight of the total correlation, not negative; at 1 this is `ELBO`.

    Raises:
        ValueError: beta is negative; in a VAE, the posterior has no marginals in closed form.

    Source:
        dpVAE paper, §4.3 and appendix B; its β is lost in our copy.

    Example:
        >>> BetaTC(6.0).beta
        6.0
    """

    needs_data_size = True

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = not_negative("beta", beta)

    def check(self, posterior: Posterior) -> None:
        if not posterior.has_marginals:
            name = type(posterior).__name__
            raise ValueError(
                f"BetaTC takes the density of each dimension of q(z|x) by itself, and {name} has "
                "no marginals in closed form; Factor weighs the same total correlation without"
            )

    def forward(self, terms: Terms) -> Tensor:
        z = terms.z
        log_weights = divergences.stratified_log_weights(len(z), terms.data_size, z)
        log_q = divergences.log_mixture(terms.q, log_weights, z)
        marginals = terms.posterior.marginals(terms.h)
        tc = log_q - divergences.log_mixture_of_marginals(marginals, log_weights, z)
        return (terms.kl - terms.log_px + (self.beta - 1) * tc).mean()


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
        dpVAE paper, §4.3 and appendix C: five layers of 1000. Its γ and step size are lost in our
        copy; Adam's settings are the usual ones of FactorVAE.

    Example:
        >>> objective = Factor(6.4, hidden=(32,)); objective.build(latent=3)
        >>> objective.discriminator(torch.zeros(5, 3)).shape
        torch.Size([5, 1])
    """

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
        tc = functional_call(self.discriminator, constant, (terms.z,)).float().mean()
        loss = (terms.kl - terms.log_px).mean() + self.gamma * tc
        if not torch.is_grad_enabled():
            return loss
        cross_entropy = self.cross_entropy(terms.z.detach())
        return loss + (cross_entropy - cross_entropy.detach())

    def cross_entropy(self, z: Tensor) -> Tensor:
        """What D minimizes: its mean cross-entropy on z (B, latent) and on permuted z, in nats."""
        order = torch.rand_like(z, dtype=torch.float32).argsort(0)
        permuted = z.gather(0, order)
        joint, factored = self.discriminator(torch.cat([z, permuted])).float().chunk(2)
        return 0.5 * (softplus(-joint) + softplus(factored)).mean()


class InfoMMD(Objective):
    """InfoVAE: mean_b[(1−α) KL_b − log p(x_b|z_b)] + (α+λ−1) MMD²(q(z), p(z)).

    MMD² is the unbiased estimate from the batch's z and as many samples of the prior, through
    which its gradient reaches a prior that is learned. A batch of one holds no pair: none is taken.

    Args:
        alpha: how much of the KL divergence to drop, at most 1.
        lambda_: λ; α+λ−1 must not be negative.
        kernel: "imq" or "rbf", see `divergences.mmd`.
        bandwidth: the kernel's scale.

    Raises:
        ValueError: a weight is negative, the kernel is unknown, the bandwidth is not positive.

    Source:
        dpVAE paper, §4.3 and appendix B; its α and λ are lost in our copy.

    Example:
        >>> InfoMMD(alpha=0.0, lambda_=10.0).kernel
        'imq'
    """

    def __init__(
        self, alpha: float, lambda_: float, kernel: str = "imq", bandwidth: float = 1.0
    ) -> None:
        super().__init__()
        if not alpha <= 1:
            raise ValueError(f"alpha is {alpha}; it must be at most 1")
        if not alpha + lambda_ >= 1:
            raise ValueError(f"alpha + lambda_ is {alpha + lambda_}; it must be at least 1")
        if kernel not in divergences.KERNELS:
            raise ValueError(
                f"kernel is {kernel!r}; it must be one of {', '.join(divergences.KERNELS)}"
            )
        if not bandwidth > 0:
            raise ValueError(f"bandwidth is {bandwidth}; it must be positive")
        self.alpha = float(alpha)
        self.lambda_ = float(lambda_)
        self.kernel = kernel
        self.bandwidth = float(bandwidth)

    def forward(self, terms: Terms) -> Tensor:
        loss = ((1 - self.alpha) * terms.kl - terms.log_px).mean()
        count = len(terms.z)
        if count < 2:
            return loss
        drawn = terms.prior().rsample((count,))
        mmd = divergences.mmd(terms.z, drawn, self.kernel, self.bandwidth)
        return loss + (self.alpha + self.lambda_ - 1) * mmd


class OnKL(Objective):
    """Another objective, given another KL divergence.

    Args:
        objective: the objective.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def build(self, latent: int) -> None:
        self.objective.build(latent)

    def check(self, posterior: Posterior) -> None:
        self.objective.check(posterior)

    @property
    def needs_data_size(self) -> bool:  # type: ignore[override]
        return self.objective.needs_data_size

    def adversary_optimizer(self) -> Optimizer | None:
        return self.objective.adversary_optimizer()

    def forward(self, terms: Terms) -> Tensor:
        return self.objective(replace(terms, kl=self.kl(terms)))

    def kl(self, terms: Terms) -> Tensor:
        """What takes the place of the KL divergence, (B,)."""
        raise NotImplementedError


class WarmUp(OnKL):
    """An objective whose KL divergence weighs nothing at first and all after `steps` steps.

    Args:
        objective: the objective.
        steps: optimization steps over which the weight rises, in a straight line.

    Raises:
        ValueError: steps is no positive integer.

    Example:
        >>> WarmUp(ELBO(), steps=1000).weight_at(250)
        0.25
    """

    def __init__(self, objective: Objective, steps: int) -> None:
        super().__init__(objective)
        (self.steps,) = positive_integers("steps", (steps,))

    def weight_at(self, step: int) -> float:
        """The weight after so many steps."""
        return min(1.0, step / self.steps)

    def kl(self, terms: Terms) -> Tensor:
        return self.weight_at(terms.step) * terms.kl


class FreeBits(OnKL):
    """An objective to which a mean KL divergence below `nats` is `nats`: no gradient lowers it.

    The whole code is one group: max(nats, mean_b KL_b).

    Args:
        objective: the objective.
        nats: what is free, not negative.

    Raises:
        ValueError: nats is negative.

    Example:
        >>> FreeBits(ELBO(), nats=2.0).nats
        2.0
    """

    def __init__(self, objective: Objective, nats: float) -> None:
        super().__init__(objective)
        self.nats = not_negative("nats", nats)

    def kl(self, terms: Terms) -> Tensor:
        # What lifts the mean takes the gradient of the mean away.
        return terms.kl + (self.nats - terms.kl.mean()).clamp(min=0)


def not_negative(name: str, value: float) -> float:
    """The value of an argument that takes a weight.

    Raises:
        ValueError: it is negative or no number.
    """
    if not value >= 0:
        raise ValueError(f"{name} is {value}; it must not be negative")
    return float(value)
