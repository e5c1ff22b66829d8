"""How much slower a step is while a checkpoint is judged beside it: what `evaluation.online_images` costs training.

The real loop trains on batches in memory. A process that judges a checkpoint over and over, with the priority that the
probe has, is stopped and let go on in turns: so both kinds of steps meet the same load. Linux gives such a process
3 parts of a core that another one wants; that one gets 526 with the niceness that a Ray of ours gives its workers, 36
with that of a Ray started by others.
"""

import multiprocessing
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from jobs.bench import Cell, Table
from pipeline.cluster import WORKER_NICENESS
from pipeline.evaluate.online import judge_checkpoint, step_aside
from pipeline.experiment import Experiment, build_experiment
from pipeline.ingest.config import CurateConfig
from pipeline.run import Run
from pipeline.stream.batches import to_batch
from pipeline.train.checkpoints import save_checkpoint
from pipeline.train.loop import train
from pipeline.train.worker import fresh_state, open_stream
from tests.benchmarks.processes import tree
from tests.benchmarks.scenes import pictures
from tests.benchmarks.worker_loop import HELD, MODELS, PLAIN, RESNET
from tests.pipeline.stores import curate_here

TARGET = 1.0  # %
RAY, OURS = 15, int(WORKER_NICENESS)  # of workers, unless RAY_worker_niceness says otherwise
SIDE, CLASSES = 48, 10  # of the store
CPU = torch.device("cpu")


def main(
    rounds: Annotated[int, Field(ge=2)] = 20,
    steps: Annotated[int, Field(ge=1)] = 3,
    images: Annotated[int, Field(ge=100)] = 2_000,
    model: str | int = RESNET,
    all_cores: bool = True,
) -> list[Table]:
    """The time of a step with an online probe at work and without, in turns; and what a probe of `images` costs.

    `steps` of each, `rounds` times. Training has one thread, or a thread for each core, so that the probe finds none
    that nobody wants; all_cores=false leaves these out. model=8 trains the one whose name begins so.
    """
    name = next((one for one in MODELS if one.startswith(str(model))), None)
    if name is None:
        raise ValueError(f"model={model}: none begins so; there are {', '.join(MODELS)}")
    cores = torch.get_num_threads()
    cases = [(1, OURS), *([(cores, OURS), (cores, RAY)] if all_cores else [])]
    rows = []
    with tempfile.TemporaryDirectory(prefix="bench") as temporary:
        run = _run(Path(temporary), images, MODELS[name])
        for threads, niceness in cases:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, context, _set_priority, (niceness,)) as process:
                found = process.submit(_measured, run, images, threads, rounds, steps).result()
            rows.append((f"{threads} thread{'s' if threads > 1 else ''}, niceness {niceness}", *found))
    columns = ("training", "alone ms", "beside a probe ms", "more %", "wanted %", "probe's share of a core %",
               "CPU s a probe")  # fmt: skip
    note = (
        f"ms a step of {name}: medians of {rounds} × {steps} steps in turns, more % of the median difference; a "
        f"probe judges {images:,} images of the training store; {cores} cores; workers have niceness {OURS}, or {RAY} "
        "on a Ray that others started"
    )
    return [Table("a step beside an online probe", columns, rows, note)]


def _set_priority(niceness: int) -> None:
    """Of this process and those that it starts, which share a core with nobody else's (autogroups are by session)."""
    os.setsid()
    os.nice(niceness)


def _run(folder: Path, images: int, model: dict[str, Any]) -> Run:
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


def _measured(run: Run, images: int, threads: int, rounds: int, steps: int) -> tuple[Cell, ...]:
    torch.set_num_threads(threads)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    judge = context.Process(target=_judge, args=(theirs, run, images))
    judge.start()
    assert judge.pid is not None
    probe_seconds = ours.recv()  # of a first one, for itself
    try:
        turns = _Turns(judge.pid, rounds, steps)
        _train(run.experiment, turns.batches)
    finally:
        os.kill(judge.pid, signal.SIGKILL)
        judge.join()
    alone, beside = (1000 / steps * statistics.median(times) for times in (turns.alone, turns.beside))
    more = statistics.median(b - a for a, b in zip(turns.alone, turns.beside, strict=True)) * 1000 / steps
    share = 100 * turns.probe_cpu / sum(turns.beside)
    return alone, beside, 100 * more / alone, TARGET, share, probe_seconds


class _Turns:
    """Gives batches, `steps` at a time, and lets the judge go on for every second of these; measures both."""

    def __init__(self, judge: int, rounds: int, steps: int) -> None:
        self.judge, self.rounds, self.steps = judge, rounds, steps
        self.alone: list[float] = []  # seconds of `steps`
        self.beside: list[float] = []
        self.probe_cpu = 0.0  # seconds, while it may work

    def batches(self, held: list[Any]) -> Iterator[Any]:
        os.kill(self.judge, signal.SIGSTOP)
        yield held[0]  # caches
        for number in range(self.rounds):
            for probing in (False, True) if number % 2 else (True, False):
                os.kill(self.judge, signal.SIGCONT if probing else signal.SIGSTOP)
                began, cpu = time.perf_counter(), self._cpu()
                for step in range(self.steps):
                    yield held[step % len(held)]
                seconds = time.perf_counter() - began
                (self.beside if probing else self.alone).append(seconds)
                self.probe_cpu += self._cpu() - cpu if probing else 0.0

    def _cpu(self) -> float:
        return tree()[self.judge].cpu


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


def _judge(pipe: Any, run: Run, images: int) -> None:
    """Judges for ever, as the task of the probe does; first tells the processor seconds of one."""
    step_aside()
    judge_checkpoint(run, "step_000000000", images, with_random=False)
    began = time.process_time()
    judge_checkpoint(run, "step_000000000", images, with_random=False)
    pipe.send(time.process_time() - began)
    while True:
        judge_checkpoint(run, "step_000000000", images, with_random=False)
