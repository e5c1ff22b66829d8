"""Sweeps: Ray Tune starts a Ray Train run a trial, and judges each by k-NN on held-out training images."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cluster import ClusterConfig
from pipeline.experiment import Experiment, build_experiment
from pipeline.run import Run
from pipeline.tune.space import Space

DRIVER = {"CPU": 0.01}  # a trial's own process only waits; its workers hold the CPUs


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
    tell: Callable[[str], None] = lambda line: None,
) -> list[Trial]:
    """Runs every combination of the lists; with ranges, `num_samples` draws of lists and ranges (Optuna's TPE).

    Ray must be connected; `tell` receives a line whenever a trial starts or ends. A trial's run directory is named by
    its experiment: a trial that was finished before, in this sweep or an earlier one in the same directory, is not
    trained again. A failing trial fails alone.

    Returns:
        The trials, best first; also written to `sweep.json`.
    """
    from ray import tune

    _quiet()
    tuner = tune.Tuner(
        tune.with_resources(_trial, DRIVER),
        param_space={
            "experiment": experiment.model_dump(mode="json"),
            "directory": str(directory.absolute()),
            "changes": _search_space(space),
        },
        tune_config=tune.TuneConfig(
            metric="knn",
            mode="max",
            num_samples=num_samples,
            max_concurrent_trials=concurrent,
            search_alg=_searcher(space, concurrent),
        ),
        run_config=tune.RunConfig(
            name="tune", storage_path=str(directory.absolute()), verbose=0, callbacks=[_teller(tell)]
        ),
    )
    results = tuner.fit()
    trials = [_outcome(result, experiment, directory) for result in results]
    trials.sort(key=lambda trial: -1.0 if trial.knn is None else trial.knn, reverse=True)
    (directory / "sweep.json").write_text(json.dumps([vars(trial) for trial in trials], indent=1))
    return trials


def concurrent_trials(cluster: ClusterConfig, available_cpus: float) -> int:
    """How many trials fit at once. Drivers that took the last CPU would wait for their own workers for ever.

    Raises:
        ValueError: not one fits.
    """
    fitting = int(available_cpus // (cluster.cpus + DRIVER["CPU"]))
    if fitting < 1:
        raise ValueError(
            f"a trial needs {cluster.cpus} CPUs (workers × cpus_per_worker + data_cpus) and a little for its driver, "
            f"but the cluster has {available_cpus:.0f}: lower cluster.workers, or add nodes"
        )
    return fitting


def trial_run(experiment: Experiment, directory: Path) -> Path:
    return directory / "trials" / experiment.digest[:12]


def _trial(config: dict[str, Any]) -> None:
    """Runs in a process of its own on the cluster."""
    from ray import tune

    from pipeline.evaluate.validation import validation_knn
    from pipeline.train.fit import fit
    from pipeline.train.record import read_metrics

    experiment = build_experiment(config["experiment"]).override(_plain(config["changes"]))
    run = Run.prepare(trial_run(experiment, Path(config["directory"])), experiment, ["feral", "sweep"])
    fit(experiment, run)
    rows = read_metrics(run.path)
    rates = sorted(row["images_per_second"] for row in rows)
    tune.report({"knn": validation_knn(run), "loss": rows[-1]["loss"], "images_per_second": rates[len(rates) // 2]})


def _teller(tell: Callable[[str], None]):
    from ray import tune

    class Teller(tune.Callback):
        def on_trial_start(self, iteration, trials, trial, **info) -> None:
            tell(f"trial {len(trials)} starts: {_words(trial)}")

        def on_trial_complete(self, iteration, trials, trial, **info) -> None:
            tell(f"k-NN {trial.last_result['knn']:.1%}: {_words(trial)}")

        def on_trial_error(self, iteration, trials, trial, **info) -> None:
            tell(f"failed: {_words(trial)}; its errors are in {trial.path}")

    return Teller()


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
        return Trial(changes, run, None, None, None, str(result.error).strip().splitlines()[-1])
    metrics = result.metrics
    return Trial(changes, run, metrics["knn"], metrics["loss"], metrics["images_per_second"])


def _quiet() -> None:
    import logging

    for name in ("ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
