"""`Autoregressive`: a decoder in which each dimension depends on those before it."""

import math
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn
from torch import distributions as D

from rhovae_kernels.python_ref.precision import upcast
from rhovae_kernels.vae.decoders.base import Decoder
from rhovae_kernels.vae.parts import Part


class Autoregressive(Decoder):
    """p(x|z) = Π_i p(x_i | x_<i, z), in one pass for a datum that is there, in sequence for a draw.

    With latent=0 there is no z: `build(None, 0, input_shape)` makes the network, and z is left out
    of every call. A subclass makes its network in `make`, and says what `conditionals` and
    `sample_rows` are.

    Attributes:
        input_shape: shape of one datum, known once it is built.
        latent: dimensions of z, likewise.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> class Chain(rk.decoders.Autoregressive):  # each bit given z and the one before it
        ...     support = torch.distributions.constraints.unit_interval
        ...     def make(self):
        ...         self.logit = torch.nn.Linear(1 + self.latent, 1)
        ...     def conditionals(self, x, z):
        ...         before = torch.nn.functional.pad(x, (1, -1))[..., None]
        ...         given = torch.cat([before, z[:, None].expand(-1, x.shape[1], -1)], -1)
        ...         return torch.distributions.Bernoulli(logits=self.logit(given)[..., 0])
        ...     def sample_rows(self, n, z, generator):
        ...         x = torch.zeros(n, *self.input_shape)
        ...         for i in range(x.shape[1]):
        ...             p = self.conditionals(x, z).probs[:, i]
        ...             x[:, i] = torch.bernoulli(p, generator=generator)
        ...         return x
        >>> vae = rk.VAE(rk.nets.MLP((6,)), rk.posteriors.Diagonal(2), rk.priors.StandardNormal(2),
        ...              Chain())
        >>> vae(torch.zeros(5, 6)).distortion.shape, vae.sample(3).shape
        (torch.Size([5]), torch.Size([3, 6]))
    """

    autoregressive = True
    input_shape: tuple[int, ...]
    latent: int

    def __init__(self) -> None:
        super().__init__()
        self.input_shape, self.latent = (), 0

    def arguments(self) -> dict[str, Any]:
        return Part.arguments(self)

    def build(
        self, encoder: nn.Module | None, latent: int, input_shape: tuple[int, ...] = ()
    ) -> None:
        """Make the network.

        Args:
            encoder: of no use here.
            latent: dimensions of z; 0 for none.
            input_shape: shape of one datum.

        Raises:
            ValueError: the decoder does not take data of this shape.
        """
        self.input_shape, self.latent = tuple(input_shape), latent
        self.make()

    def make(self) -> None:
        """Make the network for `self.latent` and `self.input_shape`.

        Raises:
            ValueError: it does not take data of this shape.
        """
        raise NotImplementedError

    def conditionals(self, x: Tensor, z: Tensor | None) -> D.Distribution:
        """p(x_i | x_<i, z) of every dimension, of batch shape (N, *input_shape).

        Args:
            x: (N, *input_shape).
            z: (N, latent); None where there is none.
        """
        raise NotImplementedError

    def sample_rows(self, n: int, z: Tensor | None, generator: Generator | None) -> Tensor:
        """A draw for each of n rows, (n, *input_shape); z (n, latent), or None."""
        raise NotImplementedError

    def forward(self, z: Tensor | None = None) -> "Conditional":
        """p(x|z), of batch shape (…) and event shape (*input_shape), for z (…, latent)."""
        self._check_built(z)
        return Conditional(self, z)

    def log_prob(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """log p(x|z) in nats, (…): x (*input_shape), z (latent,), leading dimensions broadcast.

        Raises:
            ValueError: x is of another shape than the data that the decoder was built for.
        """
        self._check_built(z)
        self._check_shape(x)
        (x,) = upcast(x)
        rows = x.shape[: x.dim() - len(self.input_shape)]
        if z is not None:
            rows = torch.broadcast_shapes(rows, z.shape[:-1])
            z = z.expand(*rows, z.shape[-1]).reshape(-1, z.shape[-1])
        flat = x.expand(*rows, *self.input_shape).reshape(-1, *self.input_shape)
        return self.log_prob_of_rows(flat, z).reshape(rows)

    def log_prob_of_rows(self, x: Tensor, z: Tensor | None) -> Tensor:
        """log p(x|z), (N,): x (N, *input_shape), z (N, latent), or None."""
        return self.conditionals(x, z).log_prob(x).flatten(1).sum(1)

    def mean(self, z: Tensor) -> Tensor:
        """There is none in closed form.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"{type(self).__name__} has no mean in closed form: each dimension depends on those "
            "drawn before it; draw from it"
        )

    @torch.no_grad()
    def draw(self, z: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        """A draw from p(x|z), (…, *input_shape), from `generator`; without z, one from p(x)."""
        self._check_built(z)
        rows = torch.Size() if z is None else z.shape[:-1]
        flat = None if z is None else z.reshape(-1, z.shape[-1])
        drawn = self.sample_rows(math.prod(rows), flat, generator)
        return drawn.reshape(*rows, *self.input_shape)

    def _check_built(self, z: Tensor | None) -> None:
        if not self.input_shape:
            raise RuntimeError(
                f"this {type(self).__name__} has no network: make a VAE of it, or call "
                "build(None, latent, input_shape)"
            )
        if (z is None) != (self.latent == 0) or (z is not None and z.shape[-1:] != (self.latent,)):
            got = "left out" if z is None else f"of shape {tuple(z.shape)}"
            wanted = f"of shape (…, {self.latent})" if self.latent else "left out"
            raise ValueError(f"z is {got}; it must be {wanted}")

    def _check_shape(self, x: Tensor) -> None:
        dims = len(self.input_shape)
        if x.dim() < dims or x.shape[x.dim() - dims :] != self.input_shape:
            raise ValueError(
                f"x is of shape {tuple(x.shape)}; p(x|z) is of data of shape {self.input_shape}"
            )


class Conditional(D.Distribution):
    """p(x|z) of an autoregressive decoder: densities and draws, and no mean in closed form.

    Args:
        decoder: the decoder.
        z: (…, latent); None where the decoder takes none.
    """

    arg_constraints: ClassVar[dict[str, D.constraints.Constraint]] = {}
    has_rsample = False

    def __init__(self, decoder: Autoregressive, z: Tensor | None) -> None:
        self.decoder, self.z = decoder, z
        batch = torch.Size() if z is None else z.shape[:-1]
        super().__init__(batch, torch.Size(decoder.input_shape), validate_args=False)

    @property
    def support(self) -> D.constraints.Constraint:
        return D.constraints.independent(self.decoder.support, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Conditional":
        batch = torch.Size(batch_shape)
        if self.z is None:
            if batch:
                raise ValueError(
                    f"batch_shape is {tuple(batch)}; without z there is one distribution"
                )
            return self
        return Conditional(self.decoder, self.z.expand(*batch, self.z.shape[-1]))

    def log_prob(self, value: Tensor) -> Tensor:
        return self.decoder.log_prob(value, self.z)

    @torch.no_grad()
    def sample(self, sample_shape: Any = (), generator: Generator | None = None) -> Tensor:
        """Draws, (*sample_shape, …, *input_shape), from `generator`."""
        shape = torch.Size(sample_shape) + self.batch_shape
        z = None if self.z is None else self.z.expand(*shape, -1).reshape(-1, self.z.shape[-1])
        drawn = self.decoder.sample_rows(math.prod(shape), z, generator)
        return drawn.reshape(*shape, *self.event_shape)
