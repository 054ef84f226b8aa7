"""The Triton kernels, compiled ahead of time for GPUs that this machine need not have.

What the compiler made of each configuration is kept in `benchmarks/results/registers.md`.
"""

import importlib
import re
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton has no build for this platform")
import triton.language as tl  # noqa: E402
from machine_code import NOT_TRUSTED, compiled, dumped, local_memory  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime.interpreter import InterpretedFunction  # noqa: E402

from rhovae_kernels.triton.ar1 import compose_tangent  # noqa: E402
from rhovae_kernels.triton.linear_scan import compose, compose_but_last, linear_scan  # noqa: E402
from rhovae_kernels.triton.runtime import Configuration  # noqa: E402

REGISTERS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "registers.md"
ROOMS = (
    "linear_scan",
    "ar1",
    "adjoint",
    "markov_reparam",
    "philox",
    "iaf_gate",
    "affine_coupling",
    "rq_spline",
    "masked_linear",
    "markov_smooth",
)
CUDA = {cc: GPUTarget("cuda", cc, 32) for cc in (80, 89, 90, 100, 120)}
# Of the table of registers.
TABLED = (80, 90, 100)
HIP = GPUTarget("hip", "gfx942", 64)


@pytest.mark.gate
@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("cc", CUDA)
def test_each_kernel_compiles_for_nvidia_and_spills_no_register(room, cc, tmp_path):
    configurations = importlib.import_module(f"rhovae_kernels.triton.{room}").configurations()
    spilled = {}
    for configuration in configurations:
        if configuration.capabilities is None or cc in configuration.capabilities:
            cubin = compiled(configuration, CUDA[cc]).asm["cubin"]
            spilled[configuration.name] = local_memory(cubin, tmp_path / "kernel.cubin")
    assert spilled == dict.fromkeys(spilled, 0)


def cell(configuration: Configuration, cc: int, path: Path) -> str:
    """Registers, shared memory, instructions on local memory, local memory: as the table has it."""
    if configuration.capabilities is not None and cc not in configuration.capabilities:
        return "–"
    kernel = compiled(configuration, CUDA[cc])
    cubin = kernel.asm["cubin"]
    (registers,) = re.findall(r"REG:(\d+)", dumped("resource-usage", cubin, path))
    spills = len(re.findall(r"\b(?:LDL|STL)\b", dumped("sass", cubin, path)))
    return f"{registers} / {kernel.metadata.shared} / {spills} / {local_memory(cubin, path)}"


def table_of(room: str, path: Path) -> dict[str, str]:
    """Per configuration, the line of the table that tells what the compiler made of it."""
    configurations = importlib.import_module(f"rhovae_kernels.triton.{room}").configurations()
    return {
        c.name: f"| `{c.name}` | " + " | ".join(cell(c, cc, path) for cc in TABLED) + " |"
        for c in configurations
    }


