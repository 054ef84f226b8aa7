"""`rhovae demo`: what correlation is worth, what runs here and how fast, and two VAEs trained."""

import copy
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from rhovae_kernels import backends, ops, use_backend
from rhovae_kernels.data import load, sp500
from rhovae_kernels.files import write_json, write_text
from rhovae_kernels.metrics.evaluate import evaluate
from rhovae_kernels.nn import MADE, MaskedLinear
from rhovae_kernels.ops.op import public_ops
from rhovae_kernels.papers import volatility
from rhovae_kernels.plots import pictures
from rhovae_kernels.plots.tables import markdown
from rhovae_kernels.seeding import seeded
from rhovae_kernels.training.fit import fit
from rhovae_kernels.vae.model import VAE
from rhovae_kernels.vae.recipes import vae_recipe

ROWS, COLUMNS = 512, 64
"""Size of the tensors that the ops are tried on."""

TOLERANCE = 1e-5
"""Of max|·| over each output and gradient: what float32 arithmetic is held to at |ρ| ≤ 0.99."""

RECIPES = ("vae", "rho-vae")
LATENT, EPOCHS, SEED = 8, 30, 0
TIMED_STEPS = 100

VOLATILITIES = ("mean-field", "one-rho", "markov")
"""The posteriors of volatility that are fitted, of `volatility.FORMS`."""

DAYS: int | None = None
"""How many of the last days they are fitted to; all where None."""

PICTURE = "volatility.png"


