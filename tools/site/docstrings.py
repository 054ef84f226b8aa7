"""What the API pages make of the package's docstrings, before they are read as Markdown."""

import re
from typing import Any

from griffe import Extension, Object

# "KL = …", "log q(z) = …", "z | y ~ N(…)", "forward: y = …": a few symbols, no word, a sign.
FORMULA = re.compile(r"(?:(?:(?:forward|inverse):|log_det|(?!\w*[a-z]{4})\S+) ){1,4}[=~] ")


def on_lines_of_their_own(text: str) -> str:
    """The text with each formula that is a line kept one: Markdown would join it to its neighbours.

    Example:
        >>> on_lines_of_their_own("A sample:\\nz = μ + u\\nKL = 0\\nand no more.")
        'A sample:  \\nz = μ + u  \\nKL = 0  \\nand no more.'
    """
    lines = text.split("\n")
    for i, line in enumerate(lines):
        if FORMULA.match(line):
            # Unless a sentence goes on behind it.
            if not re.search(r" [a-z]{3,}$", line):
                lines[i] = line + "  "
            if i and lines[i - 1].strip():
                lines[i - 1] = lines[i - 1].rstrip() + "  "
    return "\n".join(lines)


class Docstrings(Extension):
    """Names the section of examples as the parser knows it, and keeps formulas on their lines."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is None or obj.is_alias:
            return
        text, heading, rest = re.split(
            r"(?m)^((?:Args|Attributes|Shapes|Returns|Raises|Source|Example):)|\Z",
            obj.docstring.value,
            maxsplit=1,
        )
        rest = re.sub(r"(?m)^Example:$", "Examples:", (heading or "") + rest)
        obj.docstring.value = on_lines_of_their_own(text) + rest
