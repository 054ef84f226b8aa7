"""`rhovae gap`: what inference loses in a run, and why."""

from pathlib import Path
from typing import Annotated

import typer

from rhovae_kernels.cli.app import AsJson, DataRoot, Parts, app, parts_of

DATA = ("test", "simulated")


@app.command()
def gap(
    run: Annotated[Path, typer.Argument(help="Directory of a run.")],
    parts: Parts = None,
    data: Annotated[
        str,
        typer.Option(
            help="test: the run's test split. simulated: data drawn from the model, of which "
            "log p(x) is bracketed from both sides."
        ),
    ] = "test",
    families: Annotated[
        str,
        typer.Option(help="Some of diagonal, ar1, scaled-ar1, full, iaf, with commas between."),
    ] = "diagonal,ar1,scaled-ar1,full,iaf",
    limit: Annotated[int, typer.Option(help="How many data.")] = 100,
    samples: Annotated[int, typer.Option(help="Of each datum, for every ELBO and IWAE.")] = 1000,
    chains: Annotated[int, typer.Option(help="Of annealed importance sampling.")] = 16,
    temperatures: Annotated[int, typer.Option(help="Of annealed importance sampling.")] = 500,
    leapfrog: Annotated[int, typer.Option(help="Leapfrog steps of each of its moves.")] = 5,
    data_root: DataRoot = None,
    binarize: Annotated[str | None, typer.Option(help="The run's if not given.")] = None,
    seed: Annotated[int, typer.Option(help="Of every draw.")] = 0,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress bar.")] = False,
) -> None:
    """Bracket log p(x), and part log p(x) − ELBO into approximation and amortization gap.

    Writes gap-DATA.json and the picture gap-DATA.png into the run. Annealing that was stopped goes
    on where it was.
    """
    from rhovae_kernels.files import write_text
    from rhovae_kernels.metrics.inference_gap import inference_gap
    from rhovae_kernels.plots import pictures

    if data not in DATA:
        raise ValueError(f"data is {data!r}; it must be one of {', '.join(DATA)}")
    gaps = inference_gap(
        run,
        families=[name.strip() for name in families.split(",")],
        limit=limit,
        simulated=data == "simulated",
        samples=samples,
        chains=chains,
        temperatures=temperatures,
        leapfrog=leapfrog,
        data_root=data_root,
        binarize=binarize,
        seed=seed,
        out=run,
        quiet=quiet,
        **parts_of(parts),
    )
    write_text(run / f"gap-{data}.json", gaps.json())
    bars = {
        name: {part: pictures.Part(**found[part]) for part in ("approximation", "amortization")}
        for name, found in gaps["families"].items()
    }
    picture = run / f"gap-{data}.png"
    where = f"{gaps['count']} data, {gaps['data']}"
    pictures.stacked_bars(picture, bars, "nats", f"gaps of inference, {where}")
    if as_json:
        print(gaps.json())
        return
    print(gaps.page())
    print(picture)
