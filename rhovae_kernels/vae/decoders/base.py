"""What a decoder is: a module from a latent code to p(x|z)."""

from typing import Any, ClassVar

from torch import Generator, Tensor, nn
from torch import distributions as D

from rhovae_kernels.python_ref.precision import compute_dtype, upcast
from rhovae_kernels.vae.nets import Encoder
from rhovae_kernels.vae.parts import Part
from rhovae_kernels.vae.precision import as_stored


class Decoder(Part):
    """A distribution p(x|z) over data, each dimension independent given z.

    Args:
        net: any module from (N, latent) to (N, *data shape), raw outputs; None for the encoder's
            mirror image, which a VAE asks for by `build`.

    Attributes:
        support: what values a dimension of x can have.
        sequential: whether data and codes are sequences, of as many steps.
        autoregressive: whether a dimension depends on those before it: p(x|z) then has draws and
            no mean in closed form.
        footprint: numbers that the density holds in memory at once for each number of a datum,
            about: how many data `evaluate` takes at a time goes by it.

    A subclass says what `support`, `per_dimension` and `draw` are.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> class Poisson(rk.decoders.Decoder):
        ...     support = torch.distributions.constraints.nonnegative_integer
        ...     def per_dimension(self, out):
        ...         return torch.distributions.Poisson(out.exp(), validate_args=False)
        ...     @torch.no_grad()
        ...     def draw(self, z, generator=None):
        ...         return torch.poisson(self.mean(z), generator=generator)
        >>> counts = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 1.0]])
        >>> vae = rk.VAE(rk.nets.MLP((3,)), rk.posteriors.Diagonal(2), rk.priors.StandardNormal(2),
        ...              Poisson())
        >>> vae(counts).distortion.shape, vae.sample(4, mode="draw").shape
        (torch.Size([2]), torch.Size([4, 3]))
    """

    net: nn.Module | None
    support: D.constraints.Constraint = D.constraints.real
    sequential: ClassVar[bool] = False
    autoregressive: ClassVar[bool] = False

    @property
    def footprint(self) -> int:
        """1: the outputs of the network alone."""
        return 1

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        self.net = net
        self._mirrors = net is None

    def arguments(self) -> dict[str, Any]:
        return {"net": None if self._mirrors else self.net}

    def build(
        self, encoder: nn.Module | None, latent: int, input_shape: tuple[int, ...] = ()
    ) -> None:
        """Mirror the encoder, where no network was given; a VAE calls it.

        Args:
            encoder: from data to features.
            latent: dimensions of z.
            input_shape: shape of one datum.

        Raises:
            ValueError: the encoder has no mirror image.
        """
        if self._mirrors:
            if not isinstance(encoder, Encoder):
                raise ValueError(
                    f"decoder has no network, and encoder is a {type(encoder).__name__}, of which "
                    f"no mirror image is known: give it one, {type(self).__name__}(net), from "
                    f"({latent},) to one datum"
                )
            self.net = encoder.mirror(latent)

    def outputs(self, z: Tensor) -> Tensor:
        """The network's outputs (…, *data shape), in float32 at least, for z (…, latent)."""
        if self.net is None:
            raise RuntimeError("this decoder has no network: give it one, or make a VAE of it")
        out = self.net(as_stored(z.reshape(-1, z.shape[-1]), self.net))
        return out.to(compute_dtype(out.dtype)).unflatten(0, z.shape[:-1])

    def forward(self, z: Tensor) -> D.Distribution:
        """p(x|z), of batch shape (…) and event shape (*data shape), for z (…, latent)."""
        out = self.outputs(z)
        data_dims = out.dim() - z.dim() + 1
        return D.Independent(self.per_dimension(out), data_dims, validate_args=False)

    def per_dimension(self, out: Tensor) -> D.Distribution:
        """The distribution of each dimension, given the network's outputs."""
        raise NotImplementedError

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z) in nats, (…): x (*data shape), z (latent,), leading dimensions broadcast.

        Raises:
            ValueError: x is of another shape than the network's outputs.
        """
        p = self(z)
        dims = len(p.event_shape)
        if x.dim() < dims or x.shape[x.dim() - dims :] != p.event_shape:
            raise ValueError(
                f"x is of shape {tuple(x.shape)}; p(x|z) is of data of shape {tuple(p.event_shape)}"
            )
        return p.log_prob(*upcast(x))

    def mean(self, z: Tensor) -> Tensor:
        """E[x|z], (…, *data shape)."""
        return self(z).mean

    def draw(self, z: Tensor, generator: Generator | None = None) -> Tensor:
        """A draw from p(x|z), (…, *data shape), from `generator`."""
        raise NotImplementedError
