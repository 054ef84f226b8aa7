"""Training: `fit`, and the directory that a run lives in.

All randomness of an epoch comes from (seed, epoch), so a run that is continued from the end of an
epoch ends as one that was never interrupted, bit for bit, and no generator's state is stored.
"""

import contextlib
import itertools
import json
import math
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Adam, Optimizer

import rhovae_kernels
from rhovae_kernels.data.named import Dataset, load
from rhovae_kernels.files import load_tensors, read_json, save_tensors, write_json
from rhovae_kernels.vae import parts
from rhovae_kernels.vae.model import VAE

RUN, HISTORY, BEST, LAST = "run.json", "history.json", "best.safetensors", "last.safetensors"

STEPS_BETWEEN_LOOKS = 50
"""How often losses are looked at: each look makes a GPU's queue run empty."""


@dataclass
class History:
    """What a run measured.

    Attributes:
        epochs: one row per epoch: epoch, train_loss, and of the splits valid and test
            {split}_loss, {split}_negative_elbo, {split}_distortion, {split}_rate, in nats.
        seconds: what the training steps of each epoch took, of the epochs that this call ran.
    """

    epochs: list[dict[str, float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def column(self, name: str) -> list[float]:
        """One quantity over the epochs."""
        return [row[name] for row in self.epochs]


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run at the end of an epoch, as one file holds it."""

    model: dict[str, Tensor]
    adam: dict[int, dict[str, Tensor]]
    adversary: dict[int, dict[str, Tensor]]
    step: int
    history: list[dict[str, float]]
    scaler: dict[str, Any]

    def save(self, path: Path) -> None:
        tensors = {f"model.{name}": x for name, x in self.model.items()}
        for kind, states in (("adam", self.adam), ("adversary", self.adversary)):
            for index, state in states.items():
                tensors |= {f"{kind}.{index}.{name}": x for name, x in state.items()}
        rest = {"step": self.step, "history": self.history, "scaler": self.scaler}
        save_tensors(path, tensors, {"state": json.dumps(rest, allow_nan=False)})

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """The checkpoint in a file.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is truncated, corrupted or no checkpoint.
        """
        tensors, metadata = load_tensors(path)
        if "state" not in metadata:
            raise ValueError(f"{path}: no checkpoint of a run, it does not say its state")
        model: dict[str, Tensor] = {}
        states: dict[str, dict[int, dict[str, Tensor]]] = {"adam": {}, "adversary": {}}
        for key, x in tensors.items():
            kind, _, name = key.partition(".")
            if kind == "model":
                model[name] = x
            else:
                index, _, name = name.partition(".")
                states[kind].setdefault(int(index), {})[name] = x
        return cls(model, states["adam"], states["adversary"], **json.loads(metadata["state"]))

    def restore(self, path: Path, vae: VAE, *optimizers: Optimizer) -> None:
        """Put the weights back, and the states of Adam and the adversary where those are given.

        `path` is for the error.
        """
        try:
            vae.load_state_dict(self.model)
            for optimizer, state in zip(optimizers, (self.adam, self.adversary), strict=False):
                groups = optimizer.state_dict()["param_groups"]
                optimizer.load_state_dict({"state": state, "param_groups": groups})
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{path}: does not fit the model: {error}") from error


@contextlib.contextmanager
def seeded(device: torch.device, *key: int) -> Iterator[None]:
    """A block with the random stream of `key`; the caller's goes on as if it were not there."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        # SeedSequence takes no negative numbers.
        entropy = [number % 2**64 for number in key]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))
        yield


def score(
    vae: VAE, dataset: Dataset, batch_size: int, seed: int, step: int = 0
) -> dict[str, float]:
    """Means over a data set: of the objective that the model trains on, of −ELBO and of its parts.

    Args:
        vae: the model.
        dataset: the data.
        batch_size: data in a batch; the published objective depends on it.
        seed: of the samples of q(z|x).
        step: optimization steps taken so far, for objectives that change with them.

    Returns:
        loss, negative_elbo, distortion and rate, in nats.
    """
    device = next(vae.parameters()).device
    totals = torch.zeros(3, dtype=torch.float64)
    vae.eval()
    with seeded(device, seed), torch.no_grad():
        for x in dataset.batches(batch_size, shuffle=False):
            loss, distortion, rate = vae(x.to(device), step, len(dataset))
            batch = torch.stack([loss * len(x), distortion.sum(), rate.sum()])
            totals += batch.double().cpu()
    loss, distortion, rate = (totals / len(dataset)).tolist()
    return {
        "loss": loss,
        "negative_elbo": distortion + rate,
        "distortion": distortion,
        "rate": rate,
    }


