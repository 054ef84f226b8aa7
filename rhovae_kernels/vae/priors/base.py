"""What a prior is: a module that returns a distribution over the latent code."""

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.distributions import Distribution, Normal

from rhovae_kernels.distributions.draws import standard_normal
from rhovae_kernels.nn.derived import Derived
from rhovae_kernels.vae.parts import Part, positive_integers

if TYPE_CHECKING:
    from rhovae_kernels.vae.posteriors import Posterior  # which imports this module


class Prior(Derived, Part):
    """A distribution p(z) over `latent` dimensions.

    A subclass says what `forward` and `sample` are.

    Args:
        latent: dimensions of the code.

    Attributes:
        loc: zeros (latent,), of the device and type that the module is of.
        sequential: whether a code is a sequence (T, latent); `over` then gives it for any T.

    Raises:
        ValueError: latent is no positive integer.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> class Wide(rk.priors.Prior):  # N(0, 9 I)
        ...     def forward(self):
        ...         p = torch.distributions.Normal(self.loc, torch.full_like(self.loc, 3.0))
        ...         return torch.distributions.Independent(p, 1)
        ...     def sample(self, n, generator=None):
        ...         like = {"dtype": self.loc.dtype, "device": self.loc.device}
        ...         return 3 * torch.randn(n, self.latent, generator=generator, **like)
        >>> vae = rk.VAE(rk.nets.MLP((3,)), rk.posteriors.AR1(2), Wide(2),
        ...              rk.decoders.Gaussian())
        >>> vae(torch.zeros(5, 3)).rate.shape, vae.sample(4).shape
        (torch.Size([5]), torch.Size([4, 3]))
    """

    latent: int
    sequential: ClassVar[bool] = False

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

    def marginals(self) -> Normal:
        """p(z_k) of each dimension by itself, of batch shape (latent,).

        Raises:
            ValueError: no closed form of them is known.
        """
        raise ValueError(f"{type(self).__name__} has no marginals in closed form")

    def over(self, steps: int, own: Tensor | None = None) -> Distribution:
        """p(z) over `steps` steps, of event shape (steps, latent), of a prior of sequences.

        Args:
            steps: how many.
            own: whether a step is a sequence's own, (…, steps); all where left out.
        """
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
        # The form that takes a generator has no dynamic shapes.
        shape = torch.Size((n, self.latent))
        return standard_normal(shape, self.loc.dtype, self.loc.device, generator)
