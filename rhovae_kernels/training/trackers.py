"""Experiment trackers, by way of accelerate: losses, rates, step sizes, and samples as pictures."""

from collections.abc import Sequence
from typing import Any

import accelerate.utils
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from accelerate.utils import LoggerType
from torch import Tensor

from rhovae_kernels.seeding import seeded
from rhovae_kernels.training.callbacks import Callback, State

SAMPLES = 16
"""How many samples a picture shows."""


def check_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker that is unknown or not installed.

    Raises:
        ValueError: accelerate does not know it.
        ModuleNotFoundError: it is not installed.
    """
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(map(str, LOGGER_TYPE_TO_CLASS))
            raise ValueError(f"trackers holds {name!r}; there are {known}")
        if not getattr(accelerate.utils, f"is_{name}_available")():
            raise ModuleNotFoundError(
                f"tracker {name!r} is not installed; install it with: pip install {name}"
            )


class Trackers(Callback):
    """Sends what is measured to experiment trackers.

    Args:
        accelerator: made with `log_with` these trackers.
        settings: the run's, sent once.
    """

    def __init__(self, accelerator: Accelerator, settings: dict[str, Any]) -> None:
        self.accelerator, self.settings = accelerator, settings

    def on_start(self, state: State) -> None:
        flat = {name: v for name, v in self.settings.items() if isinstance(v, int | float | str)}
        self.accelerator.init_trackers("tracking", config=flat)

    def on_log(self, state: State) -> None:
        self.accelerator.log({"train/loss": state.loss, "lr": state.lr}, step=state.step)

    def on_epoch(self, state: State) -> None:
        values = {name.replace("_", "/", 1): v for name, v in state.row.items() if name != "epoch"}
        self.accelerator.log({**values, "epoch": state.epoch}, step=state.step)
        if self.accelerator.is_main_process and len(state.vae.input_shape) == 3:
            vae = state.best_candidate
            with seeded(next(vae.parameters()).device, state.epoch):
                sheet = _sheet(vae.sample(SAMPLES).clamp(0, 1).cpu())
            for tracker in self.accelerator.trackers:
                _log_picture(tracker, "samples", sheet, state.step)

    def on_end(self, state: State) -> None:
        self.accelerator.end_training()


def _sheet(images: Tensor) -> np.ndarray:
    """Images (N, C, H, W) in [0, 1] as one picture of bytes, (height, width, 1 or 3)."""
    side = int(len(images) ** 0.5)
    n, c, h, w = images[: side * side].shape
    rows = images[:n].reshape(side, side, c, h, w).permute(0, 3, 1, 4, 2)
    picture = rows.reshape(side * h, side * w, c)
    picture = picture if c in (1, 3) else picture[..., :1]
    return (picture * 255).round().to(torch.uint8).numpy()


def _log_picture(tracker: GeneralTracker, name: str, picture: np.ndarray, step: int) -> None:
    """A picture for a tracker that takes any; the others get numbers alone."""
    if tracker.name == LoggerType.TENSORBOARD.value:
        tracker.log_images({name: picture[None]}, step=step, dataformats="NHWC")
    elif tracker.name == LoggerType.WANDB.value:
        tracker.log_images({name: [np.squeeze(picture)]}, step=step)
    elif tracker.name == LoggerType.MLFLOW.value:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4, 4))
        figure.subplots().imshow(np.squeeze(picture), cmap="gray")
        tracker.log_figure(figure, f"{name}-{step:08d}.png")
