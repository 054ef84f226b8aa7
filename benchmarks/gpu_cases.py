"""What `gpu_suite.py` measures. A new op is a function that makes its `Work`, and an `Entry`.

Nothing here needs the compiled extension, or imports `rhovae_kernels`, before a case is made: the
suite builds it first.
"""

import importlib.util
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from competitors import (
    Empty,
    accelerated_scan,
    diagonal,
    doubling,
    growing_cat,
    in_panels,
    loop,
    markov,
    nflows_network,
    zuko_network,
)
from torch import Tensor
from torch.func import functional_call

from rhovae_kernels import python_ref
from rhovae_kernels.python_ref.ar1 import draw
from rhovae_kernels.python_ref.markov_smooth import BY_DOUBLING
from rhovae_kernels.python_ref.masked_linear import staircase_mask
from rhovae_kernels.python_ref.rq_spline import SplineConvention

OPS = torch.ops.rhovae
DIRECTIONS = ("forward", "backward", "both")
MODES = ("eager", "graph")


class Way(NamedTuple):
    """One way to do a piece of work: a function, and tensors to call it on.

    Attributes:
        function: of `arguments`; returns a tuple of tensors.
        arguments: those that require gradients are differentiated.
        exact: what `function` should give: differentiable, and run on the same arguments in
            float64. None where there is nothing to hold it against: its noise is its own, or it
            does no work.
        directions: those in which it is timed.
    """

    function: Callable[..., tuple[Tensor, ...]]
    arguments: tuple[Tensor, ...]
    exact: Callable[..., tuple[Tensor, ...]] | None
    directions: tuple[str, ...] = DIRECTIONS


class Work(NamedTuple):
    """An op on given operands, what else does that work, and per direction what it has to cost."""

    ours: Way
    others: dict[str, Way]
    costs: dict


class Entry(NamedTuple):
    """What is measured of an op.

    Attributes:
        op: the name that `--ops` chooses it by.
        make: of a shape, a type and a device: the `Work`.
        tensors: how many of that shape are in memory at once; rows are left out that do not fit.
        by_row: rows do not act on each other, so that some of them are enough to verify.
        uses: the ops that a backend must have, where it is not the one that the entry is named by.
        form: what the calls have, where a backend may lack kernels of them (`ops.op.Form`).
        tf32: products of float32 are allowed to be TF32's.
    """

    op: str
    make: Callable[..., Work]
    shapes: tuple[tuple[int, int], ...]
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)
    directions: tuple[str, ...] = DIRECTIONS
    modes: tuple[str, ...] = MODES
    tensors: int = 16
    by_row: bool = True
    uses: tuple[str, ...] = ()
    form: str | None = None
    tf32: bool = False


def randn(*shape: int, dtype, device, seed: int, scale: float = 0.5) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator, device=device)).to(dtype)


def compiled(function: Callable, device: str) -> Callable:
    # Off a GPU this is a rehearsal, and generated code is nothing to wait for.
    backend = "inductor" if device == "cuda" else "aot_eager"
    return torch.compile(function, dynamic=False, backend=backend)


def costs(op: str, args, backward_args) -> dict:
    """Per direction, the model of the op on these arguments and of its backward."""
    from rhovae_kernels.ops.cost import Cost, cost

    forward, backward = cost(op, *args), cost(f"{op}_backward", *backward_args)
    return {"forward": forward, "backward": backward, "both": Cost.total(forward, backward)}


def parameters(shape, dtype, device, of_log_var=1, of_logit=1) -> tuple[Tensor, Tensor, Tensor]:
    """mu, log_var and rho_logit of so many columns, which require gradients."""
    rows, d = shape
    sizes = (d, of_log_var, of_logit)
    tensors = (randn(rows, n, dtype=dtype, device=device, seed=i) for i, n in enumerate(sizes))
    return tuple(x.requires_grad_() for x in tensors)


