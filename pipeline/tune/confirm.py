"""Whether the best settings of a search are better than the recipe's own: both trained with fresh seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluate.spread import Spread, reach
from pipeline.evaluate.validation import Metric
from pipeline.experiment import Experiment
from pipeline.tune.sources import TITLES
from pipeline.tune.trial import Trial, read_hits

Repeats = list[tuple[dict[str, Any], Experiment, str]]  # changes, experiment, "best" or "default"


@dataclass(frozen=True)
class Arm:
    """One setting with its fresh seeds, those that have finished."""

    seeds: list[int]
    scores: list[float]

    @property
    def spread(self) -> Spread | None:
        return Spread.of(self.scores) if self.scores else None

    def described(self) -> dict[str, Any]:
        """As in `sweep.json`."""
        spread = self.spread
        return {
            "score_mean": spread.mean if spread else None,
            "score_std": spread.std if spread else None,
            "seeds": len(self.seeds),
            "scores": self.scores,
        }


def repeats(best: Experiment, changes: dict[str, Any], base: Experiment | None, seeds: Sequence[int]) -> Repeats:
    """The trials that confirm a search: seed by seed, the best settings and the recipe's own, where these can be
    trained and are others."""
    own = base is not None and _unseeded(base) != _unseeded(best)
    found: Repeats = []
    for seed in seeds:
        found.append((changes, best.override({"training.seed": seed}), "best"))
        if own and base is not None:
            found.append(({}, base.override({"training.seed": seed}), "default"))
    return found


def fresh_seeds(used: Sequence[int], count: int) -> list[int]:
    """The first ones that the search has not used."""
    first = max(used, default=-1) + 1
    return list(range(first, first + count))


def conclude(
    best: Trial, changes: dict[str, Any], trials: Sequence[Trial], same: bool, metric: Metric, directory: Path
) -> dict[str, Any]:
    """The entry `best` of `sweep.json`: see `pipeline.tune.sweep`. `trials`: the repeats; `same`: the best settings are
    the recipe's own."""
    arms = {
        name: [trial for trial in trials if trial.repeat == name and trial.score is not None]
        for name in ("best", "default")
    }
    tried, own = (Arm([t.seed or 0 for t in arm], [t.score or 0.0 for t in arm]) for arm in arms.values())
    found = {"changes": changes, "number": best.number, **tried.described(), "default": own.described()}
    found |= {"confirmed": False}
    title = TITLES[metric]
    if not trials or not tried.scores:
        missing = "give --seeds 3" if not trials else "all of these failed"
        return found | {
            "default": None,
            "verdict": f"highest {title} of the search: {best.score or 0:.1%}; not confirmed by fresh seeds: {missing}",
        }
    assert tried.spread is not None
    words = f"{title} {tried.spread.percent()} % with {len(tried.scores)} fresh seed(s)"
    if same:
        return found | {"default": None, "verdict": f"the recipe's own settings are the best that were tried: {words}"}
    if own.spread is None:
        return found | {
            "default": None,
            "verdict": f"{words}; the recipe's own settings could not be trained beside it",
        }
    words += f", the recipe's own settings {own.spread.percent()} %"
    if len(tried.scores) < 2 or len(own.scores) < 2:
        return found | {"verdict": f"{words}: one seed tells nothing from chance: give --seeds 3"}
    difference = tried.spread.mean - own.spread.mean
    bound = reach([tried.spread, own.spread], _image_noise(arms, metric, directory))
    words += f": a difference of {100 * difference:+.1f} points, where seeds and images explain ± {100 * bound:.1f}"
    if difference > bound:
        return found | {"confirmed": True, "verdict": f"better than the recipe: {words}"}
    if difference < -bound:
        return found | {
            "changes": {},
            "number": None,
            **own.described(),
            "verdict": f"worse than the recipe, whose own settings are kept: {words}",
        }
    return found | {"verdict": f"not to be told from the recipe: {words}; more seeds may tell (--seeds 6)"}


def _image_noise(arms: dict[str, list[Trial]], metric: Metric, directory: Path) -> float:
    """The variance of the difference that the choice of held-back images makes: they are the same ones, so it is of the
    difference image by image."""
    rates = [
        np.mean([read_hits(directory / (t.run or ""), metric, t.queries or 0) for t in arm], axis=0)
        for arm in arms.values()
    ]
    return float(np.var(rates[0] - rates[1], ddof=1) / len(rates[0]))


def _unseeded(experiment: Experiment) -> str:
    return experiment.override({"training.seed": 0}).digest
