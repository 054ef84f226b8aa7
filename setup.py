"""Builds `rhovae_kernels._C` with ninja: C++ always, CUDA where nvcc and a CUDA build of torch are.

Environment: RHOVAE_CUDA=0 leaves CUDA out, RHOVAE_CUDA=1 insists on it; RHOVAE_CUDA_ARCHITECTURES
("80;90") names the architectures, otherwise those of the GPUs found, otherwise the default list.
RHOVAE_CPU_TARGETS=native builds the CPU kernels for the instruction set of this machine alone;
unset, for each. RHOVAE_SANITIZE=1 builds them with AddressSanitizer and UndefinedBehaviorSanitizer,
whose runtimes the program that loads them must have loaded first (`make fuzz-sanitized`).
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


def setting(name: str, *values: str) -> str:
    """What the environment variable is, of these values; the first of them where it is unset."""
    found = os.environ.get(name, values[0])
    if found not in values:
        raise SystemExit(f"{name} is {found!r}; it must be {', '.join(values[1:])} or unset")
    return found


def with_cuda() -> bool:
    wanted = setting("RHOVAE_CUDA", "auto", "0", "1")
    found = CUDA_HOME is not None and torch.version.cuda is not None
    if wanted == "1" and not found:
        raise SystemExit(
            "RHOVAE_CUDA=1 asks for CUDA kernels, which need nvcc and a CUDA build of torch: "
            f"nvcc is {'at ' + CUDA_HOME if CUDA_HOME else 'not found'}, torch {torch.__version__} "
            f"is built for CUDA {torch.version.cuda}"
        )
    return found and wanted != "0"


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


def compiler_version(compiler: str) -> str:
    try:
        return subprocess.run(
            [compiler, "--version"], capture_output=True, text=True, check=True
        ).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"no C++ compiler: {compiler} --version failed ({error})") from error


def quoted(name: str, value: str) -> str:
    return f'-D{name}="{value}"'


def extension():
    cuda = with_cuda()
    archs = architectures() if cuda else []
    sources = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/**/*.cpp"))
    sanitized = setting("RHOVAE_SANITIZE", "0", "1") == "1"
    cxx_flags = build_flags.SANITIZED_CXX_FLAGS if sanitized else build_flags.CXX_FLAGS
    flags = [*build_flags.DEFINES, *cxx_flags]
    compiler = os.environ.get("CXX", "c++")
    version = compiler_version(compiler)
    targets = list(build_flags.CPU_TARGETS)
    if setting("RHOVAE_CPU_TARGETS", "all", "native") == "native":
        native = build_flags.native_target(compiler)
        flags.append(f"-DRHOVAE_ONLY={targets.index(native)}")
        targets = [native]
    info = [
        quoted("RHOVAE_COMPILER", version),
        quoted("RHOVAE_FLAGS", " ".join(cxx_flags)),
        quoted("RHOVAE_TORCH", torch.__version__),
        quoted("RHOVAE_CUDA", torch.version.cuda if cuda else ""),
        quoted("RHOVAE_ARCHITECTURES", ";".join(archs)),
        quoted("RHOVAE_TARGETS", ";".join(targets)),
    ]
    # Paths are absolute: ninja compiles in its build folder.
    arguments = {
        "name": "rhovae_kernels._C",
        "py_limited_api": True,
        "extra_link_args": [
            *build_flags.shared_runtime(compiler),
            *(build_flags.SANITIZE if sanitized else []),
        ],
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


# Built before the extension was one for every version of Python, and imported in its place.
for stale in ROOT.glob("rhovae_kernels/_C.cpython-*.so"):
    stale.unlink()

setup(
    ext_modules=[extension()],
    cmdclass={"build_ext": BuildExtension.with_options(use_ninja=True, no_python_abi_suffix=False)},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
