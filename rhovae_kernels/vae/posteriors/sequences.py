"""`DiagonalSteps`, `Markov`, `Smoothed`: posteriors of sequences, a chain in each channel."""

import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from rhovae_kernels.distributions.sequence import MarkovSequence
from rhovae_kernels.ops import markov_reparam, markov_smooth
from rhovae_kernels.steps import Steps
from rhovae_kernels.vae.posteriors.base import Posterior
from rhovae_kernels.vae.priors import AR1Process, Prior


class SequencePosterior(Posterior):
    """A distribution q(z|h) over sequences z (T, C), its parameters one linear layer of a step's h.

    A subclass says what `numbers` and `chains` are.

    Args:
        latent: channels C.

    Raises:
        ValueError: latent is no positive integer.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> class OneRho(rk.posteriors.SequencePosterior):  # ρ of a channel, of all data and steps
        ...     def __init__(self, latent):
        ...         super().__init__(latent)
        ...         self.rho_logit = torch.nn.Parameter(torch.zeros(latent))
        ...     @property
        ...     def numbers(self):
        ...         return self.latent, self.latent
        ...     def chains(self, h):
        ...         mu, log_var = (x.mT for x in self.parameters_of(h.features))
        ...         return mu, log_var, self.rho_logit[:, None].expand(len(mu), -1, 1)
        >>> vae = rk.VAE(rk.nets.GRU((20, 3), hidden=8), OneRho(2), rk.priors.AR1Process(2),
        ...              rk.decoders.PerStep(rk.decoders.Gaussian()))
        >>> vae(torch.zeros(5, 7, 3)).rate.shape
        torch.Size([5])
    """

    sequential = True

    def chains(self, h: Steps) -> tuple[Tensor, Tensor, Tensor]:
        """μ, log s and the logit of ρ, (B, C, T) or (B, C, 1), in float32 at least."""
        raise NotImplementedError

    def forward(self, h: Steps) -> MarkovSequence:
        """q(z|h), of batch shape (B,) and event shape (T, C)."""
        return MarkovSequence(*self.chains(h), h.own, validate_args=False)

    def log_prior(self, z: Tensor, q: Distribution, prior: Prior) -> Tensor:
        assert isinstance(q, MarkovSequence)
        return prior.over(z.shape[-2], q.own).log_prob(z)

    def rsample_and_kl(self, h: Steps, prior: Prior) -> tuple[Tensor, Tensor]:
        q = self(h)
        if not isinstance(prior, AR1Process):
            return q.rsample(), kl_divergence(q, prior.over(q.event_shape[0]))
        of_prior = prior.rho_logit.to(q.loc.dtype)[:, None].expand(*q.loc.shape[:-1], 1)
        z, kl = markov_reparam(
            q.loc, q.log_var, q.rho_logit, of_prior, torch.randn_like(q.loc), per_step=True
        )
        return z.mT, q.sum_over_own(kl)

    def _of_steps(self, h: Steps) -> tuple[Tensor, ...]:
        return tuple(x.mT for x in self.parameters_of(h.features))


class DiagonalSteps(SequencePosterior):
    """q(z|h) = Π_c Π_t N(z_tc; μ_tc, s_tc), μ and log s linear in a step's h: 2C numbers a step.

    The mean-field twin of `Markov`: given the data no step says anything about another.

    Args:
        latent: channels C.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> q = DiagonalSteps(3); q.build(features=5)
        >>> h = rk.nets.Steps(torch.zeros(2, 7, 5), torch.ones(2, 7, dtype=torch.bool))
        >>> q.head.out_features, q(h).event_shape
        (6, torch.Size([7, 3]))
    """

    @property
    def numbers(self) -> tuple[int, ...]:
        return self.latent, self.latent

    def chains(self, h: Steps) -> tuple[Tensor, Tensor, Tensor]:
        mu, log_var = self._of_steps(h)
        return mu, log_var, torch.zeros_like(mu[..., :1])


class Markov(SequencePosterior):
    """q(z|h) = Π_c N(z_c; μ_c, D_c R_c D_c), R_c[i,j] = Π_{k=i+1…j} ρ_kc over the steps i < j.

    D_c = diag(√s_1c … √s_Tc); ρ_kc = tanh a_kc correlates step k of channel c with step k−1. μ, log
    s and a are linear in a step's h: 3C numbers a step, and a sample costs what that of
    `DiagonalSteps`, its special case of ρ = 0, does. It holds every Gaussian under which the
    channels are Markov chains, independent of one another, as their posterior is where an AR(1)
    process is seen through independent noise.

    Args:
        latent: channels C.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> q = Markov(3); q.build(features=5)
        >>> h = rk.nets.Steps(torch.zeros(2, 7, 5), torch.ones(2, 7, dtype=torch.bool))
        >>> q.head.out_features, q(h).event_shape
        (9, torch.Size([7, 3]))
    """

    @property
    def numbers(self) -> tuple[int, ...]:
        return self.latent, self.latent, self.latent

    def chains(self, h: Steps) -> tuple[Tensor, Tensor, Tensor]:
        mu, log_var, rho_logit = self._of_steps(h)
        return mu, log_var, rho_logit


class Smoothed(SequencePosterior):
    """q(z|h): the prior, conditioned on pseudo-observations y_tc = z_tc + N(0, r_tc) of each step.

    y and log r are linear in a step's h: 2C numbers a step, as `DiagonalSteps` has. r is infinite
    where a step is missing or padding: there q says what the prior makes of the other steps, and
    with nothing observed it is the prior. As it is made of the prior, it follows the ρ that that
    learns, and a loss that holds q reaches the prior by it too.

    Args:
        latent: channels C.

    Raises:
        ValueError: in a VAE, the prior is not an `AR1Process`.
        RuntimeError: in use, it is part of no VAE.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> vae = rk.VAE(rk.nets.GRU((7, 1), hidden=5), Smoothed(3), rk.priors.AR1Process(3),
        ...              rk.decoders.PerStep(rk.decoders.Gaussian()))
        >>> vae.posterior.head.out_features, vae.posterior_for(torch.zeros(2, 4, 1)).event_shape
        (6, torch.Size([4, 3]))
    """

    def __init__(self, latent: int) -> None:
        super().__init__(latent)
        # In a tuple it is no submodule: its parameters belong to the VAE.
        self._bound: tuple[AR1Process] | None = None

    @property
    def numbers(self) -> tuple[int, ...]:
        return self.latent, self.latent

    def bind(self, prior: Prior) -> None:
        if not isinstance(prior, AR1Process):
            raise ValueError(
                f"prior is a {type(prior).__name__}; Smoothed conditions one that is an AR1Process"
            )
        self._bound = (prior,)

    def chains(self, h: Steps) -> tuple[Tensor, Tensor, Tensor]:
        if self._bound is None:
            raise RuntimeError("this Smoothed has no prior: make a VAE of it, or call bind")
        y, log_r = self._of_steps(h)
        log_r = torch.where(h.observed[:, None], log_r, torch.inf)
        prior = self._bound[0].over(y.shape[-1])
        zero, rho_logit = (x.expand(*y.shape[:-1], 1) for x in (prior.log_var, prior.rho_logit))
        mu, log_var, logit, _ = markov_smooth(y, log_r, torch.zeros_like(y), zero, rho_logit)
        return mu, log_var, logit
