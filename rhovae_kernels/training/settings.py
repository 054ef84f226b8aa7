"""`Settings`: how a model is trained, and the optimizers and schedules that have names."""

import functools
import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

OPTIMIZERS: dict[str, type[Optimizer]] = {
    name.lower(): kind
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type)
    and issubclass(kind, Optimizer)
    # The first is abstract; one wants sparse gradients, one a closure.
    and name not in ("Optimizer", "SparseAdam", "LBFGS")
}
"""The optimizers of torch.optim by their names in lower case."""

FUSED = ("adam", "adamw", "sgd")
"""Those that make one pass over each parameter and its moments, on every device."""

SCHEDULES: dict[str, Callable[[Optimizer, float, int], LRScheduler]] = {
    "cosine": lambda optimizer, lr, total: lr_scheduler.CosineAnnealingLR(optimizer, total),
    "exponential": lambda optimizer, lr, total: lr_scheduler.ExponentialLR(
        optimizer, 0.01 ** (1 / total)
    ),
    "linear": lambda optimizer, lr, total: lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total),
    "one-cycle": lambda optimizer, lr, total: lr_scheduler.OneCycleLR(optimizer, lr, total),
    "plateau": lambda optimizer, lr, total: lr_scheduler.ReduceLROnPlateau(optimizer),
}
"""Schedules of torch.optim.lr_scheduler by name: to 0 in a cosine or a straight line, to 1/100
exponentially, one cycle up to lr and down, and a tenth where −ELBO on the validation data stalls.
"""


