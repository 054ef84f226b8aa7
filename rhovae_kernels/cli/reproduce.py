"""`rhovae reproduce`: a paper's comparison."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from rhovae_kernels.cli.app import AsJson, DataRoot, FidWeights, app, numbers_of, print_json


@app.command()
def reproduce(
    paper: Annotated[
        str,
        typer.Argument(
            help="rho-vae, iaf, dpvae, volatility, chorales, gaps, orders, pixelvae or maf."
        ),
    ],
    dataset: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="mnist (if not given), fashion-mnist, kmnist, cifar-10, digits or two-moons; of "
            "chorales jsb; of gaps, orders and pixelvae digits if not given; of maf breast-cancer "
            "(if not given), digits or mnist.",
        ),
    ] = None,
    form: Annotated[str | None, typer.Option(help="Of rho-vae: plain, beta or cnn.")] = None,
    latent: Annotated[
        int | None,
        typer.Option(
            help="Dimensions of the code: 10 for rho-vae and gaps, 128 for iaf on cifar-10, 16 for "
            "pixelvae, else 32."
        ),
    ] = None,
    binarize: Annotated[
        str | None,
        typer.Option(
            help="Of iaf and orders: round, static, dynamic; of iaf none too (grey; of cifar-10 if "
            "not given)."
        ),
    ] = None,
    likelihood: Annotated[
        str | None,
        typer.Option(help="Of iaf: bernoulli, or logistic, of 256 values, in bits/dim too."),
    ] = None,
    objectives: Annotated[
        str | None, typer.Option(help="Of dpvae: recipes, with commas between; all six else.")
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(
            help="Of pixelvae: pixelcnn, mlp-vae, pixelvae, pixelvae-15, pixelvae-7, pixelvae-3; "
            "of maf: maf, maf-conditional, nsf, nsf-conditional. With commas between; all if not "
            "given."
        ),
    ] = None,
    fid_weights: FidWeights = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Passes over the training data; 20, two-moons 150, jsb 100; of gaps of digits 60; "
            "of pixelvae 6, digits 40; of maf at most, 100, digits 40, mnist 8."
        ),
    ] = None,
    days: Annotated[
        str | None, typer.Option(help="Of volatility: all, or 100, the last; both if not given.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Seeds, with commas between; 0,1 if not given.")
    ] = None,
    data_root: DataRoot = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory for results; one in runs, named by all this.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(help="Measure NLL (dpvae: every metric) on the first N test samples."),
    ] = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress bar.")] = False,
) -> None:
    """Train a paper's comparison: what its sources report beside what is true."""
    from rhovae_kernels.papers.registry import FITS, PAPERS
    from rhovae_kernels.papers.runner import SEEDS, run

    if paper not in [*PAPERS, *FITS]:
        there_are = ", ".join([*PAPERS, *FITS])
        raise ValueError(f"there is no reproduction of {paper!r}; there are {there_are}")
    own: dict[str, Any] = {
        "data": dataset,
        "form": form,
        "latent": latent,
        "binarize": binarize,
        "likelihood": likelihood,
        "objectives": objectives,
        "models": models,
        "fid_weights": fid_weights,
        "epochs": epochs,
        "days": days,
    }
    of_runs: dict[str, Any] = {"seeds": seeds, "data_root": data_root, "limit": limit}
    if paper in FITS:
        fits = FITS[paper]
        given = _given(paper, fits.reproduce, own | of_runs)
        if "models" in given:
            given["models"] = given["models"].split(",")
        if "seeds" in given:
            given["seeds"] = numbers_of("seeds", given["seeds"], int)
        name = "-".join(filter(None, [paper, dataset]))
        table = fits.reproduce(**given, out=out or Path("runs") / name, quiet=quiet)
        page = fits.describe(table)
    else:
        given = _given(paper, PAPERS[paper], own)
        for several in ("objectives", "models"):
            if several in given:
                given[several] = given[several].split(",")
        numbers = numbers_of("seeds", seeds, int) if seeds else SEEDS
        study = PAPERS[paper](**given)
        table = run(
            study,
            seeds=numbers,
            out=out or Path("runs") / study.name,
            data_root=data_root,
            limit=limit,
            quiet=quiet,
        )
        page = study.describe(table)
    if as_json:
        print_json(table)
    else:
        print(page)


def _given(paper: str, makes: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, all of which the function must take.

    An empty word, which an unset variable of a shell leaves, is an option not given.
    """
    taken = inspect.signature(makes).parameters
    given = {name: value for name, value in options.items() if value not in (None, "")}
    for name, value in given.items():
        if name not in taken:
            raise ValueError(f"{name} is {str(value)!r}; a reproduction of {paper} takes none")
    return given
