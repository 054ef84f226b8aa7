"""A VAE of ten latent dimensions whose log p(x) and posterior are known."""

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

import rhovae_kernels as rk

LATENT, NOISE = 10, 0.5


def model(posterior: rk.posteriors.Posterior, widest: float = 1.1) -> rk.VAE:
    """p(z) = N(0, I), p(x|z) = N(W z + b, ½ I), float64; the encoder is untrained.

    The posterior's precision is I + S R⁻¹ S, S = diag(0.4 … widest), R that of an AR(1) of ρ = 0.7.
    """
    torch.manual_seed(0)
    vae = rk.VAE(
        rk.nets.MLP((LATENT,), hidden=(20,)),
        posterior,
        rk.priors.StandardNormal(LATENT),
        rk.decoders.Gaussian(nn.Linear(LATENT, LATENT), variance=NOISE),
    ).double()
    i = torch.arange(LATENT, dtype=torch.float64)
    correlation = 0.7 ** (i[:, None] - i).abs()
    scale = torch.linspace(0.4, widest, LATENT, dtype=torch.float64)
    wanted = scale[:, None] * torch.linalg.inv(correlation) * scale
    with torch.no_grad():
        vae.decoder.net.weight.copy_(torch.linalg.cholesky(NOISE * wanted).mT)
    return vae


def log_likelihood(vae: rk.VAE, x: Tensor) -> Tensor:
    """log p(x), (N,)."""
    net = vae.decoder.net
    covariance = net.weight @ net.weight.T + NOISE * torch.eye(LATENT, dtype=torch.float64)
    return MultivariateNormal(net.bias, covariance).log_prob(x).detach()


def precision(vae: rk.VAE) -> Tensor:
    """P of p(z|x) = N(…, P⁻¹), (d, d)."""
    weight = vae.decoder.net.weight.detach()
    return torch.eye(LATENT, dtype=torch.float64) + weight.T @ weight / NOISE
