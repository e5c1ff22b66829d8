"""The figure of a study: what was measured, beside what was published."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import inf
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np

from pipeline.tune.study import Cell, Study

COLOURS = ("#2a6f97", "#c8553d", "#588157", "#7b5ea7", "#bc8a2f", "#4a4e69", "#9c3d54")

Value = tuple[float, float]  # mean and standard deviation, in percent
Values = Callable[[Cell, str], Value | None]


def draw_study(study: Study, found: Sequence[Cell], path: Path) -> Path:
    """A panel of ours and, where there are numbers, one of theirs: levels do not compare, shapes do."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure = plt.figure(layout="constrained")
    fill_figure(figure, study, found)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def fill_figure(figure: Any, study: Study, found: Sequence[Cell]) -> None:
    """Draws the panels of a study on a figure of matplotlib, whose size it sets."""
    panels: dict[str, Values] = {"measured here": _measured}
    if any(cell.point.published for cell in found):
        panels["published"] = _published
    figure.set_size_inches(5.2 * len(panels), 3.9)
    axes = figure.subplots(1, len(panels), squeeze=False, sharex=study.figure == "curves")[0]
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        DRAWINGS[study.figure](axis, study, found, values)
        axis.set_title(title, fontsize=10, loc="left")
    handles, labels = axes[0].get_legend_handles_labels()
    if len(labels) > 1:
        fit = 80 * len(panels) // (max(map(len, labels)) + 8)  # letters; a line and its gap are as wide as eight
        columns = max(1, min(fit, len(labels)))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    told = len(labels) > 1 and study.figure in ("curves", "profiles")  # which score: by the legend
    first = "score" if told else next(iter(study.scores))
    axes[0].set_ylabel(study.axes[0] if study.figure == "matrix" else f"{first}, %")
    figure.suptitle("\n".join(wrap(study.question, 60 * len(panels))), fontsize=11)


def _measured(cell: Cell, title: str) -> Value | None:
    spread = cell.measured.get(title)
    return (100 * spread.mean, 100 * (spread.std or 0.0)) if spread else None


def _published(cell: Cell, title: str) -> Value | None:
    return (cell.point.published[title], 0.0) if title in cell.point.published else None


def _line(axis: Any, xs: list[Any], values: list[Value], **style: Any) -> None:
    """A curve, with bars where a spread is known."""
    spreads = [spread for _, spread in values]
    axis.errorbar(xs, [mean for mean, _ in values], spreads if any(spreads) else None, markersize=4, capsize=3, **style)


def _curves(axis: Any, study: Study, found: Sequence[Cell], values: Values) -> None:
    """The first score over the first axis; of several scores of a single curve, a curve each."""
    two = len(study.axes) > 1
    names = list(dict.fromkeys(cell.point.place[1] for cell in found)) if two else [""]
    shown = [(name, title) for name in names for title in study.scores]
    for place, (name, title) in enumerate(shown):
        points = [
            (cell.point.place[0], value)
            for cell in found
            if (not two or cell.point.place[1] == name) and (value := values(cell, title))
        ]
        if points:
            group = name if isinstance(name, str) else f"{study.axes[1]} {name}"
            _line(
                axis, [x for x, _ in points], [value for _, value in points],
                fmt="o-" if title == next(iter(study.scores)) else "o--",
                label=", ".join(part for part in (group, title) if part),
                color=COLOURS[place // len(study.scores) % len(COLOURS)],
            )  # fmt: skip
    numbers = [cell.point.place[0] for cell in found if isinstance(cell.point.place[0], int | float)]
    if len(numbers) == len(found) and min(numbers) > 0 and max(numbers) / min(numbers) >= 4:
        axis.set_xscale("log")
        ordered = [*sorted(set(numbers)), inf]
        ticks = [low for low, high in pairwise(ordered) if high > 1.1 * low]  # far enough apart to be read
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
    axis.set_xlabel(study.axes[0])
    axis.grid(alpha=0.3)


def _bars(axis: Any, study: Study, found: Sequence[Cell], values: Values) -> None:
    first = next(iter(study.scores))
    shown = [(cell, value) for cell in found if (value := values(cell, first))]
    names = [" ".join(map(str, cell.point.place)) for cell, _ in shown]
    spreads = [spread for _, (_, spread) in shown]
    axis.bar(names, [y for _, (y, _) in shown], yerr=spreads if any(spreads) else None, color=COLOURS[0], capsize=3)
    heights = [y for _, (y, _) in shown]
    before = [100 * cell.random[first] for cell, _ in shown if values is _measured and first in cell.random]
    if before:
        heights.append(sum(before) / len(before))
        axis.axhline(heights[-1], color="black", linestyle=":")
        axis.text(
            0.02, heights[-1], "random encoder", ha="left", va="center", fontsize=8,
            transform=axis.get_yaxis_transform(), bbox={"facecolor": "white", "edgecolor": "none", "pad": 2},
        )  # fmt: skip
    axis.set_ylim(bottom=max(0.0, min(heights, default=0) - 8))
    axis.set_xlabel(", ".join(study.axes))
    axis.tick_params(axis="x", rotation=30)
    axis.grid(axis="y", alpha=0.3)


def _matrix(axis: Any, study: Study, found: Sequence[Cell], values: Values) -> None:
    """Symmetrical: a pair in any order is one point."""
    first = next(iter(study.scores))
    names = list(dict.fromkeys(name for cell in found for name in cell.point.place))
    table = np.full((len(names), len(names)), np.nan)
    for cell in found:
        if value := values(cell, first):
            row, column = (names.index(name) for name in cell.point.place)
            table[row, column] = table[column, row] = value[0]
    axis.imshow(table, cmap="viridis")
    middle = np.nanmean(table) if np.isfinite(table).any() else 0.0
    for row, column in np.argwhere(np.isfinite(table)):
        shade = "white" if table[row, column] < middle else "black"
        axis.text(column, row, f"{table[row, column]:.0f}", ha="center", va="center", color=shade, fontsize=9)
    axis.set_xticks(range(len(names)), [str(name) for name in names], rotation=45)
    axis.set_yticks(range(len(names)), [str(name) for name in names])
    axis.set_xlabel(study.axes[1])


def _profiles(axis: Any, study: Study, found: Sequence[Cell], values: Values) -> None:
    titles = [title for title in reversed(list(study.scores)) if any(values(cell, title) for cell in found)]
    for place, cell in enumerate(found):
        known = [(title, value) for title in titles if (value := values(cell, title))]
        if known:
            _line(
                axis, [title for title, _ in known], [value for _, value in known], fmt="o-",
                color=COLOURS[place % len(COLOURS)], label=" ".join(map(str, cell.point.place)),
            )  # fmt: skip
    axis.grid(alpha=0.3)


DRAWINGS = {"curves": _curves, "bars": _bars, "matrix": _matrix, "profiles": _profiles}
