"""`OrderlessNADE`: one network for every order of the dimensions."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn
from torch import distributions as D

from rhovae_kernels.distributions.draws import source
from rhovae_kernels.nn.derived import Derived
from rhovae_kernels.python_ref.precision import compute_dtype
from rhovae_kernels.vae.decoders.ordered import Ordered
from rhovae_kernels.vae.parts import positive_integers
from rhovae_kernels.vae.precision import as_stored


class OrderlessNADE(Derived, Ordered):
    """p(x_i | x_seen, z) of Bernoulli variables, by one network, whichever dimensions are seen.

    The network reads (x ⊙ seen, seen, z) and gives a logit for each dimension. In training mode
    `log_prob` is an estimate of the mean of log p(x|z) over all orders, without bias: of a random
    order the first i dimensions are seen, i uniform in 0 … D−1, and the others' log probabilities
    summed, times D/(D−i). In evaluation mode it is the exact density of the ensemble of `orders`,
    see `Ordered`: D passes through the network for each, and D for a draw. For data of tens of
    dimensions, not thousands.

    Built with latent=0 it has no z: a density by itself.

    Args:
        hidden: sizes of the hidden layers, of ReLUs.
        orders: those of densities and draws: one name, or several names and permutations, see
            `decoders.order_of`.

    Raises:
        ValueError: a size is no positive integer, or an order unknown; once it is built, an order
            that does not fit the data.

    Source:
        Uria, Murray and Larochelle, 2014, "A deep and tractable density estimator",
        https://arxiv.org/abs/1310.1757.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> decoder = rk.decoders.OrderlessNADE(hidden=(16,), orders=["raster", "random-1"])
        >>> decoder.build(None, 0, (4,))
        >>> every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)
        >>> round(decoder.eval().log_prob(every).exp().sum().item(), 4)
        1.0
    """

    support = D.constraints.unit_interval
    steps: Tensor

    def __init__(
        self,
        hidden: Sequence[int] = (512, 512),
        orders: str | Sequence[str | Sequence[int]] = "raster",
    ) -> None:
        super().__init__(orders)
        self.hidden = positive_integers("hidden", hidden)

    def make_networks(self) -> None:
        d = math.prod(self.input_shape)
        sizes = (2 * d + self.latent, *self.hidden)
        layers = [
            layer
            for read, size in itertools.pairwise(sizes)
            for layer in (nn.Linear(read, size), nn.ReLU())
        ]
        self.network = nn.Sequential(*layers, nn.Linear(sizes[-1], d))
        # steps[k,i] is the dimension at place i of order k.
        self.derive(steps=torch.stack(self.permutations))

    def logits(self, x: Tensor, seen: Tensor, z: Tensor | None) -> Tensor:
        """The logit of each dimension given those seen, (…,D): x (…,D), seen likewise, bool."""
        read = [torch.where(seen, x, 0.0), seen.to(x.dtype)]
        if z is not None:
            read.append(z.expand(*x.shape[:-1], z.shape[-1]))
        out = self.network(as_stored(torch.cat(read, -1), self.network))
        return out.to(compute_dtype(out.dtype))

    def conditionals_in(self, k: int, x: Tensor, z: Tensor | None) -> D.Distribution:
        """One pass for each dimension."""
        flat, order = x.flatten(1), self.steps[k]
        place = order.argsort()
        logits = [
            self.logits(flat, (place < i).expand(flat.shape), z).index_select(1, order[i : i + 1])
            for i in range(len(order))
        ]
        of_x = torch.cat(logits, 1).index_select(1, place).unflatten(1, self.input_shape)
        return D.Bernoulli(logits=of_x, validate_args=False)

    def log_prob_of_rows(self, x: Tensor, z: Tensor | None) -> Tensor:
        if not self.training:
            return super().log_prob_of_rows(x, z)
        flat = x.flatten(1)
        n, d = flat.shape
        place = torch.rand(n, d, device=x.device).argsort(1)
        count = torch.randint(d, (n, 1), device=x.device)
        seen = place < count
        p = D.Bernoulli(logits=self.logits(flat, seen, z), validate_args=False)
        return torch.where(seen, 0.0, p.log_prob(flat)).sum(1) * (d / (d - count[:, 0]))

    def sample_rows(self, n: int, z: Tensor | None, generator: Generator | None) -> Tensor:
        weight = next(self.network.parameters())
        order = self.steps[self.draw_orders(n, weight.device, generator)]
        dtype = compute_dtype(weight.dtype)
        u = torch.rand(order.shape, dtype=dtype, device=weight.device, **source(generator))
        x, seen = torch.zeros_like(u), torch.zeros_like(order, dtype=torch.bool)
        for i in range(order.shape[1]):
            at = order[:, i : i + 1]
            logit = self.logits(x, seen, z).gather(1, at)
            x = x.scatter(1, at, (u.gather(1, at) < torch.sigmoid(logit)).to(dtype))
            seen = seen.scatter(1, at, True)
        return x.unflatten(1, self.input_shape)
