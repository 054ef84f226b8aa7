"""Tables that read alike on a terminal and in a page."""

from collections.abc import Sequence


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns, those of numbers to the right; cells may be empty.

    Example:
        >>> print(markdown(["model", "loss"], [["plain", "1.5"], ["rho", "12.5"]]))
        | model | loss |
        |:------|-----:|
        | plain |  1.5 |
        | rho   | 12.5 |
    """
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    numeric = [
        all(cell.lstrip("-−")[:1].isdigit() for cell in column[1:] if cell) for column in columns
    ]

    def line(cells: Sequence[str]) -> str:
        placed = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, numeric, strict=True)
        )
        return f"| {' | '.join(placed)} |"

    rule = "|".join(
        "-" * (width + 1) + ":" if right else ":" + "-" * (width + 1)
        for width, right in zip(widths, numeric, strict=True)
    )
    return "\n".join([line(header), f"|{rule}|", *map(line, rows)])
