"""Faults that strike inside real workers, at a given step of a given attempt; and what a run must be equal to."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.experiment import Experiment, build_experiment
from pipeline.run import Run
from pipeline.stream.batches import to_batch
from pipeline.train import fit as fitting
from pipeline.train import worker as working
from pipeline.train.loop import train
from pipeline.train.meter import LogRow
from pipeline.train.record import fingerprint, read_metrics
from pipeline.train.worker import Worker, fresh_state, open_stream, train_worker
from tests.ranks import on_ranks

Row = tuple[int, float, int]  # step, loss, fingerprint of the sample ids


@dataclass(frozen=True)
class Fault:
    """What happens to one rank in one attempt, when `step` is done."""

    kind: str  # kill, kill in save, hang, poison, slow, raise
    step: int
    attempt: int = 1
    rank: int = 0

    def strike(self, worker: Worker) -> None:
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.kind == "hang":
            time.sleep(600)
        elif self.kind == "poison":  # the next batch
            make = working.to_batch

            def poisoned(*arguments: Any) -> Any:
                working.to_batch = make  # type: ignore[attr-defined]
                batch = make(*arguments)
                batch.views[0][0] = float("nan")
                return batch

            working.to_batch = poisoned  # type: ignore[attr-defined]
        elif self.kind == "kill in save":  # the next one: its files are written, its marker is not
            from pipeline.train import checkpoints

            checkpoints.Commit.write = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign, assignment, return-value]
        elif self.kind == "raise":
            raise ValueError("this rank cannot go on")


def worker_with(*faults: Fault, seconds_a_step: float = 0.0) -> Callable[[dict[str, Any]], None]:
    """A `train_worker` that faults befall."""

    def worker(config: dict[str, Any]) -> None:
        stepped = Worker._stepped

        def step(self: Worker, step: int) -> None:
            stepped(self, step)
            time.sleep(seconds_a_step)
            for fault in faults:
                if (fault.step, fault.attempt, fault.rank) == (step, self.attempt.number, self.rank):
                    fault.strike(self)

        Worker._stepped = step  # type: ignore[method-assign]
        train_worker(config)

    return worker


@contextmanager
def struck_by(*faults: Fault, seconds_a_step: float = 0.0) -> Iterator[None]:
    """Within the block, workers that `fit` starts are befallen by faults."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "train_worker", worker_with(*faults, seconds_a_step=seconds_a_step))
        yield


def undisturbed(experiment: Experiment, steps: list[int] | None = None) -> list[Row]:
    """The rows of as many processes as the experiment has workers, without Ray, faults or checkpoints; with `steps`, of
    these batches of the plan."""
    content, all_steps = experiment.model_dump(mode="json"), range(experiment.total_steps)
    return on_ranks(_undisturbed_rank, experiment.cluster.workers, content, steps or all_steps)[0]


def _undisturbed_rank(rank: int, world_size: int, content: dict[str, Any], steps: Sequence[int]) -> list[Row]:
    cpu, experiment, rows = torch.device("cpu"), build_experiment(content), list[Row]()
    state, views = fresh_state(experiment, cpu), experiment.device_views()
    stream = open_stream(experiment, experiment.data.open())

    def note(row: LogRow) -> None:
        rows.append((row.step, row.metrics["loss"], row.samples))

    train(
        state,
        (next(stream.local(step, step + 1, rank, world_size)) for step in steps),
        training=experiment.training,
        optimizer=experiment.optimizer,
        batch_size=experiment.data.batch_size,
        total_steps=experiment.total_steps,
        prepare=lambda columns: to_batch(columns, views, cpu),
        account=lambda columns: (fingerprint(columns["number"], columns["visit"]), 0),
        on_log=note,
    )
    return rows


def begun(path: Path, experiment: Experiment) -> Run:
    return Run.prepare(path, experiment, ["feral", "pretrain"])


def assert_equal_to_undisturbed(run: Run, expected: list[Row], tolerance: float = 0.0) -> None:
    """Each step once, of the same samples, with the same loss to the last bit (of another number of ranks: within the
    tolerance)."""
    rows = [(row["step"], row["loss"], row["samples"]) for row in read_metrics(run.path)]
    assert [row[0] for row in rows] == [row[0] for row in expected]
    assert [row[2] for row in rows] == [row[2] for row in expected]
    losses = [row[1] for row in expected]
    assert [row[1] for row in rows] == (pytest.approx(losses, abs=tolerance) if tolerance else losses)
