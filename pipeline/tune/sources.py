"""Where the trials of a sweep come from: drawn by a search, or listed."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from pipeline.evaluate.validation import Metric
from pipeline.experiment import Experiment
from pipeline.train.attempts import request_stop
from pipeline.train.goodput import duration
from pipeline.tune.search import Draw, Search
from pipeline.tune.trial import Judging, Trial, diverged, read_trial
from pipeline.tune.trials import Tell, trial_run

Cost = Literal["seconds", "memory"]

TITLES: dict[Metric, str] = {"knn": "k-NN", "linear": "linear probe"}
MAX_REFUSED = 100  # draws in a row that cannot be trained


@dataclass(frozen=True)
class Setting:
    """All that the trials of a sweep have in common."""

    directory: Path
    judging: Judging
    command: list[str]
    concurrent: int
    tell: Tell
    record: Callable[[], object]  # called whenever a trial has begun or ended


@dataclass(frozen=True)
class Budget:
    """After how much no trial is started any more; None: no bound."""

    images: int | None = None  # seen, by all trials
    hours: float | None = None  # since this command began
    worker_hours: float | None = None  # of all trials, with their overhead


class Running:
    """The trials that run, and what became of them: what all sources share. `planned`: by number."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.planned: dict[int, tuple[dict[str, Any], Experiment, str | None]] = {}  # changes, experiment, repeat
        self.trials: dict[int, Trial] = {}
        self.running: set[int] = set()  # when the source has run dry, those that were interrupted

    def plan(self, number: int, changes: dict[str, Any], experiment: Experiment, repeat: str | None = None) -> Trial:
        """Takes a trial on: as far as it had come before."""
        self.planned[number] = (changes, experiment, repeat)
        self.trials[number] = found = self.read(number)
        if not found.ended:
            self.trials[number] = replace(found, state="running", error=None)  # it will be tried again
        return self.trials[number]

    def read(self, number: int, error: str | None = None) -> Trial:
        changes, experiment, repeat = self.planned[number]
        setting = self.setting
        return read_trial(number, changes, experiment, setting.directory, setting.judging.metric, repeat, error)

    def config(self, number: int) -> dict[str, Any]:
        self.running.add(number)
        return {
            "number": number,
            "experiment": self.planned[number][1].model_dump_json(),
            "judging": vars(self.setting.judging),
            "command": self.setting.command,
        }

    def started(self, number: int) -> None:
        self.setting.tell(f"trial {number} starts: {self.words(number)}{self._left()}")
        self.setting.record()

    def reported(self, number: int, result: dict[str, Any]) -> None:
        pass

    def ended(self, number: int, error: str | None) -> None:
        trial = self.read(number, error)
        if trial.state == "running":
            return  # interrupted
        self.trials[number] = trial
        self.running.discard(number)
        took = f"after {duration(trial.seconds + trial.overhead_seconds)}"
        title = TITLES[self.setting.judging.metric]
        if trial.score is not None:
            self.setting.tell(f"trial {number}: {title} {trial.score:.1%} {took}: {self.words(number)}")
        elif trial.state == "stopped":
            self.setting.tell(f"trial {number} stopped early, at {trial.images} images {took}: {self.words(number)}")
        else:
            self.setting.tell(f"trial {number} failed {took}: {trial.error}; it is in {trial.run}")
        self.settle(trial)
        self.setting.record()

    def settle(self, trial: Trial) -> None:
        """A trial has ended."""

    def words(self, number: int) -> str:
        changes, experiment, repeat = self.planned[number]
        shown = " ".join(f"{key}={value}" for key, value in changes.items())
        return f"{shown or 'the recipe as it is'}, seed {experiment.training.seed}" if repeat else shown

    @property
    def left(self) -> int | None:
        """How many trials have not ended; None: not known."""
        return None

    def _left(self) -> str:
        took = [trial.seconds + trial.overhead_seconds for trial in self.trials.values() if trial.ended]
        if not self.left:
            return ""
        words = f"; {self.left} left"
        return words + (f", about {duration(fmean(took) * self.left / self.setting.concurrent)}" if took else "")


class Listed(Running):
    """Trials that are known beforehand; those that had ended are not trained again."""

    def __init__(
        self, setting: Setting, listed: Sequence[tuple[dict[str, Any], Experiment, str | None]], first: int = 0
    ) -> None:
        super().__init__(setting)
        for number, (changes, experiment, repeat) in enumerate(listed, first):
            self.plan(number, changes, experiment, repeat)
        self.waiting = [number for number, trial in self.trials.items() if not trial.ended]

    def next(self) -> dict[str, Any] | None:
        return self.config(self.waiting.pop(0)) if self.waiting else None

    @property
    def left(self) -> int | None:
        return len(self.waiting) + len(self.running)


