"""`Checkpoint`: the state of a run at the end of an epoch, as one file holds it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rhovae_kernels import legacy
from rhovae_kernels.files import load_tensors, save_tensors

States = dict[int, dict[str, Any]]
"""What an optimizer knows of each parameter, by the parameter's number."""

_OPTIMIZERS = {"optimizer": "states", "adversary": "adversary"}
"""What the names of an optimizer's states begin with, and the field that holds these."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run at the end of an epoch.

    Attributes:
        model: the weights.
        states: of the optimizer.
        adversary: of the adversary's optimizer, where the objective has one.
        step: optimization steps taken.
        history: one row for each epoch.
        scaler: of mixed precision.
        average: the averaged weights, where there are any.
        generators: states of the generators that came with the data, by name.
        groups: the optimizer's settings for its groups of parameters, which a schedule changes.
        schedule: the schedule's state.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "last.safetensors"
        >>> history = [{"epoch": 1, "train_loss": 3.5}]
        >>> Checkpoint({"weight": torch.ones(2)}, {}, {}, step=100, history=history).save(path)
        >>> found = Checkpoint.load(path)
        >>> found.model, found.step, found.history
        ({'weight': tensor([1., 1.])}, 100, [{'epoch': 1, 'train_loss': 3.5}])
    """

    model: dict[str, Tensor]
    states: States
    adversary: States
    step: int
    history: list[dict[str, float]]
    scaler: dict[str, Any] = field(default_factory=dict)
    average: dict[str, Tensor] = field(default_factory=dict)
    generators: dict[str, Tensor] = field(default_factory=dict)
    groups: list[dict[str, Any]] = field(default_factory=list)
    schedule: dict[str, Any] | None = None

    def save(self, path: Path) -> None:
        """Write it to a file, at once: tensors, and JSON of what is none.

        Args:
            path: the file.
        """
        tensors = {f"model.{name}": x for name, x in self.model.items()}
        numbers: dict[str, Any] = {}
        for kind, states in (("optimizer", self.states), ("adversary", self.adversary)):
            for index, state in states.items():
                for name, x in state.items():
                    to = tensors if isinstance(x, Tensor) else numbers
                    to[f"{kind}.{index}.{name}"] = x
        tensors |= {f"average.{name}": x for name, x in self.average.items()}
        tensors |= {f"generator.{name}": x for name, x in self.generators.items()}
        rest = {"step": self.step, "history": self.history, "scaler": self.scaler}
        more = {"numbers": numbers, "groups": self.groups, "schedule": self.schedule}
        text = {"state": json.dumps(rest, allow_nan=False)}
        # A schedule may hold an infinity: the least loss so far, before there is one.
        text |= {"more": json.dumps(more)} if any(more.values()) else {}
        save_tensors(path, tensors, text)

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """The checkpoint in a file.

        Args:
            path: the file.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is truncated, corrupted or no checkpoint.
        """
        tensors, metadata = load_tensors(path)
        if "state" not in metadata:
            raise ValueError(f"{path}: no checkpoint of a run, it does not say its state")
        more = json.loads(metadata.get("more", "{}"))
        found: dict[str, Any] = {"model": {}, "average": {}, "generators": {}}
        found |= {"states": {}, "adversary": {}}
        for key, x in (*tensors.items(), *more.pop("numbers", {}).items()):
            kind, _, name = key.partition(".")
            kind = legacy.STATES.get(kind, kind)
            if kind in _OPTIMIZERS:
                index, _, name = name.partition(".")
                found[_OPTIMIZERS[kind]].setdefault(int(index), {})[name] = x
            else:
                found["generators" if kind == "generator" else kind][name] = x
        return cls(**found, **json.loads(metadata["state"]), **more)

    def restore(self, path: Path, model: nn.Module, *optimizers: Optimizer) -> None:
        """Put the weights back, and the states of the optimizers that are given.

        Args:
            path: the file, for the error.
            model: takes the weights.
            optimizers: the model's, and its adversary's.

        Raises:
            ValueError: they do not fit.
        """
        for name, x in model.state_dict().items():
            if name in self.model and self.model[name].dtype != x.dtype:
                raise ValueError(
                    f"{path}: {name} is of {self.model[name].dtype}, that of the model of "
                    f"{x.dtype}; the types it was saved in are wanted"
                )
        try:
            model.load_state_dict(self.model)
            for optimizer, state in zip(optimizers, (self.states, self.adversary), strict=False):
                groups = optimizer.state_dict()["param_groups"]
                optimizer.load_state_dict({"state": state, "param_groups": groups})
            if optimizers:
                restore_groups(optimizers[0], self.groups)
        except (RuntimeError, ValueError, KeyError) as error:
            raise ValueError(f"{path}: does not fit the model: {error}") from error


def groups_of(optimizer: Optimizer) -> list[dict[str, Any]]:
    """An optimizer's settings for its groups of parameters, ready for JSON."""
    return [
        {
            name: value.item() if isinstance(value, Tensor) else value
            for name, value in group.items()
            if name != "params"
        }
        for group in optimizer.param_groups
    ]


def restore_groups(optimizer: Optimizer, groups: list[dict[str, Any]]) -> None:
    """What `groups_of` took, put back into an optimizer of as many groups."""
    for group, stored in zip(optimizer.param_groups, groups, strict=bool(groups)):
        for name, value in stored.items():
            before = group.get(name)
            if isinstance(before, Tensor):
                group[name] = torch.full_like(before, value)
            else:
                group[name] = tuple(value) if isinstance(before, tuple) else value
