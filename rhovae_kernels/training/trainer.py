"""`Trainer`: one pass over the data, and the state that it leaves."""

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from rhovae_kernels.data.sources import Batch, Source
from rhovae_kernels.data.splits import Splits
from rhovae_kernels.seeding import seeded
from rhovae_kernels.steps import trimmed
from rhovae_kernels.training.callbacks import Callback, State
from rhovae_kernels.training.checkpoint import Checkpoint, groups_of
from rhovae_kernels.training.run import History
from rhovae_kernels.training.settings import Settings
from rhovae_kernels.vae.base import Model
from rhovae_kernels.vae.nets import BATCH_NORMS

BATCHES_BETWEEN_LOGS = 50
"""How often losses are read: each reading makes a GPU's queue run empty."""


class Trainer:
    """A model, its optimizers, and what moves with them from step to step.

    Args:
        vae: the model.
        splits: the data.
        settings: how to train.
        batch_size: data in a batch, over all processes.
        epochs: passes over the data.
        accelerator: device, mixed precision and processes.
    """

    def __init__(
        self,
        vae: Model,
        splits: Splits,
        settings: Settings,
        batch_size: int,
        epochs: int,
        accelerator: Accelerator,
    ) -> None:
        self.vae, self.splits, self.settings = vae, splits, settings
        self.batch_size, self.epochs, self.accelerator = batch_size, epochs, accelerator
        self.step, self.history = 0, History()
        adversary = vae.adversary_optimizer()
        theirs = (
            {id(p) for group in adversary.param_groups for p in group["params"]}
            if adversary
            else set()
        )
        self.own = [p for p in vae.parameters() if id(p) not in theirs]
        self.optimizers = [
            settings.make_optimizer(self.own),
            *([adversary] if adversary else []),
        ]
        self.steps = batches_of(vae, splits.train, batch_size, accelerator.num_processes)
        steps = None if self.steps is None else math.ceil(self.steps / settings.accumulate)
        self.schedule = settings.make_schedule(self.optimizers[0], epochs, steps)
        model, *self._stepped = accelerator.prepare(vae, *self.optimizers)
        self.model: nn.Module = model
        self._called: Any = torch.compile(model) if settings.compile else model
        # Made after the model has come to its device.
        self.average = (
            AveragedModel(vae, multi_avg_fn=get_ema_multi_avg_fn(settings.average))
            if settings.average is not None
            else None
        )
        if self.average is not None:
            self.candidate.validate_args = False

    @property
    def candidate(self) -> Model:
        """The model that is validated and saved: the average, where there is one."""
        if self.average is None:
            return self.vae
        averaged = self.average.module
        assert isinstance(averaged, Model)
        return averaged

    def state(self, out: Path) -> State:
        """Where the run stands, for callbacks."""
        done = len(self.history.epochs)
        return State(
            self.vae,
            self.candidate,
            out,
            self.epochs,
            self.steps,
            epoch=done,
            step=self.step,
            lr=self.optimizers[0].param_groups[0]["lr"],
            history=self.history,
        )

    def train_epoch(self, state: State, callbacks: Sequence[Callback]) -> float:
        """One pass over the training data; the mean of the objective, in nats.

        Raises:
            FloatingPointError: a loss is not finite.
            ValueError: a batch does not fit the model.
        """
        accelerator, train = self.accelerator, self.splits.train
        rank, seed = accelerator.process_index, self.settings.seed
        losses: list[Tensor] = []
        sum_of_losses, seen, state.batch = 0.0, 0, 0

        def read() -> None:
            nonlocal sum_of_losses
            first = state.batch - len(losses)
            sum_of_losses += _sum_of_finite(accelerator, losses, state.epoch, first)
            losses.clear()
            state.step, state.loss = self.step, sum_of_losses / seen
            state.lr = self.optimizers[0].param_groups[0]["lr"]
            for callback in callbacks:
                callback.on_log(state)

        self.model.train()
        with seeded(accelerator.device, seed, state.epoch, rank):
            for group in self._groups(state.epoch):
                for batch, loss in zip(group, self._take_step(group), strict=True):
                    losses.append(loss * batch.total)
                    seen += batch.total
                    state.batch += 1
                if len(losses) >= BATCHES_BETWEEN_LOGS:
                    read()
            if not seen:
                raise ValueError(f"{train.name} gave no batch in epoch {state.epoch + 1}")
            if losses:
                read()
        return sum_of_losses / seen

    def _groups(self, epoch: int) -> Iterator[list[Batch]]:
        """The batches of an epoch, as many at a time as make one step."""
        train, processes = self.splits.train, self.accelerator.num_processes
        batches = train.batches(
            self.batch_size,
            epoch,
            self.settings.seed,
            rank=self.accelerator.process_index,
            processes=processes,
        )
        least = least_batch(self.vae, processes)
        large = (batch for batch in batches if batch.total >= least)
        if self.vae.sequential:
            large = (batch._replace(x=trimmed(batch.x)) for batch in large)
        while group := list(itertools.islice(large, self.settings.accumulate)):
            if not train.in_memory:
                for batch in group:
                    self.vae.check_data(batch.x, f"a batch of the {train.name}")
            yield group

    def _take_step(self, group: Sequence[Batch]) -> list[Tensor]:
        """One step of the optimizers; this process's part of the loss of each batch."""
        accelerator, data_size = self.accelerator, self.splits.train.count
        total = sum(batch.total for batch in group)
        more = {} if self.settings.samples == 1 else {"samples": self.settings.samples}
        losses = []
        for i, (x, own, of_batch) in enumerate(group):
            # Processes average their gradients: this weight makes it the mean of the batch. One
            # that a small batch leaves without a share takes part with weight 0.
            weight = own * accelerator.num_processes / of_batch
            last = i + 1 == len(group)
            with contextlib.nullcontext() if last else accelerator.no_sync(self.model):
                loss = (
                    weight
                    * self._called(x.to(accelerator.device), self.step, data_size, **more).loss
                )
                accelerator.backward(loss if len(group) == 1 else loss * (of_batch / total))
            losses.append(loss.detach())
        if self.settings.clip is not None:
            accelerator.clip_grad_norm_(self.own, self.settings.clip)
        for optimizer in self._stepped:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        if self.average is not None:
            self.average.update_parameters(self.vae)
        if self.schedule is not None and self.settings.schedule_every == "step":
            self.schedule.step()
        return losses

    def end_epoch(self, row: dict[str, float]) -> None:
        """What moves once an epoch, after the model was measured."""
        if self.schedule is None or self.settings.schedule_every == "step":
            return
        if isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.step(row["valid_negative_elbo"])
        else:
            self.schedule.step()

    def checkpoint(self, history: list[dict[str, float]]) -> Checkpoint:
        """The state at the end of an epoch."""
        states = [optimizer.state_dict()["state"] for optimizer in self.optimizers]
        scaler = self.accelerator.scaler
        average = self.average.state_dict() if self.average is not None else {}
        return Checkpoint(
            model=self.vae.state_dict(),
            states=states[0],
            adversary=states[1] if len(states) > 1 else {},
            step=self.step,
            history=history,
            scaler=scaler.state_dict() if scaler else {},
            average=average,
            generators={name: g.get_state() for name, g in self._generators().items()},
            groups=groups_of(self.optimizers[0]) if self.schedule is not None else [],
            schedule=self.schedule.state_dict() if self.schedule is not None else None,
        )

    def best(self, checkpoint: Checkpoint) -> Checkpoint:
        """The state as it is kept of the best epoch: its weights are those that were measured."""
        if self.average is None:
            return checkpoint
        return replace(checkpoint, model=self.average.module.state_dict(), average={})

    def restore(self, checkpoint: Checkpoint, path: Path) -> None:
        """Go on from the end of an epoch.

        Raises:
            ValueError: the checkpoint does not fit.
        """
        checkpoint.restore(path, self.vae, *self.optimizers)
        self.history.epochs, self.step = checkpoint.history, checkpoint.step
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(checkpoint.scaler)
        if self.average is not None:
            self.average.load_state_dict(checkpoint.average)
        if self.schedule is not None and checkpoint.schedule is not None:
            self.schedule.load_state_dict(checkpoint.schedule)
        for name, generator in self._generators().items():
            if name not in checkpoint.generators:
                raise ValueError(f"{path}: does not hold the state of the generator of {name}")
            generator.set_state(checkpoint.generators[name])

    def unwrap(self) -> None:
        """Give the model back as it was handed in."""
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)

    def _generators(self) -> dict[str, torch.Generator]:
        return {
            f"{split}.{name}": generator
            for split, source in self.splits._asdict().items()
            if source is not None
            for name, generator in source.generators().items()
        }


