"""What a process that works beside training costs a step, in turns: so both kinds of steps meet the same load."""

import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from pipeline.experiment import Experiment, build_experiment
from pipeline.ingest.config import CurateConfig
from pipeline.run import Run
from pipeline.stream.batches import to_batch
from pipeline.train.checkpoints import save_checkpoint
from pipeline.train.loop import train
from pipeline.train.worker import fresh_state, open_stream
from tests.benchmarks.processes import tree
from tests.benchmarks.scenes import pictures
from tests.benchmarks.worker_loop import HELD, PLAIN
from tests.pipeline.stores import curate_here

SIDE, CLASSES = 48, 10  # of the store
CPU = torch.device("cpu")


def set_priority(niceness: int) -> None:
    """Of this process and those that it starts, which share a core with nobody else's (autogroups are by session)."""
    os.setsid()
    os.nice(niceness)


def begun_run(folder: Path, images: int, model: dict[str, Any]) -> Run:
    for number, raw in enumerate(pictures(images, SIDE)):
        path = folder / "source" / str(number % CLASSES) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
    curate_here(folder / "source", folder / "store", CurateConfig(holdout=0))
    experiment = build_experiment(
        {
            "data": model["data"] | {"store": str(folder / "store")},
            "views": PLAIN,
            "encoder": model["encoder"],
            "objective": {"name": "simclr"},
        }
    )
    run = Run.prepare(folder / "run", experiment, ["feral", "bench"])
    save_checkpoint(run.checkpoints, fresh_state(experiment, CPU), keep=1)
    return run


def measured_beside(
    run: Run, work: Callable[..., None], *given: Any, threads: int, rounds: int, steps: int
) -> tuple[float, float, float, float, Any]:
    """ms a step alone and beside `work(pipe, *given)`, which runs in a process of its own until it is killed; by how
    many % a step is longer, the median; the share of a core that the process got, in %; and what it sent first."""
    torch.set_num_threads(threads)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    other = context.Process(target=work, args=(theirs, *given))
    other.start()
    assert other.pid is not None
    said = ours.recv()
    try:
        turns = _Turns(other.pid, rounds, steps)
        _train(run.experiment, turns.batches)
    finally:
        os.kill(other.pid, signal.SIGKILL)
        other.join()
    alone, beside = (1000 / steps * statistics.median(times) for times in (turns.alone, turns.beside))
    more = statistics.median(b - a for a, b in zip(turns.alone, turns.beside, strict=True)) * 1000 / steps
    return alone, beside, 100 * more / alone, 100 * turns.other_cpu / sum(turns.beside), said


class _Turns:
    """Gives batches, `steps` at a time, and lets the other process go on for every second of these; measures both."""

    def __init__(self, other: int, rounds: int, steps: int) -> None:
        self.other, self.rounds, self.steps = other, rounds, steps
        self.alone: list[float] = []  # seconds of `steps`
        self.beside: list[float] = []
        self.other_cpu = 0.0  # seconds, while it may work

    def batches(self, held: list[Any]) -> Iterator[Any]:
        os.kill(self.other, signal.SIGSTOP)
        yield held[0]  # caches
        for number in range(self.rounds):
            for working in (False, True) if number % 2 else (True, False):
                os.kill(self.other, signal.SIGCONT if working else signal.SIGSTOP)
                began, cpu = time.perf_counter(), self._cpu()
                for step in range(self.steps):
                    yield held[step % len(held)]
                seconds = time.perf_counter() - began
                (self.beside if working else self.alone).append(seconds)
                self.other_cpu += self._cpu() - cpu if working else 0.0

    def _cpu(self) -> float:
        return tree()[self.other].cpu


def _train(experiment: Experiment, batches: Any) -> None:
    held = list(open_stream(experiment, experiment.data.open()).local(0, HELD))
    views = experiment.device_views()
    train(
        fresh_state(experiment, CPU),
        batches(held),
        training=experiment.training,
        optimizer=experiment.optimizer.model_copy(update={"schedule": "constant"}),
        batch_size=experiment.data.batch_size,
        total_steps=None,
        prepare=lambda columns: to_batch(columns, views, CPU),
    )
