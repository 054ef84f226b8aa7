"""What the compiler made of a Triton kernel, run without a GPU: an executor of PTX.

A register is a NumPy array, one value a thread. Threads that a branch has parted run in turns, and
wait for the others where a warp or a program acts together. In all else they are in step, so that
a barrier that is missing is not found.
Each access of memory is held against what was allocated.
Approximate functions are exact here; `fma` of float64 rounds its product to 64 bits.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
from numpy import ndarray
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.runtime.jit import JITFunction

from rhovae_kernels.triton.runtime import Tiling, options_of

HOPPER = GPUTarget("cuda", 90, 32)
TYPES = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.bool: "*i1",
    torch.uint8: "*u8",
}
WARP = 32
TOGETHER = ("bar", "shfl", "ldmatrix", "stmatrix")
# Between two tensors in memory: what lies there is nobody's.
GAP = 4096
UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SIGNED = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
FLOATS = {"f16": np.float16, "f32": np.float32, "f64": np.float64}
SPECIAL = re.compile(r"%(?:tid|ctaid|ntid|nctaid)\.[xyz]|%laneid")
STATEMENT = re.compile(r"(?:@(!?)(%\w+)\s+)?([\w.:]+)\s*(.*)", re.DOTALL)


class Instruction(NamedTuple):
    """One statement: the predicate and whether it is negated, the opcode and its operands."""

    predicate: str | None
    negated: bool
    opcode: list[str]
    operands: list[str]
    text: str


def operands_of(text: str) -> list[str]:
    """Parted at commas that lie in no bracket; `p|q` are two."""
    parts, depth = [""], 0
    for c in text:
        depth += (c in "[{(") - (c in "]})")
        if depth == 0 and c in ",|":
            parts.append("")
        else:
            parts[-1] += c
    return [p.strip() for p in parts if p.strip()]


def width_of(kind: str) -> int:
    return 1 if kind == "pred" else int(re.sub(r"\D", "", kind.removesuffix("x2")))


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


class Program:
    """The statements of a kernel, where its labels are, and what its registers hold."""

    def __init__(self, ptx: str):
        ptx = re.sub(r"//[^\n]*", "", ptx)
        entry = re.search(r"\.entry\s+\w+\s*\((.*?)\)(.*)", ptx, re.DOTALL)
        assert entry is not None
        self.parameters = re.findall(r"(\w+_param_\d+)", entry[1])
        self.widths: dict[str, int] = {}
        self.labels: dict[str, int] = {}
        self.code: list[Instruction] = []
        body = entry[2].partition("{")[2].partition(".section")[0]
        for line in re.findall(
            r"[^;\n]*:(?=\s)|[^;]*;", re.sub(r"^\s*\.loc.*$", "", body, flags=re.M)
        ):
            self.take(line.rstrip(";").strip(" \n\t"))
        # By statement, and of the end: whether threads take it together, or are done.
        self.together = np.array([*(i.opcode[0] in TOGETHER for i in self.code), True])

    def take(self, line: str) -> None:
        line = line.lstrip("{}() \n\t")
        while label := re.match(r"(\$?\w+):\s*", line):
            self.labels[label[1]] = len(self.code)
            line = line[label.end() :].lstrip("{}() \n\t")
        if declared := re.match(r"\.reg\s+\.(\w+)\s+(%?\w+)", line):
            self.widths[declared[2]] = width_of(declared[1])
        elif line and not line.startswith("."):
            statement = STATEMENT.match(line)
            assert statement is not None, line
            negated, predicate, opcode, operands = statement.groups()
            parts = opcode.replace("::", "__").split(".")
            self.code.append(
                Instruction(predicate, bool(negated), parts, operands_of(operands), line)
            )


class Memory:
    """Bytes, and which of them were allocated."""

    def __init__(self, size: int, what: str):
        self.bytes = np.zeros(size, np.uint8)
        self.allocated = np.zeros(size, bool)
        self.what = what

    def at(self, address: ndarray, size: int, text: str) -> ndarray:
        """Where elements of `size` bytes lie, checked."""
        wrong = address % size != 0
        inside = address < len(self.bytes)
        wrong |= ~inside
        safe = np.where(inside, address, 0)
        wrong |= (
            ~self.allocated[safe]
            | ~self.allocated[np.minimum(safe + size - 1, len(self.bytes) - 1)]
        )
        if wrong.any():
            raise AssertionError(
                f"{self.what} memory: {wrong.sum()} threads access {size} bytes that are not "
                f"{'aligned' if (address % size != 0).any() else 'allocated'}: {text}"
            )
        return address // size


class Block:
    """The threads of one program, which run it to its end."""

    def __init__(self, program: Program, threads: int, memory: Memory, shared: int, arguments):
        self.program, self.threads, self.memory = program, threads, memory
        self.shared = Memory(max(shared, 16), "shared")
        self.shared.allocated[:shared] = True
        self.arguments = dict(zip(program.parameters, arguments, strict=False))
        self.registers: dict[str, ndarray] = {}
        self.mask: ndarray | None = None

    # What an operand is.

    def raw(self, operand: str, width: int) -> ndarray:
        """The bits of a register, an immediate or a special register, a value a thread."""
        if operand in self.registers:
            return self.registers[operand]
        if SPECIAL.fullmatch(operand):
            return self.special(operand)
        if operand.startswith("%") or operand in self.program.widths:
            return self.register(operand)
        if operand in ("global_smem",):
            value = 0
        elif operand[:2] in ("0f", "0F", "0d", "0D"):
            value = int(operand[2:], 16)
        elif operand in ("true", "false"):
            return np.full(self.threads, operand == "true")
        else:
            value = int(operand.rstrip("U"), 0)
        if width == 1:
            return np.full(self.threads, bool(value))
        return np.full(self.threads, value & (2**width - 1), UNSIGNED[width])

    def register(self, name: str) -> ndarray:
        widths = self.program.widths
        width = widths[name] if name in widths else widths[name.rstrip("0123456789")]
        kind = bool if width == 1 else UNSIGNED[width]
        return self.registers.setdefault(name, np.zeros(self.threads, kind))

    def special(self, name: str) -> ndarray:
        what, _, axis = name[1:].partition(".")
        thread = np.arange(self.threads, dtype=np.uint32)
        if what == "laneid":
            return thread % WARP
        values = {"tid": thread, "ntid": thread * 0 + np.uint32(self.threads)}
        if axis == "x" and what in values:
            return values[what]
        return thread * 0 + np.uint32(
            {"ctaid": self.index, "tid": 0}.get(what, 1)
            if axis == "x" or what in ("tid", "ntid", "nctaid")
            else 0
        )

    def value(self, operand: str, kind: str) -> ndarray:
        raw = self.raw(operand, width_of(kind))
        if kind == "pred":
            return raw
        width = width_of(kind)
        if raw.dtype.itemsize * 8 != width:
            raw = raw.astype(UNSIGNED[width])
        if kind.startswith(("f", "bf")):
            return floats(raw, kind)
        return raw.view(SIGNED[width]) if kind.startswith("s") else raw

    def write(self, operand: str, x: ndarray) -> None:
        if operand == "_":
            return
        old = self.register(operand)
        if old.dtype != bool and x.dtype.itemsize != old.dtype.itemsize:
            x = x.astype(old.dtype)
        x = x if old.dtype == bool else x.view(old.dtype)
        self.registers[operand] = x if self.mask is None else np.where(self.mask, x, old)

    def pair(self, operand: str, kind: str) -> list[ndarray]:
        """Both halves of a packed operand, the lower one first."""
        raw = self.raw(operand, 32)
        halves = ((raw & 0xFFFF).astype(np.uint16), (raw >> 16).astype(np.uint16))
        if kind.startswith(("f", "bf")):
            return [floats(half, kind) for half in halves]
        return [half.view(np.int16) if kind[0] == "s" else half for half in halves]

    # Control.

    def run(self, index: int) -> None:
        """The program of this index in the grid."""
        self.index = index
        self.registers = {}
        self.shared.bytes[:] = 0xFF
        at = np.zeros(self.threads, np.int64)
        end = len(self.program.code)
        with np.errstate(all="ignore"):
            while (here := self.next(at)) < end:
                active = at == here
                self.mask = None if active.all() else active
                instruction = self.program.code[here]
                if instruction.predicate is not None:
                    taken = self.register(instruction.predicate) ^ instruction.negated
                    self.mask = taken if self.mask is None else taken & self.mask
                following = here + 1
                base = instruction.opcode[0]
                if base in ("ret", "exit"):
                    following = end
                elif base == "bra":
                    following = self.program.labels[instruction.operands[-1]]
                elif self.mask is None or self.mask.any():
                    self.execute(instruction)
                gone = active if self.mask is None else self.mask
                at[active] = here + 1
                if base in ("ret", "exit", "bra"):
                    at[gone] = following

    def next(self, at: ndarray) -> int:
        """Which statement runs: the first that a thread is at and does not wait at for others."""
        first = int(at.min())
        if first == at.max():
            return first
        free = at[~self.program.together[at]]
        return int(free.min()) if len(free) else first

    def execute(self, instruction: Instruction) -> None:
        base = instruction.opcode[0]
        own = getattr(self, f"do_{base}", None)
        if own is not None:
            own(instruction.opcode, instruction.operands, instruction.text)
        else:
            self.arithmetic(instruction.opcode, instruction.operands, instruction.text)

    # Instructions.

    def arithmetic(self, opcode: list[str], operands: list[str], text: str) -> None:
        base, kind = opcode[0], opcode[-1]
        if kind.endswith("x2"):
            half = kind.removesuffix("x2")
            sources = [self.pair(o, half) for o in operands[1:]]
            table = FLOAT_OPS if half.startswith(("f", "bf")) else INTEGER_OPS
            low, high = (raw_of(table[base](*(s[i] for s in sources)), half) for i in (0, 1))
            self.write(operands[0], low.astype(np.uint32) | high.astype(np.uint32) << 16)
            return
        if kind == "pred":
            table = {
                "and": np.logical_and,
                "or": np.logical_or,
                "xor": np.logical_xor,
                "not": np.logical_not,
            }
        else:
            table = FLOAT_OPS if kind.startswith(("f", "bf")) else INTEGER_OPS
        if base not in table:
            raise NotImplementedError(f"PTX: {text}")
        kinds = [kind] * len(operands[1:])
        if base in ("shl", "shr"):
            kinds[1] = "u32"
        result = table[base](*(self.value(o, k) for o, k in zip(operands[1:], kinds, strict=True)))
        self.write(operands[0], result if kind == "pred" else raw_of(result, kind))

    def do_mul(self, opcode, operands, text) -> None:
        self.multiplied(opcode, operands, text)

    def do_mad(self, opcode, operands, text) -> None:
        self.multiplied(opcode, operands, text)

    def multiplied(self, opcode, operands, text) -> None:
        kind = opcode[-1]
        if kind.startswith(("f", "bf")):
            self.arithmetic(opcode, operands, text)
            return
        width, part = width_of(kind), opcode[1]
        a, b = (self.value(o, kind) for o in operands[1:3])
        to = 2 * width if part == "wide" else width
        if part == "hi":
            product = a.astype(object) * b.astype(object) >> width
            result = (product & (2**width - 1)).astype(UNSIGNED[width])
        else:
            wide = UNSIGNED[to]
            result = (
                a.astype(SIGNED[to]).view(wide) * b.astype(SIGNED[to]).view(wide)
                if kind[0] == "s"
                else a.astype(wide) * b.astype(wide)
            )
        if opcode[0] == "mad":
            result = result + self.value(operands[3], f"u{to}")
        self.write(operands[0], result)

    def do_mov(self, opcode, operands, text) -> None:
        to, source = operands
        width = width_of(opcode[-1])
        if source.startswith("{"):
            parts = operands_of(source[1:-1])
            each = width // len(parts)
            values = [self.value(p, f"u{each}").astype(UNSIGNED[width]) for p in parts]
            result = sum(
                (v << UNSIGNED[width](i * each) for i, v in enumerate(values)), start=values[0] * 0
            )
            self.write(to, result)
        elif to.startswith("{"):
            parts = operands_of(to[1:-1])
            raw, each = self.value(source, f"u{width}"), width // len(parts)
            for i, p in enumerate(parts):
                self.write(p, (raw >> UNSIGNED[width](i * each)).astype(UNSIGNED[each]))
        else:
            self.write(to, self.raw(source, width))

    def do_selp(self, opcode, operands, text) -> None:
        kind = f"u{width_of(opcode[-1])}"
        to, a, b, p = operands
        self.write(to, np.where(self.raw(p, 1), self.value(a, kind), self.value(b, kind)))

    def do_setp(self, opcode, operands, text) -> None:
        comparison, kind = opcode[1], opcode[-1]
        combined = [o for o in opcode[2:-1] if o in ("and", "or", "xor")]
        *to, a, b = operands[:-1] if combined else operands
        compare = COMPARISONS.get(comparison)
        unordered = False
        if compare is None:
            compare, unordered = COMPARISONS[comparison[:-1]], True
        if kind.endswith("x2"):
            half = kind.removesuffix("x2")
            sides = list(zip(self.pair(a, half), self.pair(b, half), strict=True))
        else:
            sides = [(self.value(a, kind), self.value(b, kind))]
        results = []
        for x, y in sides:
            result = compare(x, y)
            if x.dtype.kind == "f":
                nan = np.isnan(x) | np.isnan(y)
                # != of a NaN is true of numbers in Python, and false of the ordered `ne`.
                result = result | nan if unordered else result & ~nan
            if combined:
                c = self.raw(operands[-1].lstrip("!"), 1) ^ operands[-1].startswith("!")
                logical = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}
                result = logical[combined[0]](result, c)
            results.append(result)
        if len(to) == 2 and len(results) == 1:
            results.append(~results[0])
        for name, result in zip(to, results, strict=True):
            self.write(name, result)

    def do_cvt(self, opcode, operands, text) -> None:
        to, source = opcode[-2:]
        if to.endswith("x2"):
            half = to.removesuffix("x2")
            high, low = (
                raw_of(self.value(o, source), half).astype(np.uint32) for o in operands[1:]
            )
            self.write(operands[0], low | high << 16)
            return
        x = self.value(operands[1], source)
        from_float, to_float = (k.startswith(("f", "bf")) for k in (source, to))
        if from_float and not to_float:
            rounding = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}
            x = next((rounding[o] for o in opcode if o in rounding), np.trunc)(x)
            width = width_of(to)
            limits = np.iinfo(SIGNED[width] if to[0] == "s" else UNSIGNED[width])
            x = np.clip(np.nan_to_num(x.astype(np.longdouble)), limits.min, limits.max)
            x = x.astype(SIGNED[width] if to[0] == "s" else UNSIGNED[width])
            self.write(operands[0], x)
        elif to_float:
            integral = next((o for o in opcode[1:-2] if o in ("rni", "rzi", "rmi", "rpi")), None)
            if from_float and integral is not None:
                x = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[integral](x)
            self.write(operands[0], raw_of(x, to))
        else:
            signed = SIGNED[width_of(to)] if source[0] == "s" else UNSIGNED[width_of(to)]
            self.write(operands[0], x.astype(signed))

    def do_bfe(self, opcode, operands, text) -> None:
        x = self.value(operands[1], opcode[-1])
        start, length = (self.value(o, "u32").astype(np.int64) for o in operands[2:])
        width = 8 * x.itemsize
        bits = x.view(UNSIGNED[width]).astype(np.uint64) >> start.astype(np.uint64)
        bits &= (np.uint64(1) << length.astype(np.uint64)) - np.uint64(1)
        if opcode[-1].startswith("s"):
            sign = (bits >> np.maximum(length - 1, 0).astype(np.uint64) & np.uint64(1)).astype(bool)
            bits = np.where(
                sign & (length > 0),
                bits | ~((np.uint64(1) << length.astype(np.uint64)) - np.uint64(1)),
                bits,
            )
        self.write(operands[0], bits.astype(UNSIGNED[width]))

    def do_prmt(self, opcode, operands, text) -> None:
        a, b, selector = (self.value(o, "u32").astype(np.uint64) for o in operands[1:])
        both, result = b << np.uint64(32) | a, np.zeros(self.threads, np.uint64)
        for i in range(4):
            nibble = selector >> np.uint64(4 * i)
            byte = both >> (nibble & np.uint64(7)) * np.uint64(8) & np.uint64(0xFF)
            spread = (nibble & np.uint64(8)).astype(bool)
            byte = np.where(spread, np.where(byte & np.uint64(0x80), 0xFF, 0), byte).astype(
                np.uint64
            )
            result |= byte << np.uint64(8 * i)
        self.write(operands[0], result.astype(np.uint32))

    def do_shfl(self, opcode, operands, text) -> None:
        mode = opcode[2]
        to, *predicate = operands[:-4]
        source, by, clamp, _ = operands[-4:]
        x, offset = self.value(source, "u32"), self.value(by, "u32").astype(np.int64)
        clamp_value = self.value(clamp, "u32").astype(np.int64)
        lane = np.arange(self.threads) % WARP
        most, segment = clamp_value & 31, clamp_value >> 8 & 31
        highest = (lane & segment) | (most & ~segment)
        lowest = lane & segment
        there = {
            "bfly": lane ^ offset,
            "up": lane - offset,
            "down": lane + offset,
            "idx": lowest | (offset & ~segment),
        }[mode]
        valid = there >= highest if mode == "up" else there <= highest
        there = np.where(valid, there, lane)
        self.write(to, x[np.arange(self.threads) - lane + there])
        if predicate:
            self.write(predicate[0], valid)

    def do_bar(self, opcode, operands, text) -> None:
        """All threads are here: those behind ran first."""

    do_membar = do_fence = do_bar

    def address(self, operand: str) -> ndarray:
        base, _, offset = operand.strip("[] ").partition("+")
        base, by = base.strip(), int(offset or 0)
        width = 64 if base.startswith("%rd") else 32
        return self.raw(base, width).astype(np.int64) + by

    def within(self) -> ndarray:
        return np.arange(self.threads) if self.mask is None else self.mask.nonzero()[0]

    def space(self, opcode: list[str]) -> Memory:
        if not {"shared", "shared__cta"}.isdisjoint(opcode):
            return self.shared
        assert "global" in opcode, opcode
        return self.memory

    def do_ld(self, opcode, operands, text) -> None:
        if "param" in opcode:
            name, _, offset = operands[1].strip("[] ").partition("+")
            assert not offset
            width = width_of(opcode[-1])
            value = self.arguments[name] & (2**width - 1)
            self.write(operands[0], np.full(self.threads, value, UNSIGNED[width]))
            return
        memory, width = self.space(opcode), width_of(opcode[-1])
        to = operands_of(operands[0].strip("{} ")) if operands[0].startswith("{") else [operands[0]]
        start = self.address(operands[1])
        lanes, size = self.within(), width // 8
        whole = memory.at(start[lanes], size * len(to), text) * len(to)
        words = memory.bytes.view(UNSIGNED[width])
        for i, name in enumerate(to):
            out = self.register(name).copy()
            out[lanes] = words[whole + i].astype(out.dtype)
            self.registers[name] = out

    def do_st(self, opcode, operands, text) -> None:
        memory, width = self.space(opcode), width_of(opcode[-1])
        values = (
            operands_of(operands[1].strip("{} ")) if operands[1].startswith("{") else [operands[1]]
        )
        start = self.address(operands[0])
        lanes, size = self.within(), width // 8
        whole = memory.at(start[lanes], size * len(values), text) * len(values)
        words = memory.bytes.view(UNSIGNED[width])
        for i, name in enumerate(values):
            words[whole + i] = self.value(name, f"u{width}")[lanes]

    def matrices(self, opcode, address: str, text: str):
        """Of each matrix of 8 × 8: where a thread's two elements lie, in units of 16 bits."""
        count = int(next(o for o in opcode if re.fullmatch(r"x\d", o))[1:])
        start = self.shared.at(self.address(address), 16, text) * 8
        thread = np.arange(self.threads)
        lane, warp = thread % WARP, thread - thread % WARP
        for j in range(count):
            for_row = lambda r, j=j: start[warp + 8 * j + r]  # noqa: E731
            if "trans" in opcode:
                yield for_row(2 * (lane % 4)) + lane // 4, for_row(2 * (lane % 4) + 1) + lane // 4
            else:
                first = for_row(lane // 4) + 2 * (lane % 4)
                yield first, first + 1

    def do_ldmatrix(self, opcode, operands, text) -> None:
        words = self.shared.bytes.view(np.uint16)
        names = operands_of(operands[0].strip("{} "))
        for name, (low, high) in zip(names, self.matrices(opcode, operands[1], text), strict=True):
            self.write(name, words[low].astype(np.uint32) | words[high].astype(np.uint32) << 16)

    def do_stmatrix(self, opcode, operands, text) -> None:
        words = self.shared.bytes.view(np.uint16)
        names = operands_of(operands[1].strip("{} "))
        for name, (low, high) in zip(names, self.matrices(opcode, operands[0], text), strict=True):
            x = self.value(name, "u32")
            words[low], words[high] = x & 0xFFFF, x >> 16


def run(ptx: str, programs: int, threads: int, shared: int, arguments: Sequence[Any]) -> None:
    """Run a kernel over a grid of so many programs, on tensors of the CPU, in place.

    Args:
        arguments: those that are not constants: tensors and integers.
    """
    storages: dict[int, tuple[torch.Tensor, int]] = {}
    size = GAP
    for x in arguments:
        if isinstance(x, torch.Tensor):
            storage = x.untyped_storage()
            if storage.data_ptr() not in storages:
                lies = size + storage.data_ptr() % 256
                whole = torch.empty(0, dtype=torch.uint8).set_(storage)
                storages[storage.data_ptr()] = whole, lies
                size = -(-(lies + len(whole) + GAP) // 256) * 256
    memory = Memory(size, "global")
    for whole, lies in storages.values():
        memory.bytes[lies : lies + len(whole)] = whole.numpy()
        memory.allocated[lies : lies + len(whole)] = True
    values = [
        storages[x.untyped_storage().data_ptr()][1] + x.data_ptr() - x.untyped_storage().data_ptr()
        if isinstance(x, torch.Tensor)
        else int(x)
        for x in arguments
    ]
    block = Block(Program(ptx), threads, memory, shared, [*values, 0, 0])
    for index in range(programs):
        block.run(index)
    for whole, lies in storages.values():
        whole.numpy()[:] = memory.bytes[lies : lies + len(whole)]


# Of a sum of two pairs of 16 bits, one half of which is used, ptxas takes the other half's addend
# (12.8, 12.9 and 13.0; sm_90, 100 and 120; at any level but -O0): so `markov_reparam` had wrong
# gradients.
NOT_TRUSTED = re.compile(r"add\.[su]16x2[^\n]*")


def launch(kernel: JITFunction, t: Tiling, like: Tensor, *args, **constants) -> None:
    """As `runtime.launch`, of CPU tensors: compiled for a GPU, and run here."""
    args += (t.rows, t.columns, t.chunks, t.chunk_columns)
    constants |= {
        "LOOPED": t.looped,
        "BLOCK_ROWS": t.block_rows,
        "BLOCK_COLUMNS": t.block_columns,
    }
    options = options_of(kernel, t, like, constants)
    constexprs, signature, aligned, given = dict(constants), {}, {}, []
    for i, (name, x) in enumerate(zip(kernel.arg_names, args, strict=False)):
        # Triton's own rule: 1 is a constant, and of 16 it is asked whether it divides.
        if x is None or (x == 1 and name != "rows" if isinstance(x, int) else False):
            constexprs[name] = x
            continue
        given.append(x)
        is_tensor = isinstance(x, Tensor)
        signature[name] = TYPES[x.dtype] if is_tensor else "i32" if x < 2**31 else "i64"
        if name != "rows" and (x.data_ptr() if is_tensor else x) % 16 == 0:
            aligned[(i,)] = [["tt.divisibility", 16]]
    whole = {name: signature.get(name, "constexpr") for name in kernel.arg_names}
    key = repr((id(kernel), whole, constexprs, aligned, options))
    if key not in KERNELS:
        source = ASTSource(kernel, whole, constexprs, aligned)
        KERNELS[key] = triton.compile(source, target=HOPPER, options=options)
    made = KERNELS[key]
    assert not NOT_TRUSTED.findall(made.asm["ptx"]), f"{kernel.__name__}: {key}"
    threads = WARP * made.metadata.num_warps
    run(made.asm["ptx"], t.programs, threads, made.metadata.shared, given)


KERNELS: dict[str, CompiledKernel] = {}
