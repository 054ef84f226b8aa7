"""The command `rhovae`."""

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

try:
    import typer
except ImportError as error:
    raise SystemExit(
        f"rhovae: {error.name} is missing; install it with: pip install 'rhovae_kernels[vae]'"
    ) from error

from rhovae_kernels import backends

app = typer.Typer(
    help="Structured-posterior VAEs as cheap as plain ones.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DataRoot = Annotated[
    Path | None,
    typer.Option(help="Directory that holds a directory of files for each data set."),
]
FidWeights = Annotated[
    Path | None, typer.Option(help="torch-fidelity's weights of Inception, for the metrics of FID.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    """Run the command; an error of ours is one line on stderr and exit status 1, 2 for usage."""
    try:
        app()
    except (ValueError, OSError, ArithmeticError, RuntimeError) as error:
        # Of PyTorch's own errors (out of memory, an overflow) the first line says what happened.
        ours = isinstance(error, (ValueError, OSError, FloatingPointError, backends.BackendError))
        message = str(error) if ours else str(error).partition("\n")[0]
        print(f"rhovae: {' '.join(message.split())}", file=sys.stderr)
        raise SystemExit(1) from error


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def _numbers(name: str, text: str, kind: type) -> list[Any]:
    try:
        return [kind(number) for number in text.split(",")]
    except ValueError as error:
        wanted = "integers" if kind is int else "numbers"
        raise ValueError(f"{name} is {text!r}; it must be {wanted}, with commas between") from error


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Which implementation of each op runs on each device of this machine, and why.

    Exits with 1 where an op has none.
    """
    rows, build = backends.report(), backends.build_info()
    if as_json:
        _print_json({"ops": [row._asdict() for row in rows], "build": build})
    else:
        for row in rows:
            print(f"{row.op:<18}{row.device:<6}{row.backend:<11}{row.why}")
        print(
            "extension: "
            + (", ".join(f"{k} {v or 'none'}" for k, v in build.items()) or "not built")
        )
    if any(row.backend == "none" for row in rows):
        raise typer.Exit(1)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Directory for results.")] = Path("runs/demo"),
) -> None:
    """Check and time each op, then train a plain VAE and a rho-VAE on handwritten digits."""
    from rhovae_kernels.demo import demo as run_demo

    run_demo(out)


@app.command()
def train(
    dataset: Annotated[
        str, typer.Argument(help="digits, two-moons, mnist, fashion-mnist, kmnist or cifar-10.")
    ] = "digits",
    recipe: Annotated[str, typer.Option(help="What to train, for example rho-vae.")] = "rho-vae",
    latent: Annotated[
        int | None, typer.Option(help="Dimensions; the recipe's if not given.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes; the recipe's if not given.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, order of the data and samples.")] = 0,
    data_root: DataRoot = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory of the run; runs/DATASET-RECIPE if not given.")
    ] = None,
    resume: Annotated[
        str | None, typer.Option(help="auto: go on with the run in --out, or start it.")
    ] = None,
    binarize: Annotated[str, typer.Option(help="none (grey), round, static or dynamic.")] = "none",
    batch_size: Annotated[int | None, typer.Option(help="The recipe's if not given.")] = None,
    lr: Annotated[float | None, typer.Option(help="Adam's; the recipe's if not given.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress bar.")] = False,
) -> None:
    """Train a recipe on a data set; the run's directory holds all that `evaluate` needs."""
    import torch

    from rhovae_kernels.data import load
    from rhovae_kernels.seeding import seeded
    from rhovae_kernels.training.fit import fit
    from rhovae_kernels.vae.recipes import recipe as find

    found = find(recipe)
    out = out or Path("runs") / f"{dataset}-{found.name}"
    input_shape = load(dataset, data_root, binarize, "test").input_shape
    with seeded(torch.device("cpu"), seed):
        vae = found.build(input_shape, latent)
    history = fit(
        vae,
        dataset,
        epochs=found.epochs if epochs is None else epochs,
        out=out,
        batch_size=found.batch_size if batch_size is None else batch_size,
        lr=found.lr if lr is None else lr,
        seed=seed,
        data_root=data_root,
        binarize=binarize,
        recipe=found.name,
        resume=resume,  # type: ignore[arg-type]  # fit says what it may be
        quiet=quiet,
    )
    last = history.epochs[-1]
    print(f"{out}: epoch {last['epoch']}, test −ELBO {last['test_negative_elbo']:.3f} nats")


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Directory of a run.")],
    metrics: Annotated[
        str,
        typer.Option(
            help="Some of elbo, nll@K, active-units, skl, leakage, mi, tc, fid and "
            "fid-low-posterior, with commas between."
        ),
    ] = "elbo,nll@5000,active-units",
    thresholds: Annotated[
        str | None, typer.Option(help="Of the leakage, ascending, with commas between; 0 to 10.")
    ] = None,
    fid_weights: FidWeights = None,
    limit: Annotated[int | None, typer.Option(help="Only so many data, the first ones.")] = None,
    dataset: Annotated[str | None, typer.Option(help="The run's if not given.")] = None,
    data_root: DataRoot = None,
    binarize: Annotated[str | None, typer.Option(help="The run's if not given.")] = None,
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Measure the best model of a run."""
    from rhovae_kernels.metrics.aggregate import THRESHOLDS
    from rhovae_kernels.metrics.evaluate import evaluate as measure

    result = measure(
        run,
        dataset,
        [name.strip() for name in metrics.split(",")],
        limit=limit,
        data_root=data_root,
        binarize=binarize,
        seed=seed,
        split=split,
        thresholds=THRESHOLDS if thresholds is None else _numbers("thresholds", thresholds, float),
        fid_weights=fid_weights,
    )
    if as_json:
        print(result.json())
        return
    print(f"{result['count']} data of {result['data']}, {result['split']}, {result['label']}; nats")
    for name, value in result.lines():
        print(f"{name:<24}{value}")


@app.command()
def sample(
    run: Annotated[Path, typer.Argument(help="Directory of a run.")],
    n: Annotated[int, typer.Option("--n", min=1, help="How many.")] = 64,
    mean: Annotated[
        bool, typer.Option("--mean/--draw", help="The decoder's mean, or a draw from it.")
    ] = True,
    mode: Annotated[
        str,
        typer.Option(
            help="prior; low-posterior: prior samples that the data's codes cover least; "
            "high-posterior: codes of data that the prior covers least."
        ),
    ] = "prior",
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="The picture; samples.png in the run if not given.")
    ] = None,
) -> None:
    """Draw samples of the best model of a run into a picture."""
    import torch

    from rhovae_kernels.metrics import traversals
    from rhovae_kernels.metrics.data import data_of_run
    from rhovae_kernels.plots import pictures
    from rhovae_kernels.training.run import load_run

    vae, settings = load_run(run)
    kind = "mean" if mean else "draw"
    generator = torch.Generator().manual_seed(seed % 2**64)
    if mode == "prior":
        drawn = vae.sample(n, kind, generator)
    else:
        _, x = data_of_run(vae, settings, split="train")
        z = traversals.chosen_codes(vae, x, mode, n, seed)
        drawn = vae.decoder.mean(z) if mean else vae.decoder.draw(z, generator)
    out = out or run / ("samples.png" if mode == "prior" else f"samples-{mode}.png")
    pictures.samples(out, drawn.detach(), f"{n} samples ({mode}, {kind})")
    print(out)


@app.command()
def traverse(
    run: Annotated[Path, typer.Argument(help="Directory of a run.")],
    mode: Annotated[
        str,
        typer.Option(
            help="samples: between data, in a straight line of the generation space; factors: one "
            "dimension of the representation space at a time."
        ),
    ] = "samples",
    n: Annotated[int, typer.Option("--n", min=1, help="How many paths between data.")] = 8,
    steps: Annotated[int, typer.Option(min=2, help="Steps of a path.")] = 9,
    seed: Annotated[int, typer.Option(help="Of the data that are chosen.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="The picture; traverse-MODE.png in the run if not given.")
    ] = None,
) -> None:
    """Decode codes along paths into a picture."""
    from rhovae_kernels.metrics import traversals
    from rhovae_kernels.metrics.data import data_of_run
    from rhovae_kernels.plots import pictures
    from rhovae_kernels.training.run import load_run

    vae, settings = load_run(run)
    _, x = data_of_run(vae, settings)
    tracks = traversals.traverse(vae, x, mode, n, steps, seed)
    out = out or run / f"traverse-{mode}.png"
    pictures.paths(out, tracks, f"traversal ({mode})")
    print(out)


@app.command()
def bench(
    out: Annotated[
        Path | None, typer.Option(help="JSON to write; table and plot beside it.")
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="Run the benchmarks whose names match this.")
    ] = None,
) -> None:
    """Time the ops against what people use today: each verified first, all timed in turns."""
    folder = Path(__file__).resolve().parent.parent / "benchmarks"
    if not (folder / "report.py").exists():
        raise FileNotFoundError(
            f"benchmarks are part of the source, not of the installed package: {folder} is not "
            "there; run this in an editable install (pip install --no-build-isolation -e .)"
        )
    out = out or folder / "results" / "cpu.json"
    if out.suffix != ".json":
        raise ValueError(f"--out is {str(out)!r}; it must end in .json")
    out.parent.mkdir(parents=True, exist_ok=True)
    measured = out.with_suffix(".json.part")
    command = [sys.executable, "-m", "pytest", str(folder), "-q", "--benchmark-quiet"]
    command += ["-o", "python_files=bench_*.py", f"--benchmark-json={measured}"]
    run = subprocess.run([*command, "-k", only] if only else command, check=False)
    if run.returncode != 0:
        raise OSError(f"the benchmarks failed (status {run.returncode}): {out} is left as it was")
    measured.replace(out)
    subprocess.run([sys.executable, str(folder / "report.py"), str(out)], check=True)


@app.command()
def reproduce(
    paper: Annotated[str, typer.Argument(help="rho-vae, iaf or dpvae.")],
    dataset: Annotated[
        str,
        typer.Option("--data", help="mnist, fashion-mnist, kmnist, cifar-10, digits or two-moons."),
    ] = "mnist",
    form: Annotated[str | None, typer.Option(help="Of rho-vae: plain, beta or cnn.")] = None,
    latent: Annotated[
        int | None,
        typer.Option(help="Dimensions of the code: 10 for rho-vae, 32 for iaf, 128 on cifar-10."),
    ] = None,
    binarize: Annotated[
        str | None,
        typer.Option(help="Of iaf: round, none (grey; of cifar-10 if not given), static, dynamic."),
    ] = None,
    likelihood: Annotated[
        str | None,
        typer.Option(help="Of iaf: bernoulli, or logistic, of 256 values, in bits/dim too."),
    ] = None,
    objectives: Annotated[
        str | None, typer.Option(help="Of dpvae: recipes, with commas between; all six else.")
    ] = None,
    fid_weights: FidWeights = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training data; 20, two-moons 150.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds, with commas between.")] = "0,1",
    data_root: DataRoot = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory for results; one in runs, named by all this.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="NLL, of dpvae every metric, on so many test data.")
    ] = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress bar.")] = False,
) -> None:
    """Train a paper's comparison: what its sources report beside what is true."""
    from rhovae_kernels.papers.registry import PAPERS
    from rhovae_kernels.papers.runner import run

    if paper not in PAPERS:
        raise ValueError(f"there is no reproduction of {paper!r}; there are {', '.join(PAPERS)}")
    own: dict[str, Any] = {
        "form": form,
        "latent": latent,
        "binarize": binarize,
        "likelihood": likelihood,
        "objectives": objectives,
        "fid_weights": fid_weights,
    }
    taken = inspect.signature(PAPERS[paper]).parameters
    for name, value in own.items():
        if value is not None and name not in taken:
            raise ValueError(f"{name} is {str(value)!r}; a reproduction of {paper} takes none")
    own |= {"objectives": objectives.split(",") if objectives else None, "epochs": epochs}
    # An empty word, which an unset variable of a shell leaves, is an option not given.
    given = {name: value for name, value in own.items() if value not in (None, "")}
    numbers = _numbers("seeds", seeds, int)
    study = PAPERS[paper](dataset, **given)
    table = run(
        study,
        seeds=numbers,
        out=out or Path("runs") / study.name,
        data_root=data_root,
        limit=limit,
        quiet=quiet,
    )
    if as_json:
        _print_json(table)
    else:
        print(study.describe(table))


if __name__ == "__main__":
    main()
