"""The counter of machine code finds what it is to find, in planted listings and kernels."""

import pytest

triton = pytest.importorskip("triton", reason="Triton has no build for this platform")
import machine_code  # noqa: E402
import triton.language as tl  # noqa: E402
from machine_code import NO_PATH, SUBROUTINE, compiled, local_memory, path_of  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

from rhovae_kernels.triton.iaf_gate import _gate  # noqa: E402
from rhovae_kernels.triton.runtime import Configuration, configuration  # noqa: E402


def listing(*lines: str) -> str:
    """As cuobjdump prints instructions, 16 bytes each."""
    return "\n".join(f"        /*{16 * i:04x}*/  {line} ;" for i, line in enumerate(lines))


LOAD_A, LOAD_B = "LDG.E.128 R4, desc[UR4][R2.64]", "LDG.E.128 R8, desc[UR4][R2.64+0x200]"
STORE_A, STORE_B = (f"STG.E.128 desc[UR4][R2.64], R{r}" for r in (4, 8))


def test_the_path_takes_the_cheaper_branch_and_leaves_by_the_first_exit():
    lane = path_of(
        listing("@P0 BRA 0x30", "FADD R0, R0, R1", "FADD R0, R0, R1", LOAD_A, "@P1 EXIT", "EXIT")
    )
    assert [step.opcode for step in lane.steps] == ["BRA", "LDG.E.128", "EXIT"]


def test_the_path_passes_each_wide_access_in_order_and_a_loop_once():
    lane = path_of(
        listing("@P0 BRA 0x50", LOAD_A, STORE_A, "@P1 BRA 0x10", "NOP", LOAD_B, STORE_B, "EXIT")
    )
    assert [step.opcode for step in lane.steps if step.width] == ["LDG.E.128", "STG.E.128"] * 2
    # All but the NOP, which costs nothing.
    assert (lane.instructions, len(lane.steps)) == (7, 8)


def test_a_call_counts_for_a_subroutine():
    assert path_of(listing("CALL.REL.NOINC 0x20", LOAD_A, "EXIT")).instructions == SUBROUTINE + 2


def test_a_loop_is_what_a_branch_back_repeats_without_an_exit():
    code = listing(LOAD_A, "FADD R0, R4, R4", "@P0 BRA 0x10", STORE_A, "EXIT", "BRA 0x30")
    assert [[step.opcode for step in body] for body in machine_code.loops(code)] == [
        ["FADD", "BRA"]
    ]


@pytest.mark.parametrize(
    "lines",
    [[LOAD_A], [LOAD_A, "BRA 0x10"], ["BRA 0x20", LOAD_A, "EXIT"]],
    ids=["no exit", "an endless loop", "a load that is not reached"],
)
def test_code_without_a_path_is_refused(lines):
    with pytest.raises(ValueError, match=NO_PATH):
        path_of(listing(*lines))


def test_a_load_behind_a_store_is_found():
    assert path_of(listing(LOAD_A, LOAD_B, STORE_A, STORE_B, "EXIT")).loads_precede_stores
    assert not path_of(listing(LOAD_A, STORE_A, LOAD_B, STORE_B, "EXIT")).loads_precede_stores


@pytest.mark.parametrize(
    ("use", "distance"),
    [
        ("FADD R0, R7, R1", 2),
        ("FADD R7, R0, R1", 3),
        ("DADD R0, R0, R6.64", 2),
        ("FSETP.GEU.AND P1, PT, |R4|, 0.5, PT", 2),
        ("STG.E desc[UR4][R2.64], R5", 2),
        ("LDG.E R0, desc[UR4][R6.64]", 2),
    ],
    ids=["an operand", "a result", "half of a pair", "a comparison", "stored", "an address"],
)
def test_the_first_use_of_a_load_is_where_a_register_of_it_is_read(use, distance):
    lane = path_of(listing(LOAD_A, LOAD_B, use, "FADD R0, R4, R4", STORE_A, "EXIT"))
    assert lane.first_use(0) == distance


def test_loads_that_wait_for_one_another_are_not_in_flight_at_once():
    assert path_of(listing(LOAD_A, LOAD_B, STORE_A, STORE_B, "EXIT")).in_flight == 2
    assert path_of(listing(LOAD_A, "FADD R0, R4, R4", LOAD_B, STORE_B, "EXIT")).in_flight == 1


@triton.jit
def _store_first(a, b, out, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    lane = tl.arange(0, BLOCK_COLUMNS)
    tl.store(out + lane, tl.load(a + lane))
    tl.store(out + BLOCK_COLUMNS + lane, tl.load(b + lane))


def planted(kind: str) -> Configuration:
    """`_store_first`, which reads `b` when it has written of `a`, on elements of a type."""
    constants = {"BLOCK_ROWS": 1, "BLOCK_COLUMNS": 512}
    pointers = dict.fromkeys(("a", "b", "out"), kind)
    signature = pointers | dict.fromkeys(constants, "constexpr")
    return Configuration("planted", _store_first, signature, constants, warps=1)


def test_a_kernel_that_stores_before_it_loads_is_found(tmp_path):
    lane, _ = machine_code.path_of_kernel(planted("*fp32"), 90, tmp_path / "kernel")
    assert (len(lane.loads), len(lane.stores)) == (8, 8)
    assert not lane.loads_precede_stores


def test_a_kernel_whose_rows_are_not_aligned_has_no_wide_load(tmp_path):
    source = triton.compiler.ASTSource(_store_first, *planted("*fp32")[2:4])
    cubin = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
    lane = path_of(machine_code.dumped("sass", cubin, tmp_path / "kernel"))
    assert (lane.loads, lane.stores) == ([], [])
    assert lane.narrow > 0


def test_a_kernel_of_too_few_registers_is_found(tmp_path):
    squeezed = configuration(_gate, "fp64", 1024, {}, {})._replace(registers=32)
    cubin = compiled(squeezed, GPUTarget("cuda", 90, 32)).asm["cubin"]
    assert local_memory(cubin, tmp_path / "kernel") > 0
