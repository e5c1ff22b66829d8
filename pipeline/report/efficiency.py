"""The curves of fine-tuning beside training from scratch: over labelled images, and over images seen."""

from collections.abc import Sequence

from pipeline.evaluate.spread import Spread
from pipeline.report.axes import linear, logarithmic
from pipeline.report.plots import Dot, Line, Plot, dot, line, plot
from pipeline.tune.convergence import Convergence
from pipeline.tune.finetune_table import Row

Side = Sequence[tuple[int, Spread]]  # images, accuracy
WHISKERS = "whiskers: a standard deviation over draws"


def efficiency_plot(rows: Sequence[Row], names: tuple[str, str]) -> Plot | None:
    """Both sides over the number of labelled images, with a standard deviation over draws to both sides of each mean;
    None: of fewer than two budgets.

    Args:
        names: of the side that starts from the run, and of the one from scratch.
    """
    budgets = sorted((row for row in rows if row.run or row.scratch), key=lambda row: row.images)
    if len({row.images for row in budgets}) < 2:
        return None
    run = [(row.images, row.run) for row in budgets if row.run]
    scratch = [(row.images, row.scratch) for row in budgets if row.scratch]
    summary = f"on the test split; {WHISKERS}"
    return _beside("Data efficiency", summary, "labelled images", dict(zip(names, (run, scratch), strict=True)))


def convergence_plots(curves: Sequence[Convergence], names: tuple[str, str]) -> list[Plot]:
    """A plot a budget: both sides over images seen. A distance along the axis is a factor."""
    return [
        _beside(
            f"{one.labels} of the labels" if one.labels.endswith("%") else one.labels.replace(" ", " labels ", 1),
            f"on {one.queries:,} training images without their labels" + (f"; {WHISKERS}" if one.spreads else ""),
            "images seen",
            dict(zip(names, (one.run, one.scratch), strict=True)),
        )
        for one in curves
        if len(one.run) > 1
    ]


def _beside(title: str, summary: str, x_name: str, sides: dict[str, Side]) -> Plot:
    points = [point for side in sides.values() for point in side]
    x = logarithmic(x_name, [images for images, _ in points])
    y = linear("top-1, %", [value for _, spread in points for value in _reach(spread)])
    lines, dots = list[Line](), list[Dot]()
    for look, (name, side) in zip(("", "second"), sides.items(), strict=True):
        lines.append(line(x, y, [(images, 100 * spread.mean) for images, spread in side], name, look=look))
        for place, (images, spread) in enumerate(side):
            lines.append(line(x, y, [(images, value) for value in _reach(spread)], look=f"{look} whisker"))
            text = f"{name}, {images:,} images: {spread.percent()} %"
            label = name if place == len(side) // 2 else ""  # at an end it would leave the plot
            dots.append(dot(x, y, (images, 100 * spread.mean), text, look=look, label=label))
    return plot(title, summary, x, y, lines, dots)


def _reach(spread: Spread) -> tuple[float, float]:
    """In percent."""
    return 100 * (spread.mean - (spread.std or 0.0)), 100 * (spread.mean + (spread.std or 0.0))
