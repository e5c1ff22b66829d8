"""The curves of a report, ready to draw: points and ticks in percent of the plot, and what one sees in words."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
from matplotlib.ticker import EngFormatter, MaxNLocator

from pipeline.report.axes import Tick, round_numbers
from pipeline.train.record import PLACE, Rows, attempts

POINTS = 400  # more rows than this are averaged in groups, with their range as a band
NOT_CURVES = (*PLACE, "images_seen", "peak_memory_bytes")
FIRST = ("loss", "learning_rate", "images_per_second", "data_wait_ratio")  # the others follow as they were logged
PROBED = ("probe_accuracy", "embedding_rank", "embedding_mean_cosine", "embedding_uniformity", "embedding_alignment")
TITLES = {
    "images_per_second": "images per second",
    "data_wait_ratio": "waiting for data",
    "probe_accuracy": "k-NN of held-back training images",
    "embedding_rank": "effective rank of embeddings",
    "embedding_mean_cosine": "mean cosine of embeddings",
    "embedding_uniformity": "uniformity of embeddings",
    "embedding_alignment": "alignment of two views",
}


@dataclass(frozen=True)
class Curve:
    """One metric over images seen. Places are percent of the plot, from its top left corner as SVG counts."""

    title: str
    summary: str
    line: str  # SVG points
    band: str  # SVG points of the range of averaged groups; "" where every row is drawn
    single: bool  # a dot, no line
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    restarts: tuple[float, ...]  # where a later attempt took over
    x_name: str = ""  # images seen, as all curves of a report
    y_name: str = ""
    dots: tuple[()] = ()


def draw_curves(rows: Rows, probes: Sequence[dict[str, Any]] = ()) -> list[Curve]:
    """A curve for every metric of `metrics.jsonl`: loss, learning rate and speed first. Then what probes of checkpoints
    found, by `probe_rows`. No rows, no curves."""
    names = dict.fromkeys(name for row in rows for name in row if name not in NOT_CURVES)
    ordered = [name for name in FIRST if name in names] + [name for name in names if name not in FIRST]
    ends = [part[-1]["images_seen"] for part in attempts(rows)[:-1]]
    curves = [_curve(name, rows, ends, rows[-1]["images_seen"]) for name in ordered]
    curves += [_curve(name, probes, ends, rows[-1]["images_seen"]) for name in PROBED if rows]
    return [curve for curve in curves if curve is not None]


def probe_rows(events: Rows, batch_size: int) -> Rows:
    """What probes found of each step; of one that was judged twice, the later."""
    found = {event["step"]: event for event in events if event["event"] == "probe"}
    return [
        {
            "images_seen": step * batch_size,
            "probe_accuracy": event["knn"],
            **{name: event["health"].get(name.removeprefix("embedding_")) for name in PROBED[1:]},
        }
        for step, event in sorted(found.items())
    ]


def _curve(name: str, rows: Sequence[dict[str, Any]], ends: list[int], right: float) -> Curve | None:
    known = [(row["images_seen"], row[name]) for row in rows if _is_number(row.get(name))]
    if not known:
        return None
    x, y = np.array(known, dtype=float).T
    groups = np.array_split(np.arange(len(x)), min(POINTS, len(x)))
    low, high = (np.array([pick(y[group]) for group in groups]) for pick in (np.min, np.max))
    x_mean, y_mean = (np.array([values[group].mean() for group in groups]) for values in (x, y))
    y_values = round_numbers(float(y.min()), float(y.max()), from_zero=name in FIRST[1:])
    bottom, top = y_values[0], y_values[-1]
    show = _format(name, y_values)

    def points(xs: Iterable[float], ys: Iterable[float]) -> str:
        return " ".join(
            f"{100 * a / right:.2f},{100 * (top - b) / (top - bottom):.2f}" for a, b in zip(xs, ys, strict=True)
        )

    band = points([*x_mean, *x_mean[::-1]], [*high, *low[::-1]]) if len(x) > POINTS else ""
    count = EngFormatter(sep="")
    return Curve(
        title=TITLES.get(name, name.replace("_", " ")),
        summary=_summary(name, x, y, show),
        line=points(x_mean, y_mean) if len(x) > 1 else " ".join([points(x, y)] * 2),
        band=band,
        single=len(x) == 1,
        x_ticks=tuple(Tick(100 * v / right, count(v)) for v in MaxNLocator(4).tick_values(0, right) if v <= right),
        y_ticks=tuple(Tick(100 * (top - v) / (top - bottom), show(v)) for v in y_values),
        restarts=tuple(100 * end / right for end in ends),
    )


def _summary(name: str, x: np.ndarray, y: np.ndarray, show: Callable[[float], str]) -> str:
    """What the curve says, for those who read only this."""
    if name == "images_per_second":
        return f"median {np.median(y):.0f}; a tenth of the time below {np.quantile(y, 0.1):.0f}"
    if name == "data_wait_ratio":
        return f"median {show(float(np.median(y)))} of the time, at most {show(float(y.max()))}"
    if name == "learning_rate":
        return f"peak {show(y.max())} at {x[y.argmax()]:,.0f} images, now {show(y[-1])}"
    if len(y) == 1:
        return f"{show(y[0])} in the only row"
    best = f"; lowest {show(y.min())} at {x[y.argmin()]:,.0f} images" if name == "loss" else ""
    return f"from {show(y[0])} to {show(y[-1])}{best}"


def _format(name: str, ticks: list[float]) -> Callable[[float], str]:
    """Three digits, or as many as tell the ticks apart."""
    is_share = name.endswith(("_ratio", "_accuracy"))

    def show(value: float, digits: int) -> str:
        if is_share:
            return f"{100 * value:.{digits}g} %"
        return f"{value:,.0f}" if abs(value) >= 1000 and digits == 3 else f"{value:.{digits}g}"  # no 1e+03

    enough = next((d for d in range(3, 9) if len({show(v, d) for v in ticks}) == len(ticks)), 9)
    return lambda value: show(value, enough)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and isfinite(value)
