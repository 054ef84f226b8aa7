"""Pictures: loss curves, samples, reconstructions (images, points, sequences), series, bars."""

import math
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from rhovae_kernels.files import written_atomically

MOST_LINES = 8
"""Sequences of more features than this are drawn as rolls."""

MOST_PANELS = 8
"""How many sequences a picture shows."""


def curves(
    path: str | Path, series: Mapping[str, Sequence[float]], ylabel: str, title: str = ""
) -> None:
    """One curve per name, a value for each epoch from the first on.

    Args:
        path: the picture's file; its suffix is its format.
        series: the values by the name in the legend.
        ylabel: what the values are, with their unit.
        title: above the picture.
    """
    panels(path, {ylabel: series}, title)


def panels(
    path: str | Path,
    quantities: Mapping[str, Mapping[str, Sequence[float]]],
    title: str = "",
) -> None:
    """`curves` of several quantities side by side.

    Args:
        path: the picture's file; its suffix is its format.
        quantities: for each, by what its values are, with their unit, the series of `curves`.
        title: above the picture.
    """
    figure = Figure(figsize=(7 * len(quantities), 4.5), layout="tight")
    (row,) = figure.subplots(1, len(quantities), squeeze=False)
    for axes, (ylabel, series) in zip(row, quantities.items(), strict=True):
        for name, values in series.items():
            axes.plot(range(1, len(values) + 1), values, marker=".", label=name)
        axes.set(xlabel="epoch", ylabel=ylabel, title=title)
        axes.grid(alpha=0.3)
        axes.legend()
    _save(figure, path)


def samples(path: str | Path, x: Tensor, title: str = "") -> None:
    """Data side by side: images (N, C, H, W) in a near square, points (N, 2) in the plane.

    Sequences (N, T, features) are drawn as lines, one panel each, or as rolls, features upwards,
    where they have more than `MOST_LINES`.

    Args:
        path: the picture's file; its suffix is its format.
        x: the data; images hold values in [0, 1].
        title: above the picture.

    Raises:
        ValueError: x is neither images nor points nor sequences.
    """
    if x.dim() == 3:
        figure = _panels([x], title)
    elif _are_points(x):
        figure, axes = _figure(5, 5)
        axes.scatter(x[:, 0].cpu(), x[:, 1].cpu(), s=6)
        axes.set(title=title, aspect="equal")
    else:
        figure = _tiles(x, columns=math.ceil(math.sqrt(len(x))), title=title)
    _save(figure, path)


def reconstructions(path: str | Path, x: Tensor, reconstructed: Tensor, title: str = "") -> None:
    """Data beside their reconstructions: images in two rows, points joined by lines.

    Sequences are in two columns, drawn as `samples` does.

    Args:
        path: the picture's file; its suffix is its format.
        x: the data, (N, C, H, W), (N, 2) or (N, T, features).
        reconstructed: what the model makes of them, of the same shape.
        title: above the picture.

    Raises:
        ValueError: x is neither images nor points nor sequences.
    """
    if x.dim() == 3:
        figure = _panels([x, reconstructed], title)
    elif _are_points(x):
        figure, axes = _figure(5, 5)
        before, after = x.cpu().float().numpy(), reconstructed.cpu().float().numpy()
        axes.plot(*zip(before.T, after.T, strict=True), color="0.8", linewidth=0.5, zorder=0)
        axes.scatter(before[:, 0], before[:, 1], s=6, label="data")
        axes.scatter(after[:, 0], after[:, 1], s=6, label="reconstructions")
        axes.set(title=title, aspect="equal")
        axes.legend()
    else:
        figure = _tiles(torch.cat([x, reconstructed]), columns=len(x), title=title)
    _save(figure, path)


class Pockets(NamedTuple):
    """Samples of a model in the plane.

    Attributes:
        codes: z, (N, 2), by kind.
        data: what they are decoded to, (N, 2), by kind; empty where data are no points.
    """

    codes: Mapping[str, Tensor]
    data: Mapping[str, Tensor]


def pockets(path: str | Path, panels: Mapping[str, Pockets], title: str = "") -> None:
    """Where the aggregate posterior and the prior differ: a column for each model.

    Above the representation space, below, for points, the data that the samples are decoded to.

    Args:
        path: the picture's file; its suffix is its format.
        panels: samples of each model by the name above its column.
        title: above the picture.
    """
    rows = 2 if all(panel.data for panel in panels.values()) else 1
    figure = Figure(figsize=(5 * len(panels), 5 * rows), layout="tight")
    grid = figure.subplots(rows, len(panels), squeeze=False)
    for column, (name, panel) in zip(grid.T, panels.items(), strict=True):
        for axes, kinds, space in zip(column, panel, ("z", "x"), strict=False):
            for kind, points in kinds.items():
                x, y = points.cpu().T
                axes.scatter(x, y, s=4, alpha=0.5, label=kind)
            axes.set(title=f"{name}, {space}", aspect="equal")
            axes.legend(markerscale=3, fontsize="small")
    figure.suptitle(title)
    _save(figure, path)


def paths(path: str | Path, tracks: Tensor, title: str = "") -> None:
    """Data along paths: images (P, S, C, H, W) in a row for each, points (P, S, 2) joined by lines.

    Args:
        path: the picture's file; its suffix is its format.
        tracks: the data of P paths of S steps.
        title: above the picture.

    Raises:
        ValueError: tracks hold neither images nor points.
    """
    if _are_points(tracks.flatten(0, 1)):
        figure, axes = _figure(5, 5)
        for track in tracks.cpu():
            axes.plot(track[:, 0], track[:, 1], marker=".", linewidth=0.7)
        axes.set(title=title, aspect="equal")
    else:
        figure = _tiles(tracks.flatten(0, 1), columns=tracks.shape[1], title=title)
    _save(figure, path)


