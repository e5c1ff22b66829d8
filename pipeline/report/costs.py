"""What a score costs: a plot a kind of cost, with the front of those that nothing beats in both."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.report.axes import axis_of, linear
from pipeline.report.plots import Plot, dot, line, plot, stairs
from pipeline.tune.front import front


@dataclass(frozen=True)
class Candidate:
    """What is shown as a dot. A cost that is None is not known."""

    name: str
    score: float  # higher is better
    seconds: float | None
    images_per_second: float | None
    bytes: float | None
    images: float | None = None
    parameters: float | None = None


@dataclass(frozen=True)
class Cost:
    field: Literal["seconds", "images_per_second", "bytes", "images", "parameters"]
    title: str
    more_is_better: bool = False


COSTS = (
    Cost("seconds", "Training time"),
    Cost("images_per_second", "Speed", more_is_better=True),
    Cost("bytes", "Peak memory"),
    Cost("images", "Images seen"),
    Cost("parameters", "Encoder parameters"),
)


def cost_plots(candidates: Sequence[Candidate], score_title: str) -> list[Plot]:
    """A plot for each cost that is known of two candidates or more, and not the same of all."""
    plots = []
    for cost in COSTS:
        known = [(one, value) for one in candidates if (value := getattr(one, cost.field)) is not None]
        if len({value for _, value in known}) > 1:
            plots.append(_plot(cost, known, score_title))
    return plots


def _plot(cost: Cost, known: list[tuple[Candidate, float]], score_title: str) -> Plot:
    unit, scale = _unit(cost, max(value for _, value in known))
    points = [(value / scale, 100 * one.score) for one, value in known]
    x = axis_of(f"{cost.title.lower()}, {unit}", [value for value, _ in points])
    y = linear(f"{score_title}, %", [score for _, score in points], near_zero=False)
    best = front(points, cost.more_is_better)
    dots = [
        dot(
            x, y, at, f"{one.name}: {at[1]:.1f} %, {at[0]:.4g} {unit}",
            look="best" if place in best else "", label=one.name if place in best else "",
        )
        for place, ((one, _), at) in enumerate(zip(known, points, strict=True))
    ]  # fmt: skip
    reached = " · ".join(f"{known[place][0].name} {points[place][1]:.1f}\u00a0%" for place in best)
    summary = f"On the front, the cheapest first: {reached}"
    ends = stairs([points[place] for place in best])
    return plot(cost.title, summary, x, y, [line(x, y, ends, look="front")], sorted(dots, key=lambda one: one.look))


def _unit(cost: Cost, most: float) -> tuple[str, float]:
    if cost.field == "seconds":
        return ("h", 3600) if most > 7200 else ("min", 60) if most > 180 else ("s", 1)
    if cost.field == "bytes":
        return ("GB", 1e9) if most >= 1e9 else ("MB", 1e6)
    if cost.field == "parameters":
        return "millions", 1e6
    return ("images/s" if cost.field == "images_per_second" else "images"), 1
