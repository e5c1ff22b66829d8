"""The data-efficiency curve of a report: accuracy of fine-tuning and of training from scratch over labelled images."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log10

from matplotlib.ticker import EngFormatter, MaxNLocator

from pipeline.tune.comparison import Spread
from pipeline.tune.finetune_table import Row

MARGIN = 0.08  # of a decade or more, left and right of the outermost points


@dataclass(frozen=True)
class Side:
    """Places are percent of the plot, from its top left corner as SVG counts."""

    name: str
    line: str  # SVG points
    whiskers: tuple[tuple[float, float, float], ...]  # x, and the y of mean ± one standard deviation over draws
    points: tuple[tuple[float, float, str], ...]  # x, y, what it says


@dataclass(frozen=True)
class Efficiency:
    sides: tuple[Side, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]


def efficiency_curve(rows: Sequence[Row], names: tuple[str, str]) -> Efficiency | None:
    """Both sides over the number of labelled images, on a logarithmic axis; None: of fewer than two budgets.

    Args:
        names: of the side that starts from the run, and of the one from scratch.
    """
    budgets = sorted((row for row in rows if row.run or row.scratch), key=lambda row: row.images)
    if len({row.images for row in budgets}) < 2:
        return None
    spreads = [spread for row in budgets for spread in (row.run, row.scratch) if spread]
    lowest = min(spread.mean - (spread.std or 0) for spread in spreads)
    highest = max(spread.mean + (spread.std or 0) for spread in spreads)
    ticks = [float(tick) for tick in MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(100 * lowest, 100 * highest)]
    left, right = log10(budgets[0].images), log10(budgets[-1].images)
    room = MARGIN * (right - left)

    def x_of(images: int) -> float:
        return 100 * (log10(images) - left + room) / (right - left + 2 * room)

    def y_of(share: float) -> float:
        return 100 * (ticks[-1] - 100 * share) / (ticks[-1] - ticks[0])

    def side(name: str, values: list[tuple[int, Spread]]) -> Side:
        return Side(
            name=name,
            line=" ".join(f"{x_of(images):.2f},{y_of(spread.mean):.2f}" for images, spread in values),
            whiskers=tuple(
                (x_of(images), y_of(spread.mean + spread.std), y_of(spread.mean - spread.std))
                for images, spread in values
                if spread.std is not None
            ),
            points=tuple(
                (x_of(images), y_of(spread.mean), f"{name}, {images:,} images: {spread.percent()} %")
                for images, spread in values
            ),
        )

    count = EngFormatter(sep="")
    return Efficiency(
        sides=(
            side(names[0], [(row.images, row.run) for row in budgets if row.run]),
            side(names[1], [(row.images, row.scratch) for row in budgets if row.scratch]),
        ),
        x_ticks=tuple((x_of(images), count(images)) for images in dict.fromkeys(row.images for row in budgets)),
        y_ticks=tuple((y_of(tick / 100), f"{tick:g} %") for tick in ticks),
    )
