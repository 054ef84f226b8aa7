"""`Callback`: what is called while a model is trained; and early stopping, which is one."""

from dataclasses import dataclass, field
from pathlib import Path

from rhovae_kernels.training.run import History
from rhovae_kernels.vae.base import Model


@dataclass
class State:
    """Where a run stands.

    Attributes:
        vae: the model that is trained.
        best_candidate: the model that is validated: the average of the weights, where there is
            one, else `vae`.
        out: directory of the run.
        epochs: passes over the data in all.
        steps: batches of a pass; None where that is not known.
        epoch: passes that are done.
        batch: batches of this pass that are done.
        step: optimization steps taken.
        loss: mean of the objective over this pass so far, in nats.
        lr: step size of the optimizer's first group of parameters.
        history: what was measured.
        stopped: whether the run ends with this epoch.

    Example:
        >>> import tempfile, torch, rhovae_kernels as rk
        >>> class Enough(rk.training.Callback):
        ...     def on_epoch(self, state: State) -> None:
        ...         print("epoch", state.epoch, "of", state.epochs, "after step", state.step)
        ...         if state.row["valid_negative_elbo"] < 100:
        ...             state.stop()
        >>> vae, x = rk.recipes.recipe("rho-vae").build((3,), latent=2), torch.rand(50, 3)
        >>> history = rk.fit(vae, x, epochs=5, batch_size=16, callbacks=[Enough()],
        ...                  out=tempfile.mkdtemp(), quiet=True)
        epoch 1 of 5 after step 3
    """

    vae: Model
    best_candidate: Model
    out: Path
    epochs: int
    steps: int | None
    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss: float = float("nan")
    lr: float = float("nan")
    history: History = field(default_factory=History)
    stopped: bool = False

    @property
    def row(self) -> dict[str, float]:
        """What was measured after the last epoch."""
        return self.history.epochs[-1]

    def stop(self) -> None:
        """Let the run end with this epoch. A callback must say so in every process alike."""
        self.stopped = True


class Callback:
    """What is called while a model is trained: a subclass overrides what it wants.

    Called in every process. What a callback draws at random, or does to the weights, is part of
    the run; a run that is resumed calls `on_start` again.

    Example:
        >>> class Print(Callback):
        ...     def on_epoch(self, state):
        ...         print(state.epoch, state.row["valid_negative_elbo"])
    """

    def on_start(self, state: State) -> None:
        """Before the first step of this call of `fit`."""

    def on_log(self, state: State) -> None:
        """Every 50 batches, and after the last of an epoch: when losses are read."""

    def on_epoch(self, state: State) -> None:
        """After an epoch was measured, and before it is saved."""

    def on_end(self, state: State) -> None:
        """After the last epoch, or when the run is broken off by an error."""


class EarlyStopping(Callback):
    """Stops a run whose −ELBO on the validation data has not fallen for some epochs.

    Args:
        patience: how many.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_start(self, state: State) -> None:
        if state.history.epochs:
            self.on_epoch(state)

    def on_epoch(self, state: State) -> None:
        values = state.history.column("valid_negative_elbo")
        if len(values) - 1 - values.index(min(values)) >= self.patience:
            state.stop()
