"""`fit`: a loop over epochs that is saved after each, and goes on where it was stopped.

All randomness of an epoch comes from (seed, epoch), so a run that is continued from the end of an
epoch ends as one that was never interrupted, bit for bit.
"""

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator

from rhovae_kernels.data.splits import Splits, is_name, open_splits
from rhovae_kernels.training.callbacks import Callback, EarlyStopping, State
from rhovae_kernels.training.progress import ProgressBar
from rhovae_kernels.training.run import LAST, History, Run
from rhovae_kernels.training.score import score
from rhovae_kernels.training.settings import Settings
from rhovae_kernels.training.trackers import Trackers, check_trackers
from rhovae_kernels.training.trainer import Trainer, check_batches
from rhovae_kernels.vae import parts
from rhovae_kernels.vae.base import Model


def fit(
    vae: Model,
    data: Any = "digits",
    valid: Any = None,
    test: Any = None,
    *,
    epochs: int,
    out: str | Path,
    resume: Literal["auto"] | None = None,
    quiet: bool = False,
    callbacks: Sequence[Callback] = (),
    settings: Settings | None = None,
    data_root: str | Path | None = None,
    binarize: str = "none",
    train_split: Literal["train", "train+valid"] = "train",
    recipe: str | None = None,
    **changes: Any,
) -> History:
    """Train a model, a `VAE` or a `Density`: minimize its objective over data.

    An objective with an adversary (`Factor`) brings its optimizer, which takes a step of its own
    after each of the model's.

    The directory `out` gets run.json (the settings and versions), history.json (one row per epoch),
    last.safetensors (the state after the last epoch, from which a run is resumed), best.safetensors
    (that of the epoch of least −ELBO on the validation data, which is −log p(x) of a `Density`)
    and, by `save_pretrained`, the best model, with which `vae` leaves this call too. Each file is
    replaced at once: whoever stops the run at any moment finds them whole.

    Where the model has batch normalization, whose statistics one datum has not, a batch that leaves
    a process fewer than two data is left out.

    Device, mixed precision and number of processes are those that `accelerate launch`, or its
    environment variables, set; each process takes its share of every batch.

    Args:
        vae: the model; trained in place.
        data: what to train on: a tensor or NumPy array (N, *input_shape); a
            `torch.utils.data.Dataset` of items x, (x, y) or dictionaries; a `DataLoader`; the path
            of a file or of a folder of images, see `data.open_file`; or the name of a data set, see
            `data.load`. Bytes (uint8) are pixels, scaled to [0, 1]. Sequences of several lengths
            are padded by NaN, see `data.pad`; a batch has as many steps as its longest.
        valid: what to choose the best epoch by, as `data`; or the fraction of `data` to hold out
            for it. Where left out, a named set's own, or a tenth.
        test: measured after each epoch as well; a named set's own, or none, where left out.
        epochs: passes over the data, those of a resumed run included.
        out: directory of the run.
        resume: "auto" goes on with the run in `out`, or starts it; None refuses to touch one.
        quiet: show no progress bar and print no notes.
        callbacks: called while the model is trained, see `training.callbacks.Callback`.
        settings: how to train, see `training.settings.Settings`.
        data_root: directory of the named data sets, see `data.load`.
        binarize: of named sets, tensors and arrays of pixels: "none", "round", "static" or
            "dynamic", see `data.load`.
        train_split: of a named set "train"; or "train+valid", all training data, as sources train
            that hold out none: the best epoch then means nothing, and the last is the one to use.
        recipe: name of what `vae` was built from, to be written down.
        changes: settings by name, in place of those in `settings`: lr=3e-4, optimizer="adamw" …

    Returns:
        The history of the whole run.

    Raises:
        TypeError: there is no such setting, or data are of a kind that is not taken.
        FileExistsError: `out` holds a run and resume is None.
        ValueError: an argument does not fit; data have another shape than the model wants, are not
            finite or outside the likelihood's support; a batch is too small for batch
            normalization; the run in `out` was made with other settings; its checkpoint is
            truncated or corrupted.
        FloatingPointError: a loss is not finite. The files are those of the last good epoch.
        RuntimeError: another process of the run is gone. The files are those of the last epoch.

    Example:
        >>> import tempfile, torch, rhovae_kernels as rk
        >>> x = torch.rand(200, 1, 8, 8)
        >>> vae = rk.recipes.recipe("rho-vae").build((1, 8, 8), latent=2)
        >>> history = rk.fit(vae, x, epochs=1, out=tempfile.mkdtemp(), quiet=True)
        >>> len(history.column("valid_negative_elbo"))
        1
    """
    if not isinstance(epochs, int) or epochs < 1:
        raise ValueError(f"epochs is {epochs}; it must be at least 1")
    if resume not in (None, "auto"):
        raise ValueError(f"resume is {resume!r}; it must be 'auto' or None")
    how = Settings.of(settings, changes)
    check_trackers(how.trackers)
    # Before anything is written: data that cannot be had, or do not fit, leave no run behind.
    splits = open_splits(
        data,
        valid,
        test,
        dtype=next(vae.parameters()).dtype,
        workers=how.workers,
        binarize=binarize,
        root=data_root,
        train_split=train_split,
        seed=how.seed,
    )
    batch_size = _batch_size(how, splits)
    _check_splits(vae, splits, how.samples)
    described = {
        "recipe": recipe,
        **_describe_data(splits, data, binarize, data_root, train_split),
        "latent": vae.latent,
        **how.describe(),
        "batch_size": batch_size,
        "schedule_epochs": epochs if how.schedule is not None else None,
        "model": {name: parts.describe(part) for name, part in vae.named_children()},
    }
    accelerator = Accelerator(log_with=list(how.trackers) or None, project_dir=str(out))
    check_batches(vae, splits.train, batch_size, accelerator.num_processes)
    trainer = Trainer(vae, splits, how, batch_size, epochs, accelerator)
    run = Run(Path(out))
    checkpoint = run.open(described, resume)
    accelerator.wait_for_everyone()
    if checkpoint is not None:
        trainer.restore(checkpoint, run.out / LAST)
        if len(checkpoint.history) > epochs:
            raise ValueError(
                f"epochs is {epochs}; the run in {out} has {len(checkpoint.history)} already"
            )
    state = trainer.state(run.out)
    called: list[Callback] = [*callbacks]
    if how.patience is not None:
        called.append(EarlyStopping(how.patience))
    if how.trackers:
        called.append(Trackers(accelerator, described))
    if not quiet and accelerator.is_main_process and state.epoch < epochs:
        for note in notes_of(splits):
            accelerator.print(f"fit: {note}")
        called.append(ProgressBar())

    best = min(state.history.column("valid_negative_elbo"), default=math.inf)
    with vae.unvalidated(), _called(called, state), _others_lost(accelerator, run.out):
        # A callback that cannot start leaves no run behind.
        if accelerator.is_main_process:
            run.start(described)
        while state.epoch < epochs and not state.stopped:
            started = time.perf_counter()
            loss = trainer.train_epoch(state, called)
            state.history.seconds.append(time.perf_counter() - started)
            row: dict[str, float] = {"epoch": state.epoch + 1, "train_loss": loss}
            for split in ("valid", "test"):
                source = getattr(splits, split)
                if source is not None:
                    scores = score(trainer.candidate, source, batch_size, how.seed, trainer.step)
                    row |= {f"{split}_{name}": value for name, value in scores.items()}
            _check_finite(row, trainer.step)
            trainer.end_epoch(row)
            state.epoch += 1
            state.history.epochs.append(row)
            for callback in called:
                callback.on_epoch(state)
            if accelerator.is_main_process:
                kept = trainer.checkpoint(state.history.epochs)
                if row["valid_negative_elbo"] < best:
                    run.save_best(trainer.best(kept), trainer.candidate)
                run.save_last(kept)
            best = min(best, row["valid_negative_elbo"])
            accelerator.wait_for_everyone()
    trainer.unwrap()
    run.restore_best(vae)
    vae.eval()
    return state.history


