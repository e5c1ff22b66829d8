"""Axes of drawings: where a value stands, in percent of the axis, and its ticks; linear, logarithmic, of categories."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Any

from matplotlib.ticker import EngFormatter, MaxNLocator

DECADE = 10  # positive numbers that reach over so much are drawn on a logarithmic axis


@dataclass(frozen=True)
class Tick:
    place: float  # percent of the axis
    label: str


@dataclass(frozen=True)
class Axis:
    """`place` gives percent, 0 at the low end."""

    name: str
    scale: Callable[[Any], float]
    low: float
    high: float
    ticks: tuple[Tick, ...]
    categories: bool = False

    def place(self, value: Any) -> float:
        return 100 * (self.scale(value) - self.low) / (self.high - self.low)


def axis_of(name: str, values: Sequence[Any], log: bool = False) -> Axis:
    """The axis that fits values: of categories, unless all are numbers; logarithmic if `log`, or if they reach far."""
    if not values or not all(_is_number(value) for value in values):
        return of_categories(name, values)
    if min(values) > 0 and max(values) > min(values) and (log or max(values) >= DECADE * min(values)):
        return logarithmic(name, values)
    return linear(name, values)


def linear(name: str, values: Sequence[float], *, from_zero: bool = False, near_zero: bool = True) -> Axis:
    """From round number to round number around the values; see `round_numbers`."""
    ticks = round_numbers(min(values), max(values), from_zero, near_zero)
    return _axis(name, float, ticks[0], ticks[-1], ticks)


def logarithmic(name: str, values: Sequence[float]) -> Axis:
    low, high = min(values) / 1.15, max(values) * 1.15
    return _axis(name, log10, low, high, log_ticks(low, high))


def of_categories(name: str, values: Sequence[Any]) -> Axis:
    """Each value at a place of its own: numbers in their order, others in that of first appearance."""
    shown = list(dict.fromkeys(map(json.dumps, values)))
    if all(_is_number(value) for value in values):
        shown.sort(key=float)
    places = {text: float(place) for place, text in enumerate(shown)}
    ticks = tuple(Tick(100 * (place + 0.5) / max(1, len(shown)), text) for place, text in enumerate(shown))
    return Axis(name, lambda value: places[json.dumps(value)], -0.5, max(1, len(shown)) - 0.5, ticks, True)


def _axis(name: str, scale: Callable[[Any], float], low: float, high: float, ticks: Sequence[float]) -> Axis:
    plain = Axis(name, scale, scale(low), scale(high), ())
    return Axis(name, scale, plain.low, plain.high, tuple(Tick(plain.place(value), short(value)) for value in ticks))


def round_numbers(low: float, high: float, from_zero: bool = False, near_zero: bool = True) -> list[float]:
    """About five round numbers around two values; from zero also where these come near it, unless `near_zero` is not
    wanted."""
    if low >= 0 and (from_zero or (near_zero and low < high / 2) or low == high > 0):
        low = 0.0
    if low == high:
        low, high = low - 1, high + 1
    ticks = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [0.0 if abs(value) < 1e-12 else float(value) for value in ticks]


def ticks_inside(low: float, high: float) -> list[float]:
    """Round numbers between two, about four."""
    ticks = [float(tick) for tick in MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(low, high)]
    return [tick for tick in ticks if low <= tick <= high]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two positive ones, about four."""
    if high <= 5 * low:
        return ticks_inside(low, high)
    decades = range(floor(log10(low)), ceil(log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [tick for decade in decades for step in steps if low <= (tick := step * 10.0**decade) <= high]
        if len(ticks) <= 5:
            return ticks
    return ticks[:: -(-len(ticks) // 5)]


def short(value: float) -> str:
    """As in 0.2, 128, 1.5k."""
    return EngFormatter(sep="")(value) if abs(value) >= 1000 else f"{value:.4g}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
