"""The model of what an op moves and computes is what its kernels touch and its formula does.

Bytes: Triton's kernels run in the interpreter, where the addresses of every load and store are
seen; the distinct bytes touched are the model's, exactly, and where an operand is read more than
once the table below says so. (The CUDA kernels load by plain dereferences, which leave no trace on
their host executor.) FLOPs: those of the specification, counted operation by operation.
"""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from contract import normal
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import rhovae_kernels as rk
from rhovae_kernels import python_ref
from rhovae_kernels.ops.cost import Cost, cost, stored
from rhovae_kernels.ops.op import REGISTRY
from rhovae_kernels.ops.rq_spline import SplineConvention

OPS = torch.ops.rhovae
DTYPES = [torch.float64, torch.float32, torch.bfloat16]

# Ragged against every tile, within one and in a loop over two; not so long that a row is cut.
SHAPES = [(5, 37), (3, 1031)]
# Rows cut into chunks, which takes two launches.
CUT = (2, 9001)

REPARAM = ("grad_z", "grad_kl", "mu", "log_var", "rho_logit")
# The tensors that each op takes, in its order.
OPERANDS = {
    "linear_scan": ("gates", "tokens"),
    "linear_scan_backward": ("grad", "gates", "kept"),
    "ar1_reparam": ("mu", "log_var", "rho_logit", "eps"),
    "ar1_reparam_backward": (*REPARAM, "eps"),
    "ar1_reparam_rng": ("mu", "log_var", "rho_logit", "rng_state"),
    "ar1_reparam_rng_backward": (*REPARAM, "rng_state"),
    "iaf_gate": ("z", "m", "s"),
    "iaf_gate_backward": ("grad_z", "grad_kl", "z", "m", "s"),
    "affine_coupling": ("x", "log_scale", "shift", "mask"),
    "affine_coupling_backward": ("grad_z", "grad_kl", "x", "log_scale", "shift", "mask"),
    "rq_spline": ("x", "widths", "heights", "derivatives"),
    "rq_spline_backward": ("grad_z", "grad_kl", "x", "widths", "heights", "derivatives"),
    "markov_reparam": ("mu", "log_var", "step_logit", "prior_logit", "eps"),
    "markov_reparam_backward": (
        *("grad_z", "grad_kl", "mu", "log_var", "step_logit", "prior_logit", "eps"),
    ),
    "ar1_log_prob": ("z", "mu", "log_var", "rho_logit"),
    "ar1_log_prob_backward": ("grad", "z", "mu", "log_var", "rho_logit"),
}
# Operands of several numbers an element.
NUMBERS = {"widths": 5, "heights": 5, "derivatives": 4}
# Operands that may be one number a row.
OF_ROW = {"log_var", "gates", "step_logit", "prior_logit"}
# Stands for that operand where it comes after a constant.
INITIAL = "initial"
# linear_scan's backward pass from tokens.
RECOMPUTES = "linear_scan_backward, recompute"
# How often a kernel loads an element of an operand as long as a row, where not once; the rest of
# the times it is in a cache close by.
LOADS = {
    # Whitening step j needs u_{j−1} as well as u_j, and its adjoint u_{j+1}: a lane holds four and
    # loads the one before them, backward the one after them too.
    "ar1_log_prob": {"z": 1.25, "mu": 1.25, "log_var": 2.25},
    "ar1_log_prob_backward": {"z": 1.5, "mu": 1.5, "log_var": 1.5},
    # ∂ε, where it is asked for, has a kernel of its own.
    "ar1_reparam_backward": {"grad_z": 2, "log_var": 2},
    # The KL of step j needs μ_{j−1} and s_{j−1}; backward, all of step j+1 as well.
    "markov_reparam": {"mu": 2, "log_var": 2},
    "markov_reparam_backward": {"mu": 3, "log_var": 3, "step_logit": 2, "prior_logit": 2},
    # The states of step t take a_t, its adjoint a_{t+1}.
    RECOMPUTES: {"gates": 2},
}
# Kernels with a program for each tile of a row.
BY_TILES = {
    "markov_reparam",
    "markov_reparam_backward",
    "rq_spline",
    "rq_spline_backward",
    RECOMPUTES,
}