class Searched(Running):
    """Trials that a search draws, until so many were drawn, nothing new is left, or the budget is used."""

    def __init__(self, setting: Setting, search: Search, most: int | None, budget: Budget, cost: Cost | None) -> None:
        super().__init__(setting)
        self.search, self.most, self.budget, self.cost = search, most, budget, cost
        self.began = time.monotonic()
        self.why: str | None = None  # no more trials are started, though more were asked for
        self.draws = {draw.number: draw for draw in search.drawn}
        self.waiting: list[int] = []
        for draw in search.drawn:
            if self._taken(draw) and self.trials[draw.number].ended:
                self.settle(self.trials[draw.number])
            elif draw.experiment is not None:
                self.waiting.append(draw.number)

    def next(self) -> dict[str, Any] | None:
        number = self.waiting.pop(0) if self.waiting else self._drawn()
        if number is None:
            return None
        self.why = self._over_budget(self.planned[number][1])
        if self.why:
            self.waiting.insert(0, number)
            return None
        return self.config(number)

    def reported(self, number: int, result: dict[str, Any]) -> None:
        if result.get("score") is None:
            return
        images, score = result["images"], result["score"]
        stop = self.search.report(self.draws[number], images, score)
        self.setting.tell(f"trial {number}: {score:.1%} after {images} images" + (": it is stopped" if stop else ""))
        if stop:
            request_stop(trial_run(self.planned[number][1], self.setting.directory))

    def settle(self, trial: Trial) -> None:
        draw = self.draws[trial.number]
        for images, score in trial.curve:
            self.search.report(draw, images, score)  # what was not told while it ran, of an earlier command
        if trial.score is None:
            bad = trial.state == "stopped" or diverged(trial, self.setting.directory)
            self.search.tell(draw, None, bad=bad)
        elif self.cost:
            self.search.tell(draw, [trial.score, trial.cost(self.cost) or 0.0])
        else:
            self.search.tell(draw, [trial.score])

    @property
    def left(self) -> int | None:
        if self.most is None:
            return None
        return self.most - sum(self.trials[number].state != "running" for number in self.planned)

    @property
    def not_started(self) -> int | None:
        """Trials that were asked for, and that nothing but the budget kept from being started."""
        return None if self.most is None else self.most - len(self.planned) + len(self.waiting) if self.why else 0

    def _drawn(self) -> int | None:
        """The number of a new draw that can be trained."""
        refused = 0
        while self.most is None or len(self.planned) < self.most:
            draw = next(iter(self.search), None)
            if draw is None:
                return None
            if self._taken(draw):
                return draw.number
            self.setting.tell(f"refused, it cannot be trained: {draw.changes}: {draw.refused}")
            refused += 1
            if refused == MAX_REFUSED:
                self.why = f"{MAX_REFUSED} draws in a row cannot be trained, the last: {draw.refused}"
                return None
        return None

    def _taken(self, draw: Draw) -> bool:
        """Takes a draw on; False: it cannot be trained, and is only counted."""
        self.draws[draw.number] = draw
        if draw.experiment is None:
            self.trials[draw.number] = Trial(
                draw.number, draw.changes, seed=None, run=None, state="refused", error=draw.refused
            )
            return False
        self.plan(draw.number, draw.changes, draw.experiment)
        return True

    def _over_budget(self, coming: Experiment) -> str | None:
        budget = self.budget
        if budget.images is not None:
            begun = [trial.images for number, trial in self.trials.items() if number not in self.running]
            begun += [self.planned[number][1].training.images_seen for number in self.running]
            if sum(begun) + coming.training.images_seen > budget.images:
                return (
                    f"{sum(begun)} of --images {budget.images} are used, and a trial sees {coming.training.images_seen}"
                )
        if budget.hours is not None and time.monotonic() - self.began > 3600 * budget.hours:
            return f"--hours {budget.hours:g} are over"
        if budget.worker_hours is not None:
            used = sum(
                (trial.seconds + trial.overhead_seconds) * self.planned[number][1].cluster.workers / 3600
                for number, trial in self.trials.items()
                if number in self.planned
            )
            if used > budget.worker_hours:
                return f"{used:.2f} of --worker-hours {budget.worker_hours:g} are used"
        return None
