"""How much sooner fine-tuning gets where training from scratch ends: learning curves of both, by budget of labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from pipeline.evaluate.convergence import Learned, read_learned
from pipeline.evaluate.spread import Spread
from pipeline.tune.compare import Trial
from pipeline.tune.finetune import Arm

Curve = tuple[tuple[int, Spread], ...]  # images seen, top-1 over draws


@dataclass(frozen=True)
class Sooner:
    """By which factor fewer images the run needs for the final accuracy of its twin; more than `times`, if `at_least`:
    it was there when it was first judged."""

    times: float
    at_least: bool = False

    def __str__(self) -> str:
        return f"{'more than ' if self.at_least else ''}{self.times:.{0 if self.times >= 10 else 1}f}×"


@dataclass(frozen=True)
class Convergence:
    """A budget: the curves of both sides, over the draws of which both have ended."""

    labels: str
    queries: int
    run: Curve
    scratch: Curve
    sooner: Sooner | None  # of the mean curves; None: the run does not get there
    of_draws: tuple[float | None, ...]  # times, of each draw

    @property
    def spreads(self) -> bool:
        return len(self.of_draws) > 1

    @property
    def words(self) -> str:
        """As in: 10 %: the 41.0 % at which training from scratch ends are reached 4.2× sooner (each draw: …)."""
        goal = f"the {100 * self.scratch[-1][1].mean:.1f} % at which training from scratch ends are"
        each = [f"{times:.1f}×" if times else "not" for times in self.of_draws]
        draws = f" (each draw: {', '.join(each)})" if self.spreads else ""
        if self.sooner is None:
            return f"{self.labels}: {goal} not reached{draws}"
        if not self.sooner.at_least and self.sooner.times <= 1.05:
            return f"{self.labels}: {goal} reached no sooner{draws}"
        return f"{self.labels}: {goal} reached {self.sooner} sooner{draws}"


def convergence(found: Sequence[Arm], trials: Sequence[Trial]) -> list[Convergence]:
    """A budget after another; those where no pair of trials has a curve are left out."""
    known: dict[tuple[str, bool], dict[int, Learned]] = {}
    for arm in found:
        for trial in trials:
            if trial.recipe == arm.recipe and (curve := read_learned(Path(trial.run))) and curve.points:
                known.setdefault((str(arm.budget), arm.starts), {})[trial.seed] = curve
    rows = []
    for labels in dict.fromkeys(str(arm.budget) for arm in found):
        run, scratch = (known.get((labels, starts), {}) for starts in (True, False))
        draws = sorted(run.keys() & scratch.keys())
        sides = [[side[draw] for draw in draws] for side in (run, scratch)]
        curves = [_mean(side) for side in sides]
        if all(curves):
            means = [[(images, spread.mean) for images, spread in curve] for curve in curves]
            of_draws = [sooner(ours.points, theirs.points) for ours, theirs in zip(*sides, strict=True)]
            times = tuple(one.times if one else None for one in of_draws)
            rows.append(Convergence(labels, sides[0][0].queries, curves[0], curves[1], sooner(*means), times))
    return rows


def _mean(curves: list[Learned]) -> Curve:
    """Over the draws, at the images seen that all were judged after."""
    known = [dict(curve.points) for curve in curves]
    common = sorted(set.intersection(*map(set, known))) if known else []
    return tuple((images, Spread.of([one[images] for one in known])) for images in common)


def sooner(run: Sequence[tuple[int, float]], scratch: Sequence[tuple[int, float]]) -> Sooner | None:
    """Of curves of (images seen, accuracy), ascending: how much sooner `run` first has what `scratch` has in the end,
    linear between points; None: it never has."""
    end, goal = scratch[-1]
    if run[0][1] >= goal:
        return Sooner(end / run[0][0], at_least=True)
    for (before, low), (after, high) in pairwise(run):
        if high >= goal:
            return Sooner(end / (before + (after - before) * (goal - low) / (high - low)))
    return None


def restored(row: dict[str, Any]) -> Convergence:
    """Of what `dataclasses.asdict` made, as it comes from JSON."""
    curves = {side: tuple((images, Spread(**spread)) for images, spread in row[side]) for side in ("run", "scratch")}
    found = Sooner(**row["sooner"]) if row["sooner"] else None
    return Convergence(**row | curves | {"sooner": found, "of_draws": tuple(row["of_draws"])})