def kernel_of(op: str, rest: tuple) -> str:
    """The name of the op in the tables above."""
    return RECOMPUTES if op == "linear_scan_backward" and rest[2] else op


def operand(
    name: str, rows: int, d: int, dtype: torch.dtype, per_row: bool, per_step: bool = False
) -> Tensor:
    if name == "rng_state":
        return torch.tensor([5, 6])
    if name == "mask":
        return torch.arange(d) % 3 == 0
    seed = sum(map(ord, name))
    if name == "grad_kl":
        return normal(
            (), rows, torch.float64 if dtype == torch.float64 else torch.float32, "cpu", 1
        )
    if name in NUMBERS:
        return normal((rows, d), NUMBERS[name], dtype, "cpu", seed)
    one = name == INITIAL or (per_row and name in OF_ROW)
    one |= name == "rho_logit" and not per_step
    return 0.5 * normal((rows,), 1 if one else d, dtype, "cpu", seed)


def arguments(op: str, shape, dtype, per_row: bool, rest: tuple, per_step: bool = False) -> list:
    operands = [operand(name, *shape, dtype, per_row, per_step) for name in OPERANDS[op]]
    if op == "ar1_log_prob_backward":
        operands[0] = operand("grad_kl", *shape, dtype, per_row)
    rest = (operand(x, *shape, dtype, per_row) if x == INITIAL else x for x in rest)
    return [*operands, *rest]


class Touched:
    """The addresses of the elements that were loaded and stored, repeats and all."""

    def __init__(self):
        self.loads: list[np.ndarray] = []
        self.stores: list[np.ndarray] = []


def elements(accesses: list[np.ndarray]) -> int:
    return sum(map(len, accesses))


def within(x: Tensor, accesses: list[np.ndarray]) -> tuple[int, int]:
    """(distinct bytes, elements with repeats) of x, contiguous, among these accesses."""
    if not accesses:
        return 0, 0
    start, end = x.data_ptr(), x.data_ptr() + x.numel() * x.itemsize
    at = np.concatenate(accesses)
    at = at[(at >= start) & (at < end)]
    return len(np.unique(at)) * x.itemsize, len(at)


@contextmanager
def watched():
    """Runs Triton's kernels, and sees what they load and store."""
    pytest.importorskip("triton", reason="Triton has no build for this platform")
    from triton.runtime.interpreter import InterpreterBuilder

    touched = Touched()
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def addresses(pointers, mask):
        return pointers.data[mask.data.astype(bool)].ravel()

    def seen_load(self, pointers, mask, *rest):
        touched.loads.append(addresses(pointers, mask))
        return load(self, pointers, mask, *rest)

    def seen_store(self, pointers, value, mask, *rest):
        touched.stores.append(addresses(pointers, mask))
        return store(self, pointers, value, mask, *rest)

    with pytest.MonkeyPatch.context() as patch, rk.use_backend("triton"):
        patch.setattr(InterpreterBuilder, "create_masked_load", seen_load)
        patch.setattr(InterpreterBuilder, "create_masked_store", seen_store)
        yield touched


def run(op: str, args: list) -> tuple[list[Tensor], Touched]:
    with watched() as touched:
        outputs = getattr(OPS, op)(*args)
    return list(outputs) if isinstance(outputs, tuple) else [outputs], touched


