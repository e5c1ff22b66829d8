"""Drawings of several things in one frame, ready to draw: places in percent from the top left corner, as SVG counts.

Words stand beside the SVG as HTML, so that they keep their size on a telephone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from pipeline.report.axes import Axis, Tick

NARROW, HEIGHT = 300, 220  # pixels of the smallest plot: where labels would meet
LETTER, LINE = 6.4, 15  # pixels of a label's letters


@dataclass(frozen=True)
class Dot:
    x: float
    y: float
    text: str  # shown when pointed at
    look: str = ""  # CSS class
    tint: float | None = None  # share of the way from the worst colour to the best
    label: str = ""  # shown always, where there is room
    side: str = ""  # of the dot, that its label is on; "": no room


@dataclass(frozen=True)
class Line:
    points: str  # SVG points
    text: str = ""
    look: str = ""
    tint: float | None = None


@dataclass(frozen=True)
class Plot:
    title: str
    summary: str
    x_name: str
    y_name: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...] = ()
    dots: tuple[Dot, ...] = ()


def plot(title: str, summary: str, x: Axis, y: Axis, lines: Sequence[Line] = (), dots: Sequence[Dot] = ()) -> Plot:
    """A plot over two axes; labels of dots are placed where there is room."""
    y_ticks = tuple(Tick(100 - tick.place, tick.label) for tick in y.ticks)
    return Plot(title, summary, x.name, y.name, x.ticks, y_ticks, tuple(lines), tuple(placed(dots)))


def dot(x: Axis, y: Axis, at: tuple[object, object], text: str, **more) -> Dot:
    return Dot(x.place(at[0]), 100 - y.place(at[1]), text, **more)


def line(x: Axis, y: Axis, points: Sequence[tuple[object, object]], text: str = "", **more) -> Line:
    return Line(" ".join(f"{x.place(a):.2f},{100 - y.place(b):.2f}" for a, b in points), text, **more)


def stairs(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Between points, as wide as the one before, then as high as the next: what a front reaches."""
    corners = [(after[0], before[1]) for before, after in pairwise(points)]
    return [point for pair in zip(points, corners, strict=False) for point in pair] + list(points[-1:])


def placed(dots: Sequence[Dot]) -> list[Dot]:
    """With the side of each label, the highest first: none covers another one or a dot, or leaves `NARROW` pixels."""
    places = [(one.x * NARROW / 100, one.y * HEIGHT / 100) for one in dots]
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in places]  # left, top, right, bottom
    found = list(dots)
    for number in sorted(range(len(dots)), key=lambda number: dots[number].y):
        for side, box in _boxes(*places[number], LETTER * len(dots[number].label)):
            inside = box[0] >= 0 and box[2] <= NARROW and box[1] >= -10 and box[3] <= HEIGHT + 5
            if dots[number].label and inside and not any(_meet(box, other) for other in taken):
                taken.append(box)
                found[number] = replace(dots[number], side=side)
                break
    return found


def _boxes(x: float, y: float, wide: float) -> list[tuple[str, tuple[float, float, float, float]]]:
    return [
        ("right", (x + 8, y - LINE / 2, x + 8 + wide, y + LINE / 2)),
        ("left", (x - 8 - wide, y - LINE / 2, x - 8, y + LINE / 2)),
        ("above", (x - wide / 2, y - 6 - LINE, x + wide / 2, y - 6)),
        ("below", (x - wide / 2, y + 6, x + wide / 2, y + 6 + LINE)),
    ]


def _meet(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
