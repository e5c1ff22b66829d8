"""The training stage of a run: starts Ray Train, and watches it."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.experiment import Experiment
from pipeline.run import Run
from pipeline.train.metrics import follow_metrics
from pipeline.train.worker import train_worker

# A step frees and allocates the same large tensors again; glibc would return them to the kernel and fault every page
# anew. Keeping them made small ResNets 6-39 % faster on CPU.
KEEP_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**34)}


class TrainingFailed(Exception):
    """Training failed more often than `cluster.max_failures`; the message is the worker's own."""


OnRow = Callable[[dict[str, Any]], None]


def fit(experiment: Experiment, run: Run, on_row: OnRow = lambda row: None) -> None:
    """Trains until the last step, from the newest checkpoint if there is one; returns at once if nothing is left.

    Ray must be connected. `on_row` receives each new row of metrics.

    Raises:
        TrainingFailed: with the cause.
    """
    checkpoint = run.newest_checkpoint()
    if checkpoint is not None and checkpoint.step >= experiment.total_steps:
        return
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    logging.getLogger("ray.train").setLevel(logging.WARNING)
    cluster = experiment.cluster
    resources: dict[str, float] = {"CPU": cluster.cpus_per_worker}
    if cluster.use_gpu:
        resources["GPU"] = 1
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"run": str(run.path), "experiment": experiment.model_dump(mode="json")},
        scaling_config=ScalingConfig(
            num_workers=cluster.workers, use_gpu=cluster.use_gpu, resources_per_worker=resources
        ),
        torch_config=TorchConfig(backend="nccl" if cluster.use_gpu else "gloo"),
        # A name an attempt: Ray's own snapshot of an earlier attempt, whole or damaged, is never read.
        run_config=RunConfig(
            name=f"attempt-{time.time_ns()}",
            storage_path=str(run.path / "ray"),
            worker_runtime_env={"env_vars": KEEP_FREED_MEMORY},
            failure_config=FailureConfig(max_failures=cluster.max_failures, controller_failure_limit=3),
        ),
    )
    with _following(run, on_row):
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise TrainingFailed(_cause(error)) from error


@contextmanager
def _following(run: Run, on_row: OnRow) -> Iterator[None]:
    """Passes on rows of `metrics.jsonl` as they appear."""
    stop = threading.Event()
    new_rows = follow_metrics(run.path)

    def follow() -> None:
        while not stop.wait(0.5):
            for row in next(new_rows):
                on_row(row)

    thread = threading.Thread(target=follow, name="follow-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        for row in next(new_rows):  # written since the last look
            on_row(row)


def _cause(error: Exception) -> str:
    """The worker's own message, without the layers that carried it."""
    failures = getattr(error, "worker_failures", None) or {}
    inner: BaseException = next(iter(failures.values()), error)
    while inner.__cause__ is not None:
        inner = inner.__cause__
    return f"{type(inner).__name__}: {inner}"
