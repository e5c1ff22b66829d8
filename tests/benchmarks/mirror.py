"""How much slower a step is while a run is mirrored to an MLflow server that is away: promise P23, at most 5 %.

The real loop trains on batches in memory, in a process with the niceness of workers; the mirror works in another one,
as in the command that drives them.
"""

import multiprocessing
import os
import socket
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from jobs.bench import Cell, Table
from pipeline.cluster import WORKER_NICENESS
from pipeline.mirror.runs import RunMirror
from pipeline.mirror.server import URI
from pipeline.run import Run
from tests.benchmarks.beside import begun_run, measured_beside, set_priority
from tests.benchmarks.worker_loop import MODELS, RESNET

WANTED = 5.0  # %
IMAGES = 500  # of the store that is trained on


def main(
    rounds: Annotated[int, Field(ge=2)] = 20, steps: Annotated[int, Field(ge=1)] = 3, model: str | int = RESNET
) -> list[Table]:
    """The time of a step beside a mirror whose server refuses calls, or takes them and never answers, and alone, in
    turns; on all cores. model=8 trains the one whose name begins so."""
    name = next((one for one in MODELS if one.startswith(str(model))), None)
    if name is None:
        raise ValueError(f"model={model}: none begins so; there are {', '.join(MODELS)}")
    rows, context = [], multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="bench") as temporary:
        run = begun_run(Path(temporary), IMAGES, MODELS[name])
        for server in ("refuses calls", "never answers"):
            with socket.socket() as port:
                port.bind(("127.0.0.1", 0))
                if server == "never answers":
                    port.listen(64)
                address = f"http://127.0.0.1:{port.getsockname()[1]}"
                with ProcessPoolExecutor(1, context, set_priority, (int(WORKER_NICENESS),)) as process:
                    rows.append((server, *process.submit(_measured, run, address, rounds, steps).result()))
    columns = ("server", "alone ms", "beside the mirror ms", "more %", "wanted %", "mirror's share of a core %")
    note = (
        f"ms a step of {name}: medians of {rounds} × {steps} steps in turns, more % of the median difference; "
        f"{torch.get_num_threads()} cores"
    )
    return [Table("a step beside a mirror whose server is away", columns, rows, note)]


def _measured(run: Run, address: str, rounds: int, steps: int) -> tuple[Cell, ...]:
    threads = os.cpu_count() or 1
    *times, share, _ = measured_beside(run, _mirror, run, address, threads=threads, rounds=rounds, steps=steps)
    return *times, WANTED, share


def _mirror(pipe: Any, run: Run, address: str) -> None:
    os.environ[URI] = address
    lines: list[str] = []
    mirror = RunMirror(run, lines.append)
    time.sleep(5)  # the import is over
    assert mirror.thread.is_alive()
    pipe.send(None)
    mirror.thread.join()
