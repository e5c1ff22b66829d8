"""Studies: the field's classic tables at the user's scale, with the published numbers beside ours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

from pipeline.evaluate.spread import Spread
from pipeline.experiment import Experiment
from pipeline.tune.compare import Contender, Trial

Place = tuple[str | float, ...]  # a value on each axis of a study
FEWEST = 4  # published numbers that an order is compared on


@dataclass(frozen=True)
class Point:
    """One place of the table. `published` is in percent, by the title of a score; `length` a share of the images that
    the study's points see."""

    place: Place
    experiment: Experiment
    changes: Mapping[str, Any] = field(default_factory=dict)
    published: Mapping[str, float] = field(default_factory=dict)
    length: float = 1.0


@dataclass(frozen=True)
class Study:
    """A question, the points that answer it, and what was published.

    Attributes:
        axes: names of what varies; a figure has the first along x, a curve or a row for each value of the second.
        scores: of an evaluation, by their titles; the first decides what is best.
        found: what the publication found, in a sentence.
        source: where, and on what.
        also: evaluators that are needed beside the usual ones.
        figure: curves over the first axis, one for each value of the second; bars; a matrix of both axes; or, for each
            point, a profile over the scores.
    """

    name: str
    question: str
    axes: tuple[str, ...]
    points: tuple[Point, ...]
    found: str
    source: str
    scores: Mapping[str, str]
    also: tuple[str, ...] = ()
    figure: Literal["curves", "bars", "matrix", "profiles"] = "curves"

    def contenders(self, changes: Mapping[str, Any]) -> list[Contender]:
        """The points as trials, with the same `changes` to all.

        Raises:
            ValueError: a change is what the study varies, or a point does not take it; names the point.
        """
        varied = {key for point in self.points for key in point.changes} | {"training.seed"}
        for key in changes:
            if key in varied:
                raise ValueError(f"{key} is what the study {self.name} varies: leave it out")
        found = []
        for point in self.points:
            try:
                experiment = point.experiment.override({**changes, **point.changes})
                images = int(point.length * experiment.training.images_seen)
                experiment = experiment.override({"training.images_seen": images})
                experiment.check_model()
            except ValueError as error:
                raise ValueError(f"{self.label(point)}: {error}") from None
            found.append(Contender(self.label(point), experiment))
        return found

    def label(self, point: Point) -> str:
        return ", ".join(f"{axis} {value}" for axis, value in zip(self.axes, point.place, strict=True))


@dataclass(frozen=True)
class Cell:
    """What was measured at a point: by title of a score, over the seeds that have ended."""

    point: Point
    label: str
    measured: dict[str, Spread]
    random: dict[str, float]  # the encoder before training
    images_per_second: float | None
    peak_memory_bytes: int | None
    missing: int  # trials that failed or have not ended


def cells(study: Study, trials: Sequence[Trial]) -> list[Cell]:
    """A cell a point, in the order of the study."""
    return [_cell(study, point, [one for one in trials if one.recipe == study.label(point)]) for point in study.points]


def _cell(study: Study, point: Point, trials: list[Trial]) -> Cell:
    judged = [trial.evaluation for trial in trials if trial.evaluation]
    costs = [trial.cost for trial in trials if trial.cost]
    scores = {
        title: [score for evaluation in judged if (score := evaluation.score(name)) is not None]
        for title, name in study.scores.items()
    }
    return Cell(
        point,
        study.label(point),
        measured={title: Spread.of([one.trained for one in some]) for title, some in scores.items() if some},
        random={title: fmean(one.random_encoder for one in some) for title, some in scores.items() if some},
        images_per_second=fmean(cost.images_per_second for cost in costs) if costs else None,
        peak_memory_bytes=max((cost.peak_memory_bytes for cost in costs if cost.peak_memory_bytes), default=None),
        missing=len(trials) - len(judged),
    )


def agreement(study: Study, found: Sequence[Cell]) -> list[str]:
    """Whether this scale shows the published trend: the order of all points by each score (Spearman's rank
    correlation), and the best one. A sentence a score."""
    return [line for title in study.scores if (line := _agrees(title, found))]


def _agrees(title: str, found: Sequence[Cell]) -> str | None:
    pairs = [
        (cell.label, cell.measured[title].mean, cell.point.published[title])
        for cell in found
        if title in cell.measured and title in cell.point.published
    ]
    measured = [cell for cell in found if title in cell.measured]
    if not measured:
        return None
    best = max(measured, key=lambda cell: cell.measured[title].mean)
    words = f"{title}: best here {best.label} ({best.measured[title].percent()} %)"
    if len(pairs) < 2:
        return words
    theirs = max(pairs, key=lambda pair: pair[2])
    words += f", as published ({theirs[2]})" if theirs[0] == best.label else f"; published: {theirs[0]} ({theirs[2]})"
    if len(pairs) < FEWEST:
        return words
    from scipy.stats import spearmanr

    _, ours, published = zip(*pairs, strict=True)
    order = float(spearmanr(ours, published).statistic)
    return (
        f"{words}; the order of the {len(pairs)} points agrees with theirs by ρ = {order:.2f} (Spearman; 1: the same)"
    )
