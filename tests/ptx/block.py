"""The threads of one program."""

import re

import numpy as np
from numpy import ndarray

from ptx.arithmetic import (
    COMPARISONS,
    FLOAT_OPS,
    INTEGER_OPS,
    LOGICAL_OPS,
    ROUNDINGS,
    SIGNED,
    UNSIGNED,
    floats,
    is_float,
    raw_of,
    width_of,
)
from ptx.memory import Memory
from ptx.program import Instruction, Program, operands_of

WARP = 32
SPECIAL = ("%tid.x", "%ctaid.x", "%laneid")


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
        if operand in SPECIAL:
            return self.special(operand)
        if operand.startswith("%") or operand in self.program.widths:
            return self.register(operand)
        if operand == "global_smem":
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
        thread = np.arange(self.threads, dtype=np.uint32)
        values = {"%tid.x": thread, "%laneid": thread % WARP, "%ctaid.x": thread * 0 + self.index}
        return values[name].astype(np.uint32)

    def value(self, operand: str, kind: str) -> ndarray:
        raw = self.raw(operand, width_of(kind))
        if kind == "pred":
            return raw
        width = width_of(kind)
        if raw.dtype.itemsize * 8 != width:
            raw = raw.astype(UNSIGNED[width])
        if is_float(kind):
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
        if is_float(kind):
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
            table = FLOAT_OPS if is_float(half) else INTEGER_OPS
            low, high = (raw_of(table[base](*(s[i] for s in sources)), half) for i in (0, 1))
            self.write(operands[0], low.astype(np.uint32) | high.astype(np.uint32) << 16)
            return
        table = LOGICAL_OPS if kind == "pred" else FLOAT_OPS if is_float(kind) else INTEGER_OPS
        if base not in table:
            raise ValueError(f"an instruction that this executor of PTX does not know: {text}")
        kinds = [kind] * len(operands[1:])
        if base in ("shl", "shr"):
            kinds[1] = "u32"
        result = table[base](*(self.value(o, k) for o, k in zip(operands[1:], kinds, strict=True)))
        self.write(operands[0], result if kind == "pred" else raw_of(result, kind))

    def do_mul(self, opcode, operands, text) -> None:
        kind = opcode[-1]
        if is_float(kind):
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

    do_mad = do_mul

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
        combined = [o for o in opcode[2:-1] if o in LOGICAL_OPS]
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
                result = LOGICAL_OPS[combined[0]](result, c)
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
        rounded = next((ROUNDINGS[o] for o in opcode if o in ROUNDINGS), lambda x: x)
        x = self.value(operands[1], source)
        from_float, to_float = map(is_float, (source, to))
        if from_float and not to_float:
            integer = (SIGNED if to[0] == "s" else UNSIGNED)[width_of(to)]
            limits = np.iinfo(integer)
            x = np.nan_to_num(rounded(x).astype(np.longdouble))
            self.write(operands[0], np.clip(x, limits.min, limits.max).astype(integer))
        elif to_float:
            self.write(operands[0], raw_of(rounded(x) if from_float else x, to))
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
        to = operands_of(operands[0].strip("{} "))
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
        values = operands_of(operands[1].strip("{} "))
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