@dataclass(frozen=True)
class Settings:
    """How a model is trained.

    Args:
        batch_size: data in a batch, over all processes; 128 where left out, or what a DataLoader
            gives.
        lr: step size.
        seed: of the order of the data and of every sample drawn.
        optimizer: name of one of `torch.optim` ("adam", "adamw", "sgd" …), or a factory that is
            called with the parameters, lr and, where it is not 0, weight_decay: a class or a
            functools.partial of one.
        schedule: of the step size: "cosine", "exponential", "linear", "one-cycle" or "plateau", or
            a factory that makes a scheduler of `torch.optim.lr_scheduler` of the optimizer; None
            for a step size that stays.
        schedule_every: "epoch" or "step": when the schedule moves on.
        weight_decay: as the optimizer takes it.
        clip: largest norm of the gradient over all parameters; None not to clip.
        accumulate: batches whose gradients make one step.
        patience: stop after this many epochs without a lower −ELBO on the validation data; None to
            go through all epochs.
        average: decay of an exponential moving average of the weights, one update a step; then it
            is the average that is validated, tested and saved as the best model.
        samples: draws of z for each datum and step.
        workers: processes that read a `Dataset`.
        compile: whether to train through `torch.compile`.
        trackers: names of experiment trackers: "tensorboard", "wandb", "mlflow" …, see accelerate.

    Raises:
        ValueError: one is out of range or unknown.

    Example:
        >>> Settings(optimizer="adamw", schedule="cosine", weight_decay=0.01).lr
        0.001
    """

    batch_size: int | None = None
    lr: float = 1e-3
    seed: int = 0
    optimizer: str | Callable[..., Optimizer] = "adam"
    schedule: str | Callable[[Optimizer], LRScheduler] | None = None
    schedule_every: str = "epoch"
    weight_decay: float = 0.0
    clip: float | None = None
    accumulate: int = 1
    patience: int | None = None
    average: float | None = None
    samples: int = 1
    workers: int = 0
    compile: bool = False
    trackers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "trackers", _names(self.trackers))
        for name, least in (("batch_size", 1), ("accumulate", 1), ("samples", 1), ("patience", 1)):
            _check_integer(name, getattr(self, name), least)
        _check_integer("workers", self.workers, 0)
        _check_integer("seed", self.seed, None)
        for name in ("lr", "clip"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} is {value}; it must be positive and finite")
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise ValueError(f"weight_decay is {self.weight_decay}; it must not be negative")
        if self.average is not None and not 0 < self.average < 1:
            raise ValueError(f"average is {self.average}; it must be between 0 and 1, like 0.999")
        if self.schedule_every not in ("epoch", "step"):
            raise ValueError(
                f"schedule_every is {self.schedule_every!r}; it must be 'epoch' or 'step'"
            )
        _check_name("optimizer", self.optimizer, OPTIMIZERS)
        if self.schedule is not None:
            _check_name("schedule", self.schedule, SCHEDULES)

    @classmethod
    def of(cls, settings: "Settings | None", changes: dict[str, Any]) -> "Settings":
        """`settings`, or the default ones, with some of them changed.

        Raises:
            TypeError: a change names no setting.
        """
        known = [field.name for field in fields(cls)]
        for name in changes:
            if name not in known:
                raise TypeError(f"there is no setting {name!r}; there are {', '.join(known)}")
        return replace(settings or cls(), **changes)

    def describe(self) -> dict[str, Any]:
        """The settings ready for JSON; a factory is described by its name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("optimizer", "schedule"):
            if callable(values[name]):
                values[name] = _factory_name(values[name])
        return {**values, "trackers": list(self.trackers)}

    def make_optimizer(self, parameters: Iterable[Tensor]) -> Optimizer:
        """The optimizer of these parameters."""
        given: dict[str, Any] = {"lr": self.lr}
        if self.weight_decay:
            given["weight_decay"] = self.weight_decay
        if callable(self.optimizer):
            made = self.optimizer(list(parameters), **given)
            if not isinstance(made, Optimizer):
                raise TypeError(
                    f"optimizer made a {type(made).__name__}; it must make a torch.optim.Optimizer"
                )
            return made
        name = self.optimizer.lower()
        kind = OPTIMIZERS[name]
        if self.weight_decay and "weight_decay" not in inspect.signature(kind).parameters:
            raise ValueError(f"weight_decay is {self.weight_decay}; {kind.__name__} takes none")
        if name in FUSED:
            given["fused"] = True
        return kind(list(parameters), **given)

    def make_schedule(
        self, optimizer: Optimizer, epochs: int, steps: int | None
    ) -> LRScheduler | None:
        """The schedule of an optimizer's step size over a run.

        Args:
            optimizer: whose step size it sets.
            epochs: passes over the data.
            steps: optimization steps of a pass; None where that is not known.

        Raises:
            ValueError: a named schedule moves on every step, and how many there are is not known.
        """
        if self.schedule is None:
            return None
        if callable(self.schedule):
            return self.schedule(optimizer)
        if self.schedule == "plateau" and self.schedule_every == "step":
            raise ValueError("schedule_every is 'step'; 'plateau' looks at an epoch's validation")
        total = epochs
        if self.schedule_every == "step":
            if steps is None:
                raise ValueError(
                    f"schedule is {self.schedule!r} over steps, of which an epoch of these data "
                    "does not tell how many it has; schedule_every='epoch' needs no number"
                )
            total = epochs * steps
        return SCHEDULES[self.schedule](optimizer, self.lr, total)


def _names(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _check_integer(name: str, value: Any, least: int | None) -> None:
    if value is None and name in ("batch_size", "patience"):
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}; an integer is wanted")
    if least is not None and value < least:
        raise ValueError(f"{name} is {value}; it must be at least {least}")


def _check_name(argument: str, value: Any, known: Iterable[str]) -> None:
    if callable(value):
        return
    if not isinstance(value, str) or value.lower() not in known:
        raise ValueError(
            f"{argument} is {value!r}; it must be a factory, or one of {', '.join(known)}"
        )


def _factory_name(factory: Any) -> str:
    if isinstance(factory, functools.partial):
        arguments = [*map(repr, factory.args), *(f"{k}={v!r}" for k, v in factory.keywords.items())]
        return f"{_factory_name(factory.func)}({', '.join(arguments)})"
    return f"{factory.__module__}.{getattr(factory, '__qualname__', type(factory).__qualname__)}"
