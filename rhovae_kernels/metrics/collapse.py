"""Collapse: how much of its code a VAE uses."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from rhovae_kernels.metrics.active_units import active_units
from rhovae_kernels.metrics.aggregate import BATCH, mi, refuse_sequences
from rhovae_kernels.metrics.likelihood import standard_error
from rhovae_kernels.vae.model import VAE

COLLAPSED_NATS = 0.01
"""A latent dimension whose KL divergence is less than this carries nothing."""


@torch.no_grad()
def collapse(vae: VAE, x: Tensor) -> dict[str, Any]:
    """How much of its code a VAE uses; a decoder that models x by itself ignores z.

    KL_k = E_x KL(q(z_k|x) ‖ p(z_k)); use = E_x [E_q(z|x) log p(x|z) − E_p(z) log p(x|z)]

    The KL divergence of a dimension is that of the marginals, in closed form. The prior being
    white, their sum is below the rate by the total correlation of q(z|x): 0 where q is diagonal.

    Args:
        vae: the model.
        x: data, (N, *input_shape).

    Returns:
        kl: KL_k of each dimension, in nats, mean over data.
        below: the dimensions whose KL_k is below 0.01 nats, and share, what part of all they are.
        latent: how many dimensions there are.
        rate: E_x KL(q(z|x) ‖ p(z)), in nats.
        active: the dimensions with Var_x E[z_k|x] > 0.01.
        mi, mi_standard_error: the mutual information of code and datum under q, in nats, at most
            log N and, but for what is drawn, the rate.
        use, use_standard_error: how many nats of log p(x|z) are lost when z is drawn from the prior
            in place of q(z|x), at one sample of each for a datum: 0 where z is ignored.

    Raises:
        ValueError: the model is one of sequences; the marginals of its posterior or of its prior
            are not known in closed form.

    Source:
        Active units: Burda, Grosse and Salakhutdinov, 2016, "Importance weighted autoencoders",
        https://arxiv.org/abs/1509.00519. That a strong decoder ignores z: Gulrajani, Kumar, Ahmed,
        Taiga, Visin, Vazquez and Courville, 2017, "PixelVAE: A latent variable model for natural
        images", https://arxiv.org/abs/1611.05013. The use of z is ours.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> vae = rk.recipes.recipe("vae").build((2,), latent=3)
        >>> found = collapse(vae, torch.randn(20, 2))
        >>> len(found["kl"]), found["latent"]
        (3, 3)
    """
    refuse_sequences(vae, "collapse")
    prior = vae.prior.marginals()
    kls, rates, uses = [], [], []
    for batch in x.split(BATCH):
        h = vae.encode(batch)
        kls.append(kl_divergence(vae.posterior.marginals(h), prior))
        z, rate = vae.posterior.rsample_and_kl(h, vae.prior)
        rates.append(rate)
        elsewhere = vae.prior().sample((len(batch),))
        uses.append(vae.decoder.log_prob(batch, z) - vae.decoder.log_prob(batch, elsewhere))
    kl, use = torch.cat(kls).double().mean(0), torch.cat(uses).double()
    below = int((kl < COLLAPSED_NATS).sum())
    information = mi(vae, x)
    return {
        "kl": kl.tolist(),
        "below": below,
        "share": below / vae.latent,
        "latent": vae.latent,
        "rate": torch.cat(rates).double().mean().item(),
        "active": active_units(vae, x)["active"],
        "mi": information["mean"],
        "mi_standard_error": information["standard_error"],
        "use": use.mean().item(),
        "use_standard_error": standard_error(use),
    }
