"""Sweeps: Ray Tune starts a Ray Train run a trial, and judges each on held-back training images.

`sweep.json`, in the sweep's directory, is written anew whenever a trial has ended:

    recipe, command             the command is a list of words
    settings                    {key: value} of all trials
    space                       {key: {"values": [...]} or {"kind": "loguniform", "low": 1e-4, "high": 1e-2}}; kinds:
                                uniform, loguniform, randint, lograndint (whole numbers, both ends included)
    search, stop                "grid", "random" or "tpe"; "none", "asha" or "median"
    metric                      "knn" or "linear": which of the scores is `score`, the more the better, in [0, 1]
    cost                        null, "seconds" or "memory": what is minimised beside it
    images_seen                 of a whole trial; null where it varies
    concurrent                  trials at a time: more than 1, and seconds do not compare with those of other sweeps
    trials                      in the order of drawing, those of the search before the repeats:
        number, changes, seed   {key: value} of `space`; seed is training.seed
        run                     its run directory, relative to that of the sweep; null: refused
        state                   finished | stopped (early) | failed | refused (cannot be trained) | running (or waiting)
        repeat                  null: of the search; "best" or "default": trained with a fresh seed after it
        score, scores           null and {}: not finished; scores has every metric that was measured
        queries                 held-back images that `score` is the accuracy on
        curve                   [[images seen, k-NN], ...] while it trained and at its end, on fewer images: comparable
                                between trials, not with `score`; only the end, if nothing was stopped early
        images, seconds         of training, steps that count
        overhead_seconds        wall-clock of the trial beside these: start, saving, waiting, judging, what was lost
        overhead                {bucket of `pipeline.train.goodput`: seconds}
        images_per_second, peak_memory_bytes, loss, parameters (of the
                                encoder)    null: not known
        error                   of a failed or refused one, a line
    front                       numbers of the trials on the Pareto front of score and cost; []: without cost
    not_started                 trials that were asked for and that the budget left out; null: no number was asked for
    why_not                     null, or why no more trials were started
    best                        null: not known yet. Else
        changes, number         of the trial with the best score; {} and null: the recipe's own settings
        score_mean, score_std, seeds, scores       of fresh seeds; null, null, 0, []: not confirmed
        default                 the same four of the recipe's own settings with these seeds, null: not confirmed
        confirmed               whether it is better than these by more than seeds and images explain
        verdict                 this in a sentence
"""

import json
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from pipeline.evaluate.validation import Metric
from pipeline.experiment import Experiment
from pipeline.ingest.store import Store
from pipeline.ingest.write import replaced
from pipeline.redaction import typed_command
from pipeline.train.record import append_event, read_events
from pipeline.tune.confirm import conclude, fresh_seeds, repeats
from pipeline.tune.front import front
from pipeline.tune.search import SHARES, Kind, Search, Stop
from pipeline.tune.sources import Budget, Cost, Listed, Running, Searched, Setting
from pipeline.tune.space import Space
from pipeline.tune.trial import Judging, Trial, run_trial
from pipeline.tune.trials import Tell, run_source

FILE, OVERRIDE = "sweep.json", "best.json"


class Interrupted(Exception):
    """The command was told to stop; trials that ran go on with the same command."""