def least_batch(vae: Model, processes: int) -> int:
    """The smallest batch that a model can be trained on."""
    normalizes = any(isinstance(module, BATCH_NORMS) for module in vae.modules())
    return 2 * processes if normalizes else 1


def batches_of(vae: Model, train: Source, batch_size: int, processes: int) -> int | None:
    """How many batches an epoch trains on, where that is known."""
    steps = train.steps(batch_size)
    if steps is None or train.batch_size is not None or train.count is None:
        return steps
    last = train.count % batch_size
    return steps - (0 < last < least_batch(vae, processes))


def check_batches(vae: Model, train: Source, batch_size: int, processes: int) -> None:
    """Refuse batches that are all too small for batch normalization.

    Raises:
        ValueError: no batch is large enough.
    """
    least = least_batch(vae, processes)
    count = batch_size if train.count is None else train.count
    if min(batch_size, count) < least:
        raise ValueError(
            f"batch_size is {batch_size}, of {count} data; a model with batch normalization wants "
            f"batches of at least {least}, two data for each process"
        )


def _sum_of_finite(
    accelerator: Accelerator, losses: Sequence[Tensor], epoch: int, first: int
) -> float:
    """The sum of the losses of some batches, over processes; refuses one that is not finite."""
    stacked = accelerator.reduce(torch.stack(list(losses)), "mean").double().cpu()
    bad = (~stacked.isfinite()).nonzero()
    if len(bad):
        index = int(bad[0])
        raise FloatingPointError(
            f"the loss is {stacked[index].item()} at epoch {epoch + 1}, step {first + index + 1}; "
            "nothing of this epoch was kept. Data of unit scale or a smaller lr may help"
        )
    return float(stacked.sum())
