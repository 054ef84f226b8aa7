"""The command `rhovae`."""

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
    typer.Option(help="Directory that holds a directory of IDX files for each data set."),
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
    from rhovae_kernels.vae.demo import demo as run_demo

    run_demo(out)


@app.command()
def train(
    dataset: Annotated[
        str, typer.Argument(help="digits, two-moons, mnist, fashion-mnist or kmnist.")
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

    from rhovae_kernels.vae.data import load
    from rhovae_kernels.vae.recipes import recipe as find
    from rhovae_kernels.vae.training import fit, seeded

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
        str, typer.Option(help="Some of elbo, nll@K and active-units, with commas between.")
    ] = "elbo,nll@5000,active-units",
    limit: Annotated[int | None, typer.Option(help="Only so many data, the first ones.")] = None,
    dataset: Annotated[str | None, typer.Option(help="The run's if not given.")] = None,
    data_root: DataRoot = None,
    binarize: Annotated[str | None, typer.Option(help="The run's if not given.")] = None,
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Measure the best model of a run."""
    from rhovae_kernels.vae.evaluation import evaluate as measure

    result = measure(
        run,
        dataset,
        metrics.split(","),
        limit=limit,
        data_root=data_root,
        binarize=binarize,
        seed=seed,
        split=split,
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
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="The picture; samples.png in the run if not given.")
    ] = None,
) -> None:
    """Draw samples of the best model of a run into a picture."""
    import torch

    from rhovae_kernels.vae import pictures
    from rhovae_kernels.vae.evaluation import load_run

    vae, _ = load_run(run)
    mode = "mean" if mean else "draw"
    drawn = vae.sample(n, mode, torch.Generator().manual_seed(seed))
    out = out or run / "samples.png"
    pictures.samples(out, drawn, f"{n} samples ({mode})")
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
    paper: Annotated[str, typer.Argument(help="rho-vae or iaf.")],
    dataset: Annotated[
        str, typer.Option("--data", help="mnist, fashion-mnist, kmnist or digits.")
    ] = "mnist",
    form: Annotated[str, typer.Option(help="Of rho-vae: plain, beta or cnn.")] = "plain",
    latent: Annotated[
        int | None, typer.Option(help="Dimensions of the code; 10 for rho-vae, 32 for iaf else.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training data; 20 if not given.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds, with commas between.")] = "0,1",
    data_root: DataRoot = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory for results; one in runs, named by all this.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="NLL on so many test data.")] = None,
    binarize: Annotated[
        str | None, typer.Option(help="Of iaf: round, none (grey), static or dynamic.")
    ] = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress bar.")] = False,
) -> None:
    """Train a paper's comparison: what its sources report beside what is true."""
    from rhovae_kernels.vae import reproduction, reproduction_iaf

    if paper not in ("rho-vae", "iaf"):
        raise ValueError(f"there is no reproduction of {paper!r}; there are rho-vae and iaf")
    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError as error:
        raise ValueError(f"seeds is {seeds!r}; it must be integers, with commas between") from error
    common: dict[str, Any] = {
        "seeds": numbers,
        "data_root": data_root,
        "limit": limit,
        "quiet": quiet,
    }
    runs = Path("runs")
    if paper == "rho-vae":
        if binarize not in (None, "none"):
            raise ValueError(
                f"binarize is {binarize!r}; rho-vae is reproduced on grey values, as its sources"
            )
        latent = 10 if latent is None else latent
        table = reproduction.reproduce(
            dataset,
            form,
            latent=latent,
            epochs=20 if epochs is None else epochs,
            out=out or runs / f"rho-vae-{dataset}-{form}-d{latent}",
            **common,
        )
        page = reproduction.describe(table)
    else:
        if form != "plain":
            raise ValueError(f"form is {form!r}; iaf has but plain")
        binarize = "round" if binarize is None else binarize
        table = reproduction_iaf.reproduce(
            dataset,
            binarize=binarize,
            latent=latent,
            epochs=epochs,
            out=out or runs / f"iaf-{dataset}-{binarize}",
            **common,
        )
        page = reproduction_iaf.describe(table)
    if as_json:
        _print_json(table)
    else:
        print(page)


if __name__ == "__main__":
    main()
