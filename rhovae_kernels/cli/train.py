"""`rhovae train`: a recipe on a named data set, or on files of one's own."""

from pathlib import Path
from typing import Annotated

import typer

from rhovae_kernels.cli.app import DataRoot, app


@app.command()
def train(
    dataset: Annotated[
        str,
        typer.Argument(
            help="digits, two-moons, mnist, fashion-mnist, kmnist, cifar-10, svhn or celeba; of "
            "sequences jsb or sp500; or a .npy, .npz or .safetensors file, or a folder of images."
        ),
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
    lr: Annotated[float | None, typer.Option(help="Step size; the recipe's if not given.")] = None,
    valid: Annotated[
        str | None,
        typer.Option(help="File or folder to validate on, or the part to hold out, like 0.2."),
    ] = None,
    optimizer: Annotated[str, typer.Option(help="One of torch.optim: adam, adamw, sgd …")] = "adam",
    schedule: Annotated[
        str | None,
        typer.Option(help="Of the step size: cosine, exponential, linear, one-cycle or plateau."),
    ] = None,
    schedule_every: Annotated[str, typer.Option(help="epoch or step.")] = "epoch",
    weight_decay: Annotated[float, typer.Option(help="As the optimizer takes it.")] = 0.0,
    clip: Annotated[float | None, typer.Option(help="Largest norm of the gradient.")] = None,
    accumulate: Annotated[int, typer.Option(help="Batches that make one step.")] = 1,
    patience: Annotated[
        int | None, typer.Option(help="Stop after N epochs without a lower validation −ELBO.")
    ] = None,
    average: Annotated[
        float | None, typer.Option(help="Decay of an average of the weights, like 0.999.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Draws of z for each datum and step.")] = 1,
    compiled: Annotated[bool, typer.Option("--compile", help="Train by torch.compile.")] = False,
    tracker: Annotated[
        list[str] | None, typer.Option(help="tensorboard, wandb, mlflow …; may be repeated.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress bar.")] = False,
) -> None:
    """Train a recipe on data; the run's directory holds all that `evaluate` needs."""
    import torch

    from rhovae_kernels.data.splits import is_name, sources
    from rhovae_kernels.seeding import seeded
    from rhovae_kernels.training.fit import fit
    from rhovae_kernels.vae.recipes import recipe as find

    found = find(recipe)
    out = out or Path("runs") / f"{Path(dataset).resolve().stem}-{found.name}"
    validation = _fraction_or_path(valid)
    split = "test" if is_name(dataset) else "train"
    shape = sources(dataset, (split,), binarize=binarize, root=data_root)[split].input_shape
    with seeded(torch.device("cpu"), seed):
        vae = found.build(shape, latent)
    history = fit(
        vae,
        dataset,
        validation,
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
        optimizer=optimizer,
        schedule=schedule,
        schedule_every=schedule_every,
        weight_decay=weight_decay,
        clip=clip,
        accumulate=accumulate,
        patience=patience,
        average=average,
        samples=samples,
        compile=compiled,
        trackers=tuple(tracker or ()),
    )
    last = history.epochs[-1]
    split = "test" if "test_negative_elbo" in last else "valid"
    value = last[f"{split}_negative_elbo"]
    print(f"{out}: epoch {last['epoch']}, {split} −ELBO {value:.3f} nats")


def _fraction_or_path(text: str | None) -> float | str | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return text