class Band(NamedTuple):
    """A quantity a day that is known within bounds, each (T,).

    Attributes:
        low, middle, high: its bounds, and the line between them.
    """

    low: Tensor
    middle: Tensor
    high: Tensor


def bands(
    path: str | Path,
    days: Sequence[date],
    series: Tensor,
    panels: Mapping[str, Band],
    ylabels: tuple[str, str],
    title: str = "",
) -> None:
    """A series, and below it what is said of its days: a panel for each, on one logarithmic axis.

    The line of the last panel is dotted in those above it, which are held against it.

    Args:
        path: the picture's file; its suffix is its format.
        days: the T days.
        series: the values, (T,).
        panels: positive bands by the name in their panel.
        ylabels: what the values are, and what the bands are of, with their units.
        title: above the picture.
    """
    figure = Figure(figsize=(9, 2 * (1 + len(panels))), layout="tight")
    above, *below = figure.subplots(1 + len(panels), 1, sharex=True)
    above.plot(days, series, linewidth=0.5, color="0.3")
    above.set(title=title, ylabel=ylabels[0])
    above.margins(x=0)
    *_, reference = panels.values()
    for i, (axes, (name, band)) in enumerate(zip(below, panels.items(), strict=True)):
        axes.fill_between(days, band.low, band.high, alpha=0.35, color=f"C{i}", linewidth=0)
        axes.plot(days, band.middle, linewidth=0.8, color=f"C{i}", label=name)
        if band is not reference:
            axes.plot(days, reference.middle, ":", linewidth=0.8, color="black")
        axes.set(yscale="log", ylabel=ylabels[1])
        axes.sharey(below[0])
        axes.legend(loc="upper left", fontsize="small")
    _save(figure, path)


class Part(NamedTuple):
    """A part of a stacked bar.

    Attributes:
        mean: its height; below 0 it hangs from the part before it.
        standard_error: of the mean.
    """

    mean: float
    standard_error: float


def stacked_bars(
    path: str | Path,
    bars: Mapping[str, Mapping[str, Part]],
    ylabel: str,
    title: str = "",
) -> None:
    """A bar for each label, its parts on top of one another, each with its standard error.

    Args:
        path: the picture's file; its suffix is its format.
        bars: the parts of each bar, by their name in the legend, from the bottom up.
        ylabel: what the heights are, with their unit.
        title: above the picture.
    """
    figure, axes = _figure(max(5, 1.3 * len(bars) + 1.5), 4.5)
    labels, tops = list(bars), [0.0] * len(bars)
    names = dict.fromkeys(name for parts in bars.values() for name in parts)
    for name in names:
        parts = [bars[label].get(name, Part(0.0, 0.0)) for label in labels]
        heights, errors = zip(*parts, strict=True)
        axes.bar(labels, heights, bottom=tops, yerr=errors, capsize=3, label=name, alpha=0.85)
        tops = [top + height for top, height in zip(tops, heights, strict=True)]
    axes.axhline(0, color="0.3", linewidth=0.8)
    axes.set(ylabel=ylabel, title=title)
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    _save(figure, path)


def _are_points(x: Tensor) -> bool:
    if x.dim() == 4 or (x.dim() == 2 and x.shape[1] == 2):
        return x.dim() == 2
    raise ValueError(
        f"x is of shape {tuple(x.shape)}; pictures are of images (N, C, H, W), points (N, 2) or, "
        "but along paths, sequences (N, T, features)"
    )


def _panels(columns: Sequence[Tensor], title: str) -> Figure:
    """Sequences (N, T, features), a row for each; beyond the end of one, NaN, nothing is drawn."""
    shown = [x[:MOST_PANELS].detach().float().cpu().numpy() for x in columns]
    count, steps, features = shown[0].shape
    figure = Figure(figsize=(6 * len(columns), max(2, 1.2 * count + 0.4)), layout="tight")
    grid = figure.subplots(count, len(columns), squeeze=False, sharex=True, sharey=True)
    for x, panels in zip(shown, grid.T, strict=True):
        for sequence, axes in zip(x, panels, strict=True):
            if features > MOST_LINES:
                axes.imshow(sequence.T, cmap="gray_r", aspect="auto", origin="lower")
            else:
                axes.plot(range(steps), sequence, linewidth=0.8)
                axes.grid(alpha=0.3)
        panels[-1].set(xlabel="step")
    figure.suptitle(title)
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    # Without pyplot: no window system is asked for, and no figure outlives its picture.
    figure = Figure(figsize=(width, height), layout="tight")
    return figure, figure.subplots()


def _tiles(images: Tensor, columns: int, title: str) -> Figure:
    """Images in rows of `columns`, one pixel apart."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    sheet = torch.ones(rows * (height + 1) - 1, columns * (width + 1) - 1, channels)
    for i, image in enumerate(images.cpu()):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        sheet[top : top + height, left : left + width] = image.permute(1, 2, 0)
    figure, axes = _figure(max(3, 0.6 * columns), max(2, 0.6 * rows + 0.4))
    axes.imshow(sheet.squeeze(-1).clamp(0, 1).numpy(), cmap="gray", vmin=0, vmax=1)
    axes.set_axis_off()
    axes.set_title(title)
    return figure


def _save(figure: Figure, path: str | Path) -> None:
    if Path(path).suffix[1:] not in figure.canvas.get_supported_filetypes():
        raise ValueError(f"path is {path}; its suffix must name a picture's format, such as .png")
    with written_atomically(path) as temporary:
        figure.savefig(temporary, dpi=150)