@dataclass(frozen=True)
class Plan:
    """What is asked of a sweep."""

    recipe: str
    base: Experiment  # with the settings of all trials, fitted to its store
    space: Space
    search: Kind
    stop: Stop = "none"
    metric: Metric = "knn"
    cost: Cost | None = None
    trials: int | None = None  # to draw; None: every combination of a grid, else as many as the budget allows
    budget: Budget = field(default_factory=Budget)
    seeds: int = 3  # fresh ones, that the best is trained again with

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: what is asked for does not go together.
        """
        bounded = self.trials is not None or self.budget != Budget()
        if self.search == "grid" and self.space.ranges:
            raise ValueError(
                f"{next(iter(self.space.ranges))} is a range, which has no grid: list its values, or use --search tpe"
            )
        if self.search == "grid" and self.trials is not None:
            raise ValueError("a grid tries every combination: leave --trials out, or draw with --search tpe or random")
        if self.search != "grid" and not bounded:
            raise ValueError(
                f"--search {self.search} draws without end: say how many with --trials N, or give a budget (--images, "
                "--hours, --worker-hours)"
            )
        if self.stop != "none" and self.cost:
            raise ValueError(
                f"--stop {self.stop} and --cost {self.cost}: what a trial costs is not known of one that is stopped "
                "early: use one of them"
            )
        if self.stop != "none" and "training.images_seen" in self.space.varied:
            raise ValueError(
                f"--stop {self.stop} compares trials after the same images seen, and with training.images_seen varied "
                "their learning rates stand elsewhere on their curves: leave one of them out"
            )

    @property
    def name(self) -> str:
        """Names what is searched, and how; the number of trials, the budget and the seeds may change."""
        content = [self.base.digest, self.space.described(), self.search, self.stop, self.cost]
        return f"sweep-{self.recipe}-" + sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]

    def build(self, changes: dict[str, Any], store: Store) -> Experiment:
        """The experiment of some changes.

        Raises:
            ValueError: it cannot be trained.
        """
        if "training.start_from" in changes:
            changes = {**changes, "training.start_digest": None}
        experiment = self.base.override(changes)
        if experiment.data.selection != self.base.data.selection:
            store = experiment.data.open()
        experiment = experiment.fitted(store)
        experiment.check(store)
        return experiment


def sweep(
    plan: Plan, store: Store, directory: Path, possible: int | None, concurrent: int, tell: Tell = lambda line: None
) -> dict[str, Any]:
    """Searches, trains the best settings and the recipe's own again with fresh seeds, and says whether they are better.

    Ray must be connected; `tell` receives a line whenever a trial starts or ends. A trial that ended before, in this
    sweep or an earlier command of it, is not trained again; one that was begun goes on. A failing trial fails alone.
    `possible`: how many combinations of a grid can be trained.

    Returns:
        What `sweep.json` holds. `best.json` holds the best settings, with those of all trials.

    Raises:
        ValueError: `directory` holds another sweep, or every trial failed.
        Interrupted: Ctrl-C.
    """
    begin(plan, directory)
    rungs = tuple(max(1, int(share * plan.base.training.images_seen)) for share in SHARES[plan.stop])
    setting = Setting(
        directory,
        Judging(plan.metric, plan.base.data.selection, rungs),
        typed_command(),
        concurrent,
        tell,
        lambda: write(),
    )
    search = Search(
        plan.space, lambda changes: plan.build(changes, store), directory, kind=plan.search, stop=plan.stop,
        with_cost=plan.cost is not None, images=plan.base.training.images_seen,
    )  # fmt: skip
    most = possible if plan.search == "grid" else plan.trials
    searched = Searched(setting, search, most, plan.budget, plan.cost)
    confirming: Listed | None = None
    best: dict[str, Any] | None = None

    def write() -> dict[str, Any]:
        found = describe(plan, searched, confirming, best, concurrent)
        _write(directory / FILE, found)
        return found

    if before := sum(trial.ended for trial in searched.trials.values()):
        tell(f"{before} trial(s) had ended before")
    _run(searched, directory, concurrent)
    if searched.why:
        tell(f"no more trials are started: {searched.why}")
    finished = [trial for trial in searched.trials.values() if trial.score is not None]
    if not finished:
        write()
        first = next((trial.error for trial in searched.trials.values() if trial.error), "none was started")
        raise ValueError(f"no trial finished; the first: {first}")
    top = max(finished, key=lambda trial: trial.score or 0.0)
    experiment = searched.planned[top.number][1]
    try:
        base: Experiment | None = plan.build({}, store)
    except ValueError:
        base = None
    used = [trial.seed for trial in searched.trials.values() if trial.seed is not None]
    again = repeats(experiment, top.changes, base, fresh_seeds(used, plan.seeds))
    confirming = Listed(setting, again, first=max(searched.trials) + 1)
    if confirming.waiting:
        tell(f"the best of the search with fresh seeds: {len(confirming.waiting)} more trials")
        _run(confirming, directory, concurrent)
    same = all(repeat == "best" for _, _, repeat in again) and base is not None
    best = conclude(top, top.changes, list(confirming.trials.values()), same, plan.metric, directory)
    _write(directory / OVERRIDE, best_override(plan, best))
    return write()


def _run(source: Searched | Listed, directory: Path, concurrent: int) -> None:
    if not run_source(run_trial, source, directory, concurrent) or source.running:
        raise Interrupted(f"interrupted, with {len(source.running)} trial(s) begun; the same command goes on")


def begin(plan: Plan, directory: Path) -> None:
    """Notes what is searched in `events.jsonl`, or compares it with what is noted there.

    Raises:
        ValueError: `directory` holds another sweep; says what differs.
    """
    mine = {
        "recipe": plan.recipe,
        "settings": plan.base.digest,
        "space": plan.space.described(),
        "search": plan.search,
        "stop": plan.stop,
        "cost": plan.cost,
    }
    there = next((event for event in read_events(directory) if event["event"] == "sweep"), None)
    if there is None:
        append_event(directory, "sweep", **mine)
        return
    plain = json.loads(json.dumps(mine))
    if differ := [name for name, value in plain.items() if there[name] != value]:
        raise ValueError(
            f"{directory} holds another sweep (other {', '.join(differ)}): give another directory (--to), or the "
            "command that it began with"
        )


def describe(
    plan: Plan, searched: Searched, confirming: Running | None, best: dict[str, Any] | None, concurrent: int
) -> dict[str, Any]:
    """What `sweep.json` holds."""
    trials = list(searched.trials.values())
    return {
        "recipe": plan.recipe,
        "command": searched.setting.command,
        "settings": plan.space.fixed,
        "space": plan.space.described(),
        "search": plan.search,
        "stop": plan.stop,
        "metric": plan.metric,
        "cost": plan.cost,
        "images_seen": None if "training.images_seen" in plan.space.varied else plan.base.training.images_seen,
        "concurrent": concurrent,
        "trials": [vars(trial) for trial in (*trials, *(confirming.trials.values() if confirming else ()))],
        "front": front_of(trials, plan.cost) if plan.cost else [],
        "not_started": searched.not_started,
        "why_not": searched.why,
        "best": best,
    }


def front_of(trials: list[Trial], cost: Cost) -> list[int]:
    """The numbers of the trials that no other is better than in score and cost, the cheapest first."""
    known = [
        (trial.number, value, trial.score)
        for trial in trials
        if trial.score is not None and (value := trial.cost(cost)) is not None
    ]
    return [known[place][0] for place in front([(value, score) for _, value, score in known])]


def best_override(plan: Plan, best: dict[str, Any]) -> dict[str, Any]:
    """The settings of all trials and the best ones, for `feral pretrain RECIPE --override FILE`."""
    return {**plan.space.fixed, **best["changes"]}


def _write(path: Path, content: Any) -> None:
    with replaced(path) as file:
        file.write(json.dumps(content, indent=1).encode())
