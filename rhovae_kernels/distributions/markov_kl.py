"""KL divergences between Gauss–Markov Gaussians, in O(d), summed or a step at a time."""

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, register_kl

from rhovae_kernels.distributions.markov import MarkovNormal
from rhovae_kernels.distributions.normal import DiagonalNormal
from rhovae_kernels.python_ref.ar1 import read
from rhovae_kernels.python_ref.markov_reparam import kl_to_prior, kl_to_prior_per_step
from rhovae_kernels.python_ref.precision import upcast


def kl_per_step(q: Distribution, p: Distribution) -> Tensor:
    """KL(q ‖ p) a step at a time: E_q KL(q(z_j | z_{j−1}) ‖ p(z_j | z_{j−1})), which sum to it.

    With α = √(s_q/s_p), e = (μ_q−μ_p)/√s_p and κ = cosh² a_p = 1/(1−ρ_p²):

    KL_1 = ½[f(log α_1²) + e_1²]
    KL_j = ½[f(g_j) + κ_j (α_j ρ_q,j − α_{j−1} ρ_p,j)² + κ_j (e_j − ρ_p,j e_{j−1})²]
    f(g) = eᵍ − 1 − g; g_j = log α_j² + log(1−ρ_q,j²) − log(1−ρ_p,j²)

    No summand loses its digits where q nears p or |ρ| nears 1. Step j depends on the parameters of
    j and j−1 alone: the first t of a padded sequence sum to the KL divergence of those t steps.

    Args:
        q: a MarkovNormal, AR1Normal, DiagonalNormal, StandardNormal or Independent(Normal, 1).
        p: one of these, of the same d.

    Returns:
        the d summands in nats, each at least 0, (…,d), in float32 at least.

    Raises:
        ValueError: q and p are not of the same d.
        NotImplementedError: q or p is none of these.

    Example:
        >>> import torch
        >>> from rhovae_kernels.distributions import MarkovNormal, StandardNormal
        >>> zero, rho_logit = torch.zeros(3), torch.tensor([0.0, 1.0, 0.0])
        >>> q = MarkovNormal(zero, log_var=zero, rho_logit=rho_logit)
        >>> kl_per_step(q, StandardNormal((3,)))
        tensor([0.0000, 0.4338, 0.0000])
        >>> padded = torch.tensor([False, False, True])
        >>> kl_per_step(q, StandardNormal((3,))).masked_fill(padded, 0).sum()
        tensor(0.4338)
    """
    return kl_to_prior_per_step(*_relative(q, p))


def _relative(q: Distribution, p: Distribution) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """e, log α² and the logits of q and p: q as p, a Gaussian of unit variances, sees it."""
    of_q, of_p = as_markov(q), as_markov(p)
    check_dimensions(q, p)
    mu, log_var_q, a_q = upcast(of_q.loc, of_q.log_var, read(of_q.rho_logit))
    m, log_var_p, a_p = upcast(of_p.loc, of_p.log_var, read(of_p.rho_logit))
    e = (mu - m) * torch.exp(-0.5 * log_var_p)
    return e, (log_var_q - log_var_p).expand(e.shape), a_q, a_p


def as_markov(p: Distribution) -> MarkovNormal:
    """A Gaussian of independent dimensions as the MarkovNormal of ρ = 0; a MarkovNormal as it is.

    Raises:
        NotImplementedError: p is neither.
    """
    if isinstance(p, MarkovNormal):
        return p
    if isinstance(p, DiagonalNormal):
        loc, scale = p.loc, {"log_var": p.log_var}
    elif (
        isinstance(p, Independent)
        and isinstance(p.base_dist, Normal)
        and p.reinterpreted_batch_ndims == 1
    ):
        loc, scale = p.base_dist.loc, {"scale": p.base_dist.scale}
    else:
        raise NotImplementedError(
            "KL with a MarkovNormal is known for MarkovNormal, DiagonalNormal, "
            f"Independent(Normal, 1) and MultivariateNormal, not for {_name(p)}"
        )
    uncorrelated = torch.zeros_like(loc[..., :1])
    return MarkovNormal(loc, **scale, rho_logit=uncorrelated, validate_args=False)


def _name(p: Distribution) -> str:
    if not isinstance(p, Independent):
        return type(p).__name__
    return f"Independent({type(p.base_dist).__name__}, {p.reinterpreted_batch_ndims})"


def check_dimensions(q: Distribution, p: Distribution) -> None:
    if q.event_shape != p.event_shape:
        raise ValueError(
            f"KL between {type(q).__name__} and {type(p).__name__} of d = {q.event_shape[0]} and "
            f"d = {p.event_shape[0]}: they must agree"
        )


@register_kl(MarkovNormal, MarkovNormal)
@register_kl(MarkovNormal, DiagonalNormal)
@register_kl(DiagonalNormal, MarkovNormal)
@register_kl(MarkovNormal, Independent)
@register_kl(Independent, MarkovNormal)
def _kl(q: Distribution, p: Distribution) -> Tensor:
    return kl_to_prior(*_relative(q, p))