def exact_reparam(mu, log_var, rho_logit, eps):
    return python_ref.ar1_reparam(mu, log_var, rho_logit, eps, scan=doubling)


def reparam(function: Callable, shape, dtype, device, *columns: int) -> tuple[Way, dict]:
    """`function` as `ar1_reparam` on operands of this shape, and its costs; see `parameters`."""
    *inputs, eps = (
        *parameters(shape, dtype, device, *columns),
        randn(*shape, dtype=dtype, device=device, seed=3, scale=1.0),
    )
    k = inputs[0].new_empty(shape[0], dtype=torch.float32)
    needs = (True, True, True, False)
    spent = costs("ar1_reparam", (*inputs, eps), (eps, k, *inputs, eps, needs))
    return Way(function, (*inputs, eps), exact_reparam), spent


def diagonals(shape, dtype, device) -> dict[str, Way]:
    """The diagonal Gaussian with its log variance per element: ρ = 0 of the exact formula."""
    mu, _, _ = parameters(shape, dtype, device)
    log_var = randn(*shape, dtype=dtype, device=device, seed=1).requires_grad_()
    eps = randn(*shape, dtype=dtype, device=device, seed=3, scale=1.0)

    def exact(mu, log_var, eps):
        return exact_reparam(mu, log_var, torch.zeros_like(mu[:, :1]), eps)

    arguments = (mu, log_var, eps)
    return {
        "eager diagonal": Way(diagonal, arguments, exact),
        "compiled diagonal": Way(compiled(diagonal, device), arguments, exact),
    }


def ar1_reparam(shape, dtype, device) -> Work:
    ours, spent = reparam(OPS.ar1_reparam, shape, dtype, device)
    return Work(ours, diagonals(shape, dtype, device), spent)


def ar1_reparam_of_steps(shape, dtype, device) -> Work:
    """A correlation for each step, beside D R D with one for all."""
    d = shape[1]
    ours, spent = reparam(OPS.ar1_reparam, shape, dtype, device, d, d)
    of_one, _ = reparam(OPS.ar1_reparam, shape, dtype, device, d, 1)
    return Work(ours, {"one correlation": of_one, **diagonals(shape, dtype, device)}, spent)


def small_ar1_reparam(shape, dtype, device) -> Work:
    """With the sources' loop too, which takes a kernel or more for each of d steps."""
    ours, others, spent = ar1_reparam(shape, dtype, device)
    loops = {"loop": loop, "sources' loop": growing_cat}
    others |= {name: ours._replace(function=function) for name, function in loops.items()}
    return Work(ours, others, spent)


def ar1_reparam_rng(shape, dtype, device) -> Work:
    inputs = parameters(shape, dtype, device)
    state = torch.tensor([7, 11], device=device)
    k = inputs[0].new_empty(shape[0], dtype=torch.float32)
    spent = costs(
        "ar1_reparam_rng", (*inputs, state), (inputs[0], k, *inputs, state, (True, True, True))
    )
    eps = draw(inputs[0], state)
    ours = Way(
        lambda mu, log_var, rho_logit, eps: OPS.ar1_reparam_rng(mu, log_var, rho_logit, state)[:2],
        (*inputs, eps),
        exact_reparam,
    )

    def drawn_before(mu, log_var, rho_logit):
        return OPS.ar1_reparam(mu, log_var, rho_logit, torch.randn_like(mu))

    return Work(ours, {"ar1_reparam, ε by torch": Way(drawn_before, inputs, None)}, spent)


def ar1_log_prob(shape, dtype, device) -> Work:
    z = randn(*shape, dtype=dtype, device=device, seed=4, scale=1.0).requires_grad_()
    arguments = (z, *parameters(shape, dtype, device))
    k = z.new_empty(shape[0], dtype=torch.float32)
    spent = costs("ar1_log_prob", arguments, (k, *arguments, (True,) * 4))

    def formula(*args):
        return (python_ref.ar1_log_prob(*args),)

    ours = Way(lambda *args: (OPS.ar1_log_prob(*args),), arguments, formula)
    others = {
        "eager formula": ours._replace(function=formula),
        "compiled formula": ours._replace(function=compiled(formula, device)),
    }
    return Work(ours, others, spent)


