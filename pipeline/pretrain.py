"""The verb: an experiment is trained and judged in one run directory, and goes on where it was stopped."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from pipeline.evaluate.suite import evaluate
from pipeline.experiment import Experiment
from pipeline.ingest.store import Store
from pipeline.lock import locked
from pipeline.mirror.runs import RunMirror
from pipeline.run import Run
from pipeline.stream.batches import check_files
from pipeline.train.fit import Stopped, fit
from pipeline.train.inputs import planned_samples, shown, write_inputs
from pipeline.train.record import append_event
from ssl_models.optimizers import scaled_learning_rate

Tell = Callable[[str], None]


class Shows(Protocol):
    """Shows a person how training goes on."""

    def show(self, row: dict[str, Any]) -> None:
        """A row of metrics."""

    def tell(self, line: str) -> None:
        """A line that stays."""


Progress = Callable[[int], AbstractContextManager[Shows]]  # of the number of steps


def prepared(experiment: Experiment, path: Path) -> Experiment:
    """The experiment with all that its stores and the run at `path`, if there is one, fill in; compared with them.

    Raises:
        ValueError: it does not fit its data, or its data is damaged.
    """
    if not experiment.data.store:
        raise ValueError("data.store is not set: make one with `feral curate SOURCE --to STORE`, then data.store=STORE")
    store, here = experiment.data.open(), Run(path.absolute())
    experiment = here.start_of(experiment).fitted(store)
    starts = experiment.training.start_from or experiment.training.continue_from
    experiment.check(store, begun=bool(starts) and here.newest_checkpoint() is not None)
    for one in experiment.open_stores():
        check_files(one)
    return experiment


@contextmanager
def working_on(experiment: Experiment, path: Path, command: list[str], tell: Tell) -> Iterator[Run]:
    """A run that no other command works on meanwhile; when that began and ended is noted, and it is mirrored to MLflow
    where a server is named.

    Raises:
        ValueError: another command works on it, or it is one of another experiment.
    """
    with locked(path.absolute(), "the run"):
        run = Run.prepare(path, experiment, command)
        append_event(run.path, "command", pid=os.getpid())
        mirror, code = RunMirror(run, tell), 1
        try:
            yield run
            code = 0
        except Stopped as stopped:
            code = 128 + stopped.signal
            raise
        finally:
            append_event(run.path, "end", code=code)
            mirror.close(code)


def train(run: Run, progress: Progress, tell: Tell) -> None:
    """Trains a run to its end. Ray must be connected.

    Raises:
        TrainingFailed: with the cause.
        Stopped: a signal came; the state is saved.
    """
    experiment = run.experiment
    with progress(experiment.total_steps) as shows:
        fit(experiment, run, shows.show, shows.tell)
    fed = write_inputs(run)
    if len(fed.stores) > 1:
        tell(f"images seen: {fed.line}")


def judge(run: Run, tell: Tell) -> None:
    """Evaluates the newest checkpoint of a run on its own store. Ray must be connected."""
    began = time.perf_counter()
    append_event(run.path, "evaluate")
    evaluate(run, on_stage=lambda name: tell(f"evaluating: {name}"))
    append_event(run.path, "evaluated")
    tell(f"evaluated in {time.perf_counter() - began:.0f} s")
    run.report_file.unlink(missing_ok=True)  # of an earlier state


def is_judged(run: Run) -> bool:
    """Whether it is trained to its end, and that was judged."""
    checkpoint, judged = run.newest_checkpoint(), run.evaluation
    done = checkpoint.step if checkpoint else 0
    return done >= run.experiment.total_steps and judged is not None and judged.step == done


def plan_line(experiment: Experiment, stores: Sequence[Store]) -> str:
    """What is going to be trained, and how long."""
    training, batch = experiment.training, experiment.data.batch_size
    sizes = [len(experiment.training_samples(store)[0]) for store in stores]
    planned = planned_samples(experiment, stores)
    names = [f" of {shown(str(store.path), store.selection)}" if len(stores) > 1 else "" for store in stores]
    passes = [
        f"{count / size:.1f} passes over {size} images{name}"
        for count, size, name in zip(planned, sizes, names, strict=True)
    ]
    unused = ""
    if not experiment.cluster.use_gpu and torch.cuda.device_count():  # by NVML: no context of CUDA is made here
        unused = "; a GPU is here and not used: cluster.use_gpu=true"
    begins = f" {'down' if training.cooldown else 'on'} from step {training.continue_step}"
    return (
        f"{experiment.objective.name} with {experiment.encoder.name} at {experiment.encoder.image_size} px: "
        f"{training.images_seen // batch} steps of {batch} images"
        f"{begins if training.continue_from else ''}, {', '.join(passes)}; learning rate "
        f"{scaled_learning_rate(experiment.optimizer, batch):.3g}; "
        f"{experiment.cluster.workers} worker(s) on {'GPU' if experiment.cluster.use_gpu else 'CPU'}, "
        f"{training.precision}{unused}"
    )
