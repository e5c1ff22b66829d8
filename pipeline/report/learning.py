"""Learning curves of several runs: a plot a method, a line a run; from the records in the runs' directories."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np

from pipeline.report.axes import linear
from pipeline.report.plots import Plot, line, plot
from pipeline.train.record import read_events, read_metrics

POINTS = 120  # of a line; more rows are averaged in groups

Points = list[tuple[float, float]]  # images seen, value


@dataclass(frozen=True)
class Learned:
    method: str
    run: str  # told apart from others of the method, as "seed 1"
    loss: Points
    probes: Points  # k-NN accuracy of held-back training images, in percent


def read_learning(method: str, name: str, run: Path) -> Learned | None:
    """What a run learned so far; None: it left no record."""
    try:
        rows, events = read_metrics(run), read_events(run)
    except OSError:
        return None
    if not rows:
        return None
    loss = [(row["images_seen"], row["loss"]) for row in rows if isfinite(row.get("loss") or float("nan"))]
    batch = rows[-1]["images_seen"] / rows[-1]["step"]
    judged = {event["step"]: event["knn"] for event in events if event["event"] == "probe"}
    probes = [(step * batch, 100 * knn) for step, knn in sorted(judged.items()) if knn is not None]  # None: no labels
    return Learned(method, name, loss, probes)


def loss_plots(learned: Sequence[Learned]) -> list[Plot]:
    """A plot a method, each with axes of its own: losses of different methods do not compare."""
    return [_plot(method, {one.run: one.loss for one in runs}) for method, runs in _by_method(learned).items()]


def probe_plots(learned: Sequence[Learned]) -> list[Plot]:
    """A plot a method, all with the same axis; none where no checkpoint was judged while training went on."""
    values = [value for one in learned for _, value in one.probes]
    return [
        _plot(method, {one.run: one.probes for one in runs}, values)
        for method, runs in _by_method([one for one in learned if one.probes]).items()
    ]


def _by_method(learned: Iterable[Learned]) -> dict[str, list[Learned]]:
    found: dict[str, list[Learned]] = {}
    for one in learned:
        if one.loss:
            found.setdefault(one.method, []).append(one)
    return found


def _plot(title: str, runs: dict[str, Points], values: Sequence[float] = ()) -> Plot:
    x = linear("images seen", [seen for points in runs.values() for seen, _ in points], from_zero=True)
    y = linear("", values or [value for points in runs.values() for _, value in points])
    first = next(iter(runs.values()))
    summary = f"from {first[0][1]:.3g} to {first[-1][1]:.3g}" + (f"; {len(runs)} runs" if len(runs) > 1 else "")
    lines = [
        line(x, y, thinned(points), name, look="" if place == 0 else "second")
        for place, (name, points) in enumerate(runs.items())
    ]
    return plot(title, summary, x, y, lines)


def thinned(points: Points) -> Points:
    """At most `POINTS`, each the mean of a group."""
    groups = np.array_split(np.asarray(points, dtype=float), min(POINTS, len(points)))
    return [(float(x), float(y)) for x, y in (group.mean(0) for group in groups)]
