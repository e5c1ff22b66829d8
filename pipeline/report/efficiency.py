"""The data-efficiency curve of a report: accuracy of fine-tuning and of training from scratch over labelled images."""

from collections.abc import Sequence

from pipeline.report.axes import linear, logarithmic
from pipeline.report.plots import Dot, Line, Plot, dot, line, plot
from pipeline.tune.comparison import Spread
from pipeline.tune.finetune_table import Row


def efficiency_plot(rows: Sequence[Row], names: tuple[str, str]) -> Plot | None:
    """Both sides over the number of labelled images, with a standard deviation over draws to both sides of each mean;
    None: of fewer than two budgets.

    Args:
        names: of the side that starts from the run, and of the one from scratch.
    """
    budgets = sorted((row for row in rows if row.run or row.scratch), key=lambda row: row.images)
    if len({row.images for row in budgets}) < 2:
        return None
    sides: dict[str, list[tuple[int, Spread]]] = {
        names[0]: [(row.images, row.run) for row in budgets if row.run],
        names[1]: [(row.images, row.scratch) for row in budgets if row.scratch],
    }
    x = logarithmic("labelled images", [row.images for row in budgets])
    y = linear("top-1, %", [value for side in sides.values() for _, spread in side for value in _reach(spread)])
    lines, dots = list[Line](), list[Dot]()
    for look, (name, side) in zip(("", "second"), sides.items(), strict=True):
        lines.append(line(x, y, [(images, 100 * spread.mean) for images, spread in side], name, look=look))
        for place, (images, spread) in enumerate(side):
            lines.append(line(x, y, [(images, value) for value in _reach(spread)], look=f"{look} whisker"))
            text = f"{name}, {images:,} images: {spread.percent()} %"
            label = name if place == len(side) // 2 else ""  # at an end it would leave the plot
            dots.append(dot(x, y, (images, 100 * spread.mean), text, look=look, label=label))
    return plot("Data efficiency", "on the test split; whiskers: a standard deviation over draws", x, y, lines, dots)


def _reach(spread: Spread) -> tuple[float, float]:
    """In percent."""
    return 100 * (spread.mean - (spread.std or 0.0)), 100 * (spread.mean + (spread.std or 0.0))
