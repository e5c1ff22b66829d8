"""Which settings a sweep tries next, and which trials it stops early. It knows no Ray: Optuna answers, and what was
drawn is noted, so that the same command goes on where it was killed.

Every draw is a function of the seed, its number and the trials that have ended before it: a sweep that was killed draws
what it would have drawn.
"""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.experiment import Experiment
from pipeline.train.record import append_event, read_events
from pipeline.tune.space import Range, Space

if TYPE_CHECKING:
    import optuna

Kind = Literal["grid", "random", "tpe"]
Stop = Literal["none", "asha", "median"]

ETA = 3  # ASHA keeps the best third of a rung (Li et al. 2020, arXiv 1810.05934, use 3 or 4)
SHARES: dict[Stop, tuple[float, ...]] = {  # of the images of a trial, after which it is judged
    "none": (),
    "asha": (1 / ETA**2, 1 / ETA),
    "median": (0.2, 0.4, 0.6, 0.8),
}
MEDIAN_OF = 4  # trials that must have finished before one is stopped for being below their median
PATIENCE = 20  # draws of nothing new before one is made at random; ten times as many, and nothing new is left


@dataclass(frozen=True)
class Draw:
    """Settings that were drawn. `refused`: why they cannot be trained."""

    number: int
    changes: dict[str, Any]
    experiment: Experiment | None
    refused: str | None = None


class Search:
    """Draws settings, and is told what came of them."""

    def __init__(
        self,
        space: Space,
        build: Callable[[dict[str, Any]], Experiment],
        directory: Path,
        *,
        kind: Kind,
        stop: Stop = "none",
        with_cost: bool = False,
        images: int = 1,
        seed: int = 0,
    ) -> None:
        """`build` makes the experiment of some changes, or raises a ValueError why there is none. `images` of a whole
        trial. Draws are noted in `events.jsonl` of `directory`; those that stand there are made again."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self.build, self.directory = space, build, directory
        self.kind, self.stop, self.seed = kind, stop, seed
        self.rungs = [max(1, int(share * images)) for share in SHARES[stop]]  # in images seen
        self.study = optuna.create_study(
            directions=["maximize", "minimize"] if with_cost else ["maximize"], pruner=_pruner(stop, self.rungs)
        )
        varied: dict[str, Any] = {**space.lists, **space.ranges}
        self.distributions = {key: _distribution(varied[key]) for key in sorted(varied)}
        self.trials: dict[int, optuna.Trial] = {}
        self.drawn: list[Draw] = []  # those that can be trained, and those that were refused
        self._seen: set[str] = set()  # digests of experiments, and changes that were refused
        self._left = iter(space.combinations()) if kind == "grid" else None
        for event in read_events(directory):
            if event["event"] == "draw":
                self._take(self._ask(event["params"]))

    def __iter__(self) -> Iterator[Draw]:
        """New draws, also those that are refused, until nothing new is left."""
        while (draw := self._next()) is not None:
            yield draw

    def report(self, draw: Draw, images: int, score: float) -> bool:
        """What a trial is worth after so many images; answers whether it is to stop. Only the first report after each
        rung counts, as if it were made there: so trials with other batch sizes compare."""
        rung = max((rung for rung in self.rungs if rung <= images), default=None)
        known = self.study.get_trials(deepcopy=False)[draw.number].intermediate_values
        if rung is None or rung in known:
            return False
        self.trials[draw.number].report(score, rung)
        return self.trials[draw.number].should_prune()

    def tell(self, draw: Draw, values: Sequence[float] | None, *, bad: bool = False) -> None:
        """What came of a draw: its score, and cost where that counts; None: it has none. Then it counts as one of the
        worst if it is `bad`, else it is left out of what is learned."""
        from optuna.trial import TrialState

        if values is not None:
            self.study.tell(self.trials[draw.number], list(values))
        else:
            self.study.tell(self.trials[draw.number], state=TrialState.PRUNED if bad else TrialState.FAIL)

    def _next(self) -> Draw | None:
        if self._left is not None:
            known = [draw.changes for draw in self.drawn]
            for changes in self._left:
                if changes not in known and (draw := self._new(self._ask(self._params(changes)))) is not None:
                    return draw
            return None
        tries = 0
        while tries < 10 * PATIENCE and not self._exhausted:
            trial = self._ask(None, at_random=tries >= PATIENCE)
            if (draw := self._new(trial)) is not None:
                return draw
            tries += 1
        return None

    @property
    def _exhausted(self) -> bool:
        combinations = 1
        for values in self.space.lists.values():
            combinations *= len(values)
        return not self.space.ranges and len(self._seen) >= combinations

    def _ask(self, params: dict[str, Any] | None, *, at_random: bool = False) -> "optuna.Trial":
        from optuna.samplers import RandomSampler, TPESampler

        number = len(self.study.get_trials(deepcopy=False))
        seed = random.Random(f"{self.seed} {number}").getrandbits(32)
        self.study.sampler = RandomSampler(seed) if at_random or self.kind != "tpe" else TPESampler(seed=seed)
        if params is not None:
            self.study.enqueue_trial(params)
        return self.study.ask(self.distributions)

    def _params(self, changes: dict[str, Any]) -> dict[str, Any]:
        """As Optuna takes them: values of lists as JSON, for it knows plain values only."""
        return {key: json.dumps(value) if key in self.space.lists else value for key, value in changes.items()}

    def _changes(self, params: dict[str, Any]) -> dict[str, Any]:
        """In the order of the space, for people: drawn numbers have four digits."""
        found = {}
        for key in self.space.varied:
            value = params[key]
            found[key] = json.loads(value) if key in self.space.lists else _short(value)
        return found

    def _new(self, trial: "optuna.Trial") -> Draw | None:
        """The draw that a trial of Optuna's is, noted; None: it was there before."""
        append_event(self.directory, "draw", params=trial.params)
        return self._take(trial)

    def _take(self, trial: "optuna.Trial") -> Draw | None:
        changes = self._changes(trial.params)
        try:
            experiment, refused = self.build(changes), None
            name = experiment.digest
        except ValueError as error:
            experiment, refused = None, str(error)
            name = json.dumps(changes, sort_keys=True)
        draw = Draw(trial.number, changes, experiment, refused)
        self.trials[draw.number] = trial
        if name in self._seen:
            self.tell(draw, None)
            return None
        self._seen.add(name)
        if refused:
            self.tell(draw, None, bad=True)  # so that the searcher learns to avoid it
        self.drawn.append(draw)
        return draw


def _short(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.4g}")


def _distribution(values: "list[Any] | Range") -> "optuna.distributions.BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(values, list):
        return CategoricalDistribution([json.dumps(value) for value in values])
    if values.whole:
        return IntDistribution(int(values.low), int(values.high), log=values.log)
    return FloatDistribution(values.low, values.high, log=values.log)


def _pruner(stop: Stop, rungs: Sequence[int]) -> "optuna.pruners.BasePruner":
    from optuna.pruners import MedianPruner, NopPruner, SuccessiveHalvingPruner

    if stop == "asha":
        return SuccessiveHalvingPruner(min_resource=rungs[0], reduction_factor=ETA)
    if stop == "median":
        return MedianPruner(n_startup_trials=MEDIAN_OF, n_warmup_steps=0)
    return NopPruner()