def notes_of(splits: Splits) -> list[str]:
    """What was done to the data that nobody asked for."""
    found = [note for source in splits if source is not None for note in source.notes]
    return list(dict.fromkeys(found))


def _batch_size(how: Settings, splits: Splits) -> int:
    given = splits.train.batch_size
    if given is None:
        return how.batch_size or 128
    if how.batch_size not in (None, given):
        raise ValueError(
            f"batch_size is {how.batch_size}; the {splits.train.name} gives batches of {given}"
        )
    return given


def _check_splits(vae: Model, splits: Splits, samples: int) -> None:
    """Refuse data that do not fit the model, by what can be seen before the first step."""
    for split, source in splits._asdict().items():
        if source is None:
            continue
        name = source.name if split == "train" else f"{split} ({source.name})"
        if not vae.takes(source.input_shape):
            raise ValueError(
                f"{name} holds data of shape {source.input_shape}; the model wants "
                f"{vae.wanted_shape}"
            )
        vae.check_data(source.first, name)
    vae.check_training(samples, splits.train.count, splits.train.name)


def _describe_data(
    splits: Splits, data: Any, binarize: str, data_root: str | Path | None, train_split: str
) -> dict[str, Any]:
    of_train = splits.train.describe()
    own = {
        split: None if source is None or source.describe() == of_train else source.describe()
        for split, source in (("valid", splits.valid), ("test", splits.test))
    }
    of_file = isinstance(data, str | Path) and not is_name(data)
    return {
        "data": of_train,
        "data_path": str(Path(data).resolve()) if of_file else None,
        **own,
        "binarize": binarize,
        "label": splits.train.label,
        "data_root": None if data_root is None else str(Path(data_root).resolve()),
        "train_split": train_split,
        "training_data": splits.train.count,
        "notes": notes_of(splits),
    }


def _check_finite(row: dict[str, float], step: int) -> None:
    for quantity, measured in row.items():
        if not math.isfinite(measured):
            raise FloatingPointError(
                f"{quantity} is {measured} after epoch {row['epoch']} (step {step}); nothing of "
                "this epoch was kept. Data of unit scale or a smaller lr may help"
            )


@contextlib.contextmanager
def _called(callbacks: Sequence[Callback], state: State) -> Iterator[None]:
    """A block within which callbacks are at work: their ends are called however it is left."""
    with contextlib.ExitStack() as ends:
        for callback in callbacks:
            callback.on_start(state)
            ends.callback(callback.on_end, state)
        yield


@contextlib.contextmanager
def _others_lost(accelerator: Accelerator, out: Path) -> Iterator[None]:
    """A block that says so where another process of the run is gone."""
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        lost = any(word in text for word in ("gloo", "nccl", "connection closed", "reset by peer"))
        if accelerator.num_processes == 1 or not lost:
            raise
        raise RuntimeError(
            "another process of this run is gone, so this one stops too. The state after the last "
            f"whole epoch is in {out / LAST}; resume='auto' goes on from there"
        ) from error
