"""`RealNVP`, `MAF` and `NSF`: flows that are learned with the VAE."""

from typing import Any

import torch
from torch import Generator, Tensor, nn

from rhovae_kernels import nn as blocks
from rhovae_kernels.distributions.normal import StandardNormal
from rhovae_kernels.legacy import takes_old_keywords
from rhovae_kernels.vae.parts import positive_integers
from rhovae_kernels.vae.precision import computed
from rhovae_kernels.vae.priors.base import Prior


class Flow(Prior):
    """The density that a flow g, learned with the VAE, gives to what it maps onto N(0, I)."""

    flow: blocks.Flow

    def forward(self) -> blocks.NormalizingFlow:
        like = self.loc
        base = StandardNormal(like.shape, like.dtype, like.device, validate_args=False)
        return blocks.NormalizingFlow(computed(self.flow), base=base)

    @torch.no_grad()
    def sample(self, n: int, generator: Generator | None = None) -> Tensor:
        return self.to_representation(self._noise(n, generator))

    def to_generation(self, z: Tensor) -> Tensor:
        return computed(self.flow).to_noise(z)[0]

    def to_representation(self, z0: Tensor) -> Tensor:
        return computed(self.flow).to_data(z0)[0]


class RealNVP(Flow):
    """The decoupled prior: p(z) = N(g(z); 0, I) |det ∂g/∂z|, g a flow of couplings learned with
    the VAE; N(0, I) at first.

    z lives in the representation space, where posteriors and regularizers act; z0 = g(z) in the
    generation space, where samples begin.

    Args:
        latent: dimensions of the code.
        transforms: how many couplings.
        hidden_features: widths of the network of each.
        bins: of each spline, two at least; None for affine couplings.
        bound: B, of splines: beyond ±B they are the identity.

    Raises:
        ValueError: a size, number of bins or bound does not fit.

    Source:
        Bhalodia, Lee and Elhabian, 2019, "dpVAEs: Fixing sample generation for regularized VAEs",
        https://arxiv.org/abs/1911.10506, section 4.2; 6 couplings of 64×2. Splines: Durkan,
        Bekasov, Murray and Papamakarios, 2019, "Neural Spline Flows",
        https://arxiv.org/abs/1906.04032.

    Example:
        >>> import torch
        >>> prior = RealNVP(2)
        >>> prior.log_prob(torch.zeros(1, 2)).detach()
        tensor([-1.8379])
    """

    @takes_old_keywords("priors.RealNVP")
    def __init__(
        self,
        latent: int,
        transforms: int = 6,
        hidden_features: tuple[int, ...] = (64, 64),
        bins: int | None = None,
        bound: float = 5.0,
    ) -> None:
        super().__init__(latent)
        (self.transforms,) = positive_integers("transforms", (transforms,))
        self.hidden_features = positive_integers("hidden_features", hidden_features)
        self.bins, self.bound = bins, bound
        self.flow = blocks.RealNVP(latent, transforms, self.hidden_features, bins=bins, bound=bound)

    def arguments(self) -> dict[str, Any]:
        arguments = super().arguments()
        if self.bins is None:
            # Affine couplings have neither: they are described, and runs of theirs go on, as
            # before there were splines.
            del arguments["bins"], arguments["bound"]
        return arguments


class MAF(Flow):
    """The autoregressive prior: a masked autoregressive flow learned with the VAE; N(0, I) at
    first.

    Its density takes one parallel pass; a sample takes each hidden unit once, in sequence.

    Args:
        latent: dimensions of the code.
        transforms: how many, each in the order that is the reverse of the one before it.
        hidden_features: sizes of the hidden layers of each MADE, latent − 1 units at least in each.

    Raises:
        ValueError: a size does not fit.

    Source:
        John Thickstun, "Expressive Variational Autoencoders", lecture notes, compares it with an
        IAF posterior: the same family of pairs (q, p), the sequential direction in the decoder in
        place of nowhere. The flow: as cited by `nn.MAF`.

    Example:
        >>> import torch
        >>> prior = MAF(2, transforms=2, hidden_features=(8,))
        >>> prior.log_prob(torch.zeros(1, 2)).detach()
        tensor([-1.8379])
    """

    @takes_old_keywords("priors.MAF")
    def __init__(
        self, latent: int, transforms: int = 2, hidden_features: tuple[int, ...] = (64, 64)
    ) -> None:
        super().__init__(latent)
        (self.transforms,) = positive_integers("transforms", (transforms,))
        self.hidden_features = positive_integers("hidden_features", hidden_features)
        self.flow = blocks.MAF(latent, transforms, self.hidden_features)
        begin_at_the_identity(self.flow)


class NSF(Flow):
    """The spline prior: an autoregressive spline flow learned with the VAE; N(0, I) at first.

    Its density takes one parallel pass; a sample takes each hidden unit once, in sequence.

    Args:
        latent: dimensions of the code.
        transforms: how many, each in the order that is the reverse of the one before it.
        hidden_features: sizes of the hidden layers of each MADE, latent − 1 units at least in each.
        bins: of each spline, two at least.
        bound: B: beyond ±B each spline is the identity.

    Raises:
        ValueError: a size or the bound does not fit.

    Source:
        Durkan, Bekasov, Murray and Papamakarios, 2019, "Neural Spline Flows",
        https://arxiv.org/abs/1906.04032, section 5.2, where it is the prior of a VAE.

    Example:
        >>> import torch
        >>> prior = NSF(2, transforms=2, hidden_features=(8,))
        >>> prior.log_prob(torch.zeros(1, 2)).detach()
        tensor([-1.8379])
    """

    def __init__(
        self,
        latent: int,
        transforms: int = 2,
        hidden_features: tuple[int, ...] = (64, 64),
        bins: int = 8,
        bound: float = 5.0,
    ) -> None:
        super().__init__(latent)
        (self.transforms,) = positive_integers("transforms", (transforms,))
        self.hidden_features = positive_integers("hidden_features", hidden_features)
        (self.bins,) = positive_integers("bins", (bins,))
        self.bound = bound
        self.flow = blocks.NSF(
            latent, transforms, self.hidden_features, bins=self.bins, bound=bound
        )
        begin_at_the_identity(self.flow)


def begin_at_the_identity(flow: blocks.Flow) -> None:
    """Set what each MADE gives at first to zero."""
    for transform in flow.transforms:
        last = transform.made.layers[-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
