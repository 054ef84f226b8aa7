"""The contract of each op, of what the compiler makes of its kernels: PTX, run by `tests/ptx`.

The interpreter runs what is written; this, what the compiler makes of it. Between the two, and
between this and machine code, lay what a GPU found wrong here.
"""

import importlib

import pytest
import torch

pytest.importorskip("triton", reason="Triton has no build for this platform")
import ptx
from test_affine_coupling import TestAffineCoupling as AffineCoupling
from test_ar1 import TestLogProb as LogProb
from test_ar1 import TestReparam as Reparam
from test_ar1 import TestReparamRng as ReparamRng
from test_iaf_gate import TestIafGate as IafGate
from test_linear_scan import TestFromInitial as FromInitial
from test_linear_scan import TestLinearScan as LinearScan
from test_markov_reparam import TestMarkovReparam as MarkovReparam
from test_markov_smooth import TestMarkovSmooth as MarkovSmooth
from test_rq_spline import TestRqSpline as RqSpline

import rhovae_kernels as rk
from rhovae_kernels.triton import runtime

# What launches kernels by this name. (Matrix products, of instructions of their own, are not run.)
MODULES = [
    importlib.import_module(f"rhovae_kernels.triton.{name}")
    for name in (
        "adjoint", "ar1", "linear_scan", "markov_reparam", "markov_smooth", "philox", "rq_spline",
        "runtime",
    )
]  # fmt: skip
CONTRACTS = (
    Reparam, ReparamRng, LogProb, MarkovReparam, LinearScan, FromInitial, IafGate, AffineCoupling,
    RqSpline, MarkovSmooth,
)  # fmt: skip
# Of most widths of a tile one, and rows of several; of half precision and float64 fewer.
LENGTHS = {
    torch.float32: (19, 257, 700, 2100),
    torch.bfloat16: (64,),
    torch.float16: (300,),
    torch.float64: (64,),
}


@pytest.fixture
def executed(monkeypatch):
    """Kernels on CPU tensors are compiled, and their PTX is run; none is interpreted."""

    def refuse(kernel, *args, **constants):
        raise AssertionError(f"{kernel.__name__} is launched by another name than `launch`")

    monkeypatch.setattr(runtime, "interpret", refuse)
    for module in MODULES:
        monkeypatch.setattr(module, "launch", ptx.launch)
    with rk.use_backend("triton"):
        yield


@pytest.mark.gate
@pytest.mark.parametrize(
    "dtype,d",
    [(dtype, d) for dtype, lengths in LENGTHS.items() for d in lengths],
    ids=lambda x: str(x).removeprefix("torch."),
)
@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda c: c.__name__)
def test_what_is_compiled_matches_the_specification(executed, contract, dtype, d):
    of = contract()
    for variant in of.variants:
        of.check(of.inputs(variant, (3,), d, dtype), dtype, f"{variant} {d}")


ADDING = """
.visible .entry adding(.param .u64 adding_param_0, .param .u32 adding_param_1)
{
    .reg .pred %p<3>;
    .reg .b32 %r<5>;
    .reg .b64 %rd<4>;
    ld.param.b64 %rd1, [adding_param_0];
    ld.param.b32 %r1, [adding_param_1];
    mov.u32 %r2, %tid.x;
    setp.ge.s32 %p1, %r2, %r1;
    @%p1 bra $L_end;
    mul.wide.u32 %rd2, %r2, 4;
    add.s64 %rd3, %rd1, %rd2;
    ld.global.b32 %r3, [%rd3+ADDED];
    add.f32 %r4, %r3, 0f3F800000;
    st.global.b32 [%rd3], %r4;
$L_end:
    ret;
}
"""


def test_threads_that_a_branch_parts_end_each_as_it_should():
    x = torch.arange(40.0)
    ptx.run(ADDING.replace("ADDED", "0"), 1, 64, 0, [x, 37])
    assert x.tolist() == [*range(1, 38), 37, 38, 39]


@pytest.mark.parametrize("added,what", [("160", "not allocated"), ("2", "not aligned")])
def test_what_is_read_beside_its_tensor_is_refused(added, what):
    with pytest.raises(AssertionError, match=f"global memory: .*{what}.*ld.global.b32"):
        ptx.run(ADDING.replace("ADDED", added), 1, 64, 0, [torch.zeros(40), 40])


def test_what_it_does_not_know_is_said():
    with pytest.raises(ValueError, match=r"does not know: teleport\.f32"):
        ptx.run(ADDING.replace("ADDED", "0").replace("add.f32", "teleport.f32"), 1, 32, 0,
                [torch.zeros(40), 40])  # fmt: skip
