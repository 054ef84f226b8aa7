"""`NADE`: a decoder of any data, one dimension after another, by a MADE."""

import math
from collections.abc import Sequence
from typing import ClassVar, cast

import torch
from torch import Generator, Tensor, nn
from torch import distributions as D

from rhovae_kernels.distributions.draws import source, standard_normal
from rhovae_kernels.nn.made import MADE
from rhovae_kernels.python_ref.made_inverse import SCALES
from rhovae_kernels.python_ref.precision import compute_dtype
from rhovae_kernels.vae.decoders.ordered import Ordered
from rhovae_kernels.vae.parts import positive_integers
from rhovae_kernels.vae.precision import as_stored

# Of log 1/σ, as `nn.MAF` has it.
SCALE, BOUND = "softclip", math.log(1000)


class NADE(Ordered):
    """p(x|z) = Π_i p(x_i | those before it, z) of data of any shape, by a MADE with context z.

    A density takes one pass through the network; so does a draw, in which each hidden unit is
    computed once, when its last input is drawn. Of K orders each has a MADE of its own, and p(x|z)
    is their ensemble, see `Ordered`; a draw then takes K passes, of which one is kept.

    Built with latent=0 it has no z: a density by itself.

    Args:
        hidden: sizes of the hidden layers, each a unit at least for each dimension of the data.
        orders: one name, or several names and permutations, see `decoders.order_of`.
        likelihood: "bernoulli", of values 0 and 1 (of grey values in [0, 1] the cross-entropy, as
            `Bernoulli`). "gaussian", of real values, of mean 0 and variance 1 at best:
            x_i = μ_i + σ_i ε_i, |log σ_i| < log 1000.
        activation: "elu", "relu", "tanh" or "sigmoid".

    Raises:
        ValueError: a size is no positive integer, an order, the likelihood or the activation
            unknown; once it is built, a layer too small, or an order that does not fit the data.

    Source:
        Larochelle and Murray, 2011, "The neural autoregressive distribution estimator",
        http://homepages.inf.ed.ac.uk/imurray2/pub/11nade/. The network in place of theirs: see
        `MADE`; ensembles over orders: see `OrderlessNADE`.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> decoder = rk.decoders.NADE(hidden=(32,), orders=["raster", "spiral"])
        >>> decoder.build(None, 0, (1, 3, 3))
        >>> every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 9).view(-1, 1, 3, 3)
        >>> round(decoder.eval().log_prob(every).exp().sum().item(), 4)
        1.0
    """

    LIKELIHOODS: ClassVar[dict[str, D.constraints.Constraint]] = {
        "bernoulli": D.constraints.unit_interval,
        "gaussian": D.constraints.real,
    }

    networks: Sequence[MADE]

    def __init__(
        self,
        hidden: Sequence[int] = (1024,),
        orders: str | Sequence[str | Sequence[int]] = "raster",
        likelihood: str = "bernoulli",
        activation: str = "elu",
    ) -> None:
        super().__init__(orders)
        self.hidden = positive_integers("hidden", hidden)
        if likelihood not in self.LIKELIHOODS:
            known = ", ".join(self.LIKELIHOODS)
            raise ValueError(f"likelihood is {likelihood!r}; it must be one of {known}")
        self.likelihood, self.activation = likelihood, activation
        self.support = self.LIKELIHOODS[likelihood]

    def make_networks(self) -> None:
        d = math.prod(self.input_shape)
        for i, size in enumerate(self.hidden):
            if size < d:
                raise ValueError(
                    f"hidden[{i}] is {size}; {d} at least is wanted, a unit for each dimension of "
                    f"data of shape {self.input_shape}"
                )
        heads = 1 if self.likelihood == "bernoulli" else 2
        networks = nn.ModuleList(
            MADE(d, self.hidden, heads, self.latent, self.activation, order=order.tolist())
            for order in self.permutations
        )
        self.networks = cast(Sequence[MADE], networks)

    def conditionals_in(self, k: int, x: Tensor, z: Tensor | None) -> D.Distribution:
        made = self.networks[k]
        out = made(as_stored(x.flatten(1), made), _context(z, made))
        heads = out.to(compute_dtype(out.dtype)).unflatten(1, self.input_shape)
        if self.likelihood == "bernoulli":
            return D.Bernoulli(logits=heads[..., 0], validate_args=False)
        # u = a(s) x + m is standard normal.
        m, s = heads.unbind(-1)
        scale = torch.exp(-SCALES[SCALE][0](s, BOUND))
        return D.Normal(-m * scale, scale, validate_args=False)

    def sample_rows(self, n: int, z: Tensor | None, generator: Generator | None) -> Tensor:
        draws = [self._sample_in(k, n, z, generator) for k in range(len(self.orders))]
        if len(draws) == 1:
            return draws[0]
        of_row = self.draw_orders(n, draws[0].device, generator)
        of_row = of_row.view(1, n, *(1 for _ in self.input_shape)).expand(1, *draws[0].shape)
        return torch.stack(draws).gather(0, of_row)[0]

    def _sample_in(self, k: int, n: int, z: Tensor | None, generator: Generator | None) -> Tensor:
        made = self.networks[k]
        weight, context = made.layers[0].weight, _context(z, made)
        shape, dtype = torch.Size((n, made.features)), compute_dtype(weight.dtype)
        if self.likelihood == "bernoulli":
            u = torch.rand(shape, dtype=dtype, device=weight.device, **source(generator))
            x, _ = made.draw(u, context)
        else:
            noise = standard_normal(shape, dtype, weight.device, generator)
            x, _ = made.inverse(noise, context, SCALE, BOUND)
        return x.unflatten(1, self.input_shape)


def _context(z: Tensor | None, made: MADE) -> Tensor | None:
    return None if z is None else as_stored(z, made)
