"""A run's directory: what it holds, how it is opened again, and the model that it made."""

import json
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import rhovae_kernels
from rhovae_kernels import legacy
from rhovae_kernels.files import read_json, write_json
from rhovae_kernels.seeding import seeded
from rhovae_kernels.training.checkpoint import Checkpoint
from rhovae_kernels.training.settings import Settings
from rhovae_kernels.vae.base import Model
from rhovae_kernels.vae.loading import load

RUN, HISTORY, BEST, LAST = "run.json", "history.json", "best.safetensors", "last.safetensors"

DEFAULTS: dict[str, Any] = {**Settings().describe(), "schedule_epochs": None}
"""What a setting was in a run whose version did not write it down."""

FREE = ("data_root", "data_path", "notes", "trackers")
"""What a resumed run may have otherwise than before."""


def versions() -> dict[str, str]:
    """What a result was made with."""
    return {
        "rhovae_kernels": rhovae_kernels.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


@dataclass(repr=False)
class History:
    """What a run measured.

    Attributes:
        epochs: one row per epoch: epoch, train_loss, and of the splits valid and, where there is
            one, test {split}_loss, {split}_negative_elbo, {split}_distortion, {split}_rate, in
            nats.
        seconds: what the training steps of each epoch took, of the epochs that this call ran.

    Example:
        >>> history = History([{"epoch": 1, "train_loss": 3.5}, {"epoch": 2, "train_loss": 3.0}])
        >>> history.column("train_loss")
        [3.5, 3.0]
        >>> history
        History of 2 epochs, the last: epoch 2, train_loss 3
    """

    epochs: list[dict[str, float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def column(self, name: str) -> list[float]:
        """One quantity over the epochs."""
        return [row[name] for row in self.epochs]

    def __repr__(self) -> str:
        # Of a notebook's last line, not thousands of characters.
        last = ", ".join(f"{name} {value:g}" for name, value in (self.epochs or [{}])[-1].items())
        return f"History of {len(self.epochs)} epochs" + (f", the last: {last}" if last else "")


class Run:
    """The directory of a run. Each of its files is replaced at once.

    Args:
        out: the directory.
    """

    def __init__(self, out: Path) -> None:
        self.out = out

    def open(self, settings: dict[str, Any], resume: str | None) -> Checkpoint | None:
        """Where the run stands; None where it has yet to start.

        Raises:
            NotADirectoryError, FileExistsError: there is something else.
            FileNotFoundError: the run lacks its last checkpoint.
            ValueError: it was made with other settings, or is damaged.
        """
        out = self.out
        if out.exists() and not out.is_dir():
            raise NotADirectoryError(f"out is {out}, which is a file; it must be a directory")
        if not (out / RUN).exists():
            taken = [name for name in (BEST, LAST, HISTORY) if (out / name).exists()]
            if taken:
                raise FileExistsError(
                    f"{out} holds {', '.join(taken)} but no {RUN}: out must be empty"
                )
            return None
        if resume is None:
            raise FileExistsError(
                f"{out} already holds a run; resume='auto' (--resume auto) goes on with it, "
                "another out starts a new one"
            )
        stored = legacy.description(read_json(out / RUN))
        for name, value in json.loads(json.dumps(settings)).items():
            before = stored.get(name, DEFAULTS.get(name))
            if name not in FREE and before != value:
                raise ValueError(
                    f"{out / RUN}: {name} is {before!r}, asked for is {value!r}; a run is "
                    "resumed with the settings it was started with"
                )
        if (out / LAST).exists():
            return Checkpoint.load(out / LAST)
        left = [name for name in (BEST, HISTORY) if (out / name).exists()]
        if left:
            raise FileNotFoundError(
                f"{out / LAST} is missing beside {', '.join(left)}: the run is damaged and was "
                "left as it is; it can still be evaluated, and another out starts a new one"
            )
        return None

    def start(self, settings: dict[str, Any]) -> None:
        """Write down the settings and the versions."""
        write_json(self.out / RUN, {**settings, "versions": versions()})

    def save_best(self, checkpoint: Checkpoint, vae: Model) -> None:
        """Write the best epoch's state, and its model as `save_pretrained` does."""
        checkpoint.save(self.out / BEST)
        vae.save_pretrained(self.out)

    def save_last(self, checkpoint: Checkpoint) -> None:
        """Write the state after an epoch, and the history.

        After `save_best`: a run killed between them repeats the epoch, to the same best.
        """
        checkpoint.save(self.out / LAST)
        write_json(self.out / HISTORY, checkpoint.history)

    def restore_best(self, vae: Model) -> None:
        """Give a model the weights of the best epoch."""
        Checkpoint.load(self.out / BEST).restore(self.out / BEST, vae)


def load_run(run: str | Path, **parts: nn.Module) -> tuple[Model, dict[str, Any]]:
    """The best model of a run of `fit`, and the run's settings.

    Args:
        run: the directory.
        parts: those that were made by other code than this package's, see `VAE.from_pretrained`.

    Returns:
        The model, on the CPU and in evaluation mode, and what run.json says.

    Raises:
        FileNotFoundError: there is no run, or none that finished an epoch.
        ValueError: one of its files is truncated or corrupted.

    Example:
        >>> import tempfile, rhovae_kernels as rk
        >>> run, vae = tempfile.mkdtemp(), rk.recipes.recipe("rho-vae").build((3,), latent=2)
        >>> history = rk.fit(vae, torch.rand(50, 3), epochs=1, out=run, quiet=True)
        >>> again, settings = load_run(run)
        >>> again.latent, settings["batch_size"], settings["lr"]
        (2, 128, 0.001)
    """
    run = Path(run)
    if not (run / RUN).is_file():
        raise FileNotFoundError(f"{run} holds no run: {RUN} is not there")
    settings = read_json(run / RUN)
    lost = [name for name in ("data", "data_root", "binarize", "seed") if name not in settings]
    if lost:
        raise ValueError(f"{run / RUN}: corrupted, it does not say the run's {', '.join(lost)}")
    # Building the parts draws initial weights, which the saved ones then replace.
    with seeded(torch.device("cpu"), 0):
        return load(run, **parts), settings