# Each op with what follows its tensors: its constants, and for a backward pass the gradients that
# are asked for.
CALLS: list[tuple[str, tuple]] = [
    ("linear_scan", (True,)),
    ("linear_scan", (False, INITIAL)),
    ("linear_scan", (True, INITIAL)),
    ("linear_scan_backward", (None, True, False, (True, True, False))),
    ("linear_scan_backward", (None, True, False, (False, True, False))),
    ("linear_scan_backward", (None, True, False, (True, False, False))),
    ("linear_scan_backward", (None, True, False, (True, True, True))),
    ("linear_scan_backward", (INITIAL, False, False, (True, True, True))),
    ("linear_scan_backward", (INITIAL, True, False, (True, True, True))),
    ("linear_scan_backward", (INITIAL, True, False, (False, True, False))),
    ("linear_scan_backward", (INITIAL, True, False, (False, False, True))),
    ("linear_scan_backward", (None, True, True, (True, True, False))),
    ("linear_scan_backward", (INITIAL, False, True, (True, True, True))),
    ("linear_scan_backward", (INITIAL, True, True, (True, False, False))),
    ("linear_scan_backward", (INITIAL, True, True, (False, True, True))),
    ("ar1_reparam", ()),
    ("ar1_reparam_backward", ((True, True, True, False),)),
    ("ar1_reparam_backward", ((True, True, True, True),)),
    ("ar1_reparam_backward", ((False, True, True, False),)),
    ("ar1_reparam_backward", ((False, False, False, True),)),
    ("ar1_reparam_rng", ()),
    ("ar1_reparam_rng_backward", ((True, True, True),)),
    ("iaf_gate", ()),
    ("iaf_gate_backward", ((True, True, True),)),
    ("iaf_gate_backward", ((True, True, False),)),
    ("affine_coupling", (False, "none")),
    ("affine_coupling", (False, "tanh")),
    ("affine_coupling", (True, "none")),
    ("affine_coupling", (True, "tanh")),
    ("affine_coupling_backward", (False, "none", (True, True, True))),
    ("affine_coupling_backward", (False, "tanh", (True, True, True))),
    ("affine_coupling_backward", (True, "none", (True, True, True))),
    ("affine_coupling_backward", (True, "tanh", (True, True, True))),
    ("affine_coupling_backward", (False, "tanh", (True, False, True))),
    ("affine_coupling_backward", (True, "tanh", (False, False, True))),
    ("rq_spline", (False, *SplineConvention())),
    ("rq_spline", (True, *SplineConvention.zuko())),
    ("rq_spline_backward", (False, *SplineConvention(), (True, True, True, True))),
    ("rq_spline_backward", (True, *SplineConvention.nflows(8), (True, True, True, True))),
    ("rq_spline_backward", (True, *SplineConvention.zuko(), (True, True, True, True))),
    ("rq_spline_backward", (False, *SplineConvention(), (True, False, True, False))),
    ("ar1_log_prob", ()),
    ("ar1_log_prob_backward", ((True, True, True, True),)),
    ("ar1_log_prob_backward", ((False, False, True, True),)),
    ("markov_reparam", (False,)),
    ("markov_reparam", (True,)),
    ("markov_reparam_backward", (False, (True, True, True, True, True))),
    ("markov_reparam_backward", (False, (True, True, True, True, False))),
]

# What the specification finds for an element and drops: of the noise that is drawn, ∂ε; of the
# sample, its KL to N(0, I), and of what both passes make of a correlation or a scale for it, what
# is found twice or is of no use here; of what rounding put beyond an end, to bring it back.
DROPPED = {
    "rq_spline": 4,
    "rq_spline_backward": 2,
    "ar1_reparam_rng_backward": 1,
    "markov_reparam": 6 + 19 + 7 + 4 + 5,
    "markov_reparam_backward": 7 + 19 + 7 + 7 + 2 * 19,
}


def all_asked(op: str, rest: tuple) -> bool:
    return not op.endswith("_backward") or all(rest[-1])


