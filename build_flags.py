"""The flags that the extension is compiled with: one home, for `setup.py` and the compile tests.

And where the CUDA runtime is that it is linked with.
"""

import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

# The stable C++ ABI of torch, as of 2.11: one build serves every torch from there on.
DEFINES = ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-DTORCH_STABLE_ONLY"]

# -g0: Python's own flags ask for debug information, which takes time and space here.
CXX_FLAGS = ["-O3", "-g0", "-std=c++17", "-fno-math-errno", "-fvisibility=hidden", "-Wall"]

# In the place of optimisation, and for the linker: what reads or writes out of bounds, or relies on
# undefined behaviour, ends the program.
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
SANITIZED_CXX_FLAGS = ["-O1", "-g1", *CXX_FLAGS[2:], *SANITIZE]

# Of the CPU kernels, in the order of `Target` in csrc/cpu/simd_types.h: what a compiler that builds
# for its own machine defines, where that machine runs them.
CPU_TARGETS = {
    "baseline": [],
    "avx2": ["__AVX2__", "__FMA__"],
    "avx512": ["__AVX512F__", "__AVX512BW__", "__AVX512DQ__", "__AVX512VL__"],
}

NVCC_FLAGS = [
    "-O3",
    "-std=c++17",
    "-DUSE_CUDA",
    "--expt-relaxed-constexpr",
    "--expt-extended-lambda",
    "--threads=2",
    "-Xptxas=-v",
]

# Built for where no GPU is there to name its own: Ampere, Hopper, Blackwell.
CUDA_ARCHITECTURES = ["80", "90", "100"]


def gencode(architectures: list[str]) -> list[str]:
    """nvcc's flags for these compute capabilities ("90"), PTX of the last one included."""
    flags = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    return [*flags, f"-gencode=arch=compute_{architectures[-1]},code=compute_{architectures[-1]}"]


def native_target(compiler: str) -> str:
    """The best instruction set of `CPU_TARGETS` that this machine runs, as its compiler says."""
    command = [compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    defined = {line.split()[1] for line in said.splitlines()}
    return [name for name, macros in CPU_TARGETS.items() if defined.issuperset(macros)][-1]


def toolkit_of(nvcc: str) -> Path | None:
    """The toolkit that `nvcc` itself names: it may be a script that calls one elsewhere."""
    try:
        command = [nvcc, "-v", "--dryrun", "-x", "cu", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.search(r"^#\$ TOP=(.+)$", said, re.MULTILINE)
    return Path(found[1].strip()).resolve() if found else None


def runtime_folders(home: Path, nvcc: str, packages: Path, version: str) -> list[Path]:
    """Where libcudart may lie, best first.

    Args:
        home: what torch takes for the toolkit: the folder above the one that holds nvcc.
        nvcc: the compiler.
        packages: the folder of installed packages that torch lies in; its CUDA builds bring a
            runtime along, beside it.
        version: of CUDA, that torch is built for.
    """
    toolkits = [home, toolkit_of(nvcc)]
    folders = [t / name for t in toolkits if t is not None for name in ("lib64", "lib")]
    major = version.split(".")[0]
    return [*folders, *(packages / "nvidia" / n / "lib" for n in (f"cu{major}", "cuda_runtime"))]


def runtime_library(folders: Iterable[Path], version: str) -> Path:
    """libcudart in the first of these folders that has it, for this version of CUDA.

    Raises:
        FileNotFoundError: none has.
    """
    folders = list(folders)
    names = ("libcudart.so", f"libcudart.so.{version}", f"libcudart.so.{version.split('.')[0]}")
    for folder in folders:
        for name in names:
            if (folder / name).exists():
                return folder / name
    raise FileNotFoundError(
        f"no {' or '.join(names)} in any of {', '.join(map(str, folders))}; "
        "set CUDA_HOME to a CUDA toolkit, or RHOVAE_CUDA=0 to build without CUDA"
    )


def shared_runtime(compiler: str) -> list[str]:
    """For the linker: C++'s own library by its name, where the compiler has it.

    Some compilers are wrappers that link it statically. A second copy beside torch's is not set up:
    the first message that streams a number ends the process.
    """
    name = "libstdc++.so.6"
    command = [compiler, f"-print-file-name={name}"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return [f"-l:{name}"] if Path(found).is_absolute() else []


def link_folder(library: Path, build: Path) -> Path:
    """A folder that holds `library` under the name that the linker looks for, libcudart.so."""
    if library.name == "libcudart.so":
        return library.parent
    build.mkdir(parents=True, exist_ok=True)
    link = build / "libcudart.so"
    link.unlink(missing_ok=True)
    link.symlink_to(library)
    return build
