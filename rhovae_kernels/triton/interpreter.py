"""How Triton's interpreter runs a kernel: on CPU tensors, one program after another, for tests."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import FunctionType
from typing import Any, ClassVar

import numpy as np
import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction, TensorHandle, interpreter_builder
from triton.runtime.jit import JITFunction

# Operands of one of these types stay as they are in every operation of two: none is promoted.
KEPT = {"fp32", "fp64", "int1", "int32", "int64", "uint32", "uint64"}
# With a number, a tensor of one of these gives one of the same.
FLOATS = {"fp32": np.float32, "fp64": np.float64}
INTEGERS = {"int32": np.int32, "int64": np.int64}
NUMPY = FLOATS | INTEGERS

PLAIN = TritonSemantic(interpreter_builder)


def keeps_its_type(name: str | None, number) -> bool:
    """Whether a tensor of this type gives another of it in an operation with the number."""
    if name in FLOATS:
        return isinstance(number, (int, float))
    # What does not fit 32 bits may be out of a type's range.
    return name in INTEGERS and isinstance(number, int) and -(2**31) <= number < 2**31


class Semantic(TritonSemantic):
    """Triton's rules for operands, by a shorter way to the same values.

    An operation on tiles is a call of numpy's, of some microseconds. What Triton does around it,
    to find the types and shapes of operands and result, takes ten times as long, and gives the same
    answer each time.
    """

    # By the name of a type: what a tensor of it has beside its values.
    facts: ClassVar[dict[str, dict[str, Any]]] = {}
    shapes: ClassVar[dict[str, tuple[int, ...]]] = {}
    # By the name of an element's type and a shape.
    blocks: ClassVar[dict[tuple[str, tuple[int, ...]], tl.block_type]] = {}

    @staticmethod
    def tensor(handle: TensorHandle, type: tl.dtype) -> tl.tensor:
        facts = Semantic.facts.get(type.name)
        if facts is None:
            facts = Semantic.facts[type.name] = vars(tl.tensor(handle, type)).copy()
        made = object.__new__(tl.tensor)
        made.__dict__.update(facts, handle=handle, type=type)
        return made

    def to_tensor(self, x, *checked):
        # Triton asks whether x is a `self.tensor`, which is no class here.
        return x if isinstance(x, tl.tensor) else PLAIN.to_tensor(x, *checked)

    def binary_op_type_checking_impl(self, lhs, rhs, *allowed, **also_allowed):
        left = lhs.dtype.name if isinstance(lhs, tl.tensor) else None
        right = rhs.dtype.name if isinstance(rhs, tl.tensor) else None
        if left == right and left in KEPT:
            return self.broadcast_impl_value(lhs, rhs)
        if right is None and keeps_its_type(left, rhs):
            return lhs, self._constant(rhs, lhs)
        if left is None and keeps_its_type(right, lhs):
            return self._constant(lhs, rhs), rhs
        return super().binary_op_type_checking_impl(lhs, rhs, *allowed, **also_allowed)

    def broadcast_impl_value(self, lhs, rhs):
        if lhs.type is rhs.type or lhs.type.name == rhs.type.name:
            return lhs, rhs
        left, right = self._shape(lhs.type), self._shape(rhs.type)
        if left and right and len(left) != len(right):
            return super().broadcast_impl_value(lhs, rhs)
        shape = np.broadcast_shapes(left, right)
        return self._widened(lhs, left, shape), self._widened(rhs, right, shape)

    def _shape(self, type: tl.dtype) -> tuple[int, ...]:
        # Of Python's own tuples: Triton's are slow to compare.
        shape = self.shapes.get(type.name)
        if shape is None:
            shape = self.shapes[type.name] = tuple(type.shape) if type.is_block() else ()
        return shape

    def _constant(self, value: float, like: tl.tensor) -> tl.tensor:
        """A number, of the type and shape of a tensor."""
        # Triton has one zero among its constants.
        data = np.full(like.handle.data.shape, value or 0, NUMPY[like.dtype.name])
        return self.tensor(TensorHandle(data, like.dtype), like.type)

    def _widened(self, x: tl.tensor, before: tuple[int, ...], shape: tuple[int, ...]) -> tl.tensor:
        if before == shape:
            return x
        key = x.dtype.name, shape
        if key not in self.blocks:
            self.blocks[key] = tl.block_type(x.dtype, list(shape))
        data = np.broadcast_to(x.handle.data, shape)
        return self.tensor(TensorHandle(data, x.dtype), self.blocks[key])


def _range(*bounds):
    """`range` for the interpreter, whose scalars are arrays of one element.

    Triton 3.6 leaves their conversion to numpy, which refuses it from 2.4 on.
    """
    return range(*(b.handle.data.item() if isinstance(b, tl.tensor) else int(b) for b in bounds))


# What the interpreter runs in place of a jitted function: one of numpy arrays that gives the same
# bits, where operation by operation it would take most of the time of a kernel.
IN_NUMPY: dict[FunctionType, Callable[..., np.ndarray]] = {}


def _in_numpy(function: Callable[..., np.ndarray]) -> Callable[..., tl.tensor]:
    """`function` of the interpreter's tensors and of numbers; its result is like the first."""

    def plain(x):
        data = x.handle.data if isinstance(x, tl.tensor) else np.asarray(x)
        return data.item() if data.size == 1 else data

    def of_tensors(x: tl.tensor, *others) -> tl.tensor:
        result = function(x.handle.data, *map(plain, others))
        return tl.tensor(TensorHandle(result, x.handle.dtype), x.type)

    return of_tensors


# The copy of a module's namespace in which every jitted function is an interpreted one.
_namespaces: dict[str, dict[str, Any]] = {}


def _copy(function: FunctionType) -> FunctionType:
    """`function` in the interpreted copy of its module."""
    module = function.__globals__["__name__"]
    if module not in _namespaces:
        namespace = _namespaces[module] = function.__globals__ | {"range": _range}
        if "INTERPRETED" in namespace:
            namespace["INTERPRETED"] = tl.constexpr(True)
        for name, value in function.__globals__.items():
            if isinstance(value, JITFunction):
                numpy = IN_NUMPY.get(value.fn)
                namespace[name] = (
                    InterpretedFunction(_copy(value.fn)).rewrite()
                    if numpy is None
                    else _in_numpy(numpy)
                )
    copy = FunctionType(function.__code__, _namespaces[module], function.__name__)
    copy.__annotations__ = function.__annotations__
    copy.__defaults__ = function.__defaults__
    return copy


@cache
def interpreted(kernel: JITFunction) -> InterpretedFunction:
    """`kernel`, and each jitted function that it calls, run by Triton's interpreter.

    The environment variable TRITON_INTERPRET would do so for the whole process, and rule out
    compiling ahead of time in it.
    """
    # For each sum, difference and product of 32-bit integers the interpreter works out whether it
    # overflows, and says so only with its option `debug`, which is off.
    interpreter_builder.options = replace(interpreter_builder.options, sanitize_overflow=False)
    interpreter.interpreter_semantic.__class__ = Semantic
    return InterpretedFunction(_copy(kernel.fn))


def interpret(kernel: JITFunction, programs: int, *args, **constants) -> None:
    """Run `kernel` on CPU tensors."""
    # As on a GPU, inf and NaN are values, not warnings.
    with np.errstate(all="ignore"):
        interpreted(kernel)[(programs,)](*args, **constants)
