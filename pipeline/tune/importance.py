"""How much each setting of a sweep matters: functional ANOVA of a random forest, beside what chance would give."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log10
from typing import Any

import numpy as np

TREES = 64
SHUFFLES = 20
LEAST, LEAST_EACH = 10, 4  # trials; below, a forest learns the trials by heart and its answer is noise

METHOD = (
    f"Functional ANOVA (Hutter et al. 2014) of a random forest of {TREES} trees over the finished trials, times the "
    "share of the variance that a forest explains of trials that it has not seen: what a setting explains alone. What "
    "is missing to 100 % is noise, or takes several settings at once. The upright line is chance: the most that a "
    f"shuffled copy of any setting got beside the true ones in {SHUFFLES} fits (Kursa and Rudnicki 2010)."
)


@dataclass(frozen=True)
class Importance:
    setting: str
    share: float  # of the variance of the scores, by this setting alone
    chance: float  # the largest share of a shuffled copy of any setting

    @property
    def clear(self) -> bool:
        return self.share > self.chance


@dataclass(frozen=True)
class Importances:
    rows: tuple[Importance, ...]  # the largest first
    trials: int
    explained: float  # R² of the forest on trials that a tree has not seen (out of bag); at most 1, and can be negative


def importances(changes: Sequence[Mapping[str, Any]], scores: Sequence[float], log: Sequence[str] = ()) -> Importances:
    """Of the settings that vary in `changes`, one a trial; those named in `log` count by their logarithm.

    Raises:
        ValueError: too few trials to tell, or nothing varies.
    """
    keys = dict.fromkeys(key for one in changes for key in one)
    columns = {key: _column([one.get(key) for one in changes], key in log) for key in keys}
    columns = {key: values for key, values in columns.items() if len(set(values)) > 1}
    least = max(LEAST, LEAST_EACH * len(columns))
    if len(scores) < least:
        raise ValueError(
            f"{len(scores)} trials have finished; fewer than {least} ({LEAST_EACH} a setting, at least {LEAST}) cannot "
            "tell which setting matters"
        )
    if not columns or len(set(scores)) < 2:
        raise ValueError("all finished trials have the same settings or the same score: nothing can be told apart")
    explained = _explained(list(columns.values()), scores)
    if explained <= 0:  # a forest of noise has a variance with shares, too
        return Importances(tuple(Importance(key, 0.0, 0.0) for key in columns), len(scores), explained)
    chance = explained * _shuffled(columns, scores)
    rows = [Importance(key, explained * share, chance) for key, share in _fanova(columns, scores).items()]
    return Importances(tuple(sorted(rows, key=lambda row: -row.share)), len(scores), explained)


def _shuffled(columns: Mapping[str, list[Any]], scores: Sequence[float]) -> float:
    """The largest share that a shuffled copy of a column gets beside all the true ones: Boruta's shadow features."""
    generator, most = np.random.default_rng(0), 0.0
    for _ in range(SHUFFLES):
        orders = {key: generator.permutation(len(scores)) for key in columns}
        copies = {f"shuffled {key}": [values[place] for place in orders[key]] for key, values in columns.items()}
        found = _fanova({**columns, **copies}, scores, trees=TREES // 4)
        most = max(most, *(found[key] for key in copies))
    return most


def _column(values: Sequence[Any], log: bool) -> list[Any]:
    """Numbers, or else words."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return [log10(value) if log else float(value) for value in values]
    return [repr(value) for value in values]


def _fanova(columns: Mapping[str, list[Any]], scores: Sequence[float], trees: int = TREES) -> dict[str, float]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    spaces: dict[str, optuna.distributions.BaseDistribution] = {
        key: optuna.distributions.CategoricalDistribution(list(dict.fromkeys(values)))
        if isinstance(values[0], str)
        else optuna.distributions.FloatDistribution(min(values), max(values))
        for key, values in columns.items()
    }
    study = optuna.create_study(direction="maximize")
    study.add_trials(
        [
            optuna.trial.create_trial(
                params={key: values[place] for key, values in columns.items()}, distributions=spaces, value=score
            )
            for place, score in enumerate(scores)
        ]
    )
    evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=trees, seed=0)
    return {key: float(share) for key, share in evaluator.evaluate(study, params=list(columns)).items()}


def _explained(columns: Sequence[list[Any]], scores: Sequence[float]) -> float:
    from sklearn.ensemble import RandomForestRegressor

    parts: list[list[float]] = []
    for values in columns:
        texts = sorted(set(values)) if isinstance(values[0], str) else []
        parts += [[float(value == text) for value in values] for text in texts] if texts else [values]
    forest = RandomForestRegressor(n_estimators=100, oob_score=True, random_state=0, min_samples_leaf=2)
    return float(forest.fit(np.array(parts).T, scores).oob_score_)
