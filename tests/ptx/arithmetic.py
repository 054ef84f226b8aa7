"""The arithmetic of PTX on NumPy arrays, and its types: bits, and what they stand for."""

import re
from collections.abc import Callable

import numpy as np
from numpy import ndarray

UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SIGNED = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
FLOATS = {"f16": np.float16, "f32": np.float32, "f64": np.float64}


def width_of(kind: str) -> int:
    return 1 if kind == "pred" else int(re.sub(r"\D", "", kind.removesuffix("x2")))


def is_float(kind: str) -> bool:
    return kind.startswith(("f", "bf"))


def bfloat16(x: ndarray) -> ndarray:
    """float32 to the nearest bfloat16, as its bits."""
    bits = x.view(np.uint32)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), rounded)


def floats(raw: ndarray, kind: str) -> ndarray:
    if kind == "bf16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    return raw.view(FLOATS[kind])


def raw_of(x: ndarray, kind: str) -> ndarray:
    """The bits of x, rounded to `kind`."""
    if kind == "bf16":
        return bfloat16(x.astype(np.float32))
    if kind in FLOATS:
        return x.astype(FLOATS[kind]).view(UNSIGNED[width_of(kind)])
    return x.astype(UNSIGNED[width_of(kind)])


def fused(a: ndarray, b: ndarray, c: ndarray) -> ndarray:
    wide = np.longdouble if a.dtype == np.float64 else np.float64
    return (a.astype(wide) * b.astype(wide) + c.astype(wide)).astype(a.dtype)


FLOAT_OPS: dict[str, Callable] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "fma": fused,
    "neg": np.negative,
    "abs": np.abs,
    "min": np.fmin,
    "max": np.fmax,
    "ex2": np.exp2,
    "lg2": np.log2,
    "rcp": np.reciprocal,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "copysign": lambda sign, x: np.copysign(x, sign),
}


def shifted(x: ndarray, by: ndarray, left: bool) -> ndarray:
    """Shifts by the width or more leave nothing, or the sign."""
    width = 8 * x.itemsize
    by = by.astype(np.uint64)
    within = np.minimum(by, width - 1).astype(x.dtype)
    out = x << within if left else x >> within
    rest = x >> x.dtype.type(width - 1) if not left and x.dtype.kind == "i" else x.dtype.type(0)
    return np.where(by < width, out, rest)


def quotient(a: ndarray, b: ndarray) -> ndarray:
    """Towards zero."""
    return np.trunc(a.astype(np.longdouble) / b.astype(np.longdouble)).astype(a.dtype)


INTEGER_OPS: dict[str, Callable] = {
    "add": np.add,
    "sub": np.subtract,
    "neg": np.negative,
    "abs": np.abs,
    "min": np.minimum,
    "max": np.maximum,
    "div": quotient,
    "rem": lambda a, b: a - quotient(a, b) * b,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.bitwise_not,
    "shl": lambda x, by: shifted(x, by, True),
    "shr": lambda x, by: shifted(x, by, False),
    "popc": lambda x: np.vectorize(lambda v: int(v).bit_count(), otypes=[x.dtype])(x),
}
LOGICAL_OPS: dict[str, Callable] = {
    "and": np.logical_and,
    "or": np.logical_or,
    "xor": np.logical_xor,
    "not": np.logical_not,
}
ROUNDINGS = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}
COMPARISONS: dict[str, Callable] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}
