"""The sampler and the objective that the rho-VAE sources published.

Both are for comparison only: as published, not a bound. The sampler holds no ρ: what it draws is a
random walk. The objective adds ‖μ‖² over the whole batch to terms averaged over it. Nothing else in
this package uses either.

Sohrab Ferdowsi, Maurits Diephuis, Shideh Rezaeifar, Slava Voloshynovskiy, 2019, README of
https://github.com/sssohrab/rho_VAE: "change 3" and `reparameterize`.
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, constraints, register_kl

from rhovae_kernels.vae import objectives, posteriors


def random_walk(mu: Tensor, log_s: Tensor, eps: Tensor) -> Tensor:
    """The published reparametrization: w_1 = √s ε_1; w_j = w_{j−1} + √s ε_j; z = μ + w.

    Args:
        mu: mean, shape (…,d). log_s: log variance of one step, shape (…,1).
        eps: standard normal noise, shape (…,d).

    Source:
        The rho-VAE repository's README, `reparameterize`, growing tensor included: its covariance
        is s·min(j,k), where the AR(1) process it stands for has s·ρ^|j−k|.

    Example:
        >>> import torch
        >>> random_walk(torch.zeros(1, 3), torch.zeros(1, 1), torch.ones(1, 3))
        tensor([[1., 2., 3.]])
    """
    scale = torch.exp(0.5 * log_s)
    walk = scale * eps[..., :1]
    for j in range(1, mu.shape[-1]):
        walk = torch.cat([walk, walk[..., -1:] + scale * eps[..., j : j + 1]], -1)
    return mu + walk


def published_kl(mu: Tensor, log_s: Tensor, rho: Tensor) -> Tensor:
    """What the sources add to the batch's summed reconstruction term, one number for a batch.

    ½ mean_b[Σ_b' ‖μ_b'‖² − d log s_b − (d−1) log(1−ρ_b²) + d (s_b − 1)]

    Args:
        mu: means, shape (B,d). log_s: log variances, shape (B,1). rho: correlations, shape (B,1).

    Source:
        The rho-VAE repository's README, change 3. Its ‖μ‖² is summed over the batch inside a mean
        over rows, so the terms in s and ρ weigh 1/B of what they should.

    Example:
        >>> import torch
        >>> published_kl(torch.ones(4, 2), torch.zeros(4, 1), torch.zeros(4, 1))
        tensor(4.)
    """
    d = mu.shape[-1]
    per_row = -d * log_s - (d - 1) * torch.log1p(-rho.square()) + d * torch.expm1(log_s)
    return 0.5 * (mu.square().sum() + per_row).mean()


class RandomWalkNormal(Distribution):
    """The distribution that the published sampler really draws from: N(μ, s·min(j,k)).

    log q(z) = −½[d log 2π + d log s + Σ_j (w_j − w_{j−1})²/s], w = z − μ, w_0 = 0: the steps of the
    walk are white, and det min(j,k) = 1.

    Args:
        loc: mean, shape (…,d).
        log_s: log variance of one step, shape (…,1).
        rho: the correlation that the network puts out, shape (…,1). It enters `published_kl`
            and, as in the sources, nothing else.

    Example:
        >>> import torch
        >>> q = RandomWalkNormal(torch.zeros(4), torch.zeros(1), torch.zeros(1))
        >>> q.variance
        tensor([1., 2., 3., 4.])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.real_vector,
        "log_s": constraints.real_vector,
        "rho": constraints.independent(constraints.interval(-1.0, 1.0), 1),
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self, loc: Tensor, log_s: Tensor, rho: Tensor, validate_args: bool | None = None
    ) -> None:
        batch = torch.broadcast_shapes(loc.shape[:-1], log_s.shape[:-1], rho.shape[:-1])
        self.loc = loc.expand(batch + loc.shape[-1:])
        self.log_s = log_s.expand((*batch, 1))
        self.rho = rho.expand((*batch, 1))
        super().__init__(batch, loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "RandomWalkNormal":
        new = self._get_checked_instance(RandomWalkNormal, _instance)
        batch = torch.Size(batch_shape)
        new.loc = self.loc.expand(batch + self.event_shape)
        new.log_s = self.log_s.expand((*batch, 1))
        new.rho = self.rho.expand((*batch, 1))
        super(RandomWalkNormal, new).__init__(batch, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        steps = torch.arange(1, self.loc.shape[-1] + 1, device=self.loc.device)
        return torch.exp(self.log_s) * steps

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        eps = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return random_walk(self.loc.expand(shape), self.log_s.expand((*shape[:-1], 1)), eps)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        walk = value - self.loc
        steps = torch.diff(walk, prepend=torch.zeros_like(walk[..., :1]))
        d, log_s = self.loc.shape[-1], self.log_s[..., 0]
        white = torch.exp(-log_s) * steps.square().sum(-1)
        return -0.5 * (d * (math.log(2 * math.pi) + log_s) + white)

    def entropy(self) -> Tensor:
        d = self.loc.shape[-1]
        return 0.5 * d * (1 + math.log(2 * math.pi) + self.log_s[..., 0])


@register_kl(RandomWalkNormal, Independent)
def _kl_random_walk_independent(q: RandomWalkNormal, p: Independent) -> Tensor:
    """½ Σ_j[(j s + (μ_j − m_j)²)/v_j − 1 + log v_j − log s], p = N(m, diag v)."""
    if not isinstance(p.base_dist, Normal) or p.reinterpreted_batch_ndims != 1:
        raise NotImplementedError
    moment = q.variance + (q.loc - p.mean).square()
    return 0.5 * (moment / p.variance - 1 + p.variance.log() - q.log_s).sum(-1)


class Posterior(posteriors.Posterior):
    """The sources' encoder head: μ, log s and ρ linear in h, ρ through tanh; d+2 numbers.

    What it returns is the distribution that its sampler draws from, so the rate of a VAE with this
    posterior, its −ELBO and its NLL are those of a proper model, whatever objective trained it.

    Args:
        latent: dimensions d of the code.

    Example:
        >>> import torch
        >>> q = Posterior(3); q.build(features=5)
        >>> q.head.out_features, q(torch.zeros(2, 5)).event_shape
        (5, torch.Size([3]))
    """

    @property
    def numbers(self) -> tuple[int, ...]:
        return self.latent, 1, 1

    def forward(self, h: Tensor) -> RandomWalkNormal:
        mu, log_s, a = self.parameters_of(h)
        return RandomWalkNormal(mu, log_s, torch.tanh(a), validate_args=False)


class Objective(objectives.Objective):
    """The sources' loss, per datum as they report it: [−Σ_b log p(x_b|z_b) + β published_kl] / B.

    As published: not a bound, and it depends on the batch size.

    Args:
        beta: weight of the KL term; 1 but in the beta-VAE.

    Raises:
        TypeError: on use, the posterior is not the published one.

    Source:
        The rho-VAE repository's README, change 3.
    """

    repeats = False

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        self.beta = float(beta)

    def forward(self, terms: objectives.Terms) -> Tensor:
        q = terms.q
        if not isinstance(q, RandomWalkNormal):
            raise TypeError(
                f"the published objective was given q(z|x) of type {type(q).__name__}; it wants a "
                "RandomWalkNormal, from published.Posterior"
            )
        kl = published_kl(q.loc, q.log_s, q.rho)
        return (self.beta * kl - terms.log_px.sum()) / terms.log_px.shape[0]
