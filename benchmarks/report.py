"""Turns the JSON of benchmark runs into a table (Markdown) each, and two charts.

`python benchmarks/report.py RUN.json [OTHER.json …]` writes the table of each run beside it. The
charts show the runs side by side, labelled by the instruction set, the machine and the day of each,
and are written to CHARTS-ratio.png and CHARTS-limit.png of `--charts CHARTS`, by default the first
run's name.
"""

import argparse
import json
from pathlib import Path

import matplotlib
from harness import CLONE

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter

# What is timed beside an op and is no other way to compute what it does: variants of ours, by how
# their names begin, and what shows the limit.
NO_COMPETITORS = ("rhovae", "rho-vae", "scaled-rho-vae", "one pass", "empty", CLONE)


def rows(path: Path):
    """Of each variant: op, shape, direction, note, name, ms, ratio to ours, target, % of limit."""
    for benchmark in json.loads(path.read_text(encoding="utf-8"))["benchmarks"]:
        info = benchmark["extra_info"]
        ours = info["milliseconds"][info["ours"]]
        shape = "×".join(map(str, info["shape"]))
        for variant, ms in info["milliseconds"].items():
            limit = info["targets"].get(variant)
            percent = info.get("percent_of_limit") if variant == info["ours"] else None
            names = info["op"], shape, info["direction"], info["note"], variant
            yield *names, ms, ms / ours, limit, percent


def refused(path: Path):
    """One sentence for every variant that was not timed because its result was wrong."""
    for benchmark in json.loads(path.read_text(encoding="utf-8"))["benchmarks"]:
        info = benchmark["extra_info"]
        for variant, reason in info["wrong"].items():
            shape = "×".join(map(str, info["shape"]))
            yield f"Not timed: {variant} of {info['op']} at {shape}, {reason}."


def table(path: Path) -> str:
    """One line a variant; «wanted» is how many times our time it should take at least.

    «% of limit» is the time of a clone that moves as many bytes as the op has to, in percent.
    """
    lines = [
        "| op | shape | direction | variant | ms | times ours | wanted | % of limit |",
        "|---|---|---|---|---:|---:|---|---:|",
    ]
    for op, shape, direction, note, variant, ms, ratio, limit, percent in rows(path):
        wanted = (
            "" if limit is None else f"≥ {1 / limit:.3g}: {'yes' if ratio >= 1 / limit else 'no'}"
        )
        label = f"{op} ({note})" if note else op
        lines.append(
            f"| {label} | {shape} | {direction} | {variant} | {ms:.3f} | {ratio:.2f} | {wanted} | "
            f"{'' if percent is None else f'{percent:.0f}'} |"
        )
    return "\n".join([*lines, "", *refused(path)]).rstrip() + "\n"


def ratios(path: Path) -> dict[str, list[tuple[str, str, float]]]:
    """By op: direction, shape, and how many times our time its best competitor takes."""
    found: dict[str, list[tuple[str, str, float]]] = {}
    for benchmark in json.loads(path.read_text(encoding="utf-8"))["benchmarks"]:
        info = benchmark["extra_info"]
        times = info["milliseconds"]
        others = [ms for name, ms in times.items() if not name.startswith(NO_COMPETITORS)]
        if others:
            shape = "×".join(map(str, info["shape"]))
            point = info["direction"], shape, min(others) / times[info["ours"]]
            found.setdefault(info["op"], []).append(point)
    return found


def shares(path: Path) -> dict[str, list[tuple[str, str, float]]]:
    """By op: direction, shape, and the percent of the limit (`table` says which)."""
    found: dict[str, list[tuple[str, str, float]]] = {}
    for op, shape, direction, _, _, _, _, _, percent in rows(path):
        if percent is not None:
            found.setdefault(op, []).append((direction, shape, percent))
    return found


def label(path: Path) -> str:
    """The instruction set, the machine and the day that a run was measured on."""
    run = json.loads(path.read_text(encoding="utf-8"))
    machine, day = run["machine_info"]["rhovae"], run["datetime"].partition("T")[0]
    named = f"{machine['cpu']}, {machine['threads']} threads"
    return f"{machine['build']['instructions']}: {named}, {day}"


def chart(runs: list[tuple[str, dict]], described: str, out: Path, logarithmic: bool) -> None:
    """An op a line, shapes as points, a panel a run: `runs` are labels and what `ratios` gives.

    A hollow point is a forward pass alone. The least point of a line carries its shape above, the
    greatest below.
    """
    ops = list(dict.fromkeys(op for _, found in runs for op in found))
    every = [x for _, found in runs for points in found.values() for _, _, x in points]
    ticks = (1, 2, 5) if max(every) < 100 * min(every) else (1,)
    figure, axes = plt.subplots(
        1,
        len(runs),
        figsize=(8 * len(runs), 0.6 * len(ops) + 1.4),
        sharex=True,
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    for axis, (name, found) in zip(axes.flat, runs, strict=True):
        for y, op in enumerate(ops):
            points = sorted(found.get(op, []), key=lambda point: point[2])
            for direction, _, x in points:
                color = "C0" if x >= 1 or not logarithmic else "C3"
                face = color if "backward" in direction else "white"
                axis.plot(x, y, "o", color=color, markerfacecolor=face, markersize=6)
            ends = [(points[0], 6), (points[-1], -12)] if points else []
            for (_, shape, x), up in ends[-len(points) :]:
                axis.annotate(
                    shape, (x, y), (0, up), textcoords="offset points", ha="center", size=7
                )
        axis.set_title(name, fontsize=9)
        axis.set_yticks(range(len(ops)), ops, fontsize=9)
        axis.set_ylim(len(ops) - 0.5, -0.7)
        axis.grid(axis="x", color="0.9")
        axis.set_axisbelow(True)
        if logarithmic:
            axis.set_xscale("log")
            axis.margins(x=0.2)
            axis.xaxis.set_major_locator(LogLocator(subs=ticks))
            axis.xaxis.set_major_formatter("{x:g}×")
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.axvline(1, color="0.4", linewidth=0.8)
        else:
            axis.set_xlim(0, 1.1 * max(100, *every))
            axis.xaxis.set_major_formatter("{x:g} %")
            axis.axvline(100, color="0.4", linewidth=0.8)
    figure.supxlabel(f"{described}; hollow: forward alone, filled: with backward", fontsize=9)
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main(paths: list[Path], charts: Path) -> None:
    written = []
    for path in paths:
        written.append(path.with_suffix(".md"))
        written[-1].write_text(table(path), encoding="utf-8")
    for kind, found, described, logarithmic in (
        ("ratio", ratios, "time of the best competitor, in times ours (log scale)", True),
        ("limit", shares, "time of a copy of as many bytes, in percent of ours", False),
    ):
        runs = [(label(path), found(path)) for path in paths]
        if any(of_run for _, of_run in runs):
            written.append(charts.with_name(f"{charts.name}-{kind}.png"))
            chart(runs, described, written[-1], logarithmic)
    print(table(paths[0]))
    print(f"written: {', '.join(map(str, written))}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN.json")
    parser.add_argument("--charts", type=Path, help="what the charts' names begin with")
    given = parser.parse_args()
    main(given.runs, given.charts or given.runs[0].with_suffix(""))