calls = pytest.mark.parametrize("op,rest", CALLS, ids=str)
# Each call with the operands that may be one number a row as that, and as one an element.
calls_in_each_form = pytest.mark.parametrize(
    "op,rest,per_row",
    [
        (*call, per_row)
        for call in CALLS
        for per_row in ((True, False) if OF_ROW & set(OPERANDS[call[0]]) else (False,))
    ],
    ids=lambda x: str(x) if not isinstance(x, bool) else "per_row" if x else "per_element",
)


@calls_in_each_form
def test_the_bytes_that_a_kernel_touches_are_the_models(op, rest, per_row):
    for shape in SHAPES:
        for dtype in DTYPES:
            args = arguments(op, shape, dtype, per_row, rest)
            outputs, touched = run(op, args)
            operands = [x for x in args if isinstance(x, Tensor)]
            copied = 0
            if op == "ar1_reparam_rng":
                # The kernel reads the copy of the state that it returns, made before it runs.
                operands[3], copied = outputs[2], 16
            loaded = sum(within(x, touched.loads)[0] for x in operands)
            written = sum(within(x, touched.stores)[0] for x in outputs) + copied
            model = cost(op, *args)
            if kernel_of(op, rest) in BY_TILES and shape != SHAPES[0]:
                # A row of several tiles leaves their ends and sums in a workspace.
                assert loaded == model.bytes_read, dtype
                continue
            assert (loaded, written) == (model.bytes_read, model.bytes_written), (shape, dtype)
            # Nothing else is touched: there is no workspace.
            known = sum(within(x, touched.loads)[1] for x in operands)
            assert known == elements(touched.loads)
            assert sum(within(x, touched.stores)[1] for x in outputs) == elements(touched.stores)


