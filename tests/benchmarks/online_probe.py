"""How much slower a step is while a checkpoint is judged beside it: what `evaluation.online_images` costs training.

The real loop trains on batches in memory. A process that judges a checkpoint over and over, with the priority that the
probe has, is stopped and let go on in turns: so both kinds of steps meet the same load. Linux gives such a process
3 parts of a core that another one wants; that one gets 526 with the niceness that a Ray of ours gives its workers, 36
with that of a Ray started by others.
"""

import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from jobs.bench import Cell, Table
from pipeline.cluster import WORKER_NICENESS
from pipeline.evaluate.online import judge_checkpoint, step_aside
from pipeline.run import Run
from tests.benchmarks.beside import begun_run, measured_beside, set_priority
from tests.benchmarks.worker_loop import MODELS, RESNET

TARGET = 1.0  # %
RAY, OURS = 15, int(WORKER_NICENESS)  # of workers, unless RAY_worker_niceness says otherwise


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
        run = begun_run(Path(temporary), images, MODELS[name])
        for threads, niceness in cases:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, context, set_priority, (niceness,)) as process:
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


def _measured(run: Run, images: int, threads: int, rounds: int, steps: int) -> tuple[Cell, ...]:
    *times, share, seconds = measured_beside(run, _judge, run, images, threads=threads, rounds=rounds, steps=steps)
    return *times, TARGET, share, seconds


def _judge(pipe: Any, run: Run, images: int) -> None:
    """Judges for ever, as the task of the probe does; first tells the processor seconds of one."""
    step_aside()
    judge_checkpoint(run, "step_000000000", images, with_random=False)
    began = time.process_time()
    judge_checkpoint(run, "step_000000000", images, with_random=False)
    pipe.send(time.process_time() - began)
    while True:
        judge_checkpoint(run, "step_000000000", images, with_random=False)
