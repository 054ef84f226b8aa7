"""`ELBO`: the negative evidence lower bound."""

from torch import Tensor

from rhovae_kernels.vae.objectives.base import Objective, Terms


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
