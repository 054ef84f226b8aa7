"""Priors p(z): modules that return a distribution over the latent code."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from rhovae_kernels import nn as blocks
from rhovae_kernels.distributions.markov import AR1Normal
from rhovae_kernels.distributions.mixture import UniformMixture
from rhovae_kernels.legacy import takes_old_keywords
from rhovae_kernels.nn.derived import Derived
from rhovae_kernels.ops import ar1_reparam
from rhovae_kernels.vae.nets import BATCH_NORMS
from rhovae_kernels.vae.parts import Part, positive_integers

if TYPE_CHECKING:
    from rhovae_kernels.vae.posteriors import Posterior  # which imports this module


class Prior(Derived, Part):
    """A distribution p(z) over `latent` dimensions."""

    latent: int

    def __init__(self, latent: int) -> None:
        super().__init__()
        (self.latent,) = positive_integers("latent", (latent,))
        # Gives `forward` and `sample` the module's device and type.
        self.derive(loc=torch.zeros(latent, device="cpu"))

    loc: Tensor

    def bind(
        self, encoder: nn.Module, posterior: "Posterior", input_shape: tuple[int, ...]
    ) -> None:
        """Take what makes q(z|x), where p(z) is made of it; a VAE calls it.

        Args:
            encoder: from data (B, *input_shape) to features.
            posterior: from features to q(z|x).
            input_shape: shape of one datum.

        Raises:
            ValueError: the prior cannot be made of them.
        """

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

    flow: blocks.Flow

    def forward(self) -> blocks.NormalizingFlow:
        return self.flow()

    @torch.no_grad()
    def sample(self, n: int, generator: Generator | None = None) -> Tensor:
        return self.to_representation(self._noise(n, generator))

    def to_generation(self, z: Tensor) -> Tensor:
        return self.flow.to_noise(z)[0]

    def to_representation(self, z0: Tensor) -> Tensor:
        return self.flow.to_data(z0)[0]


class RealNVP(_Flow):
    """The decoupled prior: p(z) = N(g(z); 0, I) |det ∂g/∂z|, g a flow of couplings learned with
    the VAE; N(0, I) at first.

    z lives in the representation space, where posteriors and regularizers act; z0 = g(z) in the
    generation space, where samples begin.

    Args:
        latent: dimensions of the code.
        transforms: how many couplings.
        hidden_features: widths of the network of each.

    Source:
        Bhalodia, Lee and Elhabian, 2019, "dpVAEs: Fixing sample generation for regularized VAEs",
        https://arxiv.org/abs/1911.10506, section 4.2; 6 couplings of 64×2.

    Example:
        >>> import torch
        >>> prior = RealNVP(2)
        >>> prior.log_prob(torch.zeros(1, 2)).detach()
        tensor([-1.8379])
    """

    @takes_old_keywords("priors.RealNVP")
    def __init__(
        self, latent: int, transforms: int = 6, hidden_features: tuple[int, ...] = (64, 64)
    ) -> None:
        super().__init__(latent)
        (self.transforms,) = positive_integers("transforms", (transforms,))
        self.hidden_features = positive_integers("hidden_features", hidden_features)
        self.flow = blocks.RealNVP(latent, transforms, self.hidden_features)


class MAF(_Flow):
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
        Thickstun, "Expressive variational autoencoders" (lecture notes), which sets it against an
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
        for transform in self.flow.transforms:
            last = transform.made.layers[-1]
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)


class VampPrior(Prior):
    """A mixture of posteriors: p(z) = (1/K) Σ_k q(z|u_k), the K pseudo-inputs u_k learned.

    A VAE binds it to its encoder and posterior, which make q(z|u_k) of `pseudo_inputs`,
    (K, *input_shape). These are drawn from U(0, 1) at first, the range of pixels; `initialize` puts
    data there. They are numbers without bounds, and may leave the range of the data.

    As p(z) is made of encoder and posterior, a loss that holds log p(z) reaches these twice: by
    q(z|x), and through the prior, which draws q(z|u_k) to where the codes are. A pass of the prior
    takes one of the encoder with K data; a density of n codes, n·K of the posterior, each of which
    in an `IAF` is one of its sequential direction.

    An encoder with batch normalization is refused: q(z|u_k) would depend on the other
    pseudo-inputs, and the running statistics would mix them with data.

    Args:
        latent: dimensions of the code.
        components: K, how many pseudo-inputs.

    Raises:
        ValueError: a size is no positive integer; in a VAE, the encoder holds batch normalization.
        RuntimeError: in use, it was not bound.

    Source:
        Tomczak, Welling, "VAE with a VampPrior" (2018), https://arxiv.org/abs/1705.07120. That
        pseudo-inputs have no bounds, and their first values, are ours.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> vae = rk.VAE(rk.nets.MLP((1, 8, 8)), rk.posteriors.Diagonal(2), VampPrior(2, 5),
        ...              rk.decoders.Bernoulli())
        >>> vae.prior.initialize(torch.rand(5, 1, 8, 8))
        >>> vae.prior().components.batch_shape, vae.sample(3).shape
        (torch.Size([5]), torch.Size([3, 1, 8, 8]))
    """

    pseudo_inputs: Tensor

    def __init__(self, latent: int, components: int) -> None:
        super().__init__(latent)
        (self.components,) = positive_integers("components", (components,))
        # In a tuple they are no submodules: their parameters belong to the VAE.
        self._bound: tuple[nn.Module, Posterior] | None = None

    def bind(
        self, encoder: nn.Module, posterior: "Posterior", input_shape: tuple[int, ...]
    ) -> None:
        for module in encoder.modules():
            if isinstance(module, BATCH_NORMS):
                raise ValueError(
                    f"encoder holds {type(module).__name__}, whose statistics of the batch make "
                    "each q(z|u) of VampPrior depend on all pseudo-inputs; one without batch "
                    "normalization is wanted"
                )
        self._bound = encoder, posterior
        start = torch.rand(self.components, *input_shape).to(self.loc)
        self.pseudo_inputs = nn.Parameter(start)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Begin at these data, of which a copy is taken.

        Args:
            x: (K, *input_shape), finite, of the type of the parameters.

        Raises:
            ValueError: x is of another shape or type, or not finite.
            RuntimeError: the prior was not bound.
        """
        self._parts()
        wanted = self.pseudo_inputs
        if x.shape != wanted.shape or x.dtype != wanted.dtype:
            raise ValueError(
                f"x is of shape {tuple(x.shape)} and {x.dtype}; pseudo-inputs are of shape "
                f"{tuple(wanted.shape)} and {wanted.dtype}"
            )
        if not x.isfinite().all():
            raise ValueError("x holds NaN or infinity; pseudo-inputs must be finite")
        wanted.copy_(x)

    def forward(self) -> UniformMixture:
        encoder, posterior = self._parts()
        return _Aggregate(posterior, encoder(self.pseudo_inputs))

    @torch.no_grad()
    def sample(self, n: int, generator: Generator | None = None) -> Tensor:
        with _drawing_from(generator, self.loc.device):
            return self().sample((n,))

    def _parts(self) -> "tuple[nn.Module, Posterior]":
        if self._bound is None:
            raise RuntimeError(
                "this VampPrior has no encoder and posterior: make a VAE of it, or call bind"
            )
        return self._bound


class _Aggregate(UniformMixture):
    """The mixture of q(z|h_k), each draw made by its own component alone."""

    def __init__(self, posterior: "Posterior", h: Tensor) -> None:
        self.posterior, self.h = posterior, h
        super().__init__(posterior(h), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> UniformMixture:
        new = self._get_checked_instance(_Aggregate, _instance)
        new.posterior, new.h = self.posterior, self.h
        return super().expand(batch_shape, new)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)[:-1]
        chosen = torch.randint(len(self.h), shape, device=self.h.device)
        return self.posterior(self.h[chosen]).rsample()

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.rsample(sample_shape)


@contextlib.contextmanager
def _drawing_from(generator: Generator | None, device: torch.device) -> Iterator[None]:
    """A block whose draws, which take no generator, follow from `generator` where it is given."""
    if generator is None:
        yield
        return
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(seed))
        yield
