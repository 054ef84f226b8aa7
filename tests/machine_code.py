"""What the machine code of a compiled kernel tells of its speed: no GPU is needed to read it.

The path of a kernel is the shortest way from its entry to its exit that passes each wide (16-byte)
load and store in the order of the program: what a lane runs where no row ends in its tile. Loops
are taken as seldom as that allows, which is once for a body that loads.
"""

import heapq
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from rhovae_kernels.triton.runtime import Configuration

WIDE = 16
# In PTX. Of a sum of two pairs of 16 bits, one half of which is used, ptxas takes the other half's
# addend (12.8, 12.9 and 13.0; sm_90, 100 and 120; at any level but -O0): so `markov_reparam` had
# wrong gradients.
NOT_TRUSTED = re.compile(r"add\.[su]16x2[^\n]*")
# What a call to a subroutine, the slow case of a division, counts for.
SUBROUTINE = 200
NO_PATH = "no way from the entry through each wide load and store to an exit"


def compiled(configuration: Configuration, target: GPUTarget) -> CompiledKernel:
    """As a launch compiles it for 16-byte aligned operands, whose vector loads take registers."""
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, kind) in enumerate(configuration.signature.items())
        if kind.startswith("*")
        or (kind != "constexpr" and name.endswith(("_row", "columns", "outputs")))
    }
    source = ASTSource(
        configuration.kernel, configuration.signature, configuration.constexprs, aligned
    )
    options = {"num_warps": configuration.warps}
    if target.backend == "cuda":
        options["maxnreg"] = configuration.registers
        if configuration.stages is not None:
            options["num_stages"] = configuration.stages
    return triton.compile(source, target=target, options=options)


