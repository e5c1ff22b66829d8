"""Distributions of what was measured, kept beside dropped: as data, and as points for SVG in percent of the plot."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import EngFormatter

from pipeline.report.axes import log_ticks, ticks_inside

BINS = 48


@dataclass(frozen=True)
class Quantity:
    """Something that is measured of every sample. A limit that is None is taken from the values."""

    name: str
    title: str
    unit: str = ""
    log: bool = True
    whole: bool = False  # whole numbers: no bin lies between two of them
    low: float | None = None  # what lies below is counted in the first bin
    high: float | None = None


@dataclass(frozen=True)
class Drawing:
    """A histogram to draw; places are percent of the plot, from its top left corner as SVG counts."""

    kept: str  # SVG points of a closed outline; "" if there are none
    dropped: str
    ticks: tuple[tuple[float, str], ...]
    lines: tuple[tuple[float, str], ...]  # thresholds
    summary: str


def histogram(
    quantity: Quantity, values: np.ndarray, kept: np.ndarray, thresholds: Sequence[tuple[str, float]] = ()
) -> dict[str, Any]:
    """Counts of kept and dropped values per bin, with their medians (None: there are none).

    Args:
        values: (n,) numbers; what is not finite is left out. kept: (n,) bool.
        thresholds: (label, value); the plot reaches as far as they do.
    """
    values = values.astype(np.float64)
    finite = np.isfinite(values)
    values, kept = values[finite], kept[finite]
    edges = _edges(quantity, np.concatenate([values, [value for _, value in thresholds]]))
    groups = {"kept": values[kept], "dropped": values[~kept]}
    counts = {name: np.histogram(np.clip(group, edges[0], edges[-1]), edges)[0] for name, group in groups.items()}
    return {
        "name": quantity.name,
        "title": quantity.title,
        "unit": quantity.unit,
        "log": quantity.log,
        "whole": quantity.whole,
        "edges": [float(f"{edge:.6g}") for edge in edges],
        **{name: count.tolist() for name, count in counts.items()},
        **{f"{name}_median": float(np.median(group)) if len(group) else None for name, group in groups.items()},
        "thresholds": [{"label": label, "value": value} for label, value in thresholds],
    }


def _edges(quantity: Quantity, values: np.ndarray) -> np.ndarray:
    """(b + 1,) ascending, around all values."""
    low = quantity.low if quantity.low is not None else float(values.min(initial=np.inf))
    high = quantity.high if quantity.high is not None else float(values.max(initial=-np.inf))
    low, high = (low, high) if low < np.inf and high > -np.inf else (1.0, 2.0)  # no values
    if not quantity.log:
        return np.linspace(low, high, BINS + 1)
    low = max(low, 1e-6)
    high = max(high, low)
    if high < 1.5 * low:  # all much the same: show them in the middle
        low, high = low / 1.5, high * 1.5
    if quantity.whole:
        return np.unique(np.round(np.geomspace(max(1, np.floor(low)), np.floor(high) + 1, BINS + 1))) - 0.5
    return np.geomspace(low, high, BINS + 1)


def drawing(histogram: dict[str, Any]) -> Drawing:
    """Both groups as outlines, each as shares of itself: 50 dropped of a million can be seen too."""
    edges = np.array(histogram["edges"])
    scale = np.log10 if histogram["log"] else np.asarray
    left, right = scale(edges[[0, -1]])
    shares = {name: np.array(histogram[name]) / max(1, sum(histogram[name])) for name in ("kept", "dropped")}
    top = max(share.max() for share in shares.values()) or 1.0

    def place(value: float) -> float:
        return float(100 * (scale(value) - left) / (right - left))

    def outline(share: np.ndarray) -> str:
        if not share.any():
            return ""
        x = np.repeat([place(edge) for edge in edges], 2)
        y = np.concatenate([[100], np.repeat(100 - 92 * share / top, 2), [100]])
        return " ".join(f"{a:.2f},{b:.2f}" for a, b in zip(x, y, strict=True))

    whole = histogram["whole"]  # then a threshold, a least value, stands before its bin
    ticks = (log_ticks if histogram["log"] else ticks_inside)(float(edges[0]), float(edges[-1]))
    return Drawing(
        kept=outline(shares["kept"]),
        dropped=outline(shares["dropped"]),
        ticks=tuple((place(value), _label(value)) for value in ticks if not whole or value == int(value)),
        lines=tuple((place(line["value"] - 0.5 * whole), line["label"]) for line in histogram["thresholds"]),
        summary=_summary(histogram),
    )


def _label(value: float) -> str:
    return EngFormatter(sep="")(value) if value >= 1000 else f"{value:g}"


def _summary(histogram: dict[str, Any]) -> str:
    """The medians, for those who read only this."""
    unit = f" {histogram['unit']}" if histogram["unit"] else ""
    parts = [
        f"{name} {histogram[f'{name}_median']:,.4g}{unit}"
        for name in ("kept", "dropped")
        if histogram[f"{name}_median"] is not None
    ]
    return f"median: {', '.join(parts)}" if parts else "no values"
