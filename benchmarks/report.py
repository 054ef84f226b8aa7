"""Turns the JSON of a benchmark run into a table (Markdown) and a plot."""

import json
import math
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import NullFormatter


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


PLOT_COLUMNS = 4


def plot(path: Path, out: Path) -> None:
    """Times of every variant relative to ours, one panel a comparison."""
    groups: dict[tuple, list] = {}
    for op, shape, direction, note, variant, _, ratio, *_ in rows(path):
        groups.setdefault((op, shape, direction, note), []).append((variant, ratio))
    across = min(len(groups), PLOT_COLUMNS)
    down = math.ceil(len(groups) / across)
    tallest = [
        max(map(len, list(groups.values())[i * across : (i + 1) * across])) for i in range(down)
    ]
    figure, axes = plt.subplots(
        down,
        across,
        figsize=(6.5 * across, 0.3 * sum(tallest) + 0.8 * down),
        height_ratios=[n + 1 for n in tallest],
        layout="constrained",
        squeeze=False,
    )
    for axis in axes.flat[len(groups) :]:
        axis.set_visible(False)
    for axis, ((op, shape, direction, note), variants) in zip(
        axes.flat, groups.items(), strict=False
    ):
        names, ratios = zip(*variants, strict=True)
        bars = axis.barh(names, ratios, color=["C0" if r == 1 else "C7" for r in ratios])
        axis.bar_label(bars, [f" {r:.2f}×" for r in ratios], fontsize=8)
        axis.set_xscale("log")
        axis.set_xlim(min(0.5, 0.8 * min(ratios)), max(2.0, 2.5 * max(ratios)))
        axis.xaxis.set_major_formatter("{x:g}×")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.axvline(1, color="C0", linewidth=0.8)
        axis.invert_yaxis()
        axis.set_title(" ".join(x for x in (op, shape, direction, note) if x), fontsize=9)
        axis.tick_params(labelsize=8)
    figure.supxlabel("time relative to the first variant (log scale)", fontsize=9)
    figure.savefig(out, dpi=120)


def main(path: Path) -> None:
    text = table(path)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    plot(path, path.with_suffix(".png"))
    print(text)
    print(f"written: {path}, {path.with_suffix('.md')}, {path.with_suffix('.png')}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
