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
from triton.runtime.interpreter import (
    InterpretedFunction,
    InterpreterBuilder,
    TensorHandle,
    interpreter_builder,
)
from triton.runtime.jit import JITFunction

Types = dict[str, type[np.generic]]
# Operands of one of these types stay as they are in every operation of two: none is promoted.
KEPT = {"fp32", "fp64", "int1", "int32", "int64", "uint32", "uint64"}
# With a number, a tensor of one of these gives one of the same.
FLOATS: Types = {"fp32": np.float32, "fp64": np.float64}
SIGNED: Types = {"int32": np.int32, "int64": np.int64}
UNSIGNED: Types = {"uint32": np.uint32, "uint64": np.uint64}
NUMPY = FLOATS | SIGNED | UNSIGNED
# Of two of these types, operands become that of the higher rank.
RANKS = {name: rank for rank, name in enumerate([*SIGNED, *FLOATS])}

broadcast_shapes = cache(np.broadcast_shapes)

# As Triton has them.
PLAIN = TritonSemantic(interpreter_builder)
PLAIN_NP_DTYPE, PLAIN_PATCH = interpreter._get_np_dtype, interpreter._patch_lang


def keeps_its_type(name: str | None, number) -> bool:
    """Whether a tensor of this type gives another of it in an operation with the number."""
    if name in FLOATS:
        return isinstance(number, (int, float))
    # What does not fit 32 bits may be out of a type's range.
    least = 0 if name in UNSIGNED else -(2**31)
    whole = name in SIGNED or name in UNSIGNED
    return whole and isinstance(number, int) and least <= number < 2**31


class Semantic(TritonSemantic):
    """Triton's rules for operands, by a shorter way to the same values.

    An operation on tiles is a call of numpy's, of some microseconds. What Triton does around it,
    to find the types and shapes of operands and result, takes ten times as long, and gives the same
    answer each time.
    """

    # By the name of a type: what a tensor of it has beside its values.
    facts: ClassVar[dict[str, dict[str, Any]]] = {}
    shapes: ClassVar[dict[str, tuple[int, ...]]] = {}
    # By the type of a number and itself.
    numbers: ClassVar[dict[tuple[type, float], tl.tensor]] = {}

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
        if isinstance(x, tl.tensor):
            return x
        if not isinstance(x, (bool, int, float)):
            return PLAIN.to_tensor(x, *checked)
        number = self.numbers.get((type(x), x))
        if number is None:
            number = self.numbers[type(x), x] = PLAIN.to_tensor(x, *checked)
        return self.tensor(TensorHandle(number.handle.data, number.handle.dtype), number.type)

    def binary_op_type_checking_impl(
        self, lhs, rhs, allow_lhs_ptr=False, allow_rhs_ptr=False, arithmetic_check=True, *others
    ):
        left = lhs.dtype.name if isinstance(lhs, tl.tensor) else None
        right = rhs.dtype.name if isinstance(rhs, tl.tensor) else None
        if left == right and left in KEPT:
            return self.broadcast_impl_value(lhs, rhs)
        if right is None and keeps_its_type(left, rhs):
            return lhs, self._constant(rhs, lhs)
        if left is None and keeps_its_type(right, lhs):
            return self._constant(lhs, rhs), rhs
        if arithmetic_check and left in RANKS and right in RANKS:
            common = lhs.dtype if RANKS[left] > RANKS[right] else rhs.dtype
            return self.broadcast_impl_value(self.cast(lhs, common), self.cast(rhs, common))
        if allow_lhs_ptr and right in SIGNED and left is not None and lhs.dtype.is_ptr():
            return self.broadcast_impl_value(lhs, rhs)
        return super().binary_op_type_checking_impl(
            lhs, rhs, allow_lhs_ptr, allow_rhs_ptr, arithmetic_check, *others
        )

    def broadcast_impl_value(self, lhs, rhs):
        if lhs.type is rhs.type or lhs.type.name == rhs.type.name:
            return lhs, rhs
        left, right = self._shape(lhs.type), self._shape(rhs.type)
        if left and right and len(left) != len(right):
            return super().broadcast_impl_value(lhs, rhs)
        shape = broadcast_shapes(left, right)
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
        data = np.empty(like.handle.data.shape, NUMPY[like.dtype.name])
        data.fill(value or 0)
        return self.tensor(TensorHandle(data, like.dtype), like.type)

    def cast(self, input, dst_ty, fp_downcast_rounding=None):
        before, after = input.dtype.name, dst_ty.scalar.name
        if before == after:
            return input
        # A truth value made of numbers is none of numpy's conversions.
        if before not in KEPT or after not in NUMPY or fp_downcast_rounding is not None:
            return super().cast(input, dst_ty, fp_downcast_rounding)
        handle = TensorHandle(input.handle.data.astype(NUMPY[after]), dst_ty.scalar)
        return self.tensor(handle, self._of(dst_ty.scalar, self._shape(input.type)))

    def expand_dims(self, input, axis):
        if not input.type.is_block():
            return super().expand_dims(input, axis)
        data = np.expand_dims(input.handle.data, axis)
        return self.tensor(TensorHandle(data, input.dtype), self._of(input.dtype, data.shape))

    def _bool_like(self, v):
        return self._of(tl.int1, self._shape(v.type))

    def _of(self, element: tl.dtype, shape: tuple[int, ...]) -> tl.dtype:
        """The type of a tensor of such elements, which is a number's where it has no shape."""
        return self.builder.get_block_ty(element, list(shape)) if shape else element

    def _widened(self, x: tl.tensor, before: tuple[int, ...], shape: tuple[int, ...]) -> tl.tensor:
        if before == shape:
            return x
        # np.broadcast_to takes five times as long, to copy nothing.
        data = np.empty(shape, x.handle.data.dtype)
        data[...] = x.handle.data
        return self.tensor(TensorHandle(data, x.dtype), self._of(x.dtype, shape))


