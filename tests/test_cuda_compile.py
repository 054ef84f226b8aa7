"""The CUDA sources compile on a machine without a GPU, for every architecture that is shipped.

What the compiler reports is held: a kernel that spills registers, or indexes an array at run time,
works out of local memory, which is device memory; these kernels live of not doing that.
"""

import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from torch.utils.cpp_extension import CUDA_HOME, include_paths

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import build_flags  # noqa: E402

SOURCES = sorted(p.name for p in (ROOT / "csrc/cuda").glob("*.cu"))
NVCC = shutil.which("nvcc") or (CUDA_HOME and shutil.which("nvcc", path=f"{CUDA_HOME}/bin"))

pytestmark = [
    pytest.mark.skipif(NVCC is None, reason="nvcc, the CUDA compiler, is not on this machine"),
    pytest.mark.parametrize("source", SOURCES),
]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Compiles a source as setup.py does, once; returns the object file and the report."""

    @cache
    def compile_source(source: str) -> tuple[Path, str]:
        target = tmp_path_factory.mktemp("cuda") / f"{source}.o"
        command = [
            NVCC,
            *build_flags.DEFINES,
            *build_flags.NVCC_FLAGS,
            *build_flags.gencode(build_flags.CUDA_ARCHITECTURES),
            *(f"-isystem={path}" for path in include_paths()),
            "--compiler-options=-fPIC",
            *("-c", str(ROOT / "csrc/cuda" / source), "-o", str(target)),
        ]
        result = subprocess.run(command, capture_output=True, text=True)
        report = result.stdout + result.stderr
        assert result.returncode == 0, report
        return target, report

    return compile_source


def test_every_kernel_compiles_for_every_architecture_without_a_warning(compiled, source):
    _, report = compiled(source)
    assert "warning" not in report, report
    kernels = re.findall(r"Compiling entry function '(\w+)' for 'sm_(\d+)'", report)
    by_architecture = {
        a: {name for name, architecture in kernels if architecture == a}
        for a in build_flags.CUDA_ARCHITECTURES
    }
    names = set.union(*by_architecture.values())
    assert names, report
    assert all(found == names for found in by_architecture.values()), by_architecture


def test_no_kernel_spills_registers_or_uses_local_memory(compiled, source):
    _, report = compiled(source)
    usage = re.findall(
        r"Function properties for (\w+)\s+"
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads",
        report,
    )
    assert len(usage) == report.count("Compiling entry function") > 0, report
    assert [line for line in usage if line[1:] != ("0", "0", "0")] == []


def test_the_objects_need_nothing_of_torch_beyond_its_stable_interface(compiled, source):
    # A C++ symbol of torch ties the build to one version of it; the stable ones are plain C.
    target, _ = compiled(source)
    undefined = subprocess.run(
        ["nm", "--undefined-only", str(target)], capture_output=True, text=True, check=True
    ).stdout
    assert "aoti_torch_" in undefined
    unstable = re.findall(r"\b_Z\w*(?:3c10|2at|5torch|5caffe2)\w*", undefined)
    assert unstable == []
