"""What the interpreter runs in place of jitted functions and of Triton's rules for operands."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from contract import normal
from valid_calls import calls

pytest.importorskip("triton", reason="Triton has no build for this platform")

import triton.language as tl
from triton.language.semantic import IncompatibleTypeErrorImpl, TritonSemantic
from triton.runtime.interpreter import InterpreterBuilder

import rhovae_kernels as rk
from rhovae_kernels.ops.op import REGISTRY
from rhovae_kernels.triton import interpreter, linear_scan


def results(d):
    """Of scans in both directions, and of the sample with a correlation for each step, with its
    adjoint; one row holds values that are not finite."""
    gates, tokens, log_var, eps = (normal((3,), d, torch.float32, "cpu", i) for i in range(4))
    tokens[1, d // 3], gates[1, d // 2] = math.inf, math.nan
    found = [torch.ops.rhovae.linear_scan(gates, tokens, reverse) for reverse in (False, True)]
    leaves = [x.requires_grad_() for x in (tokens, log_var, gates, eps)]
    outputs = torch.ops.rhovae.ar1_reparam(*leaves)
    loss = sum(y.sum() for y in outputs)
    return [*found, *(y.detach() for y in outputs), *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("d", [1, 19, 1025])
def test_in_numpy_a_function_gives_what_it_does_operation_by_operation(d, monkeypatch):
    with rk.use_backend("triton"):
        found = results(d)
        monkeypatch.setattr(interpreter, "IN_NUMPY", {})
        monkeypatch.setattr(interpreter, "_namespaces", {})
        monkeypatch.setattr(interpreter, "interpreted", cache(interpreter.interpreted.__wrapped__))
        expected = results(d)
    for x, e in zip(found, expected, strict=True):
        assert torch.equal(x.view(torch.int32), e.view(torch.int32))


def written(name):
    return REGISTRY[name.partition("/")[0]]


def bits(x):
    return x if not x.is_floating_point() else x.view({4: torch.int32, 8: torch.int64}[x.itemsize])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", [n for n in calls("cpu") if written(n).is_written("triton")])
def test_operands_by_the_short_way_give_the_bits_that_tritons_rules_give(name, dtype, monkeypatch):
    def cast(x):
        if isinstance(x, list):
            return [cast(y) for y in x]
        return x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x

    op, args = written(name), [cast(x) for x in calls("cpu")[name]]
    ran = set()

    def results():
        interpreter.interpreted.cache_clear()
        outputs = getattr(torch.ops.rhovae, op.name)(*args)
        ran.add(type(interpreter.interpreter.interpreter_semantic))
        return [outputs] if isinstance(outputs, torch.Tensor) else outputs

    with rk.use_backend("triton"):
        found = results()
        with monkeypatch.context() as patch:
            patch.setattr(interpreter, "Semantic", TritonSemantic)
            patch.setattr(interpreter, "Builder", InterpreterBuilder)
            patch.setattr(interpreter, "_np_dtype", interpreter.PLAIN_NP_DTYPE)
            patch.setattr(interpreter, "_patch_lang", interpreter.PLAIN_PATCH)
            expected = results()
    interpreter.interpreted.cache_clear()
    assert ran == {interpreter.Semantic, TritonSemantic}
    for x, e in zip(found, expected, strict=True):
        assert x.dtype == e.dtype and torch.equal(bits(x), bits(e))


# Triton's rules, and the short way to what they give.
SEMANTICS = [
    kind(interpreter.interpreter_builder) for kind in (TritonSemantic, interpreter.Semantic)
]
TYPES = [
    *(tl.float64, tl.float32, tl.float16, tl.bfloat16, tl.int1),
    *(tl.int8, tl.int32, tl.int64, tl.uint8, tl.uint32, tl.uint64),
]


def of(type, shape, values=(0, 1, 3, 0)):
    """A tensor of the interpreter, of the values in turn; a number where it has no shape."""
    scalar = type.scalar if type.is_ptr() else type
    data = np.resize(values, shape or (1,)).astype(interpreter.PLAIN_NP_DTYPE(scalar))
    whole = tl.block_type(type, list(shape)) if shape else type
    return tl.tensor(interpreter.TensorHandle(data, type), whole)


def facts(rule, *args):
    """All that is known of the tensors that a rule makes, or the error in their place."""
    try:
        with np.errstate(all="ignore"):
            made = rule(*args)
    except (TypeError, ValueError, AttributeError, IncompatibleTypeErrorImpl) as error:
        return type(error).__name__
    return [
        (
            str(y.type),
            str(y.dtype),
            [int(s) for s in y.shape],
            y.numel.value,
            str(y.handle.dtype),
            y.handle.data.dtype,
            y.handle.data.shape,
            y.handle.data.tobytes(),
        )
        for y in (made if isinstance(made, tuple) else (made,))
    ]


def assert_the_short_way_makes_the_same(rule, *args):
    expected, found = (facts(getattr(semantic, rule), *args) for semantic in SEMANTICS)
    assert found == expected, f"{rule} {args}"


@pytest.fixture
def in_a_kernel():
    """Triton's language as it is while a kernel runs."""
    scope = interpreter.PLAIN_PATCH(linear_scan.compose_but_last.fn)
    yield
    scope.restore()


