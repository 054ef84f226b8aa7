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
from triton.language.semantic import TritonSemantic

import rhovae_kernels as rk
from rhovae_kernels.ops.op import REGISTRY
from rhovae_kernels.triton import interpreter


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
            expected = results()
    interpreter.interpreted.cache_clear()
    assert ran == {interpreter.Semantic, TritonSemantic}
    for x, e in zip(found, expected, strict=True):
        assert x.dtype == e.dtype and torch.equal(bits(x), bits(e))


@pytest.mark.parametrize("number", [2, -3, 0.1, -0.0, math.inf, 2**40, 1e300, True])
@pytest.mark.parametrize("type", [tl.float32, tl.float64, tl.int32, tl.int64, tl.int1, tl.float16])
def test_a_number_and_a_tensor_make_what_tritons_rules_make(type, number):
    def made(semantic, order):
        values = np.array([[0, 1, 1, 0]]).astype(interpreter.interpreter._get_np_dtype(type))
        handle = interpreter.TensorHandle(values, type)
        x = tl.tensor(handle, tl.block_type(type, [1, 4]))
        try:
            operands = semantic.binary_op_type_checking_impl(*(x, number)[::order])
        except (TypeError, ValueError) as error:
            return str(error)
        return [
            (
                str(y.type),
                str(y.dtype),
                list(map(int, y.shape)),
                y.numel.value,
                y.handle.data.tobytes(),
            )
            for y in operands
        ]

    builder = interpreter.interpreter_builder
    for order in (1, -1):
        with np.errstate(over="ignore"):
            found = made(interpreter.Semantic(builder), order)
            assert found == made(TritonSemantic(builder), order)


@pytest.mark.parametrize(
    "left,right",
    [((4, 8), (4, 1)), ((1, 8), (4, 1)), ((8,), (4, 8)), ((), (4, 8)), ((), ()), ((4,), (8,))],
)
def test_two_tensors_make_what_tritons_rules_make(left, right):
    def of(shape, value):
        type = tl.block_type(tl.float32, list(shape)) if shape else tl.float32
        data = np.full(shape or (1,), value, np.float32)
        return tl.tensor(interpreter.TensorHandle(data, tl.float32), type)

    def made(semantic):
        try:
            operands = semantic.binary_op_type_checking_impl(of(left, 1), of(right, 2))
        except ValueError:
            return "refused"
        return [(str(y.type), y.handle.data.shape, y.handle.data.sum()) for y in operands]

    builder = interpreter.interpreter_builder
    assert made(interpreter.Semantic(builder)) == made(TritonSemantic(builder))
