"""A stub of CUDA's runtime and driver, and what was launched on it.

Loaded ahead of the real libraries (`make rehearsal` does so), it shows torch two devices of compute
capability 9.0 whose memory is the host's. A launch is held against CUDA's limits and written to the
file that RHOVAE_LAUNCHES names, a line of JSON each; no kernel runs.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

HERE = Path(__file__).resolve().parent
LAUNCHES = os.environ.get("RHOVAE_LAUNCHES")


def missing() -> str | None:
    """Why nothing can be launched here on the stub, or None where it can."""
    if torch.version.cuda is None:
        return "torch here is built without CUDA"
    if LAUNCHES is None:
        return "the stub of CUDA's runtime is not loaded; `make rehearsal` loads it"
    return None


def build(folder: Path) -> Path:
    """The stub, compiled into `folder`; named as the driver, in whose place it is loaded too."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise RuntimeError("nvcc, whose headers the stub is compiled with, is not in PATH")
    target = folder / "libcuda.so.1"
    command = [
        *(nvcc, "-std=c++17", "-O1", "-shared", "--cudart=none"),
        *("--compiler-options=-fPIC,-Wall", f"--linker-options=-soname,{target.name}"),
        *map(str, sorted(HERE.glob("*.cpp"))),
        *("-o", str(target)),
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"the stub does not compile:\n{result.stdout}{result.stderr}")
    return target


class Launch(NamedTuple):
    """What a kernel was launched with.

    Attributes:
        kernel: the name of one of ours; of one of torch's, its whole signature.
        grid, block: blocks and threads.
        shared: bytes of shared memory that the launch asks for.
        device: the current one.
        stream: as `torch.cuda.Stream.cuda_stream`.
    """

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int
    device: int
    stream: int

    @property
    def ours(self) -> bool:
        return self.kernel.isidentifier()


def launch_of(line: str) -> Launch:
    found = json.loads(line)
    ours = re.match(r"(?:void )?rhovae::cuda::(?:\(anonymous namespace\)::)?(\w+)", found["kernel"])
    found["kernel"] = ours[1] if ours else found["kernel"]
    return Launch(**{name: tuple(x) if isinstance(x, list) else x for name, x in found.items()})


@contextmanager
def launches() -> Iterator[list[Launch]]:
    """A list that holds, after the block, what was launched within it."""
    found: list[Launch] = []
    path = Path(LAUNCHES or os.devnull)
    before = path.stat().st_size if path.exists() else 0
    yield found
    if path.exists():
        found += map(launch_of, path.read_bytes()[before:].decode().splitlines())
