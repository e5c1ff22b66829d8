"""Scores as dots on tracks: a line a method or encoder, a column a score; places in percent of the column's axis."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.evaluate.spread import Sign
from pipeline.report.axes import Axis, linear


@dataclass(frozen=True)
class Judgement:
    """A score, in percent: `low` to `high` is its spread or interval, `random` that of the encoder before training."""

    value: float
    low: float
    high: float
    random: float
    pixels: float
    sign: Sign  # of the score beside `random`
    text: str


@dataclass(frozen=True)
class Mark:
    mean: float
    low: float
    wide: float
    random: float
    sign: Sign
    text: str


@dataclass(frozen=True)
class Track:
    title: str
    axis: Axis
    pixels: float
    marks: tuple[Mark | None, ...]  # one a line; None: it has no such score


def track(title: str, found: Sequence[Judgement | None]) -> Track | None:
    """A column; None where nobody has the score. Raw pixels are the same for all but for rounding."""
    known = [one for one in found if one is not None]
    if not known:
        return None
    pixels = sum(one.pixels for one in known) / len(known)
    ends = [value for one in known for value in (one.low, one.high, one.random)]
    axis = linear(f"{title}, %", [*ends, pixels], near_zero=False)
    return Track(title, axis, axis.place(pixels), tuple(_mark(axis, one) if one else None for one in found))


def _mark(axis: Axis, one: Judgement) -> Mark:
    low, high = axis.place(one.low), axis.place(one.high)
    return Mark(axis.place(one.value), low, high - low, axis.place(one.random), one.sign, one.text)
