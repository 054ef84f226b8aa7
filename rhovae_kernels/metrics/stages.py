"""Long work in stages, each of which goes on where it was stopped."""

import time
from pathlib import Path

from torch import Tensor

from rhovae_kernels.files import load_tensors, save_tensors

SAVE_SECONDS = 5.0
"""A stage that runs is written down after this much work."""


class Stages:
    """The results of stages, and how far the one that runs has come, in one file.

    Args:
        path: the file, which is replaced at once; None to hold all of it in memory alone.

    Example:
        >>> import tempfile, pathlib, torch
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "work.safetensors"
        >>> stages = Stages(path)
        >>> stages.finish("first", {"sum": torch.ones(())})
        >>> Stages(path).result("first"), Stages(path).result("second")
        ({'sum': tensor(1.)}, None)
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.tensors: dict[str, Tensor] = {}
        self.metadata: dict[str, str] = {"finished": "", "running": "", "step": "0"}
        if path is not None and path.exists():
            self.tensors, self.metadata = load_tensors(path)
        self._saved = time.monotonic()

    def result(self, stage: str) -> dict[str, Tensor] | None:
        """What a stage gave; None where it has not finished."""
        done = stage in self.metadata["finished"].split()
        return self._of(stage) if done else None

    def running(self, stage: str) -> tuple[int, dict[str, Tensor]] | None:
        """How many steps of a stage were taken, and its state after them; None where none were."""
        if self.metadata["running"] != stage:
            return None
        return int(self.metadata["step"]), self._of(stage)

    def keep(self, stage: str, step: int, state: dict[str, Tensor]) -> None:
        """Save the state after `step` steps, if `SAVE_SECONDS` have passed since the last save."""
        if self.path is None or time.monotonic() - self._saved < SAVE_SECONDS:
            return
        self.metadata |= {"running": stage, "step": str(step)}
        self._replace(stage, state)

    def finish(self, stage: str, result: dict[str, Tensor]) -> None:
        """Write down what a stage gave."""
        finished = f"{self.metadata['finished']} {stage}".strip()
        self.metadata |= {"finished": finished, "running": "", "step": "0"}
        self._replace(stage, result)

    def _of(self, stage: str) -> dict[str, Tensor]:
        start = f"{stage}/"
        return {
            name.removeprefix(start): x
            for name, x in self.tensors.items()
            if name.startswith(start)
        }

    def _replace(self, stage: str, tensors: dict[str, Tensor]) -> None:
        for name in self._of(stage):
            del self.tensors[f"{stage}/{name}"]
        self.tensors |= {f"{stage}/{name}": x for name, x in tensors.items()}
        if self.path is not None:
            text = {name: value for name, value in self.metadata.items() if name != "sha256"}
            save_tensors(self.path, self.tensors, text)
            self._saved = time.monotonic()
