"""`BetaH`: the KL divergence weighs β."""

from torch import Tensor

from rhovae_kernels.vae.objectives.base import Objective, Terms, not_negative


class BetaH(Objective):
    """β-VAE: mean_b[β KL_b − log p(x_b|z_b)].

    Args:
        beta: weight of the KL divergence, not negative; at 1 this is `ELBO`.

    Raises:
        ValueError: beta is negative.

    Source:
        Ferdowsi, Diephuis, Rezaeifar and Voloshynovskiy, 2019, "ρ-VAE: Autoregressive
        parametrization of the VAE encoder", https://arxiv.org/abs/1909.06236, section 4, its
        beta-VAE; no β is given there.

    Example:
        >>> BetaH(4.0).beta
        4.0
    """

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = not_negative("beta", beta)

    def forward(self, terms: Terms) -> Tensor:
        return (self.beta * terms.kl - terms.log_px).mean()
