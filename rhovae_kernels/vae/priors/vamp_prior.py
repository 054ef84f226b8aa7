"""`VampPrior`: a mixture of posteriors at learned pseudo-inputs."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor, nn

from rhovae_kernels.distributions.draws import rsample_of, source
from rhovae_kernels.distributions.mixture import UniformMixture
from rhovae_kernels.vae.nets import BATCH_NORMS
from rhovae_kernels.vae.parts import positive_integers
from rhovae_kernels.vae.priors.base import Prior

if TYPE_CHECKING:
    from rhovae_kernels.vae.posteriors import Posterior  # which imports this module


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
        start = torch.rand(self.components, *input_shape)
        start = start.to(self.loc.device, next(encoder.parameters(), self.loc).dtype)
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
        if generator is None:
            return self().sample((n,))
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

    def rsample(self, sample_shape: Any = (), generator: Generator | None = None) -> Tensor:
        shape = self._extended_shape(sample_shape)[:-1]
        chosen = torch.randint(len(self.h), shape, device=self.h.device, **source(generator))
        return rsample_of(self.posterior(self.h[chosen]), (), generator)

    def sample(self, sample_shape: Any = (), generator: Generator | None = None) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape, generator)


@contextlib.contextmanager
def _drawing_from(generator: Generator, device: torch.device) -> Iterator[None]:
    """A block whose draws, which take no generator, follow from `generator`."""
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(seed))
        yield
