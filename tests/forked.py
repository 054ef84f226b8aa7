"""Programs in processes of their own, forked from one that has imported PyTorch: each would take
some seconds to import it."""

import multiprocessing
import os
import sys
import types
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

_FORKS = multiprocessing.get_context("forkserver")
# What training imports when it starts; torch._dynamo with its first optimizer.
_FORKS.set_forkserver_preload(
    ["torch._dynamo", "accelerate", "rhovae_kernels.vae", "rhovae_kernels.training"]
)


def _run(
    code: str, arguments: list[str], variables: dict[str, str], folder: Path, said: Path
) -> None:
    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8")
    # Its own processes, as of a loader, are started as Python starts them by itself.
    multiprocessing.set_start_method(None, force=True)
    torch.set_num_threads(1)
    os.environ.update(variables)
    os.chdir(folder)
    sys.argv = ["", *arguments]
    program = sys.modules["__main__"] = types.ModuleType("__main__")
    exec(code, vars(program))


class Program:
    """A program that runs in the folder on one thread, as `python -c` would run it."""

    def __init__(
        self, code: str, arguments: list[object], folder: Path, said: Path, **variables: str
    ) -> None:
        self._said = said
        self._process: BaseProcess = _FORKS.Process(
            target=_run, args=(code, [str(a) for a in arguments], variables, folder, said)
        )
        self._process.start()

    def wait(self, seconds: float = 300) -> tuple[int, str]:
        """Its exit status, negative where a signal ended it, and what it said."""
        self._process.join(seconds)
        status, said = self._process.exitcode, self._said.read_text("utf-8")
        if status is None:
            self._process.kill()
            self._process.join()
            raise TimeoutError(f"a program ran for more than {seconds} s: {said}")
        return status, said


def run(code: str, arguments: list[object], folder: Path, **variables: str) -> tuple[int, str]:
    """The exit status of a program that runs in the folder, and what it said."""
    return Program(code, arguments, folder, folder / "said", **variables).wait()
