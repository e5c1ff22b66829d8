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
    trials                      in the order of drawing, those of the search before the repeats:
        number, changes, seed   {key: value} of `space`; seed is training.seed
        run                     its run directory, relative to that of the sweep; null: refused
        state                   finished | stopped (early) | failed | refused (cannot be trained) | running (or waiting)
        repeat                  null: of the search; "best" or "default": trained with a fresh seed after it
        score, scores           null and {}: not finished; scores has every metric that was measured
        curve                   [[images seen, k-NN], ...] while it trained, on fewer images: comparable between trials,
                                not with `score`
        images, seconds         of training, steps that count
        overhead_seconds        wall-clock of the trial beside these: start, saving, waiting, judging, what was lost
        overhead                {bucket of `pipeline.train.goodput`: seconds}
        images_per_second, peak_memory_bytes, loss, parameters    null: not known
        error                   of a failed or refused one, a line
    front                       numbers of the trials on the Pareto front of score and cost; []: without cost
    not_started                 trials that were asked for and that the budget left out; null: no number was asked for
    budget                      null, or why no more trials were started
    best                        null: not known yet. Else
        changes, number         of the trial with the best score; {} and null: the recipe's own settings
        score_mean, score_std, seeds, scores       of fresh seeds; null, null, 0, []: not confirmed
        default                 the same four of the recipe's own settings with these seeds, null: not confirmed
        confirmed               whether it is better than these by more than seeds and images explain
        verdict                 this in a sentence
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.experiment import Experiment, build_experiment
from pipeline.run import Run
from pipeline.tune.space import Space
from pipeline.tune.trials import Tell, last_line, run_trials, teller, trial_run


@dataclass(frozen=True)
class Trial:
    """One setting that was tried."""

    changes: dict[str, Any]  # the varied settings
    run: str  # its run directory
    knn: float | None  # accuracy on held-out training images; None: it failed
    loss: float | None
    images_per_second: float | None
    error: str | None = None


def sweep(
    experiment: Experiment,
    space: Space,
    directory: Path,
    num_samples: int,
    concurrent: int,
    tell: Tell = lambda line: None,
) -> list[Trial]:
    """Runs every combination of the lists; with ranges, `num_samples` draws of lists and ranges (Optuna's TPE).

    Ray must be connected; `tell` receives a line whenever a trial starts or ends. A trial's run directory is named by
    its experiment: a trial that was finished before, in this sweep or an earlier one in the same directory, is not
    trained again. A failing trial fails alone.

    Returns:
        The trials, best first; also written to `sweep.json`.
    """
    results = run_trials(
        _trial,
        {"experiment": experiment.model_dump(mode="json"), "changes": _search_space(space)},
        directory,
        concurrent,
        teller(
            lambda count, trial: tell(f"trial {count} starts: {_words(trial)}"),
            lambda trial: tell(f"k-NN {trial.last_result['knn']:.1%}: {_words(trial)}"),
            lambda trial: tell(f"failed: {_words(trial)}; its errors are in {trial.path}"),
        ),
        metric="knn",
        mode="max",
        num_samples=num_samples,
        search_alg=_searcher(space, concurrent),
    )
    trials = [_outcome(result, experiment, directory) for result in results]
    trials.sort(key=lambda trial: -1.0 if trial.knn is None else trial.knn, reverse=True)
    (directory / "sweep.json").write_text(json.dumps([vars(trial) for trial in trials], indent=1))
    return trials


def _trial(config: dict[str, Any]) -> None:
    """Runs in a process of its own on the cluster."""
    from ray import tune

    from pipeline.evaluate.validation import validation_knn
    from pipeline.train.cost import cost_of
    from pipeline.train.fit import fit
    from pipeline.train.record import read_metrics

    experiment = build_experiment(config["experiment"]).override(_plain(config["changes"]))
    run = Run.prepare(trial_run(experiment, Path(config["directory"])), experiment, ["feral", "sweep"])
    fit(experiment, run, sharing=config["sharing"])
    rows = read_metrics(run.path)
    rate = cost_of(rows).images_per_second
    tune.report({"knn": validation_knn(run, config["sharing"]), "loss": rows[-1]["loss"], "images_per_second": rate})


def _words(trial: Any) -> str:
    return " ".join(f"{key}={json.dumps(value)}" for key, value in _plain(trial.config["changes"]).items())


def _search_space(space: Space) -> dict[str, Any]:
    from ray import tune

    draw = {"uniform": tune.uniform, "loguniform": tune.loguniform}
    ranges = {key: draw[bounds.kind](bounds.low, bounds.high) for key, bounds in space.ranges.items()}
    # Lists travel as JSON: a searcher may take a list value for a nested space.
    texts = {key: [json.dumps(value) for value in values] for key, values in space.choices.items()}
    choose = tune.choice if ranges else tune.grid_search
    return {**{key: choose(values) for key, values in texts.items()}, **ranges}


def _plain(changes: dict[str, Any]) -> dict[str, Any]:
    return {key: json.loads(value) if isinstance(value, str) else value for key, value in changes.items()}


def _searcher(space: Space, concurrent: int):
    """Optuna for ranges; a grid needs no searcher."""
    if not space.ranges:
        return None
    from ray.tune.search import ConcurrencyLimiter
    from ray.tune.search.optuna import OptunaSearch

    return ConcurrencyLimiter(OptunaSearch(seed=0), max_concurrent=concurrent)


def _outcome(result: Any, experiment: Experiment, directory: Path) -> Trial:
    changes = _plain(result.config["changes"])
    run = str(trial_run(experiment.override(changes), directory))
    if result.error is not None:
        return Trial(changes, run, None, None, None, last_line(result.error))
    metrics = result.metrics
    return Trial(changes, run, metrics["knn"], metrics["loss"], metrics["images_per_second"])
