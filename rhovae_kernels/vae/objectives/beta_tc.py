"""`BetaTC`: the total correlation weighs β, estimated from the batch."""

from torch import Tensor

from rhovae_kernels.vae import divergences
from rhovae_kernels.vae.objectives.base import Objective, Terms, not_negative
from rhovae_kernels.vae.posteriors import Posterior


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
        Bhalodia, Lee and Elhabian, 2019, "dpVAEs: Fixing sample generation for regularized VAEs",
        https://arxiv.org/abs/1911.10506, §4.3 and appendix B; β is ours.

    Example:
        >>> BetaTC(6.0).beta
        6.0
    """

    needs_data_size = True
    repeats = False
    takes_sequences = False

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
        log_weights = divergences.stratified_log_weights(z.shape[0], terms.data_size, z)
        log_q = divergences.log_mixture(terms.q, log_weights, z)
        marginals = terms.posterior.marginals(terms.h)
        tc = log_q - divergences.log_mixture_of_marginals(marginals, log_weights, z)
        return (terms.kl - terms.log_px + (self.beta - 1) * tc).mean()