class Builder(InterpreterBuilder):
    """Triton's builder, which makes each type of a tile once."""

    # By the name of an element's type and a shape.
    blocks: ClassVar[dict[tuple[str, tuple[int, ...]], tl.block_type]] = {}

    def get_block_ty(self, dtype, shape):
        key = dtype.name, tuple(shape)
        if key not in self.blocks:
            self.blocks[key] = super().get_block_ty(dtype, shape)
        return self.blocks[key]


# By the name of one of Triton's types: numpy's of its values.
_np_dtypes: dict[str, np.dtype] = {}


def _np_dtype(type: tl.dtype) -> np.dtype:
    found = _np_dtypes.get(type.name)
    if found is None:
        found = _np_dtypes[type.name] = PLAIN_NP_DTYPE(type)
    return found


class _Patches:
    """What Triton's language is made of while a kernel runs, found once.

    A launch ends with `restore`, as of Triton's own record of what it changed.
    """

    def __init__(self, fn: FunctionType) -> None:
        self.scope = PLAIN_PATCH(fn)
        self.plain = list(self.scope._changes)
        self.patched = [(owner, name, vars(owner)[name]) for owner, name, _ in self.plain]
        self.scope.restore()

    def apply(self) -> "_Patches":
        for patch in self.patched:
            setattr(*patch)
        return self

    def restore(self) -> None:
        self.scope._changes = list(self.plain)
        self.scope.restore()


_patches = cache(_Patches)


def _patch_lang(fn: FunctionType) -> _Patches:
    return _patches(fn).apply()


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
    interpreter_builder.__class__ = Builder
    interpreter.interpreter_semantic.__class__ = Semantic
    interpreter._get_np_dtype, interpreter._patch_lang = _np_dtype, _patch_lang
    return InterpretedFunction(_copy(kernel.fn))


def interpret(kernel: JITFunction, programs: int, *args, **constants) -> None:
    """Run `kernel` on CPU tensors."""
    # As on a GPU, inf and NaN are values, not warnings.
    with np.errstate(all="ignore"):
        interpreted(kernel)[(programs,)](*args, **constants)
