"""The statements of a kernel in PTX."""

import re
from typing import NamedTuple

import numpy as np

from ptx.arithmetic import width_of

TOGETHER = ("bar", "shfl", "ldmatrix", "stmatrix")
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
