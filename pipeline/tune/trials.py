"""Trials on Ray Tune: each a process that starts a Ray Train run of its own."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.cluster import ClusterConfig
from pipeline.experiment import Experiment

DRIVER = {"CPU": 0.01}  # a trial's own process only waits; its workers hold the CPUs

Tell = Callable[[str], None]


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
    """The run directory of a trial, named by what it computes: a trial that was finished is found again."""
    return directory / "trials" / experiment.digest[:12]


def run_trials(
    trial: Callable[[dict[str, Any]], None],
    space: dict[str, Any],
    directory: Path,
    concurrent: int,
    teller: Any,
    **how,
):
    """Runs `trial` on every point of a search space of Ray Tune, which must be connected, `concurrent` at a time. Each
    finds `directory` and `sharing`, the number of trials at a time, in its config; a failing one fails alone. `how`:
    see `TuneConfig`.

    Returns:
        Tune's result of each, in the order of starting.
    """
    from ray import tune

    for name in ("ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return tune.Tuner(
        tune.with_resources(trial, DRIVER),
        param_space={**space, "directory": str(directory.absolute()), "sharing": concurrent},
        tune_config=tune.TuneConfig(max_concurrent_trials=concurrent, **how),
        run_config=tune.RunConfig(name="tune", storage_path=str(directory.absolute()), verbose=0, callbacks=[teller]),
    ).fit()


def last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1]


def teller(started: Callable[[int, Any], None], ended: Callable[[Any], None], failed: Callable[[Any], None]) -> Any:
    """Passes on what happens to the trials: how many have started with the one that starts, one that ends, one that
    fails; each as Tune's own trial."""
    from ray import tune

    class Teller(tune.Callback):
        def on_trial_start(self, iteration, trials, trial, **info) -> None:
            started(len(trials), trial)

        def on_trial_complete(self, iteration, trials, trial, **info) -> None:
            ended(trial)

        def on_trial_error(self, iteration, trials, trial, **info) -> None:
            failed(trial)

    return Teller()
