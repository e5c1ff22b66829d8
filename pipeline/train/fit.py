"""The training stage of a run: starts Ray Train, watches it, starts it again where that helps."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from pipeline.cluster import KEEP_FREED_MEMORY
from pipeline.evaluate.online import OnlineProbe
from pipeline.experiment import Experiment
from pipeline.placement import room, selected, training_nodes
from pipeline.run import Run
from pipeline.train.attempts import clear_messages, message_of, read_failure, request_stop, stop_requested
from pipeline.train.record import append_event, follow
from pipeline.train.worker import train_worker

PATIENCE = 3  # times that the workers may leave without a step gained
START_FAILURES = 20  # starts of workers that may fail, of a minute each: as long a lost node may be replaced


class TrainingFailed(Exception):
    """Training cannot go on, or failed more often than `cluster.max_failures`; the message is the worker's own."""


class Stopped(Exception):
    """Training was told to stop, and its state is saved."""

    def __init__(self, step: int, number: int) -> None:
        self.step, self.signal = step, number
        super().__init__(f"stopped after step {step}; the same command resumes")


OnRow = Callable[[dict[str, Any]], None]
Tell = Callable[[str], None]


def fit(
    experiment: Experiment,
    run: Run,
    on_row: OnRow = lambda row: None,
    tell: Tell = lambda line: None,
    sharing: int = 1,
    probe: OnlineProbe | None = None,
    keep_at: Sequence[int] = (),
) -> None:
    """Trains until the last step, from the newest checkpoint if there is one; returns at once if nothing is left.

    Ray must be connected. SIGTERM and Ctrl-C, once, let the workers save and leave. Workers that leave a node that is
    about to go are started anew at once. `on_row` receives each new row of metrics, `tell` a line for a person. Without
    GPUs a worker takes as many threads as its node has cores for it, when `sharing` runs share them. `probe` judges
    checkpoints meanwhile; None: as the experiment says. `keep_at`: steps that are saved, and kept.

    Raises:
        TrainingFailed: with the cause.
        Stopped: a signal came.
        ValueError: see `pipeline.placement.training_nodes`.
    """
    clear_messages(run.path)
    tell_of_room(experiment, tell)
    images = experiment.evaluation.online_images
    if probe is None and images:
        probe = OnlineProbe(run, images, tell)
    idle, before = 0, None
    with _signals(run, tell) as received:
        while (step := _steps_done(run)) < experiment.total_steps:
            if received or stop_requested(run.path):
                raise Stopped(step, received[0] if received else signal.SIGTERM)
            idle = idle + 1 if step == before else 0
            if idle == PATIENCE:
                raise TrainingFailed(f"the workers left {PATIENCE} times without a step gained after step {step}")
            before = step
            trainer = _trainer(experiment, run, sharing, probe.at if probe else (), keep_at)
            error = _run_workers(trainer, run, probe, on_row, tell)
            failure = read_failure(run.path)
            if failure is not None:
                raise TrainingFailed(failure["message"])
            if error is not None:
                raise TrainingFailed(f"{type(error).__name__}: {message_of(error)}") from error


def tell_of_room(experiment: Experiment, tell: Tell) -> None:
    """A word to who waits for nodes, which an autoscaler or a person may still start."""
    cluster = experiment.cluster
    fewest, here = cluster.worlds[0], room(selected(training_nodes(cluster)), cluster)
    if here < fewest:
        tell(f"the nodes that train have room for {here} of {fewest} worker(s) now: waiting for more nodes")


def _steps_done(run: Run) -> int:
    checkpoint = run.newest_checkpoint()
    return checkpoint.step if checkpoint else 0


def _run_workers(trainer: Any, run: Run, probe: OnlineProbe | None, on_row: OnRow, tell: Tell) -> BaseException | None:
    """Lets Ray train in a thread, for signals reach only the main one; returns what it failed with."""
    append_event(run.path, "fit")
    failed: list[BaseException] = []

    def train() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # told to the main thread
            failed.append(_worker_error(error))

    thread = threading.Thread(target=train, name="ray-train", daemon=True)
    watch = Watch(run, on_row, tell)
    thread.start()
    while thread.is_alive():
        thread.join(0.5)
        watch.look()
        if probe:
            probe.look()
    if probe:
        probe.close()
    watch.look()
    append_event(run.path, "fit_ended")
    return failed[0] if failed else None


def _trainer(experiment: Experiment, run: Run, sharing: int, save_at: Sequence[int], keep_at: Sequence[int]) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    cluster = experiment.cluster
    return TorchTrainer(
        train_worker,
        train_loop_config={
            "run": str(run.path),
            "experiment": experiment.model_dump(mode="json"),
            "sharing": sharing,
            "save_at": list(save_at),
            "keep_at": list(keep_at),
        },
        scaling_config=ScalingConfig(
            num_workers=(cluster.worlds[0], cluster.workers) if cluster.is_elastic else cluster.workers,
            use_gpu=cluster.use_gpu,
            resources_per_worker=cluster.worker,
            label_selector=training_nodes(cluster) or None,
            elastic_resize_monitor_interval_s=cluster.resize_seconds,
        ),
        torch_config=TorchConfig(backend="nccl" if cluster.use_gpu else "gloo"),
        # A name a start: Ray's own snapshot of an earlier one, whole or damaged, is never read.
        run_config=RunConfig(
            name=f"attempt-{time.time_ns()}",
            storage_path=str(run.path / "ray"),
            worker_runtime_env={"env_vars": KEEP_FREED_MEMORY},
            failure_config=FailureConfig(max_failures=cluster.max_failures, controller_failure_limit=START_FAILURES),
        ),
    )


def _worker_error(error: BaseException) -> BaseException:
    failures = getattr(error, "worker_failures", None) or {}
    return next(iter(failures.values()), error)


class Watch:
    """Follows a run's record: passes on rows, and tells what happens to the workers."""

    def __init__(self, run: Run, on_row: OnRow, tell: Tell) -> None:
        self.rows, self.events = follow(run.path / "metrics.jsonl"), follow(run.path / "events.jsonl")
        self.on_row, self.tell = on_row, tell
        self.last: dict[str, Any] | None = None
        self.restarted: dict[str, Any] | None = None  # an attempt that has not logged yet
        self.attempts = 0

    def look(self) -> None:
        for event in next(self.events):
            self._tell(event)
        for row in next(self.rows):
            if self.restarted is not None and self.last is not None:
                seconds = row["began"] - self.last["time"]
                self.tell(f"back at work {seconds:.0f} s after the last step before")
            self.restarted, self.last = None, row
            self.on_row(row)

    def _tell(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "attempt":
            self.attempts += 1
            if self.attempts > 1:
                self.restarted = event
                again = self.last["step"] - event["step"] if self.last else 0
                self.tell(
                    f"the workers were started again, from step {event['step']} with {event['world_size']} worker(s); "
                    f"{max(0, again)} logged steps are done again"
                )
        elif kind == "nonfinite" and event["skipped"]:
            self.tell(f"step {event['step']}: {event['values']}: going back, and skipping the batches since")
        elif kind == "preempted":
            self.tell("a node of the workers will go: saved; the workers are started anew elsewhere")


@contextmanager
def _signals(run: Run, tell: Tell) -> Iterator[list[int]]:
    """Lets the first SIGTERM or Ctrl-C ask the workers to save and leave; the second ends this process at once.
    Yields the list of those that came. Outside of the main thread (a trial of a sweep) nothing is changed."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        request_stop(run.path)
        tell("stopping: the workers save after the step they are in (once more: at once, without saving)")

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