@pytest.mark.usefixtures("in_a_kernel")
@pytest.mark.parametrize("number", [2, -3, 0.1, -0.0, math.inf, 2**40, 1e300, True])
@pytest.mark.parametrize("type", TYPES, ids=str)
def test_a_number_and_a_tensor_make_what_tritons_rules_make(type, number):
    x = of(type, (1, 4))
    assert_the_short_way_makes_the_same("binary_op_type_checking_impl", x, number)
    assert_the_short_way_makes_the_same("binary_op_type_checking_impl", number, x)
    for _ in range(2):  # the second time it is known
        assert_the_short_way_makes_the_same("to_tensor", number)


@pytest.mark.usefixtures("in_a_kernel")
@pytest.mark.parametrize(
    "left,right",
    [((4, 8), (4, 1)), ((1, 8), (4, 1)), ((8,), (4, 8)), ((), (4, 8)), ((), ()), ((4,), (8,))],
)
def test_two_tensors_make_what_tritons_rules_make(left, right):
    operands = of(tl.float32, left), of(tl.float32, right)
    assert_the_short_way_makes_the_same("binary_op_type_checking_impl", *operands)


@pytest.mark.usefixtures("in_a_kernel")
@pytest.mark.parametrize("right", [*TYPES, tl.pointer_type(tl.float32)], ids=str)
@pytest.mark.parametrize("left", [*TYPES, tl.pointer_type(tl.float32)], ids=str)
def test_two_types_make_what_tritons_rules_make(left, right):
    for shapes in (((4, 1), (1, 2)), ((), ()), ((4,), ())):
        operands = of(left, shapes[0]), of(right, shapes[1])
        # As of a sum, a product, a quotient, and an operation on bits.
        for allowed in ((True, True), (), (False, False, True, True), (False, False, False)):
            assert_the_short_way_makes_the_same("binary_op_type_checking_impl", *operands, *allowed)


@pytest.mark.usefixtures("in_a_kernel")
@pytest.mark.parametrize("after", TYPES, ids=str)
@pytest.mark.parametrize("before", TYPES, ids=str)
def test_a_cast_makes_what_tritons_makes(before, after):
    large = 2**31 if before.name in ("uint32", "uint64", "int64") else 3
    for shape in ((), (4,), (2, 2)):
        for rounding in (None, "rtne", "rtz"):
            x = of(before, shape, (0, 1, large, 7))
            assert_the_short_way_makes_the_same("cast", x, after, rounding)


@pytest.mark.usefixtures("in_a_kernel")
@pytest.mark.parametrize("shape,axis", [((), 0), ((4,), 0), ((4,), 1), ((2, 4), 1)])
def test_a_dimension_and_a_comparison_make_what_tritons_make(shape, axis):
    x = of(tl.int32, shape)
    assert_the_short_way_makes_the_same("expand_dims", x, axis)
    for comparison in ("equal", "less_than"):
        assert_the_short_way_makes_the_same(comparison, x, x)


def test_tritons_language_is_its_own_again_after_a_kernel():
    """Compiling in the same process wants it so, the members that it lacks included."""
    owners = (tl, tl.core, tl.math, tl.tensor, tl.dtype, tl.core.tensor_descriptor_base)

    def members():
        return [dict(vars(owner)) for owner in owners]

    before = members()
    for _ in range(2):
        with rk.use_backend("triton"):
            torch.ops.rhovae.linear_scan(torch.ones(2, 3), torch.ones(2, 3), False)
        assert all(
            x.keys() == y.keys() and all(x[k] is y[k] for k in x)
            for x, y in zip(before, members(), strict=True)
        )
