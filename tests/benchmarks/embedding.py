"""How fast many images are embedded, and whether memory stays flat: the evaluation's stream beside a plain loop.

The plain loop is what a person writes first: decode a batch, normalise it, encode it, with all cores for each. The
encoder alone, on pixels that lie in memory, is the limit.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2.functional import center_crop, resize

from jobs.bench import Cell, Table
from pipeline.cluster import ClusterConfig, connected, keep_freed_memory
from pipeline.curate import curate
from pipeline.evaluate.embed import BATCH, Embedding
from pipeline.evaluate.encoders import RunEncoders
from pipeline.evaluate.probes import knn_predictions
from pipeline.experiment import Experiment, build_experiment
from pipeline.ingest.store import Store
from pipeline.run import Run
from pipeline.stream.read import Columns
from pipeline.train.checkpoints import save_checkpoint
from pipeline.train.worker import fresh_state
from tests.benchmarks.curate import write_tars
from tests.benchmarks.processes import KINDS, Watch
from tests.benchmarks.scenes import pictures

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
CPU, RGB = torch.device("cpu"), ImageReadMode.RGB


def main(
    images: Annotated[int, Field(ge=1_000)] = 100_000,
    distinct: Annotated[int, Field(ge=300)] = 5_000,
    side: Annotated[int, Field(ge=16, le=512)] = 32,
    queries: Annotated[int, Field(ge=1)] = 2_000,
    seconds: Annotated[float, Field(gt=0)] = 20,
    gpu: bool = False,
) -> list[Table]:
    """Images a second of embedding `images` of them beside a plain loop, its memory over time, and k-NN on them.

    A store of `distinct` generated pictures is read again and again: what is measured does not depend on which picture
    it is, only a disk's own speed is left out. images=1000000 shows that memory is flat.
    """
    with tempfile.TemporaryDirectory(prefix="bench") as temporary, connected():
        folder = Path(temporary)
        write_tars(folder / "source", pictures(distinct, side), distinct)
        curate(folder / "source", folder / "store")
        store = Store(folder / "store")
        experiment = _experiment(store, side)
        run = Run.prepare(folder / "run", experiment, ["feral", "bench"])
        save_checkpoint(run.checkpoints, fresh_state(experiment, CPU), keep=1)
        encoders, numbers = RunEncoders.of(run), np.resize(np.arange(store.manifest.admitted), images)
        with Watch("own") as watch:
            embedding = WatchedEmbedding(ClusterConfig(use_gpu=gpu), cache=run.embeddings, watch=watch)
            found, took = _timed(lambda: embedding.samples(encoders, store, numbers, ("trained",)))
            watch.phase = f"k-NN of {queries:,} images"
            bank = found.features["trained"]
            labels = np.arange(images) % 10
            _, neighbours = _timed(lambda: knn_predictions(bank, labels, bank[:queries], 20, 0.07))
        device = torch.device("cuda" if gpu else "cpu")
        plain = _rate(_plain_loop(store, encoders, device), seconds)
        alone = _rate(_encoder_alone(encoders, device), seconds)
    speed: list[tuple[Cell, ...]] = [
        ("feral, on Ray", images / took, images / took / plain, images / took / alone),
        ("plain loop: read, decode, encode", plain, 1.0, plain / alone),
        ("the encoder alone", alone, alone / plain, 1.0),
    ]
    note = (
        f"{images:,} images of {side} px ({distinct:,} distinct ones), quarter-width ResNet-18, single precision, "
        f"{'one GPU' if gpu else f'{CORES} cores'}; ours with starting its processes and writing the embeddings; k-NN "
        f"of {queries:,} images among all: {neighbours:.1f} s"
    )
    memory = [
        (phase, *(peaks[kind] / 2**20 if peaks[kind] else None for kind in KINDS))
        for phase, peaks in watch.peaks.items()
    ]
    return [
        Table("embedding", ("how", "images/s", "÷ plain loop", "÷ encoder alone"), speed, note),
        Table("memory: largest process of each kind, MB of its own (without shared memory and mapped files)",
              ("until", *KINDS), memory),
    ]  # fmt: skip


def _experiment(store: Store, side: int) -> Experiment:
    encoder = {
        "name": "resnet18", "image_size": side, "stem": "small_stride2",
        "arguments": {"channels": [16, 32, 64, 128], "zero_init_last": False},
    }  # fmt: skip
    return build_experiment({"data": {"store": str(store.path)}, "encoder": encoder, "objective": {"name": "simclr"}})


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    return work(), time.perf_counter() - began


@dataclass(frozen=True)
class WatchedEmbedding(Embedding):
    """Tells a watch how far it is."""

    watch: Watch = field(default_factory=Watch)

    def blocks(self, encoders, store, numbers, names=("trained",), output="") -> Iterator[Columns]:
        seen = 0
        for block in super().blocks(encoders, store, numbers, names, output):
            seen += len(block["number"])
            yield block
            self.watch.phase = f"{25 * min(4, 1 + 4 * seen // len(numbers))} %"


def _rate(batches: Callable[[], int], seconds: float) -> float:
    """Images a second, after a batch to warm up."""
    batches()
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        count += batches()
    return count / (time.perf_counter() - began)


def _plain_loop(store: Store, encoders: RunEncoders, device: torch.device) -> Callable[[], int]:
    encoder, views, size = encoders.load()["trained"].to(device), encoders.sees.views, encoders.sees.image_size
    total, position = store.manifest.admitted, 0

    def batch() -> int:
        nonlocal position
        numbers = (position + np.arange(BATCH)) % total
        position += BATCH
        raws = [torch.frombuffer(bytearray(store.read(int(number))), dtype=torch.uint8) for number in numbers]
        pixels = torch.stack([center_crop(resize(decode_jpeg(raw, RGB), size), [size, size]) for raw in raws])
        with torch.inference_mode():
            seen = views(pixels.permute(0, 2, 3, 1)[:, None].to(device), torch.from_numpy(numbers), 0)[0]
            encoder.embed(seen).cpu()
        return BATCH

    return batch


def _encoder_alone(encoders: RunEncoders, device: torch.device) -> Callable[[], int]:
    keep_freed_memory()
    encoder, size = encoders.load()["trained"].to(device), encoders.sees.image_size
    images = torch.randn(BATCH, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)

    def batch() -> int:
        with torch.inference_mode():
            encoder.embed(images).cpu()
        return BATCH

    return batch
