"""One loader at one piece of work, in a process of its own: `python -m tests.benchmarks.stream_case CASE ANSWER`.

CASE is a `Case` as JSON, ANSWER the file that the `Measured` is written to.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, nullcontext, suppress
from dataclasses import asdict, dataclass
from itertools import islice
from math import gcd
from pathlib import Path

import numpy as np
import torch

from pipeline.cluster import connected
from pipeline.train.fit import KEEP_FREED_MEMORY
from tests.benchmarks.peers import (
    CONTEXT_LENGTH,
    JITTER,
    MEAN,
    PEERS,
    SCALES,
    SIGMA,
    STD,
    Decoding,
    Loaded,
    Request,
    Work,
)
from tests.benchmarks.processes import tree
from tests.benchmarks.stream_data import INDEX, STORE

WARM_UP = 0.25  # of the measured seconds
MEMORY_SECONDS = 3  # of looking at the memory, after the measured interval
CYCLE = 2  # batches a CPU that may come at once
EXPECTED = 0.9  # of the images that were asked for are different ones, at least
OBJECTIVES = {"crop": "mae", "simclr": "simclr", "clip": "clip"}  # with as many views, and text or none
LANES = 16


@dataclass(frozen=True)
class Case:
    """What is measured."""

    loader: str  # of OURS or PEERS
    decoding: Decoding | None  # of a peer
    work: Work
    folder: str
    images: int  # in it
    batch: int
    size: int
    cpus: int
    seconds: float  # of the measured interval
    began: float  # when the process was started, by the clock

    @property
    def name(self) -> str:
        return self.loader if self.decoding is None else f"{self.loader}, {self.decoding}"

    @property
    def uses_ray(self) -> bool:
        return self.loader.startswith("Ray") or (self.loader in OURS and self.loader != NO_RAY)

    @property
    def request(self) -> Request:
        seconds = self.seconds * (1 + WARM_UP) + 5
        return Request(Path(self.folder), self.work, self.batch, self.size, self.cpus, seconds)


@dataclass(frozen=True)
class Measured:
    """Of one run of a case. Memory and processor time are those of the process and all that it started."""

    per_second: float  # images
    cpu_ms: float  # an image
    start_seconds: float  # imports, and Ray where it is used
    first_seconds: float  # from there to the first batch
    memory: int  # bytes, proportional set size: what is shared counts once
    object_store: int | None  # bytes; None: no Ray
    distinct: int  # images that were seen, of all


# ---- ours ----------------------------------------------------------------------------------------------------------


def feral(request: Request, store: str = STORE, *, ray: bool = True, colour: bool = False) -> Iterator[Loaded]:
    """Our stream, as a training worker has it: crops as uint8. `colour` makes whole views of them, on the CPU."""
    from pipeline.experiment import build_experiment
    from pipeline.stream.batches import to_batch
    from pipeline.train.worker import open_stream

    experiment = build_experiment(_experiment(request, request.folder / store))
    stream = open_stream(experiment, experiment.data.open())
    steps = request.enough // request.batch
    batches = stream.distributed(0, steps, cpus=request.cpus) if ray else stream.local(0, steps)
    views = experiment.device_views()
    torch.set_num_threads(max(1, request.cpus // 2))  # threads that wait for a core that reads would spin
    for columns in batches:
        if colour:
            made = list(to_batch(columns, views, torch.device("cpu")).views)
        else:
            made = [torch.from_numpy(np.require(columns["crops"], requirements="W"))]  # (B, V, S, S, 3)
        yield {"views": made, "number": torch.tensor(columns["number"])} | (
            {"tokens": torch.tensor(columns["tokens"])} if "tokens" in columns else {}
        )


def _experiment(request: Request, store: Path) -> dict:
    objective: dict = {"name": OBJECTIVES[request.work]}
    if request.work == "clip":
        objective["text"] = {"context_length": CONTEXT_LENGTH}
    return {
        "data": {"store": str(store), "batch_size": request.batch, "lanes": gcd(request.batch, LANES)},
        "views": {
            "crop_scale": SCALES[request.work],
            "jitter": JITTER,
            "grayscale": 0.2,
            "blur": 0.5,
            "blur_sigma": SIGMA,
        },
        "encoder": {"image_size": request.size, "mean": MEAN, "std": STD},
        "objective": objective,
    }


IN_PLACE, ALL_CPU, NO_RAY = "feral in place", "feral with colour on the CPU", "feral without Ray (1 process)"
OURS: dict[str, Callable[[Request], Iterator[Loaded]]] = {
    "feral": feral,
    IN_PLACE: lambda request: feral(request, INDEX),
    ALL_CPU: lambda request: feral(request, colour=True),
    NO_RAY: lambda request: feral(request, ray=False),
}


# ---- measuring -----------------------------------------------------------------------------------------------------


def open_loader(case: Case) -> Generator[Loaded]:
    if case.decoding is None:
        yield from OURS[case.loader](case.request)
    else:
        yield from PEERS[case.loader](case.request, case.decoding)


def measure(case: Case) -> Measured:
    """Reads for `seconds` after a warm-up, then looks at the memory while it reads on. Ray is connected where needed.

    Raises:
        ValueError: what was delivered is not what was asked for.
    """
    started = time.time()
    with closing(open_loader(case)) as batches:
        check(next(batches), case)
        first = time.time()
        seen = set[int]()
        _steady(batches, WARM_UP * case.seconds, 1, seen)
        images, cpu, wall = _steady(batches, case.seconds, CYCLE * case.cpus, seen)
        memory, stored = _memory(batches, object_store if case.uses_ray else lambda: None, seen)
    if len(seen) < EXPECTED * min(case.images, images):
        raise ValueError(f"{case.name}: {images} images delivered, but only {len(seen)} different ones")
    return Measured(
        per_second=images / wall,
        cpu_ms=1000 * cpu / images,
        start_seconds=started - case.began,
        first_seconds=first - started,
        memory=memory,
        object_store=stored,
        distinct=len(seen),
    )


def check(loaded: Loaded, case: Case) -> None:
    """That a batch is a batch of pictures.

    Raises:
        ValueError: it is not.
    """
    values = case.batch * case.request.num_views * 3 * case.size**2
    found = sum(view.numel() for view in loaded["views"])
    if found != values or len(loaded["number"]) != case.batch:
        shapes = [tuple(view.shape) for view in loaded["views"]]
        raise ValueError(f"{case.name} made views {shapes} of {len(loaded['number'])} images, not {values} values")
    if case.work == "clip" and loaded["tokens"].shape != (case.batch, CONTEXT_LENGTH):
        raise ValueError(f"{case.name} made tokens {tuple(loaded['tokens'].shape)}")
    if any(view.float().std() == 0 for view in loaded["views"]):
        raise ValueError(f"{case.name} made empty pictures")


def _steady(batches: Iterator[Loaded], seconds: float, cycle: int, seen: set[int]) -> tuple[int, float, float]:
    """Images, processor seconds and seconds of whole cycles of batches, which come in bursts."""
    processes = Processes()
    images, cpu = 0, processes.look()
    now = began = looked = time.perf_counter()
    while now - began < seconds:
        for loaded in islice(batches, cycle):
            seen.update(loaded["number"].tolist())
            images += len(loaded["number"])
            now = time.perf_counter()
            if now - looked > 1:  # a process may end
                processes.look()
                looked = now
    return images, processes.look() - cpu, now - began


def _memory(batches: Iterator[Loaded], stored: Callable[[], int | None], seen: set[int]) -> tuple[int, int | None]:
    """Peak bytes of all processes and in Ray's object store, while it reads on for some seconds."""
    peak, peak_stored, began = proportional_memory(), stored(), time.perf_counter()
    while time.perf_counter() - began < MEMORY_SECONDS:
        seen.update(next(batches)["number"].tolist())
        peak, now = max(peak, proportional_memory()), stored()
        peak_stored = None if now is None else max(now, peak_stored or 0)
    return peak, peak_stored


class Processes:
    """Processor time of this process and all that it started, ended ones too if they were looked at."""

    def __init__(self) -> None:
        self._cpu: dict[int, float] = {}

    def look(self) -> float:
        """Seconds, of all."""
        self._cpu.update({pid: process.cpu for pid, process in tree().items()})
        return sum(self._cpu.values())


def proportional_memory() -> int:
    """Bytes of this process and all that it started; what k of them share counts 1/k for each."""
    total = 0
    for pid in tree():
        with suppress(OSError):  # it has ended
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def object_store() -> int:
    """Bytes in use."""
    import ray

    name = "object_store_memory"
    return int(ray.cluster_resources().get(name, 0) - ray.available_resources().get(name, 0))


def run_case(case: Case, answer: Path) -> None:
    for name in KEEP_FREED_MEMORY:
        os.environ.pop(name, None)  # of this process alone, where it has them: Ray's would inherit them
    with connected(cpus=case.cpus) if case.uses_ray else nullcontext():
        # Written before Ray ends: a thread of Ray Data that still reads ahead may end the process with it.
        answer.write_text(json.dumps(asdict(measure(case))))


if __name__ == "__main__":
    run_case(Case(**json.loads(sys.argv[1])), Path(sys.argv[2]))