@pytest.mark.gate
@pytest.mark.parametrize("room", ROOMS)
def test_the_table_of_registers_is_what_the_compiler_made(room, tmp_path):
    said = table_of(room, tmp_path / "kernel.cubin")
    text = REGISTERS.read_text("utf-8")
    section = re.search(rf"^## Triton: {room}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert section, f"{REGISTERS} has no section Triton: {room}"
    kept = {line.split("`")[1]: line for line in section[1].splitlines() if "`" in line}
    assert kept.keys() == said.keys()
    # Another compiler allots registers its own way.
    if re.search(r"Triton (\S+\d)", text)[1] == triton.__version__:
        assert kept == said, "if this is meant, the section becomes:\n" + "\n".join(said.values())


@pytest.mark.gate
@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("cc", (90, 100, 120))
def test_no_kernel_adds_pairs_of_16_bits(room, cc):
    configurations = importlib.import_module(f"rhovae_kernels.triton.{room}").configurations()
    for configuration in configurations:
        if configuration.capabilities is None or cc in configuration.capabilities:
            text = compiled(configuration, CUDA[cc]).asm["ptx"]
            assert not NOT_TRUSTED.findall(text), configuration.name


@pytest.mark.gate
@pytest.mark.parametrize("room", ROOMS)
def test_each_kernel_compiles_for_amd_and_spills_no_vector_register(room):
    configurations = importlib.import_module(f"rhovae_kernels.triton.{room}").configurations()
    spilled = {}
    for configuration in configurations:
        if configuration.capabilities is not None:
            continue
        assembly = compiled(configuration, HIP).asm["amdgcn"]
        # Scalar registers spill to lanes of vector registers, not to memory.
        counts = re.findall(r"\.(?:vgpr_spill_count|private_segment_fixed_size):\s+(\d+)", assembly)
        assert counts
        spilled[configuration.name] = sum(map(int, counts))
    assert spilled == dict.fromkeys(spilled, 0)


@pytest.mark.gate
def test_rows_that_are_multiples_of_16_bytes_are_read_by_vector_loads():
    room = importlib.import_module("rhovae_kernels.triton.ar1")
    for configuration in room.configurations():
        if configuration.name.startswith("_reparam fp32"):
            ptx = compiled(configuration, CUDA[90]).asm["ptx"]
            constants = configuration.constexprs
            writes_z, reads_eps = (constants.get(x, "a tensor") is not None for x in ("z", "eps"))
            reads = writes_z or reads_eps or constants["PER_STEP"]
            assert ("ld.global.v4" in ptx) == reads, configuration.name
            assert ("st.global.v4" in ptx) == writes_z, configuration.name


def test_compiling_for_a_gpu_works_in_a_process_that_has_interpreted_the_same_kernel():
    states = linear_scan(torch.tensor([[0.5]]), torch.ones(1, 3))
    assert states.tolist() == [[1.0, 1.5, 1.75]]
    room = importlib.import_module("rhovae_kernels.triton.linear_scan")
    assert b"ELF" in compiled(room.configurations()[0], CUDA[90]).asm["cubin"][:4]


@triton.jit
def _scan_pairs(a, b, states, COLUMNS: tl.constexpr):
    lane = tl.arange(0, COLUMNS)[None, :]
    _, x = tl.associative_scan((tl.load(a + lane), tl.load(b + lane)), 1, compose)
    tl.store(states + lane, x)


@triton.jit
def _scan_tangents(a, c, b, d, states, tangents, COLUMNS: tl.constexpr):
    lane = tl.arange(0, COLUMNS)[None, :]
    maps = (tl.load(a + lane), tl.load(c + lane), tl.load(b + lane), tl.load(d + lane))
    _, _, u, v = tl.associative_scan(maps, 1, compose_tangent)
    tl.store(states + lane, u)
    tl.store(tangents + lane, v)


@triton.jit
def _scan_back(a, b, states, COLUMNS: tl.constexpr):
    lane = tl.arange(0, COLUMNS)[None, :]
    maps = (tl.load(a + lane), tl.load(b + lane))
    _, x = tl.associative_scan(maps, 1, compose, reverse=True)
    tl.store(states + lane, x)


@triton.jit
def _scan_but_last(a, b, c, d, states, gates_before, states_before, COLUMNS: tl.constexpr):
    lane = tl.arange(0, COLUMNS)[None, :]
    maps = (tl.load(a + lane), tl.load(b + lane), tl.load(c + lane), tl.load(d + lane))
    _, x, gate, before = tl.associative_scan(maps, 1, compose_but_last)
    tl.store(states + lane, x)
    tl.store(gates_before + lane, gate)
    tl.store(states_before + lane, before)


def test_the_scan_that_a_gpu_runs_applies_the_maps_in_order():
    # The kernels take another way to the same scan where they are interpreted.
    torch.manual_seed(0)
    a, c, b, d = torch.randn(4, 16, dtype=torch.float64)
    states, again, tangents = torch.empty(3, 16, dtype=torch.float64)
    InterpretedFunction(_scan_pairs.fn)[(1,)](a, b, states, COLUMNS=16)
    InterpretedFunction(_scan_tangents.fn)[(1,)](a, c, b, d, again, tangents, COLUMNS=16)
    back, forth, gates, before = torch.empty(4, 16, dtype=torch.float64)
    InterpretedFunction(_scan_back.fn)[(1,)](a, b, back, COLUMNS=16)
    one, none = torch.ones_like(a), torch.zeros_like(a)
    InterpretedFunction(_scan_but_last.fn)[(1,)](a, b, one, none, forth, gates, before, COLUMNS=16)
    u = v = torch.zeros((), dtype=torch.float64)
    for j in range(16):
        u, v = a[j] * u + b[j], c[j] * u + a[j] * v + d[j]
        torch.testing.assert_close(states[j], u)
        torch.testing.assert_close(again[j], u)
        torch.testing.assert_close(tangents[j], v)
        torch.testing.assert_close(forth[j], u)
        torch.testing.assert_close(gates[j], a[:j].prod())
        torch.testing.assert_close(before[j], states[j - 1] if j else torch.zeros_like(u))
    x = torch.zeros((), dtype=torch.float64)
    for j in reversed(range(16)):
        x = a[j] * x + b[j]
        torch.testing.assert_close(back[j], x)
