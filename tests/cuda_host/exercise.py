"""Runs the ops of a library of CUDA kernels, forward and backward, against the specification.

A program: `exercise.py LIBRARY OP…`, for what had better not happen in the process of the tests.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ops"))
import test_affine_coupling
import test_ar1
import test_iaf_gate
import test_linear_scan
import test_made_inverse
import test_made_inverse_splines

import cuda_host
import rhovae_kernels as rk
from rhovae_kernels import python_ref
from rhovae_kernels.ops.op import Op

CONTRACTS = {
    "linear_scan": test_linear_scan.TestLinearScan,
    "linear_scan, initial": test_linear_scan.TestFromInitial,
    "ar1_reparam": test_ar1.TestReparam,
    "ar1_reparam_rng": test_ar1.TestReparamRng,
    "ar1_log_prob": test_ar1.TestLogProb,
    "affine_coupling": test_affine_coupling.TestAffineCoupling,
    "iaf_gate": test_iaf_gate.TestIafGate,
}

# Per type: a part of a warp, a warp and a bit, several warps, several tiles with an end in one.
LENGTHS = {torch.float32: (7, 33, 601, 2050), torch.float64: (130, 1027), torch.bfloat16: (19, 515)}
# Of a row that would be split over blocks, in every type.
NO_ROWS = 17_001


def is_prefix(x) -> bool:
    return isinstance(x, torch.Tensor) and x.dtype == torch.int32


def exercise(op: str) -> None:
    if op == "philox":
        for shape in ((3, 0), (0, 1028), (5, 3), (2, 1028)):
            state = torch.tensor([5, 2**40 + 3])
            assert torch.equal(
                torch.ops.rhovae.philox(state, *shape), python_ref.philox(state, *shape)
            )
        return
    if op == "made_inverse":
        # Its steps follow one another: networks narrow and wide, and several slices of the batch.
        contracts = (
            test_made_inverse.TestMadeInverse,
            test_made_inverse.TestBernoulli,
            test_made_inverse.TestMadeSolve,
            test_made_inverse_splines.TestSplineInverse,
            test_made_inverse_splines.TestSolveOfSeveralHeads,
        )
        for contract in (kind() for kind in contracts):
            for rows, d, hidden in ((3, 5, (13, 7)), (35, 3, (9, 20)), (3, 4, (140, 131))):
                for variant in contract.variants:
                    inputs = contract.inputs(variant, (rows,), d, torch.float32, hidden=hidden)
                    contract.check(inputs, torch.float32, f"{variant} {rows} {d} {hidden}")
                    # Units without inputs, which are due at once.
                    less = [(x - 1).clamp_min(0) if is_prefix(x) else x for x in inputs]
                    contract.check(less, torch.float32, f"{variant} {rows} {d} {hidden}, less")
        return
    contract = CONTRACTS[op]().on("cuda_host")
    for dtype, lengths in LENGTHS.items():
        for d in lengths:
            for variant, inputs in contract.each_variant((3,), d, dtype, "cpu"):
                contract.check(inputs, dtype, f"{variant} {d}")
        for variant, inputs in contract.each_variant((0,), NO_ROWS, dtype, "cpu"):
            contract.check(inputs, dtype, f"{variant}, no rows")
    for variant, inputs in contract.each_variant((3, 2), 21, torch.float32, "cpu"):
        for layout, same in contract.layouts(inputs):
            contract.check(same, torch.float32, f"{variant} {layout}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    # Memory that is allocated and not yet written holds NaN.
    torch.use_deterministic_algorithms(True)
    torch.ops.load_library(sys.argv[1])
    Op.implementation = cuda_host.implementation
    with rk.use_backend("reference"):
        for op in sys.argv[2:]:
            exercise(op)
    print("all results match")
