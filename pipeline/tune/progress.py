"""What a person is told while a comparison runs."""

import time
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pipeline.gate import HEADLINES
from pipeline.train.goodput import duration
from pipeline.tune.trials import Tell

if TYPE_CHECKING:
    from pipeline.tune.compare import Trial


class Progress:
    """Tells when a trial starts and ends, and how long the others may take."""

    def __init__(
        self,
        trials: "list[Trial]",
        left: Sequence[int],
        concurrent: int,
        tell: Tell,
        read: "Callable[[int], Trial]",
        record: "Callable[[Sequence[Trial]], object]",
    ) -> None:
        self.trials, self.left, self.concurrent = trials, set(left), concurrent
        self.tell, self.read, self.record = tell, read, record
        self.began: dict[int, float] = {}
        self.seconds: dict[str, list[float]] = {}  # by recipe, of those that ended
        for trial in trials:
            if trial.cost and trial.evaluation:
                self.seconds.setdefault(trial.recipe, []).append(trial.cost.seconds + trial.evaluation.seconds)

    def starts(self, count: int, trial: Any) -> None:
        self.began[_place(trial)] = time.monotonic()
        self.tell(f"{self._name(trial)} starts; {self._rest()}")

    def ends(self, trial: Any) -> None:
        place = _place(trial)
        seconds = time.monotonic() - self.began[place]
        self.seconds.setdefault(self.trials[place].recipe, []).append(seconds)
        self.left.discard(place)
        self.trials[place] = self.read(place)
        evaluation = self.trials[place].evaluation
        scores = [score for score in evaluation.scores if score.name in HEADLINES] if evaluation else []
        words = ", ".join(f"{score.name} {score.trained:.1%} (random {score.random_encoder:.1%})" for score in scores)
        self.tell(f"{self._name(trial)}: {words} after {duration(seconds)}; {self._rest()}")
        self.record(self.trials)

    def fails(self, trial: Any) -> None:
        self.left.discard(_place(trial))
        self.tell(f"{self._name(trial)} failed, its errors are in {trial.path}; {self._rest()}")

    def _name(self, trial: Any) -> str:
        planned = self.trials[_place(trial)]
        return f"{planned.recipe} seed {planned.seed}"

    def _rest(self) -> str:
        """How many trials have not ended, and how long they take, as far as those that have ended tell."""
        words = f"{len(self.left)} of {len(self.trials)} trials left"
        if not self.seconds or not self.left:
            return words
        known = {recipe: fmean(seconds) for recipe, seconds in self.seconds.items()}
        rest = sum(known.get(self.trials[place].recipe, fmean(known.values())) for place in self.left)
        return f"{words}, about {duration(rest / self.concurrent)}"


def _place(trial: Any) -> int:
    return trial.config["place"]
