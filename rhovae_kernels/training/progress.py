"""The progress bar of a run, and that of any other long work."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rhovae_kernels.training.callbacks import Callback, State


class ProgressBar(Callback):
    """Shows epochs, batches, loss and −ELBO on stderr."""

    def on_start(self, state: State) -> None:
        total = None if state.steps is None else state.epochs * state.steps
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[loss]} {task.fields[measured]}"),
            console=Console(stderr=True),
        )
        self.before = state.epoch * (state.steps or 0)
        self.bar = self.progress.add_task(
            f"epoch {min(state.epoch + 1, state.epochs)}/{state.epochs}",
            total=total,
            completed=self.before,
            loss="",
            measured="",
        )
        self.progress.start()

    def on_log(self, state: State) -> None:
        self.progress.update(
            self.bar,
            description=f"epoch {state.epoch + 1}/{state.epochs}",
            completed=self.before + state.batch,
            loss=f"loss {state.loss:.2f}",
        )

    def on_epoch(self, state: State) -> None:
        self.before += state.batch
        split = "test" if "test_negative_elbo" in state.row else "valid"
        text = f"{split} −ELBO {state.row[f'{split}_negative_elbo']:.2f}"
        self.progress.update(self.bar, measured=text)

    def on_end(self, state: State) -> None:
        self.progress.stop()


@contextlib.contextmanager
def progress(description: str, total: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr for a block of `total` steps, which reports each advance by a call.

    Args:
        description: what the block does.
        total: how many steps it has.
        quiet: show nothing.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as bar:
        task = bar.add_task(description, total=total)
        yield lambda steps: bar.advance(task, steps)
