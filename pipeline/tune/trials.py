"""Trials on Ray Tune: each a process that starts a Ray Train run of its own."""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from pipeline.cluster import ClusterConfig
from pipeline.experiment import Experiment

# What a trial's own process holds: it only waits, so no CPU, which its workers could then not have. It runs beside the
# command, on the node that no trial outlives anyway.
DRIVER = {"CPU": 0, "node:__internal_head__": 0.001}

Tell = Callable[[str], None]


def concurrent_trials(cluster: ClusterConfig, resources: Mapping[str, float]) -> int:
    """How many trials fit at once into the resources of a cluster, each with its workers and the CPUs that read for
    them. More would wait for each other's workers, or starve the reading.

    Raises:
        ValueError: not one fits; says what is missing.
    """
    workers = cluster.worlds[0]
    wanted: dict[str, float] = {"CPU": cluster.cpus}
    wanted |= {name: workers * amount for name, amount in cluster.worker_resources.items()}
    if cluster.use_gpu:
        wanted["GPU"] = workers
    for name, amount in wanted.items():
        if resources.get(name, 0) < amount:
            of = " (workers × cpus_per_worker + data_cpus)" if name == "CPU" else ""
            raise ValueError(
                f"a trial needs {amount:g} {name}{'s' if name in ('CPU', 'GPU') else ''}{of}, but the cluster has "
                f"{resources.get(name, 0):g}: lower cluster.workers, or add nodes"
            )
    return min(int(resources[name] // amount) for name, amount in wanted.items() if amount)


def trial_run(experiment: Experiment, directory: Path) -> Path:
    """The run directory of a trial, named by what it computes: a trial that was finished is found again."""
    return directory.absolute() / "trials" / experiment.digest[:12]


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

    for name in ("ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it prints the trace of a trial that fails; we, a line
    return tune.Tuner(
        tune.with_resources(trial, DRIVER),
        param_space={**space, "directory": str(directory.absolute()), "sharing": concurrent},
        tune_config=tune.TuneConfig(max_concurrent_trials=concurrent, **how),
        run_config=tune.RunConfig(name="tune", storage_path=str(directory.absolute()), verbose=0, callbacks=[teller]),
    ).fit()


class Source(Protocol):
    """Says which trial comes next, and is told what becomes of each; a trial is known by its number."""

    def next(self) -> dict[str, Any] | None:
        """The config of the next trial, with its `number`; None: no more are started."""

    def started(self, number: int) -> None: ...

    def reported(self, number: int, result: dict[str, Any]) -> None:
        """A trial has called `tune.report`."""

    def ended(self, number: int, error: str | None) -> None:
        """`error`: what it died of, if it did; a line."""


def run_source(trial: Callable[[dict[str, Any]], None], source: Source, directory: Path, concurrent: int) -> bool:
    """Runs `trial` on what a source gives, until it gives no more, as `run_trials` does. `asked`, in the config, is the
    time when Tune was given the trial. Answers False if it was interrupted before."""
    from ray import tune
    from ray.tune.search import Searcher

    coming: list[dict[str, Any] | None] = [source.next()]
    if coming == [None]:
        return True

    class Asks(Searcher):
        def suggest(self, trial_id: str) -> Any:
            config = coming.pop() if coming else source.next()
            if config is None:
                coming.append(None)  # Tune may ask again
                return Searcher.FINISHED
            return {**config, "asked": time.time()}

        def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
            pass  # the callback below tells it, and what of

        def save(self, checkpoint_path: str) -> None:
            pass  # Tune's own snapshots are never read

    class Tells(tune.Callback):
        def on_trial_start(self, iteration, trials, trial, **info) -> None:
            source.started(trial.config["number"])

        def on_trial_result(self, iteration, trials, trial, result, **info) -> None:
            source.reported(trial.config["number"], result)

        def on_trial_complete(self, iteration, trials, trial, **info) -> None:
            source.ended(trial.config["number"], None)

        def on_trial_error(self, iteration, trials, trial, **info) -> None:
            source.ended(trial.config["number"], "its process died: out of memory, or killed")

    run_trials(trial, {}, directory, concurrent, Tells(), search_alg=Asks(), num_samples=-1)
    return coming == [None]


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
