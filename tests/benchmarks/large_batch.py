"""What large batches cost in memory and time: losses in chunks, and encoding in parts with cached gradients."""

import math
import multiprocessing
import time
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from jobs.bench import Cell, Table
from pipeline.train.cached import cached_backward
from ssl_models.batch import Batch, Step
from ssl_models.encoders import EncoderConfig, TextConfig
from ssl_models.objectives.contrastive import nt_xent
from ssl_models.objectives.image_text import CLIP, clip_loss, siglip_loss
from tests.benchmarks.training import captions

WIDTH = 128  # of an embedding
STEP = Step(0, 0.0, seed=0)


def main(
    rows: str = "8192,32768",
    plain_rows: Annotated[int, Field(ge=0)] = 8192,
    chunks: str = "256,1024",
    images: Annotated[int, Field(ge=2)] = 512,
    micro_batches: str = "16,64",
    side: Annotated[int, Field(ge=16, multiple_of=8)] = 64,
    repeats: Annotated[int, Field(ge=1)] = 1,
) -> list[Table]:
    """Memory and time of losses over large batches, plain and in chunks, and of CLIP's step, plain and in parts.

    `rows` are the embeddings that a loss compares with each other (NT-Xent: two a image). The plain loss is measured up
    to `plain_rows`: a matrix of 32,768² takes 4.3 GB, and plain losses hold several. One thread; a process each.
    """
    sizes, some = _numbers("rows", rows), _numbers("chunks", chunks)
    losses: list[tuple[Cell, ...]] = []
    for name in LOSSES:
        for size in sizes:
            for chunk in (None, *some):
                found: tuple[Cell, ...] = (None, None, None)
                if chunk is not None or size <= plain_rows:
                    found = _measured(_loss, (name, size, chunk), (name, 64, chunk and 32), repeats)
                losses.append((name, size, "plain" if chunk is None else f"{chunk:,}", *found))
    steps: list[tuple[Cell, ...]] = []
    for micro_batch in (None, *_numbers("micro_batches", micro_batches)):
        name = "plain" if micro_batch is None else f"{micro_batch:,}"
        steps.append((name, *_measured(_step, (images, side, micro_batch), (4, side, micro_batch and 2), repeats)))
    note = "peak of resident memory over what the process had before; forward and backward, the median"
    return [
        Table(f"losses over embeddings of width {WIDTH}", ("loss", "rows", "chunk", "MB", "s", "value"), losses, note),
        Table(
            f"CLIP's step, ViT-Ti at {side} px, {images:,} images: forward, backward",
            ("micro_batch", "MB", "s", "loss"),
            steps,
            note,
        ),
    ]


def _numbers(setting: str, text: str) -> list[int]:
    numbers = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if min(numbers) < 2:
        raise ValueError(f"{setting}={text}: whole numbers from 2 on are allowed, with commas between them")
    return numbers


# ---- in a process of its own ----------------------------------------------------------------------------------------

LOSSES: dict[str, Callable[..., tuple[torch.Tensor, torch.Tensor]]] = {
    "NT-Xent": lambda rows, chunk: nt_xent(*rows.chunk(2), 0.2, chunk),
    "CLIP": lambda rows, chunk: clip_loss(rows, rows.flip(1), torch.tensor(10.0), chunk),
    "SigLIP": lambda rows, chunk: siglip_loss(
        rows, rows.flip(1), torch.tensor(10.0), torch.tensor(-math.log(len(rows))), chunk
    ),
}


def _loss(name: str, size: int, chunk: int | None) -> Callable[[], float]:
    rows = torch.randn(size, WIDTH, generator=torch.Generator().manual_seed(0), requires_grad=True)

    def work() -> float:
        rows.grad = None
        loss, _ = LOSSES[name](rows, chunk)
        loss.backward()
        return loss.item()

    return work


def _step(images: int, side: int, micro_batch: int | None) -> Callable[[], float]:
    torch.manual_seed(0)
    encoder = EncoderConfig(name="vit_tiny_patch16_224", image_size=side, patch_size=8, arguments={"depth": 6})
    text = TextConfig(width=128, layers=3, heads=4, context_length=24)
    objective = CLIP(CLIP.Config(text=text, dim=WIDTH), encoder).train()
    tokens = captions(images, text.context_length, torch.Generator().manual_seed(0))
    batch = Batch((torch.randn(images, 3, side, side),), torch.arange(images), tokens)
    parameters = list(objective.parameters())

    def work() -> float:
        if micro_batch is not None:
            return cached_backward(objective, batch, STEP, micro_batch, parameters, nullcontext)["loss"].item()
        objective.zero_grad()
        loss = objective(batch, STEP)["loss"]
        loss.backward()
        return loss.item()

    return work


def _measured(make: Callable[..., Callable[[], float]], *arguments: object) -> tuple[float, float, float]:
    """MB, seconds, value: of what `make` makes of the first arguments, called as often as the last one says; after what
    it makes of the second ones, for libraries that load at their first use."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, make, *arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        raise RuntimeError(f"the process of {arguments} ended without an answer, perhaps for want of memory") from None
    finally:
        process.join()


def _serve(
    pipe: Connection, make: Callable[..., Callable[[], float]], sizes: tuple, small: tuple, repeats: int
) -> None:
    torch.set_num_threads(1)
    make(*small)()
    work, seconds, value = make(*sizes), [], 0.0
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    for _ in range(repeats):
        began = time.perf_counter()
        value = work()
        seconds.append(time.perf_counter() - began)
    pipe.send((_status("VmHWM") - before, sorted(seconds)[repeats // 2], value))


def _status(field: str) -> float:
    """MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))
