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
    f"Functional ANOVA (Hutter et al. 2014) of a random forest of {TREES} trees over the finished trials: the share of "
    "the forest's variance that a setting explains alone; what is missing to 100 % needs several settings at once. The "
    f"upright line is the most that the same setting got in {SHUFFLES} fits to shuffled scores."
)


@dataclass(frozen=True)
class Importance:
    setting: str
    share: float  # of the variance of the scores, by this setting alone
    chance: float  # the largest share with shuffled scores

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
    found = _shares(columns, scores)
    generator = np.random.default_rng(0)
    shuffled = [_shares(columns, generator.permutation(scores).tolist(), trees=TREES // 4) for _ in range(SHUFFLES)]
    rows = [Importance(key, share, max(one[key] for one in shuffled)) for key, share in found.items()]
    return Importances(
        tuple(sorted(rows, key=lambda row: -row.share)), len(scores), _explained(list(columns.values()), scores)
    )


def _column(values: Sequence[Any], log: bool) -> list[Any]:
    """Numbers, or else words."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return [log10(value) if log else float(value) for value in values]
    return [repr(value) for value in values]


def _shares(columns: Mapping[str, list[Any]], scores: Sequence[float], trees: int = TREES) -> dict[str, float]:
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
    forest = RandomForestRegressor(n_estimators=300, oob_score=True, random_state=0, min_samples_leaf=2)
    return float(forest.fit(np.array(parts).T, scores).oob_score_)