def demo(out: str | Path = "runs/demo") -> dict[str, Any]:
    """Show what correlation is worth, which backends run, each op checked and timed, and two VAEs.

    The volatility of the S&P 500 is fitted by a posterior of independent days and by correlated
    ones, and drawn beside Stan's. A rho-VAE and a plain VAE see the same digits in the same order.
    `out` gets table.md and results.json, pictures of the volatility, the curves, samples and
    reconstructions, and a run directory for each VAE; a demo that was stopped, or is called again,
    goes on with the runs in `out`.

    Args:
        out: directory for all of it.

    Returns:
        What results.json holds.

    Raises:
        FloatingPointError: an op differs from its reference.
    """
    out, console = Path(out), Console(soft_wrap=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    console.rule("1. Volatility of the S&P 500: independent days, correlated days, Stan")
    of_volatility = _volatility(out, console)

    console.rule("2. Which implementation of each op runs here")
    rows = [[row.op, row.device, row.backend, row.why] for row in backends.report(public_ops())]
    _print(console, markdown(["op", "device", "backend", "why"], rows))

    console.rule("3. Each op against its plain-PyTorch reference, forward and backward")
    checked = {name: _check(name, case, device) for name, case in _cases(device).items()}
    rows = [
        [name, f"{row['error']:.1e}", f"{row['ms']:.3f}", f"{row['speedup']:.1f}×"]
        for name, row in checked.items()
    ]
    header = [f"op, float32 ({ROWS}, {COLUMNS})", "relative error", "ms", "reference takes"]
    _print(console, markdown(header, rows))

    console.rule("4. A plain VAE and a rho-VAE on handwritten digits of 8×8")
    test = load("digits", split="test")
    vaes, curves, trained = {}, {}, {}
    for name in RECIPES:
        with seeded(torch.device("cpu"), SEED):
            vaes[name] = vae_recipe(name).build(test.input_shape, LATENT)
    step_seconds = _step_seconds(
        {name: copy.deepcopy(vae).to(device) for name, vae in vaes.items()}
    )
    for name, vae in vaes.items():
        console.print(f"{name}: {vae_recipe(name).description}", markup=False)
        history = fit(
            vae, "digits", epochs=EPOCHS, out=out / name, seed=SEED, recipe=name, resume="auto"
        )
        curves[name] = history.column("test_negative_elbo")
        result = evaluate(vae, "digits", ["elbo", "nll@256", "active-units"])
        steps = -(-len(load("digits")) // vae_recipe(name).batch_size)
        trained[name] = {
            **result,
            "ms_per_step": 1000 * step_seconds[name],
            "seconds_per_epoch": steps * step_seconds[name],
        }
        _draw(out, name, vae, test.images[:12])
    pictures.curves(out / "curves.png", curves, "test −ELBO, nats", "digits (grey)")

    rows = [
        [
            name,
            f"{-row['elbo']['mean']:.2f} ± {row['elbo']['standard_error']:.2f}",
            f"{row['nll@256']['mean']:.2f}",
            f"{row['active-units']['active']} of {LATENT}",
            f"{row['ms_per_step']:.2f}",
            f"{row['seconds_per_epoch']:.3f}",
        ]
        for name, row in trained.items()
    ]
    header = ["model", "−ELBO (nats)", "NLL@256", "active units", "ms per step", "s per epoch"]
    table = markdown(header, rows)
    results = {
        "volatility": of_volatility,
        "backends": [row._asdict() for row in backends.report(public_ops())],
        "ops": checked,
        "models": trained,
    }
    write_json(out / "results.json", results)
    write_text(out / "table.md", table)
    console.rule(f"Test split of the digits, grey pixels, d = {LATENT}, {EPOCHS} epochs")
    _print(console, table)
    drawn = sorted(path.name for path in out.glob("*.png") if path.name != PICTURE)
    console.print(f"Pictures: {', '.join(drawn)} in {out}")
    console.print(f"Volatility, independent days against correlated days and Stan: {out / PICTURE}")
    console.print("Next, an array of your own, a datum a row; what more there is: docs/index.md")
    console.print("rhovae train mine.npy --recipe scaled-rho-vae --out runs/mine", markup=False)
    return results


def _volatility(out: Path, console: Console) -> dict[str, Any]:
    """Fit, draw and tell the volatility by each of VOLATILITIES, against Stan's."""
    y = sp500.centred_differences(DAYS)
    found = [volatility.fitted(form, y) for form in VOLATILITIES]
    series = volatility.held_against_stan(y, found)
    _print(console, volatility.table_of(series))
    independent, one, each = (row["elbo"] for row in series["rows"])
    console.print(
        f"Correlation of the days is worth {each - independent:.1f} nats; one ρ for all of them "
        f"has all but {each - one:.1f}.",
        highlight=False,
    )
    volatility.draw(out / PICTURE, y, [found[0], found[-1]])
    return series


def _cases(device: str) -> dict[str, tuple[Callable[..., Any], list[Tensor]]]:
    """Each op and its arguments; |ρ| ≤ 0.99."""
    generator = torch.Generator().manual_seed(SEED)

    def normal(columns: int) -> Tensor:
        return torch.randn(ROWS, columns, generator=generator).to(device)

    rho_logit = torch.atanh(0.99 * torch.tanh(normal(1)))
    parameters = [normal(COLUMNS), normal(COLUMNS), rho_logit]
    state = torch.tensor([SEED, 0], device=device)

    def weight(layer: MaskedLinear) -> Tensor:
        drawn = torch.randn(layer.weight.shape, generator=generator).to(device)
        return 0.3 * drawn / layer.in_features**0.5

    first, last = MADE(COLUMNS, hidden_features=(ROWS,)).to(device).layers
    bias = torch.ones(2 * COLUMNS, device=device)
    alternate = torch.arange(COLUMNS, device=device) % 2 == 0

    def inverse(y: Tensor, offset: Tensor, *network: Tensor) -> tuple[Tensor, Tensor]:
        weights, biases, prefixes = network[:2], network[2:], (first.prefix, last.prefix)
        return ops.made_inverse(y, offset, weights, biases, prefixes, "elu", "gate")

    return {
        "ar1_reparam": (ops.ar1_reparam, [*parameters, normal(COLUMNS)]),
        "ar1_reparam_rng": (ops.ar1_reparam_rng, [*parameters, state]),
        "ar1_log_prob": (ops.ar1_log_prob, [normal(COLUMNS), *parameters]),
        "markov_reparam": (
            ops.markov_reparam,
            [*parameters, torch.atanh(0.99 * torch.tanh(normal(1))), normal(COLUMNS)],
        ),
        "markov_smooth": (ops.markov_smooth, [normal(COLUMNS), normal(COLUMNS), *parameters]),
        "linear_scan": (ops.linear_scan, [torch.tanh(normal(1)), normal(COLUMNS)]),
        "masked_linear": (
            lambda x, w, b: ops.masked_linear(x, w, b, first.prefix),
            [normal(COLUMNS), weight(first), normal(1)[:, 0]],
        ),
        "made_inverse": (
            inverse,
            [normal(COLUMNS), normal(ROWS), weight(first), weight(last), bias],
        ),
        "iaf_gate": (ops.iaf_gate, [normal(COLUMNS) for _ in range(3)]),
        "affine_coupling": (
            lambda x, s, t: ops.affine_coupling(x, s, t, alternate, bound="tanh"),
            [normal(COLUMNS) for _ in range(3)],
        ),
        "rq_spline": (
            lambda x, *raw: ops.rq_spline(x, *(0.1 * v.unflatten(1, (COLUMNS, -1)) for v in raw)),
            [normal(COLUMNS), *(normal(COLUMNS * n) for n in (5, 5, 4))],
        ),
        "philox": (lambda state: ops.philox(state, ROWS, COLUMNS), [state]),
    }


def _check(
    name: str, case: tuple[Callable[..., Any], list[Tensor]], device: str
) -> dict[str, float]:
    """Error of the op against its reference and, once that is seen to be small, both times."""
    op, arguments = case
    leaves = [x.detach().requires_grad_(x.is_floating_point()) for x in arguments]
    wanted = [x for x in leaves if x.requires_grad]

    def run() -> list[Tensor]:
        outputs = op(*leaves)
        outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
        summed = [x.sum() for x in outputs if x.requires_grad]
        return outputs + (list(torch.autograd.grad(sum(summed), wanted)) if summed else [])

    def reference() -> list[Tensor]:
        with use_backend("reference"):
            return run()

    error = 0.0
    for found, expected in zip(run(), reference(), strict=True):
        found, expected = found.detach().double(), expected.detach().double()
        error = max(error, float((found - expected).abs().max() / expected.abs().max()))
    if not error <= TOLERANCE:
        raise FloatingPointError(
            f"{name} differs from its reference by {error:.1e} of the largest value, more than "
            f"{TOLERANCE:.0e}: its speed means nothing. Please report this with `rhovae doctor`"
        )
    times = _interleaved({"op": run, "reference": reference}, 10, device)
    return {
        "error": error,
        "ms": 1000 * times["op"],
        "speedup": times["reference"] / times["op"],
    }


def _interleaved(
    variants: dict[str, Callable[[], Any]], rounds: int, device: str
) -> dict[str, float]:
    """Median seconds of each; the variants take turns, so that all meet the same disturbances."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, variant in variants.items():
            variant()
            if device == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            variant()
            if device == "cuda":
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - started)
    return {name: median(values) for name, values in times.items()}


def _step_seconds(vaes: dict[str, VAE]) -> dict[str, float]:
    """Median time of one training step of each, on the same batch, taking turns."""
    for vae in vaes.values():
        vae.validate_args = False  # as `fit` has it, which looks at the data once
    device = next(next(iter(vaes.values())).parameters()).device
    batch = next(load("digits").batches(vae_recipe(RECIPES[0]).batch_size)).to(device)

    def step_of(vae: VAE) -> Callable[[], None]:
        adam = torch.optim.Adam(vae.parameters(), lr=1e-3, fused=True)

        def step() -> None:
            adam.zero_grad()
            vae(batch).loss.backward()
            adam.step()

        return step

    steps = {name: step_of(vae) for name, vae in vaes.items()}
    with seeded(device, SEED):
        return _interleaved(steps, TIMED_STEPS, device.type)


def _draw(out: Path, name: str, vae: VAE, images: Tensor) -> None:
    device = next(vae.parameters()).device
    with seeded(device, SEED):
        pictures.samples(out / f"samples-{name}.png", vae.sample(64), f"{name}: samples (mean)")
    again = vae.reconstruct(images.to(device)).cpu()
    title = f"{name}: test images above, reconstructions below"
    pictures.reconstructions(out / f"reconstructions-{name}.png", images, again, title)


def _print(console: Console, table: str) -> None:
    console.print(table, markup=False, highlight=False)
