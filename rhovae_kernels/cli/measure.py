"""`rhovae evaluate`, `sample` and `traverse`: what a run has made."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rhovae_kernels.cli.app import AsJson, DataRoot, FidWeights, Parts, app, numbers_of, parts_of

if TYPE_CHECKING:
    from torch import Tensor


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Directory of a run.")],
    parts: Parts = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Some of elbo, nll@K, active-units, collapse, skl, leakage, mi, tc, fid and "
            "fid-low-posterior, with commas between; elbo,nll@5000,active-units if not given. nll, "
            "the exact one, and orders are of a model without a code."
        ),
    ] = None,
    thresholds: Annotated[
        str | None, typer.Option(help="Of the leakage, ascending, with commas between; 0 to 10.")
    ] = None,
    fid_weights: FidWeights = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N samples.")] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="A name, a file or a folder of images; the run's if not given."),
    ] = None,
    data_root: DataRoot = None,
    binarize: Annotated[str | None, typer.Option(help="The run's if not given.")] = None,
    split: Annotated[
        str | None,
        typer.Option(help="train, valid or test; test, or what the run held out, if not given."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Measure the best model of a run."""
    from rhovae_kernels.metrics.aggregate import THRESHOLDS
    from rhovae_kernels.metrics.evaluate import evaluate as measure

    result = measure(
        run,
        dataset,
        None if metrics is None else [name.strip() for name in metrics.split(",")],
        limit=limit,
        data_root=data_root,
        binarize=binarize,
        seed=seed,
        split=split,
        thresholds=THRESHOLDS
        if thresholds is None
        else numbers_of("thresholds", thresholds, float),
        fid_weights=fid_weights,
        **parts_of(parts),
    )
    if as_json:
        print(result.json())
        return
    print(f"{result['count']} data of {result['data']}, {result['split']}, {result['label']}; nats")
    for note in result.get("notes", ()):
        print(f"data: {note}")
    for name, value in result.lines():
        print(f"{name:<24}{value}")


@app.command()
def sample(
    run: Annotated[Path, typer.Argument(help="Directory of a run.")],
    parts: Parts = None,
    n: Annotated[int, typer.Option("--n", min=1, help="How many.")] = 64,
    mean: Annotated[
        bool | None,
        typer.Option(
            "--mean/--draw", help="The decoder's mean (where it has one), or a draw from it."
        ),
    ] = None,
    mode: Annotated[
        str,
        typer.Option(
            help="prior; low-posterior: prior samples that the data's codes cover least; "
            "high-posterior: codes of data that the prior covers least."
        ),
    ] = "prior",
    dataset: Annotated[
        str | None, typer.Option(help="Of other modes than prior; the run's if not given.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The picture, or an array, of suffix .npy; samples.png in the run if not given, "
            "of a table samples.npy."
        ),
    ] = None,
) -> None:
    """Draw samples of the best model of a run into a picture, or an array."""
    import torch

    from rhovae_kernels.files import write_array
    from rhovae_kernels.metrics import traversals
    from rhovae_kernels.metrics.data import data_of_run
    from rhovae_kernels.plots import pictures
    from rhovae_kernels.training.run import load_run
    from rhovae_kernels.vae.model import vae_of

    model, settings = load_run(run, **parts_of(parts))
    kind = model.mode if mean is None else "mean" if mean else "draw"
    generator = torch.Generator().manual_seed(seed % 2**64)
    if mode == "prior":
        drawn = model.sample(n, kind, generator)
    else:
        vae = vae_of(model, f"mode {mode!r}")
        _, x = data_of_run(vae, settings, dataset, split="train")
        z = traversals.chosen_codes(vae, x, mode, n, seed)
        drawn = vae.decode(z, kind, generator)
    out = out or _place(run, "samples" if mode == "prior" else f"samples-{mode}", drawn)
    if out.suffix == ".npy":
        write_array(out, drawn)
    else:
        pictures.samples(out, drawn.detach(), f"{n} samples ({mode}, {kind})")
    print(out)


def _place(run: Path, name: str, x: "Tensor") -> Path:
    """The file for data of these shapes: of rows of a table an array, as there is no picture."""
    table = x.dim() == 2 and x.shape[1] != 2
    return run / f"{name}{'.npy' if table else '.png'}"


@app.command()
def traverse(
    run: Annotated[Path, typer.Argument(help="Directory of a run.")],
    parts: Parts = None,
    mode: Annotated[
        str,
        typer.Option(
            help="samples: between data, in a straight line of the generation space; factors: one "
            "dimension of the representation space at a time."
        ),
    ] = "samples",
    n: Annotated[int, typer.Option("--n", min=1, help="How many paths between data.")] = 8,
    steps: Annotated[int, typer.Option(min=2, help="Steps of a path.")] = 9,
    dataset: Annotated[str | None, typer.Option(help="The run's if not given.")] = None,
    seed: Annotated[int, typer.Option(help="Of the data that are chosen.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The picture, or an array (paths, steps, ...), of suffix .npy; traverse-MODE.png "
            "in the run if not given, of a table traverse-MODE.npy."
        ),
    ] = None,
) -> None:
    """Decode codes along paths into a picture, or an array."""
    from rhovae_kernels.files import write_array
    from rhovae_kernels.metrics import traversals
    from rhovae_kernels.metrics.data import data_of_run
    from rhovae_kernels.plots import pictures
    from rhovae_kernels.training.run import load_run
    from rhovae_kernels.vae.model import vae_of

    model, settings = load_run(run, **parts_of(parts))
    vae = vae_of(model, "a traversal")
    _, x = data_of_run(vae, settings, dataset)
    tracks = traversals.traverse(vae, x, mode, n, steps, seed)
    out = out or _place(run, f"traverse-{mode}", tracks.flatten(0, 1))
    if out.suffix == ".npy":
        write_array(out, tracks)
    else:
        pictures.paths(out, tracks, f"traversal ({mode})")
    print(out)
