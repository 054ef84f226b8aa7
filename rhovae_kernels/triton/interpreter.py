"""How Triton's interpreter runs a kernel: on CPU tensors, one program after another, for tests."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import FunctionType
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction, TensorHandle, interpreter_builder
from triton.runtime.jit import JITFunction


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
    return InterpretedFunction(_copy(kernel.fn))


def interpret(kernel: JITFunction, programs: int, *args, **constants) -> None:
    """Run `kernel` on CPU tensors."""
    # As on a GPU, inf and NaN are values, not warnings.
    with np.errstate(all="ignore"):
        interpreted(kernel)[(programs,)](*args, **constants)
