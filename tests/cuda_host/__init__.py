"""Builds the CUDA sources for the CPU, where `executor.h` runs them: the backend `cuda_host`."""

import fcntl
import hashlib
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths, library_paths

from rhovae_kernels.ops.op import Op

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))
import build_flags  # noqa: E402

CSRC = ROOT / "csrc"
COMPILER = shutil.which("g++")

# Fortified, a jump from one stack to another would count as an error.
FLAGS = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-U_FORTIFY_SOURCE"]
OPTIMISED = ["-O1"]
# Products and sums contracted, as nvcc does; g++ does so from -O2 on.
FUSED = ["-O2", "-ffp-contract=fast", *(["-mfma"] if platform.machine() == "x86_64" else [])]
# What is linked by default, less the sanitizer's library, whose hooks races.h has.
RACES = ["-O1", "-fsanitize=thread", "-nodefaultlibs"]
RACES += ["-lstdc++", "-lm", "-lc", "-lgcc_s", "-lgcc"]
SANITIZED = ["-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def compile_library(target: Path, flags: list[str], csrc: Path = CSRC, files: str = "*.cu") -> None:
    """Compiles these files of `csrc`/cuda into the shared library `target`."""
    paths = library_paths()
    command = [
        COMPILER,
        *build_flags.DEFINES,
        *FLAGS,
        *flags,
        f'-DRHOVAE_HOST_EXECUTOR="{HERE / "platform.h"}"',
        *(x for path in include_paths() for x in ("-isystem", path)),
        "-shared",
        *("-x", "c++", *map(str, sorted((csrc / "cuda").glob(files))), "-x", "none"),
        *(x for path in paths for x in (f"-L{path}", f"-Wl,-rpath,{path}")),
        *("-ltorch", "-ltorch_cpu", "-lc10"),
        *("-o", str(target)),
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def library(flags: list[str]) -> Path:
    """The library that these flags make, built where the sources have changed since."""
    sources = [*sorted(CSRC.rglob("*.*")), *sorted(HERE.glob("*.*"))]
    digest = hashlib.sha256(f"{torch.__version__} {flags}".encode())
    for path in sources:
        digest.update(path.read_bytes())
    folder = ROOT / "build" / "cuda_host"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{digest.hexdigest()[:16]}.so"
    # Test processes run side by side: one builds, the others wait.
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            compile_library(target.with_suffix(".partial"), flags)
            target.with_suffix(".partial").rename(target)
    return target


def implementation(op, backend: str, otherwise=Op.implementation):
    """As `rhovae_kernels.ops.op.Op.implementation`, but of the CUDA kernels.

    An op that has none, and that a backward pass calls, is what it would be without this.
    """
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"rhovae_cuda::{op.name}", "CPU"):
        return otherwise(op, backend)
    return getattr(torch.ops.rhovae_cuda, op.name).default
