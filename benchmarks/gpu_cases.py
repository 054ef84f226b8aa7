"""What `gpu_suite.py` measures. A new op is a function that makes its `Work`, and an `Entry`.

Nothing here needs the compiled extension, or imports `rhovae_kernels`, before a case is made: the
suite builds it first.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from competitors import (
    Empty,
    accelerated_scan,
    diagonal,
    doubling,
    growing_cat,
    loop,
)
from torch import Tensor

import python_ref
from python_ref.ar1 import draw

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
    """

    op: str
    make: Callable[..., Work]
    shapes: tuple[tuple[int, int], ...]
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)
    directions: tuple[str, ...] = DIRECTIONS
    modes: tuple[str, ...] = MODES
    tensors: int = 16
    by_row: bool = True


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


def parameters(shape, dtype, device) -> tuple[Tensor, Tensor, Tensor]:
    """mu, log_var (…,1) and rho_logit, which require gradients."""
    rows, d = shape
    sizes = (d, 1, 1)
    tensors = (randn(rows, n, dtype=dtype, device=device, seed=i) for i, n in enumerate(sizes))
    return tuple(x.requires_grad_() for x in tensors)


def exact_reparam(mu, log_var, rho_logit, eps):
    return python_ref.ar1_reparam(mu, log_var, rho_logit, eps, scan=doubling)


def reparam(function: Callable, shape, dtype, device) -> tuple[Way, dict]:
    """`function` as `ar1_reparam` on operands of this shape, and its costs."""
    *inputs, eps = (
        *parameters(shape, dtype, device),
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


def linear_scan(shape, dtype, device) -> Work:
    """A gate for each element, as state-space models have it."""
    gates = torch.sigmoid(randn(*shape, dtype=dtype, device=device, seed=0, scale=1.0))
    tokens = randn(*shape, dtype=dtype, device=device, seed=1, scale=1.0)
    arguments = (gates.requires_grad_(), tokens.requires_grad_())
    spent = costs("linear_scan", arguments, (tokens, gates, tokens, False, (True, True)))

    def formula(gates, tokens):
        return (doubling(gates, tokens),)

    ours = Way(lambda *args: (OPS.linear_scan(*args),), arguments, formula)
    # Its log₂ T steps each keep whole tensors for a backward pass.
    others = {"doubling steps": ours._replace(function=formula, directions=("forward",))}
    library = accelerated_scan()
    if library is not None:
        others["accelerated-scan"] = ours._replace(function=lambda *args: (library(*args),))
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
SMALL = ((128, 32), (512, 64), (4096, 128))

# What comes first is measured where time is short.
ENTRIES = [
    Entry(
        "ar1_reparam", launch, SMALL[:1], (torch.float32,), directions=("both",), modes=("launch",)
    ),
    Entry("ar1_reparam", small_ar1_reparam, SMALL),
    Entry("training_step", training_step, ((128, 32), (4096, 32)), (torch.float32,), ("step",)),
    Entry("linear_scan", linear_scan, ((12288, 65536),), (torch.float32,)),
    Entry("linear_scan", linear_scan, ((65536, 1024),)),
    Entry("iaf_gate", iaf_gate, ((65536, 512),)),
    Entry("ar1_reparam", ar1_reparam, LARGE),
    Entry("ar1_reparam_rng", ar1_reparam_rng, LARGE),
    Entry("ar1_log_prob", ar1_log_prob, LARGE),
]
