"""Priors p(z): modules that return a distribution over the latent code."""

import torch
from torch import Generator, Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from rhovae_kernels import nn as blocks
from rhovae_kernels.distributions.markov import AR1Normal
from rhovae_kernels.ops import ar1_reparam
from rhovae_kernels.vae.parts import Part, positive_integers


class Prior(Part):
    """A distribution p(z) over `latent` dimensions."""

    latent: int

    def __init__(self, latent: int) -> None:
        super().__init__()
        (self.latent,) = positive_integers("latent", (latent,))
        # Gives `forward` and `sample` the module's device and type.
        self.register_buffer("loc", torch.zeros(latent), persistent=False)

    loc: Tensor

    def forward(self) -> Distribution:
        """The distribution, of event shape (latent,)."""
        raise NotImplementedError

    def sample(self, n: int, generator: Generator | None = None) -> Tensor:
        """n draws, (n, latent), from `generator`, a generator of the module's device."""
        raise NotImplementedError

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) in nats, (…), for z (…, latent)."""
        return self().log_prob(z)

    def to_generation(self, z: Tensor) -> Tensor:
        """z0 = g(z), (…, latent): z in the space where samples begin; z itself but in flows."""
        return z

    def to_representation(self, z0: Tensor) -> Tensor:
        """z = g⁻¹(z0), (…, latent): what `to_generation` undoes."""
        return z0

    def _noise(self, n: int, generator: Generator | None) -> Tensor:
        return torch.randn(
            (n, self.latent), generator=generator, dtype=self.loc.dtype, device=self.loc.device
        )


class StandardNormal(Prior):
    """p(z) = N(0, I).

    Args:
        latent: dimensions of the code.

    Example:
        >>> import torch
        >>> StandardNormal(2).log_prob(torch.zeros(1, 2))
        tensor([-1.8379])
    """

    def forward(self) -> Distribution:
        standard = Normal(self.loc, torch.ones_like(self.loc), validate_args=False)
        return Independent(standard, 1, validate_args=False)

    @torch.no_grad()
    def sample(self, n: int, generator: Generator | None = None) -> Tensor:
        return self._noise(n, generator)


class AR1(Prior):
    """p(z) = N(0, s·R), R[i,j] = ρ^|i−j|, log s and the logit of ρ learned; N(0, I) at first.

    Args:
        latent: dimensions of the code.

    Example:
        >>> import torch
        >>> AR1(2).log_prob(torch.zeros(1, 2))
        tensor([-1.8379], grad_fn=<Ar1LogProbBackward>)
    """

    def __init__(self, latent: int) -> None:
        super().__init__(latent)
        self.log_var = nn.Parameter(torch.zeros(1))
        self.rho_logit = nn.Parameter(torch.zeros(1))

    def forward(self) -> AR1Normal:
        return AR1Normal(
            self.loc, log_var=self.log_var, rho_logit=self.rho_logit, validate_args=False
        )

    @torch.no_grad()
    def sample(self, n: int, generator: Generator | None = None) -> Tensor:
        eps = self._noise(n, generator)
        mu, log_var, rho_logit = (x.expand(n, -1) for x in (self.loc, self.log_var, self.rho_logit))
        return ar1_reparam(mu, log_var, rho_logit, eps)[0]


class _Flow(Prior):
    """The density that a flow g, learned with the VAE, gives to what it maps onto N(0, I)."""

    flow: blocks.RealNVP | blocks.MAF

    def forward(self) -> blocks.NormalizingFlow:
        return self.flow()

    @torch.no_grad()
    def sample(self, n: int, generator: Generator | None = None) -> Tensor:
        return self.to_representation(self._noise(n, generator))

    def to_generation(self, z: Tensor) -> Tensor:
        return self.flow.call_and_log_det(z)[0]

    def to_representation(self, z0: Tensor) -> Tensor:
        return self.flow.inverse(z0)[0]


class RealNVP(_Flow):
    """The decoupled prior: p(z) = N(g(z); 0, I) |det ∂g/∂z|, g a flow of couplings learned with
    the VAE; N(0, I) at first.

    z lives in the representation space, where posteriors and regularizers act; z0 = g(z) in the
    generation space, where samples begin.

    Args:
        latent: dimensions of the code.
        layers: how many couplings.
        hidden: widths of the network of each.

    Source:
        dpVAE paper, §4.2; 6 couplings of 64×2.

    Example:
        >>> import torch
        >>> prior = RealNVP(2)
        >>> prior.log_prob(torch.zeros(1, 2)).detach()
        tensor([-1.8379])
    """

    def __init__(self, latent: int, layers: int = 6, hidden: tuple[int, ...] = (64, 64)) -> None:
        super().__init__(latent)
        (self.layers,) = positive_integers("layers", (layers,))
        self.hidden = positive_integers("hidden", hidden)
        self.flow = blocks.RealNVP(latent, layers, self.hidden)


class MAF(_Flow):
    """The autoregressive prior: a masked autoregressive flow learned with the VAE; N(0, I) at
    first.

    Its density takes one parallel pass; a sample takes each hidden unit once, in sequence.

    Args:
        latent: dimensions of the code.
        steps: transforms, each in the order that is the reverse of the one before it.
        hidden: sizes of the hidden layers of each MADE, latent − 1 units at least in each.

    Raises:
        ValueError: a size does not fit.

    Source:
        Lecture notes, which set it against an IAF posterior: the same family of pairs (q, p), the
        sequential direction in the decoder in place of nowhere.

    Example:
        >>> import torch
        >>> prior = MAF(2, steps=2, hidden=(8,))
        >>> prior.log_prob(torch.zeros(1, 2)).detach()
        tensor([-1.8379])
    """

    def __init__(self, latent: int, steps: int = 2, hidden: tuple[int, ...] = (64, 64)) -> None:
        super().__init__(latent)
        (self.steps,) = positive_integers("steps", (steps,))
        self.hidden = positive_integers("hidden", hidden)
        self.flow = blocks.MAF(latent, steps, self.hidden)
        for made in self.flow.steps:
            last = made.layers[-1]
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
