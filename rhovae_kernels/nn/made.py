"""`MADE`: a network in which output i depends on the inputs before i alone."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from rhovae_kernels.legacy import takes_old_keywords
from rhovae_kernels.nn import orders
from rhovae_kernels.nn.degrees import even_degrees, given_degrees, refuse_unread
from rhovae_kernels.nn.masked_linear import MaskedLinear, positive_integer
from rhovae_kernels.ops import iaf_gate, made_inverse
from rhovae_kernels.ops.made_inverse import check_scale
from rhovae_kernels.python_ref.made_inverse import ACTIVATIONS, BERNOULLI, SCALES
from rhovae_kernels.python_ref.precision import compute_dtype, upcast

# In place: nothing else reads what a masked layer gives, and their derivatives take the result.
IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "elu": partial(nn.functional.elu, inplace=True),
    "tanh": torch.tanh_,
    "sigmoid": torch.sigmoid_,
}


class MADE(nn.Module):
    """A masked network: outputs (…,d,heads), those of dimension i functions of x_0 … x_{i−1}.

    h_0 = x; h_ℓ = act(W_ℓ h_{ℓ−1} + b_ℓ); out = W_{L+1} h_L + b_{L+1}; a context c adds C c to b_1

    Input i has degree i, hidden units have degrees 0 … d−2, and outputs of dimension i read hidden
    units of degree below i. Units lie in order of degree, so that every layer is a staircase: no
    mask exists, and its product is never formed. With a context there are units of degree −1,
    which read nothing else, and by which it reaches dimension 0 as well. The one degree of d = 1
    is −1 too.

    Args:
        features: dimensions d.
        hidden_features: sizes of the hidden layers, one at least; each must have a unit for every
            degree.
        heads: outputs a dimension.
        context: width of the context; 0 for none.
        activation: "relu", "elu", "tanh" or "sigmoid".
        reverse: whether dimension i depends on those after it, in place of those before it.
        degrees: of the hidden units, a sorted sequence for each layer, in place of degrees that are
            shared out evenly.
        order: a permutation, by which dimension order[i] depends on order[0] … order[i−1].

    Shapes: x (…,d); context (…,context), whose leading dimensions broadcast with those of x; out
    (…,d,heads).

    Raises:
        ValueError: a size is no positive integer or too small, an activation unknown; degrees that
            decrease, are out of range, or leave an output with no input to read; an order that is
            no permutation.

    Source:
        Germain, Gregor, Murray and Larochelle, 2015, "MADE: Masked autoencoder for distribution
        estimation", https://arxiv.org/abs/1502.03509, eqs. 8–13, with units sorted by degree. The
        context: Keng, 2017, as cited by `IAF`.

    Example:
        >>> import torch, rhovae_kernels as rk
        >>> made = rk.nn.MADE(4, (16, 16), heads=1)
        >>> jacobian = torch.autograd.functional.jacobian(lambda x: made(x)[..., 0], torch.ones(4))
        >>> (jacobian != 0).int()
        tensor([[0, 0, 0, 0],
                [1, 0, 0, 0],
                [1, 1, 0, 0],
                [1, 1, 1, 0]], dtype=torch.int32)
    """

    layers: Sequence[MaskedLinear]
    order: Tensor | None
    context_layer: Any

    @takes_old_keywords("nn.MADE")
    def __init__(
        self,
        features: int,
        hidden_features: Sequence[int] = (512, 512),
        heads: int = 2,
        context: int = 0,
        activation: str = "elu",
        reverse: bool = False,
        degrees: Sequence[Sequence[int]] | None = None,
        order: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        d = positive_integer("features", features)
        positive_integer("heads", heads)
        if context:
            positive_integer("context", context)
        sizes = [
            positive_integer(f"hidden_features[{i}]", size)
            for i, size in enumerate(hidden_features)
        ]
        if not sizes:
            raise ValueError("hidden_features is empty; one hidden layer at least is wanted")
        lowest = -1 if context or d == 1 else 0
        if degrees is None:
            of_hidden = even_degrees(sizes, lowest, d)
        else:
            of_hidden = given_degrees(degrees, sizes, lowest, d)
        of_inputs = torch.arange(d, device="cpu")
        of_outputs = of_inputs.repeat_interleave(heads)
        # A unit of degree k reads those of degree k and below; an output, of degree below its own.
        of_layers = [of_inputs, *of_hidden, of_outputs]
        prefixes = [
            torch.searchsorted(below, of_rows, right=layer < len(sizes))
            for layer, (below, of_rows) in enumerate(pairwise(of_layers))
        ]
        self._build(d, heads, context, activation, prefixes, [*sizes, heads * d])
        self.reverse = reverse
        if order is not None:
            self.order = torch.tensor(orders.permutation(order, d))
        refuse_unread(prefixes, d, heads)

    def _build(
        self,
        features: int,
        heads: int,
        context: int,
        activation: str,
        prefixes: Sequence[Tensor],
        sizes: Sequence[int],
    ) -> None:
        if activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(f"activation is {activation!r}; it must be one of {known}")
        self.features, self.heads, self.context = features, heads, context
        self.activation, self.reverse = activation, False
        shapes = zip((features, *sizes[:-1]), sizes, prefixes, strict=True)
        layers = nn.ModuleList(MaskedLinear(read, size, prefix) for read, size, prefix in shapes)
        self.layers = cast(Sequence[MaskedLinear], layers)
        self.context_layer = nn.Linear(context, sizes[0], bias=False) if context else None
        # Where dimensions are taken in an order of their own: its i-th is dimension order[i].
        self.register_buffer("order", None)

    @classmethod
    def from_masks(
        cls,
        weights: Sequence[Any],
        biases: Sequence[Any],
        masks: Sequence[Any],
        activation: str = "relu",
        context: int = 0,
        heads_first: bool = False,
    ) -> "MADE":
        """The MADE that computes what a network of another library does.

        The orders of dimensions and hidden units in which its masks are staircases are found, and
        folded into the weights, which are copied.

        Args:
            weights: tensors or arrays, shapes (H_1,d+context), (H_2,H_1), …, (heads·d,H_L).
            biases: one for each weight, (rows of it,), or None where there is none.
            masks: one for each weight, of its shape, true or not 0 where it counts.
            activation: as that of `MADE`.
            context: how many of the last columns of the first layer read a context; every unit must
                read all of them.
            heads_first: whether row h·d + i of the last layer is head h of dimension i, in place of
                row heads·i + h.

        Returns:
            A MADE with `made(x, c) == network(cat(x, c)).unflatten(-1, (d, heads))`.

        Raises:
            ValueError: shapes do not fit; a mask is a staircase under no order of units, or the
                network is autoregressive in no order of dimensions. The layer is named.

        Example:
            >>> import torch, rhovae_kernels as rk
            >>> masks = [torch.tensor([[0, 1], [0, 1]]), torch.tensor([[1, 1], [0, 0]])]
            >>> weights, biases = [torch.ones(2, 2), torch.ones(2, 2)], [torch.zeros(2), None]
            >>> made = rk.nn.MADE.from_masks(weights, biases, masks)
            >>> made.order, made(torch.tensor([3.0, 5.0]))[:, 0].tolist()
            (tensor([1, 0]), [10.0, 0.0])
        """
        weights = [_where_it_is(w) for w in weights]
        biases = [b if b is None else _where_it_is(b) for b in biases]
        masks = [_where_it_is(m).bool() for m in masks]
        d, heads = orders.check_network(weights, biases, masks, context)
        masks[0] = masks[0][:, :d]
        interleaved = torch.arange(heads * d, device=masks[-1].device)
        if heads_first:
            interleaved = interleaved.unflatten(0, (heads, d)).T.flatten()
        masks[-1] = masks[-1][interleaved]
        sorting = orders.sort_made(masks, heads)
        sorting.rows[-1] = interleaved[sorting.rows[-1]]

        made = cls.__new__(cls)
        nn.Module.__init__(made)
        sizes = [mask.shape[0] for mask in masks]
        with weights[0].device:
            made._build(d, heads, context, activation, sorting.prefixes, sizes)
        made.to(weights[0].dtype)
        of_dimensions = sorting.columns[0]
        if not torch.equal(of_dimensions, torch.arange(d, device=of_dimensions.device)):
            made.order = of_dimensions.to(weights[0].device)
        with torch.no_grad():
            for i, (layer, weight, bias) in enumerate(
                zip(made.layers, weights, biases, strict=True)
            ):
                layer.weight.copy_(sorting.fold(i, weight[:, :d] if i == 0 else weight))
                layer.bias.zero_() if bias is None else layer.bias.copy_(bias[sorting.rows[i]])
            if made.context_layer is not None:
                made.context_layer.weight.copy_(weights[0][sorting.rows[0], d:])
        return made

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The outputs (…,d,heads) for x (…,d)."""
        self.check("x", x, context)
        first, *others = self.layers
        act = IN_PLACE[self.activation]
        h = self.sort(x)
        h = first(h) if context is None else first.product(h, None) + self.offset(context)
        for layer in others:
            h = layer(act(h))
        return self.unsort(h.unflatten(-1, (self.features, self.heads)), -2)

    def call_and_log_det(
        self, x: Tensor, context: Tensor | None = None, scale: str = "gate", bound: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """The affine transform of which the two heads are (m, s), all dimensions at once.

        y = a(s) ⊙ x + t; log_det = Σ log a(s_i) = log|det ∂y/∂x|

        Args:
            x: shape (…,d).
            context: shape (…,context).
            scale: what a and t are: "gate", "exp", "softclip" or "softplus" of
                `rhovae_kernels.ops.made_inverse`.
            bound: as there.

        Returns:
            y (…,d), and log_det (…), float32 (float64 for float64).
        """
        self._check_heads(2, "an affine transform takes heads m and s")
        m, s = self(x, context).unbind(-1)
        if scale == "gate":
            return iaf_gate(x.expand(m.shape), m, s)
        check_scale(scale, bound)
        wide_x, m, s = upcast(x, m, s)
        log_a = SCALES[scale][0](s, bound)
        return (torch.exp(log_a) * wide_x + m).to(x.dtype), log_a.sum(-1)

    def inverse(
        self, y: Tensor, context: Tensor | None = None, scale: str = "gate", bound: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """What `call_and_log_det` takes y from, each hidden unit computed once.

        Of half-precision weights y may be in float32, and x then is too.

        Returns:
            x (…,d), and log|det ∂x/∂y| (…), float32 (float64 for float64).
        """
        self._check_heads(2, "an affine transform takes heads m and s")
        self.check("y", y, context)
        return self.in_turn(y, context, scale, bound)

    def draw(self, u: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Bernoulli variables whose logits are the one head s, each hidden unit computed once.

        x_i = [u_i < σ(s_i)], in turn; log p(x) = Σ log p(x_i | those before it)

        Args:
            u: uniforms, shape (…,d); for half-precision weights best in float32, since their own
                type is coarse. −inf makes an x_i 1, and +inf makes it 0.
            context: shape (…,context).

        Returns:
            x (…,d), which carries no gradient, and log p(x) (…), both of the type of u.
        """
        self._check_heads(1, "a Bernoulli variable takes one head")
        self.check("u", u, context)
        return self.in_turn(u, context, BERNOULLI, 0.0)

    # What follows is public within the package: `IAF` joins two networks by it.

    def in_turn(self, y: Tensor, context: Tensor | None, *kind: Any) -> tuple[Tensor, Tensor]:
        """`made_inverse` of checked y, `kind` its scale and what follows."""
        y, offset = expand_together(self.sort(y), self.offset(context))
        weights: Sequence[Tensor] = [layer.weight for layer in self.layers]
        biases: Sequence[Tensor] = [layer.bias for layer in self.layers[1:]]
        if y.dtype == compute_dtype(offset.dtype):
            (offset,), weights, biases = upcast(offset), upcast(*weights), upcast(*biases)
        prefixes = [layer.prefix for layer in self.layers]
        x, log_det = made_inverse(y, offset, weights, biases, prefixes, self.activation, *kind)
        return self.unsort(x, -1), log_det

    def offset(self, context: Tensor | None) -> Tensor:
        """b_1, and what a context adds to it."""
        bias = self.layers[0].bias
        if context is None:
            return bias
        if type(self.context_layer) is nn.Linear:
            return nn.functional.linear(context, self.context_layer.weight, bias)
        return self.context_layer(context) + bias

    def sort(self, x: Tensor) -> Tensor:
        """Dimensions, the last of x, in the order in which each depends on those before it."""
        if self.order is not None:
            x = x.index_select(-1, self.order)
        return x.flip(-1) if self.reverse else x

    def unsort(self, x: Tensor, dim: int) -> Tensor:
        """What `sort` undoes, of what lies along the dimension `dim`."""
        x = x.flip(dim) if self.reverse else x
        return x if self.order is None else x.index_select(dim, orders.rank(self.order))

    def _check_heads(self, count: int, what: str) -> None:
        if self.heads != count:
            raise ValueError(f"{what}; this MADE has {self.heads}")

    def check(self, name: str, x: Tensor, context: Tensor | None) -> None:
        """Refuse an input, called `name`, or a context that does not fit."""
        if x.dim() == 0 or x.shape[-1] != self.features:
            raise ValueError(
                f"{name} is of shape {tuple(x.shape)}; it must be of shape (…,{self.features})"
            )
        if context is None and self.context:
            raise ValueError(f"context is missing; it must be of shape (…,{self.context})")
        if context is not None and not self.context:
            raise ValueError("context came to a MADE that was made without one")
        if context is not None and (context.dim() == 0 or context.shape[-1] != self.context):
            raise ValueError(
                f"context is of shape {tuple(context.shape)}; "
                f"it must be of shape (…,{self.context})"
            )

    def extra_repr(self) -> str:
        return (
            f"features={self.features}, heads={self.heads}, context={self.context}, "
            f"activation={self.activation!r}, reverse={self.reverse}"
        )


def _where_it_is(values: Any) -> Tensor:
    """Values as a tensor; one that is a tensor stays on its device, whatever the default is."""
    return values if isinstance(values, Tensor) else torch.as_tensor(values)


def expand_together(y: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Both with all leading dimensions that either has, nothing copied."""
    leading = torch.broadcast_shapes(y.shape[:-1], offset.shape[:-1])
    return y.expand(*leading, y.shape[-1]), offset.expand(*leading, offset.shape[-1])