@calls
def test_an_operand_is_loaded_once_but_where_the_table_says(op, rest):
    args = arguments(op, SHAPES[0], torch.float32, False, rest)
    _, touched = run(op, args)
    whole = all_asked(op, rest) or op.startswith(("ar1_log_prob", "markov", "linear_scan"))
    often = LOADS.get(kernel_of(op, rest), {}) if whole else {}
    for name, x in zip(OPERANDS[op], args, strict=False):
        if x.shape == SHAPES[0]:
            distinct, times = within(x, touched.loads)
            # Neighbours that lie beyond the row are not loaded.
            rows = SHAPES[0][0]
            most = often.get(name, 1) * (distinct // x.itemsize)
            assert most - rows * often.get(name, 1) < times <= most, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("reverse", [False, True])
def test_rows_of_thousands_of_columns_in_half_precision_are_loaded_once(reverse, dtype):
    op, rest = "linear_scan_backward", (None, reverse, True, (True, True, False))
    shape = (2, 2100)
    args = arguments(op, shape, dtype, False, rest)
    outputs, touched = run(op, args)
    often = LOADS[RECOMPUTES]
    for name, x in zip(OPERANDS[op], args, strict=False):
        assert within(x, touched.loads)[1] <= often.get(name, 1) * x.numel(), name
    # No tile leaves what another starts from.
    assert sum(within(x, touched.stores)[1] for x in outputs) == elements(touched.stores)


def test_nothing_that_no_gradient_asked_for_depends_on_is_in_the_model():
    # Where few are asked for, the interpreter loads log s and a for values that no result depends
    # on, where a compiler leaves them out: see the test after this one.
    for op, positions in (("ar1_reparam_backward", 4), ("ar1_reparam_rng_backward", 3)):
        for bits in range(1, 2**positions):
            needs = tuple(bool(bits >> i & 1) for i in range(positions))
            for left_out in (None, "grad_z", "grad_kl"):
                args = arguments(op, SHAPES[0], torch.float32, False, (needs,))
                if left_out:
                    args[OPERANDS[op].index(left_out)] = None
                _, touched = run(op, args)
                operands = dict(zip(OPERANDS[op], args, strict=False))
                loaded = sum(
                    within(x, touched.loads)[0] for x in operands.values() if x is not None
                )
                idle = loaded - cost(op, *args).bytes_read
                log_var, rho_logit = stored(operands["log_var"]), stored(operands["rho_logit"])
                assert idle in (0, log_var, rho_logit, log_var + rho_logit), (op, needs, left_out)


@pytest.mark.parametrize("bound", ["none", "tanh"])
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_of_a_coupling_only_the_scale_is_loaded_for_nothing(inverse, bound):
    op = "affine_coupling_backward"
    for bits in range(1, 8):
        needs = tuple(bool(bits >> i & 1) for i in range(3))
        for left_out in (None, "grad_kl"):
            args = arguments(op, SHAPES[0], torch.float32, False, (inverse, bound, needs))
            if left_out:
                args[OPERANDS[op].index(left_out)] = None
            _, touched = run(op, args)
            loaded = sum(within(x, touched.loads)[0] for x in args if isinstance(x, Tensor))
            # Forward ∂t is g, and e^s, which the interpreter finds all the same, is in nothing.
            idle = stored(args[3]) if needs == (False, False, True) and not inverse else 0
            assert loaded == cost(op, *args).bytes_read + idle, (needs, left_out)


def test_a_compiled_kernel_does_not_load_what_no_result_depends_on():
    pytest.importorskip("triton", reason="Triton has no build for this platform")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from rhovae_kernels.triton import ar1, runtime

    def parameters_of(pointers, scan):
        flags = {"PER_ELEMENT": True, "CARRIED": False, "SCAN": scan}
        kernel = ar1._reparam_backward
        c = runtime.configuration(kernel, "fp32", 64, pointers, flags)
        ptx = compile(
            ASTSource(kernel, c.signature, c.constexprs), target=GPUTarget("cuda", 90, 32)
        ).asm["ptx"]
        passed = [name for name, kind in c.signature.items() if kind != "constexpr"]
        return {name for i, name in enumerate(passed) if f"[_reparam_backward_param_{i}]" in ptx}

    whole = {"ends": None, "rng_state": None}
    everything = parameters_of(whole, True)
    assert {"grad_z", "grad_kl", "mu", "log_var", "rho_logit", "eps"} <= everything
    only_mu = parameters_of(whole | {"d_log_var": None, "d_rho_logit": None}, False)
    assert {"grad_z", "grad_kl", "mu"} <= only_mu
    assert not {"log_var", "rho_logit", "eps"} & only_mu


@calls_in_each_form
def test_rows_in_chunks_are_read_again_only_by_the_launch_before(op, rest, per_row):
    # The workspace, an end and a sum for each chunk, is not in the model.
    args = arguments(op, CUT, torch.float32, per_row, rest)
    outputs, touched = run(op, args)
    operands = [x for x in args if isinstance(x, Tensor)]
    if op == "ar1_reparam_rng":
        operands[3] = outputs[2]
    assert sum(within(x, touched.loads)[0] for x in operands) == cost(op, *args).bytes_read
    launches = 2 if "scan" in op or "reparam" in op else 1
    often = LOADS.get(kernel_of(op, rest), {})
    for name, x in zip(OPERANDS[op], args, strict=False):
        if isinstance(x, Tensor) and x.shape == CUT:
            _, times = within(x, touched.loads)
            assert times <= launches * often.get(name, 1) * x.numel(), name


def test_philox_writes_its_words_and_reads_its_state():
    outputs, touched = run("philox", [state := torch.tensor([5, 6]), 3, 37])
    loaded, written = within(state, touched.loads)[0], within(outputs[0], touched.stores)[0]
    assert cost("philox", state, 3, 37) == Cost(loaded, written, 0)


class Flops(TorchDispatchMode):
    """Counts the floating-point operations of what runs under it; a change of sign is none."""

    ARITHMETIC = ("add", "sub", "rsub", "mul", "div", "sqrt", "pow")
    ELEMENTARY = (
        "exp",
        "expm1",
        "log",
        "log1p",
        "sin",
        "cos",
        "tanh",
        "sigmoid",
        "log_sigmoid_forward",
        "softplus",
    )

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        outputs = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        result = outputs[0] if name == "log_sigmoid_forward" else outputs
        if isinstance(result, Tensor) and result.is_floating_point():
            if name in self.ARITHMETIC + self.ELEMENTARY:
                self.count += result.numel()
            elif name in ("sum", "cumsum"):
                self.count += args[0].numel()
        return outputs


# What the specification finds of each ρ and does not use there: cosh a, 1−|ρ|, log(1−ρ²), ρ, σ.
UNUSED = {
    "ar1_reparam": 4 + 3,
    "ar1_reparam_backward": 4 + 3 + 4,
    "ar1_reparam_rng": 4 + 3,
    "ar1_reparam_rng_backward": 4 + 3 + 4,
    "ar1_log_prob": 1 + 4,
    "ar1_log_prob_backward": 4,
}


@pytest.mark.parametrize(
    "op,rest,per_step",
    [(op, rest, False) for op, rest in CALLS if all_asked(op, rest)]
    + [(op, rest, True) for op, rest in CALLS if op in UNUSED and all_asked(op, rest)],
    ids=str,
)
def test_the_flops_are_those_of_the_specification(op, rest, per_step):
    def counted(d):
        args = arguments(op, (3, d), torch.float32, False, rest, per_step)
        with Flops() as flops:
            getattr(python_ref, op)(*args[: len(args) - op.endswith("_backward")])
        return flops.count, cost(op, *args).flops

    # What is done once a row, or not for its first element, drops out of the difference.
    (some, model), (more, model_of_more) = counted(20), counted(40)
    dropped = DROPPED.get(op, 0) + (UNUSED[op] if per_step else 0)
    assert model_of_more - model == more - some - 3 * 20 * dropped


def test_the_model_of_every_kernel_in_triton_is_held_against_it():
    pytest.importorskip("triton", reason="Triton has no build for this platform")
    # Above, and in test_masked_linear.py. Those of `markov_smooth` have a workspace.
    elsewhere = {"philox", "masked_linear", "masked_linear_backward"}
    elsewhere |= {"markov_smooth", "markov_smooth_backward"}
    written = {op.name for op in REGISTRY.values() if op.triton is not None}
    assert written == {op for op, _ in CALLS} | elsewhere


def test_the_passes_over_memory_are_those_that_the_design_counts():
    n = 4 * 1000 * 1000
    x, row = torch.empty(1000, 1000, device="meta"), torch.empty(1000, 1, device="meta")
    k, state = torch.empty(1000, device="meta"), torch.empty(2, dtype=torch.int64, device="meta")

    def passes(op, *args):
        return round(cost(op, *args).bytes_moved / n, 1)

    assert passes("ar1_reparam", x, row, row, x) == 3
    assert passes("ar1_reparam_backward", x, k, x, row, row, x, (True, True, True, False)) == 4
    assert passes("ar1_reparam_backward", x, k, x, row, row, x, (True,) * 4) == 5
    assert passes("ar1_reparam_rng", x, row, row, state) == 2
    assert passes("ar1_reparam_rng_backward", x, k, x, row, row, state, (True,) * 3) == 3
    assert passes("ar1_log_prob", x, x, row, row) == 2


def test_elements_that_share_memory_count_once():
    row = torch.ones(5, 1)
    assert stored(row.expand(5, 100)) == stored(row) == 20
    assert stored(torch.ones(5, 6)[:, ::2]) == 60
    assert stored(torch.ones(0, 6)) == 0


def test_the_least_time_is_that_of_the_scarcer_resource():
    assert Cost(30, 10, 8).seconds(bandwidth=10, rate=4) == 4
    assert Cost(30, 10, 80).seconds(bandwidth=10, rate=4) == 20
    assert Cost.total(Cost(1, 2, 3), Cost(10, 20, 30)) == Cost(11, 22, 33)
