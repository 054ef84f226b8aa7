"""Builds `rhovae_kernels._C` with ninja: C++ always, CUDA where nvcc and a CUDA build of torch are.

Environment: RHOVAE_CUDA=0 leaves CUDA out, RHOVAE_CUDA=1 insists on it; RHOVAE_CUDA_ARCHITECTURES
("80;90") names the architectures, otherwise those of the GPUs found, otherwise the default list.
RHOVAE_SANITIZE=1 builds the C++ kernels with AddressSanitizer and UndefinedBehaviorSanitizer, whose
runtimes the program that loads them must have loaded first (`make fuzz-sanitized`).
"""

import os
import subprocess
import sys
from pathlib import Path

import torch
from setuptools import setup
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))
import build_flags  # noqa: E402


def with_cuda() -> bool:
    wanted = os.environ.get("RHOVAE_CUDA", "auto")
    if wanted not in ("auto", "0", "1"):
        raise SystemExit(f"RHOVAE_CUDA is {wanted!r}; it must be 0, 1 or unset")
    found = CUDA_HOME is not None and torch.version.cuda is not None
    if wanted == "1" and not found:
        raise SystemExit(
            "RHOVAE_CUDA=1 asks for CUDA kernels, which need nvcc and a CUDA build of torch: "
            f"nvcc is {'at ' + CUDA_HOME if CUDA_HOME else 'not found'}, torch {torch.__version__} "
            f"is built for CUDA {torch.version.cuda}"
        )
    return found and wanted != "0"


def sanitized() -> bool:
    wanted = os.environ.get("RHOVAE_SANITIZE", "0")
    if wanted not in ("0", "1"):
        raise SystemExit(f"RHOVAE_SANITIZE is {wanted!r}; it must be 0, 1 or unset")
    return wanted == "1"


def architectures() -> list[str]:
    named = os.environ.get("RHOVAE_CUDA_ARCHITECTURES")
    if named:
        return [a.strip().replace(".", "") for a in named.replace(",", ";").split(";") if a.strip()]
    if torch.cuda.is_available():
        found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
        return sorted((f"{major}{minor}" for major, minor in found), key=int)
    return build_flags.CUDA_ARCHITECTURES


def runtime_folder() -> Path:
    """What holds libcudart.so: where nvcc is a script, torch looks for it beside the script."""
    home, version = Path(CUDA_HOME), torch.version.cuda
    packages = Path(torch.__file__).resolve().parents[1]
    folders = build_flags.runtime_folders(home, str(home / "bin" / "nvcc"), packages, version)
    try:
        library = build_flags.runtime_library(folders, version)
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from error
    return build_flags.link_folder(library, ROOT / "build" / "cuda")


def compiler() -> str:
    command = os.environ.get("CXX", "c++")
    try:
        return subprocess.run(
            [command, "--version"], capture_output=True, text=True, check=True
        ).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"no C++ compiler: {command} --version failed ({error})") from error


def quoted(name: str, value: str) -> str:
    return f'-D{name}="{value}"'


def pybind11_headers() -> list[str]:
    """Those of the installed pybind11; where there is none, torch's include paths hold a copy."""
    try:
        import pybind11
    except ImportError:
        return []
    return [pybind11.get_include()]


def extension():
    cuda = with_cuda()
    archs = architectures() if cuda else []
    sources = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/**/*.cpp"))
    cxx_flags = build_flags.SANITIZED_CXX_FLAGS if sanitized() else build_flags.CXX_FLAGS
    flags = [*build_flags.DEFINES, *cxx_flags]
    info = [
        quoted("RHOVAE_COMPILER", compiler()),
        quoted("RHOVAE_FLAGS", " ".join(cxx_flags)),
        quoted("RHOVAE_TORCH", torch.__version__),
        quoted("RHOVAE_CUDA", torch.version.cuda if cuda else ""),
        quoted("RHOVAE_ARCHITECTURES", ";".join(archs)),
    ]
    # Paths are absolute: ninja compiles in its build folder.
    arguments = {
        "name": "rhovae_kernels._C",
        "include_dirs": pybind11_headers(),
        "extra_link_args": build_flags.SANITIZE if sanitized() else [],
        "extra_compile_args": {
            "cxx": [*flags, *info],
            "nvcc": [
                *build_flags.DEFINES,
                *build_flags.NVCC_FLAGS,
                *(build_flags.gencode(archs) if cuda else []),
            ],
        },
    }
    if not cuda:
        return CppExtension(sources=sources, **arguments)
    # The architectures are ours to name: torch would add its own otherwise.
    os.environ["TORCH_CUDA_ARCH_LIST"] = " "
    kernels = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/cuda/*.cu"))
    return CUDAExtension(
        sources=sources + kernels, library_dirs=[str(runtime_folder())], **arguments
    )


setup(
    ext_modules=[extension()],
    cmdclass={"build_ext": BuildExtension.with_options(use_ninja=True, no_python_abi_suffix=False)},
)