def fit(
    vae: VAE,
    data: str = "digits",
    *,
    epochs: int,
    out: str | Path,
    batch_size: int = 128,
    lr: float = 1e-3,
    seed: int = 0,
    data_root: str | Path | None = None,
    binarize: str = "none",
    train_split: Literal["train", "train+valid"] = "train",
    recipe: str | None = None,
    resume: Literal["auto"] | None = None,
    quiet: bool = False,
) -> History:
    """Train a VAE with Adam: minimize its objective over the training split of a data set.

    An objective with an adversary (`Factor`) brings its optimizer, which takes a step of its own
    after each of Adam's.

    The directory `out` gets run.json (the settings and versions), history.json (one row per epoch),
    last.safetensors (the state after the last epoch, from which a run is resumed), best.safetensors
    (that of the epoch of least −ELBO on the validation split) and, by `VAE.save_pretrained`, the
    best model, with which `vae` leaves this call too. Each file is replaced at once: whoever stops
    the run at any moment finds them whole.

    Where the model has batch normalization, whose statistics one datum has not, a last batch that
    leaves a process fewer than two data is left out: of the shuffled data, other ones each epoch.

    Device, mixed precision and number of processes are those that `accelerate launch`, or its
    environment variables, set; each process takes its share of every batch.

    Args:
        vae: the model; trained in place.
        data: name of the data set, see `data.load`.
        epochs: passes over the training split, those of a resumed run included.
        out: directory of the run.
        batch_size: data in a step, over all processes.
        lr: Adam's step size.
        seed: of the order of the data and of every sample drawn.
        data_root: directory of the data sets, see `data.load`.
        binarize: "none", "round", "static" or "dynamic", see `data.load`.
        train_split: "train"; or "train+valid", all training data, as sources train that hold out
            none: the best epoch then means nothing, and the last is the one to use.
        recipe: name of what `vae` was built from, to be written down.
        resume: "auto" goes on with the run in `out`, or starts it; None refuses to touch one.
        quiet: show no progress bar.

    Returns:
        The history of the whole run.

    Raises:
        FileExistsError: `out` holds a run and resume is None.
        ValueError: an argument does not fit; a batch is too small for batch normalization; the run
            in `out` was made with other settings; its checkpoint is truncated or corrupted.
        FloatingPointError: a loss is not finite. The files are those of the last good epoch.

    Example:
        >>> import tempfile, rhovae_kernels as rk
        >>> vae = rk.recipes.recipe("rho-vae").build((1, 8, 8), latent=2)
        >>> history = rk.fit(vae, "digits", epochs=1, out=tempfile.mkdtemp(), quiet=True)
        >>> len(history.column("test_negative_elbo"))
        1
    """
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if not (lr > 0 and math.isfinite(lr)):
        raise ValueError(f"lr is {lr}; it must be positive and finite")
    if resume not in (None, "auto"):
        raise ValueError(f"resume is {resume!r}; it must be 'auto' or None")
    out = Path(out)
    # Before anything is written: a data set that cannot be had leaves no run behind.
    train, valid, test = (
        load(data, data_root, binarize, split, seed) for split in (train_split, "valid", "test")
    )
    if train.input_shape != vae.input_shape:
        raise ValueError(
            f"{data} holds data of shape {train.input_shape}; the model wants {vae.input_shape}"
        )
    settings = {
        "recipe": recipe,
        "data": data,
        "binarize": binarize,
        "label": train.label,
        "data_root": None if data_root is None else str(Path(data_root).resolve()),
        "train_split": train_split,
        "training_data": len(train),
        "latent": vae.latent,
        "batch_size": batch_size,
        "lr": lr,
        "seed": seed,
        "model": {name: parts.describe(part) for name, part in vae.named_children()},
    }
    accelerator = Accelerator()
    processes = accelerator.num_processes
    used = _data_in_steps(vae, len(train), batch_size, processes)
    checkpoint = _open_run(out, settings, resume)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        versions = {
            "rhovae_kernels": rhovae_kernels.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        write_json(out / RUN, {**settings, "versions": versions})

    adversary = vae.objective.adversary_optimizer()
    theirs = (
        {id(p) for group in adversary.param_groups for p in group["params"]} if adversary else ()
    )
    own = [
        # Fused: one pass over each parameter and its moments in place of eight.
        Adam([p for p in vae.parameters() if id(p) not in theirs], lr=lr, fused=True),
        *([adversary] if adversary else []),
    ]
    model, *optimizers = accelerator.prepare(vae, *own)
    history, step = History(), 0
    if checkpoint is not None:
        checkpoint.restore(out / LAST, vae, *own)
        history.epochs, step = checkpoint.history, checkpoint.step
        if len(history.epochs) > epochs:
            raise ValueError(
                f"epochs is {epochs}; the run in {out} has {len(history.epochs)} already"
            )
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(checkpoint.scaler)

    rank = accelerator.process_index
    best = min(history.column("valid_negative_elbo"), default=math.inf)
    steps = math.ceil(used / batch_size)
    idle = len(history.epochs) == epochs
    with _progress(quiet or idle or not accelerator.is_main_process) as progress:
        bar = progress.add_task("", total=epochs * steps, completed=step, loss="", test="")
        for epoch in range(len(history.epochs), epochs):
            progress.update(bar, description=f"epoch {epoch + 1}/{epochs}")
            losses: list[Tensor] = []
            total, started = 0.0, time.perf_counter()
            model.train()
            with seeded(accelerator.device, seed, epoch, rank):
                batches = train.batches(batch_size, epoch, seed)
                for i, x in enumerate(itertools.islice(batches, steps)):
                    # Processes average their gradients: this weight makes it the batch's mean.
                    # One that a small last batch leaves without a share takes part with weight 0.
                    weight = len(x[rank::processes]) * processes / len(x)
                    share = x[rank::processes] if weight else x[:1]
                    loss = weight * model(share.to(accelerator.device), step, len(train)).loss
                    accelerator.backward(loss)
                    for optimizer in optimizers:
                        optimizer.step()
                        optimizer.zero_grad()
                    step += 1
                    losses.append(loss.detach() * len(x))
                    if len(losses) == STEPS_BETWEEN_LOOKS or i + 1 == steps:
                        total += _sum_of_finite(accelerator, losses, epoch, i + 1 - len(losses))
                        losses.clear()
                        done = min((i + 1) * batch_size, used)
                        progress.update(bar, completed=step, loss=f"loss {total / done:.2f}")
            history.seconds.append(time.perf_counter() - started)

            row: dict[str, float] = {"epoch": epoch + 1, "train_loss": total / used}
            for dataset in (valid, test):
                scores = score(vae, dataset, batch_size, seed, step)
                row |= {f"{dataset.split}_{name}": value for name, value in scores.items()}
            for quantity, measured in row.items():
                if not math.isfinite(measured):
                    raise FloatingPointError(
                        f"{quantity} is {measured} after epoch {epoch + 1} (step {step}); nothing "
                        "of this epoch was kept. A smaller lr may help"
                    )
            history.epochs.append(row)
            progress.update(bar, test=f"test −ELBO {row['test_negative_elbo']:.2f}")

            if accelerator.is_main_process:
                scaler = accelerator.scaler.state_dict() if accelerator.scaler else {}
                states = [optimizer.state_dict()["state"] for optimizer in own]
                checkpoint = Checkpoint(
                    model=vae.state_dict(),
                    adam=states[0],
                    adversary=states[1] if adversary else {},
                    step=step,
                    history=history.epochs,
                    scaler=scaler,
                )
                # Last comes last: a run killed before it repeats the epoch, to the same best.
                if row["valid_negative_elbo"] < best:
                    best = row["valid_negative_elbo"]
                    checkpoint.save(out / BEST)
                    vae.save_pretrained(out)
                checkpoint.save(out / LAST)
                write_json(out / HISTORY, history.epochs)
            accelerator.wait_for_everyone()
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    Checkpoint.load(out / BEST).restore(out / BEST, vae)
    vae.eval()
    return history


def _open_run(out: Path, settings: dict[str, Any], resume: str | None) -> Checkpoint | None:
    """Where the run in `out` stands, None where it has yet to start; refuses another run."""
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"out is {out}, which is a file; it must be a directory")
    if not (out / RUN).exists():
        taken = [name for name in (BEST, LAST, HISTORY) if (out / name).exists()]
        if taken:
            raise FileExistsError(f"{out} holds {', '.join(taken)} but no {RUN}: out must be empty")
        return None
    if resume is None:
        raise FileExistsError(
            f"{out} already holds a run; resume='auto' (--resume auto) goes on with it, "
            "another out starts a new one"
        )
    stored = read_json(out / RUN)
    for name, value in json.loads(json.dumps(settings)).items():
        if name != "data_root" and stored.get(name) != value:
            raise ValueError(
                f"{out / RUN}: {name} is {stored.get(name)!r}, asked for is {value!r}; a run is "
                "resumed with the settings it was started with"
            )
    if (out / LAST).exists():
        return Checkpoint.load(out / LAST)
    left = [name for name in (BEST, HISTORY) if (out / name).exists()]
    if left:
        raise FileNotFoundError(
            f"{out / LAST} is missing beside {', '.join(left)}: the run is damaged and was left as "
            "it is; it can still be evaluated, and another out starts a new one"
        )
    return None