def markov_reparam(shape, dtype, device) -> Work:
    """As a sequence model calls it: a prior with one correlation for each channel."""
    rows, d = shape
    sizes = (d, d, d, 1)
    inputs = [randn(rows, n, dtype=dtype, device=device, seed=i) for i, n in enumerate(sizes)]
    eps = randn(*shape, dtype=dtype, device=device, seed=4, scale=1.0)
    arguments = (*(x.requires_grad_() for x in inputs), eps)
    k = eps.new_empty(rows, dtype=torch.float32)
    needs = (True, True, True, True, False)
    spent = costs("markov_reparam", (*arguments, False), (eps, k, *arguments, False, needs))

    def exact(*args):
        return python_ref.markov_reparam(*args, scan=doubling)

    ours = Way(lambda *args: OPS.markov_reparam(*args, False), arguments, exact)
    others = {
        "eager formula": ours._replace(function=markov),
        "compiled formula": ours._replace(function=compiled(markov, device)),
    }
    return Work(ours, others, spent)


def linear_scan(shape, dtype, device) -> Work:
    """A gate for each element, as state-space models have it."""
    gates = torch.sigmoid(randn(*shape, dtype=dtype, device=device, seed=0, scale=1.0))
    tokens = randn(*shape, dtype=dtype, device=device, seed=1, scale=1.0)
    arguments = (gates.requires_grad_(), tokens.requires_grad_())
    needs, recompute = (True, True, False), dtype.itemsize < 4
    spent = costs("linear_scan", arguments, (tokens, gates, tokens, None, False, recompute, needs))

    def formula(gates, tokens):
        return (doubling(gates, tokens),)

    ours = Way(lambda *args: (OPS.linear_scan(*args),), arguments, formula)
    # Its log₂ T steps each keep whole tensors for a backward pass.
    others = {"doubling steps": ours._replace(function=formula, directions=("forward",))}
    library = accelerated_scan()
    if library is not None:
        others["accelerated-scan"] = ours._replace(function=lambda *args: (library(*args),))
    return Work(ours, others, spent)


def markov_smooth(shape, dtype, device) -> Work:
    """A chain of one correlation and scale a row, each step observed with its own noise."""
    rows = shape[0]
    y, log_r, mu = (randn(*shape, dtype=dtype, device=device, seed=i) for i in range(3))
    log_var, rho_logit = (randn(rows, 1, dtype=dtype, device=device, seed=i) for i in (3, 4))
    arguments = tuple(x.requires_grad_() for x in (y, log_r, mu, log_var, rho_logit))
    k = y.new_empty(rows, dtype=torch.float32)
    spent = costs("markov_smooth", arguments, (y, y, y, k, *arguments, (True,) * 5))

    def formula(*args):
        return python_ref.markov_smooth(*args, scan=doubling, riccati=BY_DOUBLING)

    ours = Way(OPS.markov_smooth, arguments, formula)
    # In float64, as its products of many maps ask for, and in the log₂ d steps of `doubling`.
    others = {
        "doubling steps": ours._replace(
            function=lambda *args: formula(*(x.double() for x in args)), directions=("forward",)
        )
    }
    return Work(ours, others, spent)


def iaf_gate(shape, dtype, device) -> Work:
    tensors = (randn(*shape, dtype=dtype, device=device, seed=i, scale=1.0) for i in range(3))
    arguments = tuple(x.requires_grad_() for x in tensors)
    z = arguments[0]
    k = z.new_empty(shape[0], dtype=torch.float32)
    spent = costs("iaf_gate", arguments, (z, k, *arguments, (True, True, True)))
    ours = Way(OPS.iaf_gate, arguments, python_ref.iaf_gate)
    others = {
        "eager formula": ours._replace(function=python_ref.iaf_gate),
        "compiled formula": ours._replace(function=compiled(python_ref.iaf_gate, device)),
    }
    return Work(ours, others, spent)


