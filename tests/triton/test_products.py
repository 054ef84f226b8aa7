"""What the machine code of masked_linear's products of matrices must be, in bfloat16.

The tiles of large results, as each card is given them.
"""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

triton = pytest.importorskip("triton", reason="Triton has no build for this platform")
from machine_code import WIDE, compiled, dumped, local_memory, loops  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

from rhovae_kernels.triton.masked_linear import configurations  # noqa: E402

# A compilation takes a second or two.
pytestmark = pytest.mark.gate

REGISTERS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "registers.md"
COUNTED_WITH = re.search(r"Triton (\S+\d)", REGISTERS.read_text("utf-8"))[1]


class Card(NamedTuple):
    """The bytes of shared memory that a block may have, and the opcode of a product of matrices."""

    shared: int
    product: str


CARDS = {
    80: Card(163 * 1024, "HMMA"),
    89: Card(99 * 1024, "HMMA"),
    90: Card(227 * 1024, "HGMMA"),
    100: Card(227 * 1024, "UTCHMMA"),
    120: Card(99 * 1024, "HMMA"),
}
# Per kernel, for a step of each loop of the largest tile on sm_90: the instructions of a warp, of
# what was reached and 3% at most; the steps along the edge clean the weight in registers.
STEPS = {
    "_forward": (145, 413),
    "_input_gradient": (193, 584),
    "_weight_gradient": (251,),
}
LARGEST = re.compile(r"128x256x(64|32) ")


def of_large_results(cc):
    """The configurations of tiles that more than one warp group fills, by name."""
    return {
        c.name: c
        for c in configurations()
        if " bf16 128x" in c.name and (c.capabilities is None or cc in c.capabilities)
    }


@pytest.fixture(params=CARDS, ids="sm_{}".format)
def cc(request) -> int:
    return request.param


def test_each_tile_fits_the_registers_and_the_shared_memory_of_each_card(cc, tmp_path):
    excess = {}
    for name, configuration in of_large_results(cc).items():
        kernel = compiled(configuration, GPUTarget("cuda", cc, 32))
        spilled = local_memory(kernel.asm["cubin"], tmp_path / "kernel")
        excess[name] = (spilled, max(0, kernel.metadata.shared - CARDS[cc].shared))
    assert len(excess) >= 9 and excess == dict.fromkeys(excess, (0, 0))


@pytest.mark.parametrize("kernel", STEPS)
def test_products_are_of_matrices_and_read_by_asynchronous_copies_of_16_bytes(kernel, cc, tmp_path):
    named = {
        n: c for n, c in of_large_results(cc).items() if n.startswith(f"{kernel} bf16 128x256")
    }
    # The deeper one where there is one.
    configuration = named[max(named, key=lambda name: int(LARGEST.search(name)[1]))]
    cubin = compiled(configuration, GPUTarget("cuda", cc, 32)).asm["cubin"]
    listing = dumped("sass", cubin, tmp_path / "kernel")
    bodies = [body for body in loops(listing) if any(s.does(CARDS[cc].product) for s in body)]
    assert len(bodies) == len(STEPS[kernel])
    for body in bodies:
        copies = [step.opcode for step in body if step.does("LDGSTS")]
        whole = [opcode for opcode in copies if opcode.endswith(".128")]
        # Of x and W for the tile, and one more where a step reads its outputs' prefixes, which
        # Triton 3.6.0 copies in four to eight.
        threads, constants = 32 * configuration.warps, configuration.constexprs
        elements = constants["BLOCK_DEPTH"] * (constants["BLOCK_ROWS"] + constants["BLOCK_COLUMNS"])
        assert len(whole) * threads * WIDE == 2 * elements
        of_prefixes = 1 if triton.__version__ == COUNTED_WITH else 8
        assert len(copies) - len(whole) <= of_prefixes * (kernel == "_input_gradient")
        assert not any(step.does("LDG", "LDL", "STL") for step in body)
    if cc == 90 and triton.__version__ == COUNTED_WITH:
        taken = sorted(map(len, bodies))
        assert all(n <= most for n, most in zip(taken, STEPS[kernel], strict=True)), taken
