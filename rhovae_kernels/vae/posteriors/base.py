"""What a posterior is: a module from an encoder's features to q(z|x)."""

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.distributions import Distribution, Normal, kl_divergence

from rhovae_kernels.python_ref.precision import compute_dtype
from rhovae_kernels.vae.parts import Part, positive_integers
from rhovae_kernels.vae.priors import Prior


class Posterior(Part):
    """A distribution q(z|h) over `latent` dimensions, its parameters one linear layer of h.

    A VAE calls `build` with its encoder's number of features, and `bind` with its prior. A subclass
    says what `numbers` and `forward` are.

    Args:
        latent: dimensions of the code.

    Attributes:
        sequential: whether a code is a sequence (T, latent), one step of it for each of the data.
        head: the linear layer, once it is built.

    Raises:
        ValueError: latent is no positive integer.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> class Laplace(rk.posteriors.Posterior):
        ...     @property
        ...     def numbers(self):  # of the location, and of the logarithm of the scale
        ...         return self.latent, self.latent
        ...     def forward(self, h):
        ...         loc, log_scale = self.parameters_of(h)
        ...         q = torch.distributions.Laplace(loc, log_scale.exp())
        ...         return torch.distributions.Independent(q, 1)
        >>> vae = rk.VAE(rk.nets.MLP((3,)), Laplace(2), rk.priors.StandardNormal(2),
        ...              rk.decoders.Gaussian())
        >>> vae(torch.zeros(5, 3)).rate.shape, vae.posterior_for(torch.zeros(5, 3)).base_dist
        (torch.Size([5]), Laplace(loc: torch.Size([5, 2]), scale: torch.Size([5, 2])))
    """

    latent: int
    head: nn.Linear
    sequential: ClassVar[bool] = False

    def __init__(self, latent: int) -> None:
        super().__init__()
        (self.latent,) = positive_integers("latent", (latent,))

    @property
    def numbers(self) -> tuple[int, ...]:
        """How many numbers of the head make up each parameter of the distribution."""
        raise NotImplementedError

    def build(self, features: int) -> None:
        """Make the layer that gives the parameters."""
        self.head = nn.Linear(features, sum(self.numbers))

    def bind(self, prior: Prior) -> None:
        """Take the prior, where q(z|x) is made of it; a VAE calls it."""

    def parameters_of(self, h: Tensor) -> tuple[Tensor, ...]:
        """The distribution's parameters, in float32 at least, for features h (B, features)."""
        out = self.head(h)
        return out.to(compute_dtype(out.dtype)).split(self.numbers, -1)

    def forward(self, h: Any) -> Distribution:
        """q(z|h), of batch shape (B,) and event shape (latent,)."""
        raise NotImplementedError

    @property
    def has_marginals(self) -> bool:
        """Whether `marginals` are known in closed form."""
        return type(self).marginals is not Posterior.marginals

    def marginals(self, h: Tensor) -> Normal:
        """q(z_k|h) of each dimension by itself, of batch shape (B, latent).

        Raises:
            ValueError: no closed form of them is known.
        """
        raise ValueError(f"{type(self).__name__} has no marginals in closed form")

    def log_prior(self, z: Tensor, q: Distribution, prior: Prior) -> Tensor:
        """log p(z) in nats, (…), of samples z of q, over what q is a distribution of."""
        return prior.log_prob(z)

    def rsample_and_kl(self, h: Any, prior: Prior) -> tuple[Tensor, Tensor]:
        """A reparametrized sample and the KL divergence to the prior.

        KL is in closed form where PyTorch or this package knows one, else −entropy(q) − log p(z) at
        the sample, or log q(z) − log p(z) where q has no entropy in closed form. All constants are
        in it.

        Args:
            h: features, (B, features); of sequences those of each step, see `nets.Steps`.
            prior: the prior.

        Returns:
            z (B, latent), or (B, T, latent), and kl (B,) in nats.
        """
        q, p = self(h), prior()
        z = q.rsample()
        try:
            return z, kl_divergence(q, p)
        except NotImplementedError:
            try:
                log_q = -q.entropy()
            except NotImplementedError:
                log_q = q.log_prob(z)
            return z, log_q - p.log_prob(z)