def _data_in_steps(vae: VAE, data: int, batch_size: int, processes: int) -> int:
    """How many data an epoch's steps take: all, but for a last batch too small to normalize by.

    Raises:
        ValueError: no batch is large enough.
    """
    if not any(isinstance(module, _BatchNorm) for module in vae.modules()):
        return data
    least = 2 * processes
    if min(batch_size, data) < least:
        raise ValueError(
            f"batch_size is {batch_size}, of {data} data; a model with batch normalization wants "
            f"batches of at least {least}, two data for each process"
        )
    last = data % batch_size
    return data - last if last < least else data


def _sum_of_finite(accelerator: Accelerator, losses: list[Tensor], epoch: int, first: int) -> float:
    """The sum of the losses of some steps, over processes; refuses one that is not finite."""
    stacked = accelerator.reduce(torch.stack(losses), "mean").double().cpu()
    bad = (~stacked.isfinite()).nonzero()
    if len(bad):
        index = int(bad[0])
        raise FloatingPointError(
            f"the loss is {stacked[index].item()} at epoch {epoch + 1}, step {first + index + 1}; "
            "nothing of this epoch was kept. A smaller lr may help"
        )
    return float(stacked.sum())


def _progress(hidden: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[loss]} {task.fields[test]}"),
        console=Console(stderr=True),
        disable=hidden,
    )