def dumped(what: str, cubin: bytes, path: Path) -> str:
    """What cuobjdump, which Triton brings along, says of a kernel that it finds in `path`."""
    path.write_bytes(cubin)
    command = [triton.knobs.nvidia.cuobjdump.path, f"--dump-{what}", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def local_memory(cubin: bytes, path: Path) -> int:
    """Bytes of stack and local memory a thread: what registers spill to."""
    usage = dumped("resource-usage", cubin, path)
    return sum(int(n) for n in re.findall(r"(?:STACK|LOCAL):(\d+)", usage))


class Instruction(NamedTuple):
    """One line of a listing: where it stands, whether it depends on a predicate, what it does."""

    address: int
    predicated: bool
    opcode: str
    operands: str

    def does(self, *kinds: str) -> bool:
        return self.opcode.split(".")[0] in kinds

    @property
    def width(self) -> int:
        """Bytes a lane that a load or store of global memory moves; 0 for any other."""
        if not self.does("LDG", "STG"):
            return 0
        (bits,) = re.findall(r"\.(128|64|U16|S16|U8|S8)\b", self.opcode) or ["32"]
        return int(bits.lstrip("US")) // 8

    @property
    def loads(self) -> bool:
        return self.width == WIDE and self.does("LDG")

    @property
    def stores(self) -> bool:
        return self.width == WIDE and self.does("STG")

    @property
    def loaded(self) -> frozenset[int]:
        """The registers that a load fills."""
        first = int(re.match(r"R(\d+)", self.operands)[1])
        return frozenset(range(first, first + max(1, self.width // 4)))

    @property
    def read(self) -> frozenset[int]:
        """The registers that it reads, as far as the listing shows their width."""
        named = re.findall(r"\bR(\d+)(\.64)?", self.operands)
        # The first operand is what is written, but of a store and of a comparison, which name none.
        writes = re.match(r"R\d+", self.operands) and not self.does("STG", "STS", "STL")
        found = set()
        for text, pair in named[1:] if writes else named:
            found |= {int(text), int(text) + 1} if pair else {int(text)}
        if self.does("STG"):
            first = int(named[-1][0])
            found |= set(range(first, first + max(1, self.width // 4)))
        return frozenset(found)


def instructions(listing: str) -> list[Instruction]:
    """The instructions of the one kernel in a listing of cuobjdump."""
    found = []
    for address, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]*?)\s*;", listing):
        predicate, bare = re.match(r"(@!?U?P\w+\s+)?(.*)", text, re.DOTALL).groups()
        opcode, _, operands = bare.partition(" ")
        found.append(Instruction(int(address, 16), bool(predicate), opcode, operands.strip()))
    return found


def _successors(code: list[Instruction]) -> list[list[int]]:
    place = {instruction.address: i for i, instruction in enumerate(code)}

    def after(i: int, instruction: Instruction) -> Iterator[int]:
        jumps = instruction.does("BRA", "EXIT", "RET")
        # A branch may take its predicate as an operand.
        falls = instruction.predicated or re.match(r"!?U?P\d", instruction.operands)
        if (not jumps or falls) and i + 1 < len(code):
            yield i + 1
        target = re.search(r"0x([0-9a-f]+)", instruction.operands)
        if instruction.does("BRA") and target and int(target[1], 16) in place:
            yield place[int(target[1], 16)]

    return [list(after(i, instruction)) for i, instruction in enumerate(code)]


def loops(listing: str) -> list[list[Instruction]]:
    """The bodies of the loops of the one kernel in a listing of cuobjdump, each without an exit."""
    code = instructions(listing)
    place = {instruction.address: i for i, instruction in enumerate(code)}
    found = []
    for i, instruction in enumerate(code):
        target = re.search(r"0x([0-9a-f]+)", instruction.operands)
        if instruction.does("BRA") and target:
            body = code[place.get(int(target[1], 16), i + 1) : i + 1]
            if body and not any(step.does("EXIT") for step in body):
                found.append(body)
    return found


def _cost(instruction: Instruction) -> int:
    return {"NOP": 0, "CALL": SUBROUTINE}.get(instruction.opcode.split(".")[0], 1)


def _shortest(
    code: list[Instruction], after: list[list[int]], start: int, is_goal: Callable[[int], bool]
) -> list[int]:
    """The cheapest way from `start`, which is left out, to a goal."""
    queue, known, before = [(0, start)], {start: 0}, dict[int, int]()
    while queue:
        cost, at = heapq.heappop(queue)
        if cost > known[at]:
            continue
        if is_goal(at):
            way = [at]
            while way[-1] != start:
                way.append(before[way[-1]])
            return way[-2::-1]
        for following in after[at]:
            total = cost + _cost(code[following])
            if total < known.get(following, total + 1):
                known[following], before[following] = total, at
                heapq.heappush(queue, (total, following))
    raise ValueError(NO_PATH)


@dataclass(frozen=True)
class Lane:
    """What a lane runs on the path, in order."""

    steps: tuple[Instruction, ...]

    @property
    def instructions(self) -> int:
        return sum(_cost(step) for step in self.steps)

    @property
    def loads(self) -> list[int]:
        """Where on the path the wide loads stand."""
        return [i for i, step in enumerate(self.steps) if step.loads]

    @property
    def stores(self) -> list[int]:
        return [i for i, step in enumerate(self.steps) if step.stores]

    @property
    def narrow(self) -> int:
        """How many accesses of global memory are not wide."""
        return sum(0 < step.width < WIDE for step in self.steps)

    @property
    def loads_precede_stores(self) -> bool:
        return not self.stores or max(self.loads, default=-1) < min(self.stores)

    def first_use(self, load: int) -> int:
        """How many instructions after a load the first one stands that reads what it loads."""
        loaded = self.steps[load].loaded
        for i in range(load + 1, len(self.steps)):
            if loaded & self.steps[i].read:
                return i - load
        return len(self.steps) - load

    @property
    def in_flight(self) -> int:
        """How many wide loads have been issued before the first value of any is used."""
        first = min((load + self.first_use(load) for load in self.loads), default=0)
        return sum(load < first for load in self.loads)


def path_of(listing: str) -> Lane:
    """The path of the one kernel in a listing of cuobjdump.

    Raises:
        ValueError: there is none.
    """
    code = instructions(listing)
    after = _successors(code)
    at, way = 0, [0]
    for goal in (i for i, step in enumerate(code) if step.loads or step.stores):
        way += _shortest(code, after, at, goal.__eq__)
        at = goal
    way += _shortest(code, after, at, lambda i: code[i].does("EXIT"))
    return Lane(tuple(code[i] for i in way))


def path_of_kernel(configuration: Configuration, cc: int, path: Path) -> tuple[Lane, float]:
    """The path of a kernel compiled for NVIDIA's `cc`, and the instructions an element on it."""
    target = GPUTarget("cuda", cc, 32)
    found = path_of(dumped("sass", compiled(configuration, target).asm["cubin"], path))
    constants = configuration.constexprs
    elements = constants["BLOCK_ROWS"] * constants["BLOCK_COLUMNS"]
    return found, found.instructions * 32 * configuration.warps / elements
