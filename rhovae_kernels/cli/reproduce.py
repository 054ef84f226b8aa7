"""`rhovae reproduce`: a paper's comparison."""

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from rhovae_kernels.cli.app import AsJson, DataRoot, FidWeights, app, numbers_of, print_json


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
    numbers = numbers_of("seeds", seeds, int)
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
        print_json(table)
    else:
        print(study.describe(table))