def affine_coupling(shape, dtype, device, inverse=False) -> Work:
    """Half of the columns pass, as in most layers; the scale is bounded, as in those that train."""
    tensors = (randn(*shape, dtype=dtype, device=device, seed=i, scale=1.0) for i in range(3))
    arguments = tuple(x.requires_grad_() for x in tensors)
    x = arguments[0]
    k = x.new_empty(shape[0], dtype=torch.float32)
    settings = (torch.arange(shape[1], device=device) < shape[1] // 2, inverse, "tanh")
    spent = costs(
        "affine_coupling", (*arguments, *settings), (x, k, *arguments, *settings, (True,) * 3)
    )

    def formula(*args):
        return python_ref.affine_coupling(*args, *settings)

    ours = Way(lambda *args: OPS.affine_coupling(*args, *settings), arguments, formula)
    others = {
        "eager formula": ours._replace(function=formula),
        "compiled formula": ours._replace(function=compiled(formula, device)),
    }
    return Work(ours, others, spent)


def between_knots(logits: Tensor, convention: SplineConvention) -> Tensor:
    """An element in a bin of each of these splines, and every 64th in a tail.

    At a knot the second derivative jumps, and with it the gradients: an element within rounding of
    one has those of either bin.
    """
    bins, bound, least = logits.shape[-1], convention.bound, convention.min_width
    share = least + (1 - bins * least) * logits.detach().double().softmax(-1)
    elements = torch.arange(share[..., 0].numel(), device=logits.device).view(share.shape[:-1])
    k = (elements % bins)[..., None]
    width = share.gather(-1, k)[..., 0]
    start = share.cumsum(-1).gather(-1, k)[..., 0] - width
    inside = start + width * (0.1 + 0.8 * torch.linspace(0, 1, elements.shape[-1]).to(width))
    x = torch.where(elements % 64 == 0, 1.1 * bound, bound * (2 * inside - 1))
    return x.to(logits.dtype)


def rq_spline(shape, dtype, device, inverse=False) -> Work:
    """Eight bins, in our own convention; few elements lie in the tails, beyond ±5."""
    spline = tuple(
        randn(*shape, size, dtype=dtype, device=device, seed=i, scale=0.25).requires_grad_()
        for i, size in enumerate((8, 8, 7))
    )
    # The least height is the least width.
    x = between_knots(spline[inverse], SplineConvention()).requires_grad_()
    arguments = (x, *spline)
    k = x.new_empty(shape[0], dtype=torch.float32)
    settings = (inverse, *SplineConvention())
    spent = costs("rq_spline", (*arguments, *settings), (x, k, *arguments, *settings, (True,) * 4))

    def formula(*args):
        return python_ref.rq_spline(*args, *settings)

    ours = Way(lambda *args: OPS.rq_spline(*args, *settings), arguments, formula)
    others = {
        "eager formula": ours._replace(function=formula),
        "compiled formula": ours._replace(function=compiled(formula, device)),
    }
    return Work(ours, others, spent)


def masked_linear(shape, dtype, device) -> Work:
    """A layer as wide as its input, degrees as even as they come; dense where a mask is taken.

    In panels, of a weight that was masked once: with the better of 4 and 8, what dense products do
    for those who can look at `prefix` beforehand.
    """
    batch, width = shape
    prefix = (torch.arange(width, device=device) * width // (width - 1)).int()
    mask = staircase_mask(prefix, width).to(dtype)
    tensors = (
        randn(batch, width, dtype=dtype, device=device, seed=0, scale=1.0),
        randn(width, width, dtype=dtype, device=device, seed=1, scale=width**-0.5),
        randn(width, dtype=dtype, device=device, seed=2),
    )
    arguments = tuple(x.requires_grad_() for x in tensors)
    x, weight, _ = arguments
    spent = costs("masked_linear", (*arguments, prefix), (x, x, weight, prefix, (True,) * 3))

    def masked(x, weight, bias):
        return (F.linear(x, mask * weight, bias),)

    def exact(*args):
        return (python_ref.masked_linear(*args, prefix),)

    ours = Way(lambda *args: (OPS.masked_linear(*args, prefix),), arguments, exact)
    others = {
        "mask*weight": ours._replace(function=masked),
        "compiled mask*weight": ours._replace(function=compiled(masked, device)),
    }
    once = (x, (mask * weight).detach().requires_grad_(), arguments[2])
    for count in (4, 8):
        others[f"{count} panels"] = Way(in_panels(prefix, count), once, exact)
    return Work(ours, others, spent)


def inversion(function: Callable, y: Tensor, network, scale) -> Way:
    """`function` as the inverse of the transform that this network, (weights, …), makes of x."""
    weights, biases, prefixes = network
    exact = [[x.double() for x in weights], [b.double() for b in biases]]

    def of(y):
        offset = exact[1][0].expand(len(y), -1)
        return python_ref.made_inverse(y, offset, exact[0], exact[1][1:], prefixes, "relu", *scale)

    return Way(function, (y,), of, directions=("forward",))


def made_inverse(shape, dtype, device) -> Work:
    """Two hidden layers, their width 8d or 2048; each library's transform of its own network."""
    from rhovae_kernels.nn import MADE

    batch, d = shape
    width = min(8 * d, 2048)
    y = randn(batch, d, dtype=dtype, device=device, seed=0, scale=1.0)
    torch.manual_seed(0)
    layers = MADE(d, (width, width), activation="relu").to(device).requires_grad_(False).layers
    network = tuple([getattr(x, of) for x in layers] for of in ("weight", "bias", "prefix"))
    weights, (bias, *biases), prefixes = network
    scale = ("softclip", math.log(1e3))
    args = (y, bias.expand(batch, -1), weights, biases, prefixes, "relu", *scale)
    ours = inversion(lambda y: OPS.made_inverse(y, *args[1:]), y, network, scale)
    others = {}
    if d <= 64:
        others["d passes"] = ours._replace(function=lambda y: python_ref.made_inverse(y, *args[1:]))
    for name, network_of in (("zuko", zuko_network), ("nflows", nflows_network)):
        if importlib.util.find_spec(name):
            peer, theirs, their_scale = network_of(d, width, device)
            others[name] = inversion(peer, y, theirs, their_scale)
    from rhovae_kernels.ops.cost import cost

    return Work(ours, others, {"forward": cost("made_inverse", *args)})


def made_inverse_of_splines(shape, dtype, device) -> Work:
    """The same network with heads for eight bins a dimension, in our own convention."""
    from rhovae_kernels.nn import MADE
    from rhovae_kernels.ops.cost import cost

    batch, d = shape
    width = min(8 * d, 2048)
    spline = SplineConvention()
    y = randn(batch, d, dtype=dtype, device=device, seed=0, scale=1.0)
    torch.manual_seed(0)
    made = MADE(d, (width, width), heads=sum(spline.of_bins(8)), activation="relu")
    layers = made.to(device).requires_grad_(False).layers
    network = tuple([getattr(x, of) for x in layers] for of in ("weight", "bias", "prefix"))
    weights, (bias, *biases), prefixes = network
    scale = ("spline", *spline)
    args = (y, bias.expand(batch, -1), weights, biases, prefixes, "relu", *scale)
    ours = inversion(lambda y: OPS.made_inverse(y, *args[1:]), y, network, scale)
    others = {}
    if d <= 64:
        others["d passes"] = ours._replace(function=lambda y: python_ref.made_inverse(y, *args[1:]))
    return Work(ours, others, {"forward": cost("made_inverse", *args)})


def made_solve_of_splines(shape, dtype, device) -> Work:
    """Jᵀ v = g of 23 heads a dimension, two hidden layers: what a backward pass solves."""
    from rhovae_kernels.nn import MADE
    from rhovae_kernels.ops.cost import cost

    batch, d = shape
    width, count = min(8 * d, 2048), sum(SplineConvention().of_bins(8))
    torch.manual_seed(0)
    made = MADE(d, (width, width), heads=count).to(device).requires_grad_(False)
    weights, prefixes = ([getattr(x, of) for x in made.layers] for of in ("weight", "prefix"))
    sizes = (d, d, count * d, width, width)
    g, a, heads, *slopes = (
        randn(batch, n, dtype=dtype, device=device, seed=i, scale=0.1) for i, n in enumerate(sizes)
    )
    rest = (a + 1, heads, slopes, weights, prefixes, True)

    def dense(g):
        # In the type of g.
        return (python_ref.made_solve(g, *rest),)

    ours = Way(lambda g: (OPS.made_solve(g, *rest),), (g,), dense, directions=("forward",))
    others = {"dense": ours._replace(function=dense)}
    return Work(ours, others, {"forward": cost("made_solve", g, *rest)})


def iaf_step(shape, dtype, device) -> Work:
    """A gated step with a MADE of two layers of 320, as a VAE's posterior has it."""
    from rhovae_kernels.nn import IAF
    from rhovae_kernels.ops.cost import Cost

    torch.manual_seed(0)
    iaf = IAF(shape[1], transforms=1, hidden_features=(320, 320))
    step = iaf.transforms[0].to(device)
    z = randn(*shape, dtype=dtype, device=device, seed=0, scale=1.0).requires_grad_()
    layers = list(step.made.layers)
    masks = [staircase_mask(x.prefix, x.in_features) for x in layers]
    parameters = [p for x in layers for p in (x.weight, x.bias)]

    def formula(z, *parameters):
        h = z
        for i, mask in enumerate(masks):
            weight, bias = parameters[2 * i : 2 * i + 2]
            h = F.linear(F.elu(h) if i else h, mask * weight, bias)
        return python_ref.iaf_gate(z, *h.unflatten(-1, (shape[1], 2)).unbind(-1))

    # What each op has to move; the activations between them are not in it.
    k = z.new_empty(shape[0])
    each = [costs("iaf_gate", (z, z, z), (z, k, z, z, z, (True,) * 3))]
    for x in layers:
        read, made = (z.new_empty(shape[0], n) for n in (x.in_features, x.out_features))
        call = (read, x.weight, x.bias, x.prefix)
        each.append(costs("masked_linear", call, (made, read, x.weight, x.prefix, (True,) * 3)))
    spent = {direction: Cost.total(*(c[direction] for c in each)) for direction in DIRECTIONS}
    names = [f"made.layers.{i}.{name}" for i in range(len(layers)) for name in ("weight", "bias")]

    def module(z, *parameters):
        # The caller's tensors, not the module's own: gradients are asked for by them.
        return functional_call(step, dict(zip(names, parameters, strict=True)), (z, None))

    ours = Way(module, (z, *parameters), formula)
    others = {
        "eager formula": ours._replace(function=formula),
        "compiled formula": ours._replace(function=compiled(formula, device)),
    }
    return Work(ours, others, spent)


def launch(shape, dtype, device) -> Work:
    ours, _ = reparam(OPS.ar1_reparam, shape, dtype, device)
    empty = ours._replace(function=Empty.apply, exact=None)
    return Work(ours, {"empty autograd.Function": empty}, {})


def training_step(shape, dtype, device) -> Work:
    """Encoder, sample and KL, decoder, gradients, Adam: the rho-VAE's, and the plain VAE's."""
    from rhovae_kernels.vae.recipes import recipe

    batch, latent = shape
    x = torch.rand(batch, 1, 28, 28, device=device)

    def step_of(name: str) -> Way:
        torch.manual_seed(0)
        model = recipe(name).build((1, 28, 28), latent=latent).to(device)
        model.validate_args = False  # as `fit` has it, which looks at the data once
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, capturable=device == "cuda")

        def step(x):
            optimizer.zero_grad()
            loss = model(x).loss
            loss.backward()
            optimizer.step()
            return (loss.detach(),)

        losses = [step(x)[0].item() for _ in range(20)]
        if not losses[-1] < losses[0]:
            raise AssertionError(f"{name} does not learn: {losses[0]:.4g} to {losses[-1]:.4g}")
        return Way(step, (x,), None, ("step",))

    return Work(step_of("rho-vae"), {"vae": step_of("vae")}, {})


LARGE = ((65536, 1024), (8192, 8192), (64, 1048576))
# Where the host's time for a launch begins to hide behind the kernel's own.
MIDDLE = ((4096, 1024), (16384, 1024))
SMALL = ((128, 32), (512, 64), (4096, 128))
WIDTHS = tuple((4096, width) for width in (2048, 4096, 8192, 512, 256, 128, 64))

# What comes first is measured where time is short.
ENTRIES = [
    Entry(
        "ar1_reparam", launch, SMALL[:1], (torch.float32,), directions=("both",), modes=("launch",)
    ),
    Entry("ar1_reparam", small_ar1_reparam, SMALL),
    Entry("training_step", training_step, ((128, 32), (4096, 32)), (torch.float32,), ("step",)),
    Entry("linear_scan", linear_scan, ((12288, 65536),), (torch.float32,)),
    Entry("linear_scan", linear_scan, ((65536, 1024), *MIDDLE)),
    Entry(
        "markov_smooth",
        markov_smooth,
        ((4096, 1024), (65536, 128)),
        (torch.float32,),
        modes=("eager",),
        tensors=40,
    ),
    Entry("iaf_gate", iaf_gate, ((65536, 512),)),
    Entry("affine_coupling", affine_coupling, ((65536, 512),)),
    Entry(
        "affine_coupling_inverse",
        partial(affine_coupling, inverse=True),
        ((65536, 512),),
        uses=("affine_coupling",),
    ),
    Entry("rq_spline", rq_spline, ((65536, 64),), (torch.float32,), tensors=200),
    Entry(
        "rq_spline_inverse",
        partial(rq_spline, inverse=True),
        ((65536, 64),),
        (torch.float32,),
        tensors=200,
        uses=("rq_spline",),
    ),
    Entry("masked_linear", masked_linear, WIDTHS, by_row=False, tf32=True),
    Entry(
        "made_inverse",
        made_inverse,
        ((1024, 64), (256, 784)),
        (torch.float32,),
        directions=("forward",),
    ),
    Entry(
        "made_inverse_of_splines",
        made_inverse_of_splines,
        ((1024, 64), (256, 784)),
        (torch.float32,),
        directions=("forward",),
        uses=("made_inverse",),
    ),
    Entry(
        "made_solve_of_splines",
        made_solve_of_splines,
        ((256, 64),),
        (torch.float32,),
        directions=("forward",),
        tensors=10_000,
        uses=("made_solve",),
    ),
    Entry(
        "iaf_step",
        iaf_step,
        ((128, 32), (512, 32), (4096, 32)),
        (torch.float32,),
        by_row=False,
        uses=("masked_linear", "iaf_gate"),
    ),
    Entry("ar1_reparam", ar1_reparam, (*LARGE, *MIDDLE)),
    Entry(
        "ar1_reparam_of_steps",
        ar1_reparam_of_steps,
        (*SMALL, *LARGE),
        uses=("ar1_reparam",),
        form="a correlation for each step",
    ),
    Entry("ar1_reparam_rng", ar1_reparam_rng, LARGE),
    Entry("markov_reparam", markov_reparam, ((1024, 128), (65536, 1024)), (torch.float32,)),
    Entry("ar1_log_prob", ar1_log_prob, LARGE),
]
