"""The CUDA sources compile on a machine without a GPU, for every architecture that is shipped.

What the compiler reports is held: a kernel that spills registers, or indexes an array at run time,
works out of local memory, which is device memory; these kernels live of not doing that. What it
reports for each kernel is kept in `benchmarks/results/registers.md`.
"""

import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from torch.utils.cpp_extension import CUDA_HOME, include_paths

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import build_flags  # noqa: E402

REGISTERS = ROOT / "benchmarks" / "results" / "registers.md"
SOURCES = sorted(p.name for p in (ROOT / "csrc/cuda").glob("*.cu"))
NVCC = shutil.which("nvcc") or (CUDA_HOME and shutil.which("nvcc", path=f"{CUDA_HOME}/bin"))

pytestmark = [
    pytest.mark.gate,
    pytest.mark.skipif(NVCC is None, reason="nvcc, the CUDA compiler, is not on this machine"),
    pytest.mark.parametrize("source", SOURCES),
]

# Bytes are these kernels' limit: per kernel, how many operands as long as a row it reads and how
# many it writes, each of which takes a 16-byte load or store a lane.
LONG_OPERANDS = {
    "words": (0, 1),
    # The second flag, an initial state, is one number a row.
    "linear_scan_kernel<false, false>": (3, 2),
    "linear_scan_kernel<false, true>": (3, 2),
    "linear_scan_kernel<true, false>": (2, 1),
    "linear_scan_kernel<true, true>": (2, 1),
    "linear_scan_aggregates<false, false>": (2, 0),
    "linear_scan_aggregates<false, true>": (2, 0),
    "linear_scan_aggregates<true, false>": (1, 0),
    "linear_scan_aggregates<true, true>": (1, 0),
    "ar1_aggregates<false>": (3, 0),
    "ar1_aggregates<true>": (2, 0),
    "ar1_reparam_kernel<false>": (3, 1),
    "ar1_reparam_kernel<true>": (2, 1),
    # ε is read twice, by the walk ahead and by the walk back.
    "ar1_reparam_backward_kernel<false>": (5, 3),
    "ar1_reparam_backward_kernel<true>": (3, 3),
    "ar1_log_prob_kernel": (3, 0),
    "ar1_log_prob_backward_kernel": (3, 3),
    "coupling_kernel": (3, 1),
    "coupling_backward_kernel": (4, 3),
    "gate_kernel": (3, 1),
    "gate_backward_kernel": (4, 3),
    # One number a range.
    "add_parts": (0, 0),
    # The units' lines lie in shared memory: weights are what counts here, and the steps' order.
    "inversion": (0, 0),
    "spline_inversion": (0, 0),
    "solution": (0, 0),
    "turn_prefix": (0, 0),
}


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


def readable(mangled: str) -> str:
    """A kernel's name with its template arguments: `linear_scan_kernel<float, true>`."""
    name = subprocess.run(
        ["c++filt", mangled], capture_output=True, text=True, check=True
    ).stdout.replace("(anonymous namespace)::", "")
    kernel, arguments = re.search(r"(\w+)(<[^(]*>)?\(", name).groups(default="")
    return kernel + arguments.replace("c10::", "")


def table_of(report: str) -> dict[str, str]:
    """Per kernel, the line of the table that tells what the compiler reports about it."""
    usage = re.findall(
        r"Compiling entry function '(\w+)' for 'sm_(\d+)'\n.*Function properties for \1\s+"
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n"
        r".*Used (\d+) registers(?:.* (\d+) bytes smem)?",
        report,
    )
    assert len(usage) == report.count("Compiling entry function") > 0, report
    cells: dict[str, dict[str, str]] = {}
    for mangled, architecture, local, stores, loads, registers, shared in usage:
        cells.setdefault(mangled, {})[architecture] = (
            f"{registers} / {shared or 0} / {int(stores) + int(loads)} / {local}"
        )
    rows = {readable(mangled): cells[mangled] for mangled in cells}
    return {
        name: f"| `{name}` | "
        + " | ".join(rows[name][a] for a in build_flags.CUDA_ARCHITECTURES)
        + " |"
        for name in sorted(rows)
    }


def test_the_table_of_registers_is_what_the_compiler_reports(compiled, source):
    _, report = compiled(source)
    said = table_of(report)
    text = REGISTERS.read_text()
    section = re.search(rf"^## {source}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert section, f"{REGISTERS} has no section {source}"
    kept = {line.split("`")[1]: line for line in section[1].splitlines() if "`" in line}
    assert kept.keys() == said.keys()
    version = subprocess.run([NVCC, "--version"], capture_output=True, text=True, check=True).stdout
    # Another compiler allots registers its own way.
    if re.search(r"nvcc (\S+\d)", text)[1] == re.search(r"V([\d.]+)", version)[1]:
        assert kept == said, "if this is meant, the section becomes:\n" + "\n".join(said.values())


def test_operands_as_long_as_a_row_are_read_and_written_16_bytes_at_a_time(compiled, source):
    triton = pytest.importorskip("triton", reason="Triton, which brings cuobjdump, is not here")
    target, _ = compiled(source)
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-sass", str(target)]
    sass = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = 0
    for architecture in sass.split("code for sm_")[1:]:
        for function in architecture.split("Function : ")[1:]:
            name = readable(function.split()[0])
            # Without the type, which makes no difference.
            kernel = re.sub(r"<(float|double|Half|BFloat16)(, )?", "<", name).replace("<>", "")
            wide = tuple(
                len(re.findall(rf"\b{instruction}\.[\w.]*\b128\b", function))
                for instruction in ("LDG", "STG")
            )
            # A compiler that unrolls has more of them.
            enough = [n >= least for n, least in zip(wide, LONG_OPERANDS[kernel], strict=True)]
            assert all(enough), f"{name} for sm_{architecture.split()[0]}: {wide}"
            found += 1
    assert found % len(build_flags.CUDA_ARCHITECTURES) == 0 < found
