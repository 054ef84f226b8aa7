"""`Ordered`: an autoregressive decoder with one or several orders of the dimensions."""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from torch import distributions as D

from rhovae_kernels.distributions.draws import source
from rhovae_kernels.vae.decoders.autoregressive import Autoregressive
from rhovae_kernels.vae.decoders.orders import check_orders, order_of


class Ordered(Autoregressive):
    """p(x|z) = (1/K) Σ_k p_k(x|z), p_k(x|z) = Π_i p(x_i | those before i in order k, z).

    In training mode `log_prob` is the mean over orders of log p_k(x|z), at most log p(x|z): each
    order is then trained as if there were no other. In evaluation mode it is log p(x|z). A
    subclass says what `make_networks`, `conditionals_in` and `sample_rows` are.

    Args:
        orders: one name, or several names and permutations, see `decoders.order_of`.

    Raises:
        ValueError: an order is unknown; once it is built, an order does not fit the data.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> class Chain(rk.decoders.Ordered):  # each bit given z and the one before it
        ...     support = torch.distributions.constraints.unit_interval
        ...     def make_networks(self):
        ...         logits = [torch.nn.Linear(1 + self.latent, 1) for _ in self.orders]
        ...         self.logits = torch.nn.ModuleList(logits)
        ...     def conditionals_in(self, k, x, z):
        ...         order, before = self.permutations[k], torch.zeros_like(x)
        ...         before[:, order[1:]] = x[:, order[:-1]]
        ...         z = z[:, None].expand(-1, x.shape[1], -1)
        ...         logits = self.logits[k](torch.cat([before[..., None], z], -1))[..., 0]
        ...         return torch.distributions.Bernoulli(logits=logits)
        ...     def sample_rows(self, n, z, generator):
        ...         x = torch.zeros(n, *self.input_shape)
        ...         of_rows = self.draw_orders(n, x.device, generator)
        ...         for k, order in enumerate(self.permutations):
        ...             own = of_rows == k
        ...             for i in order.tolist():
        ...                 p = self.conditionals_in(k, x[own], z[own]).probs[:, i]
        ...                 x[own, i] = torch.bernoulli(p, generator=generator)
        ...         return x
        >>> decoder = Chain(["raster", (2, 1, 0)])
        >>> vae = rk.VAE(rk.nets.MLP((3,)), rk.posteriors.Diagonal(2), rk.priors.StandardNormal(2),
        ...              decoder)
        >>> vae.sample(5).shape
        torch.Size([5, 3])
        >>> every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
        >>> round(decoder.eval().log_prob(every, torch.zeros(8, 2)).exp().sum().item(), 4)
        1.0
    """

    permutations: list[Tensor]

    def __init__(self, orders: str | Sequence[str | Sequence[int]]) -> None:
        super().__init__()
        self.orders = check_orders(orders)

    def make(self) -> None:
        self.permutations = [order_of(order, self.input_shape) for order in self.orders]
        self.make_networks()

    def make_networks(self) -> None:
        """Make the networks, for `self.permutations`, `self.input_shape` and `self.latent`."""
        raise NotImplementedError

    def conditionals_in(self, k: int, x: Tensor, z: Tensor | None) -> D.Distribution:
        """p(x_i | those before i in order k, z), of batch shape (N, *input_shape)."""
        raise NotImplementedError

    def conditionals(self, x: Tensor, z: Tensor | None) -> D.Distribution:
        """Those of the one order.

        Raises:
            ValueError: there are several orders, which have none in common.
        """
        if len(self.orders) > 1:
            raise ValueError(
                f"there are {len(self.orders)} orders, each with conditionals of its own; "
                "`conditionals_in` gives those of one"
            )
        return self.conditionals_in(0, x, z)

    def log_prob_of_orders(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """log p_k(x|z) of each order, (K, N): x (N, *input_shape), z (N, latent), or None."""
        orders = range(len(self.orders))
        return torch.stack(
            [self.conditionals_in(k, x, z).log_prob(x).flatten(1).sum(1) for k in orders]
        )

    def log_prob_of_rows(self, x: Tensor, z: Tensor | None) -> Tensor:
        of_orders = self.log_prob_of_orders(x, z)
        return of_orders.mean(0) if self.training else log_mean_exp(of_orders)

    def draw_orders(self, n: int, device: torch.device, generator: Generator | None) -> Tensor:
        """An order for each of n rows, uniform: (n,), int64."""
        count = len(self.orders)
        return torch.randint(count, (n,), device=device, **source(generator))


def log_mean_exp(of_orders: Tensor) -> Tensor:
    """log (1/K) Σ_k exp(log p_k), (N,), of (K, N)."""
    return of_orders.logsumexp(0) - math.log(len(of_orders))
