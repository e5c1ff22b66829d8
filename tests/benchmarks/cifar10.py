"""CIFAR-10 on a GPU, without Ray: how good the encoder is, how fast it came; lightly's own benchmark loop beside it.

STORE is CIFAR-10, curated (`feral curate cifar10/ --to STORE near_distance=null`); `images` its training folder, for
lightly, which reads files. lightly's loop is that of its `cifar10_benchmark.py` for SimCLR: its ResNet-18, its head and
loss, its transform, single precision, 8 loading processes; and once more with bf16 and a loading process for each core,
which is the better of what a user could make of it.
"""

import copy
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from jobs.bench import Cell, Table
from jobs.recipes import find_recipe
from pipeline.evaluate.probes import knn_predictions
from pipeline.experiment import Experiment
from pipeline.ingest.store import Store
from pipeline.stream.batches import Stream, to_batch
from pipeline.stream.crops import CenterCrop
from pipeline.stream.plan import Plan
from pipeline.stream.read import Reader
from pipeline.train.loop import TrainState, train
from pipeline.train.meter import LogRow
from pipeline.train.worker import fresh_state, open_stream
from ssl_models.batch import Step
from ssl_models.objectives import Objective

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
PEER_PROCESSES = 8  # of lightly's benchmark


def main(
    store: Path,
    images: Path | None = None,
    recipes: str = "simclr_cifar10",
    epochs: Annotated[float, Field(ge=0)] = 200,
    seconds: Annotated[float, Field(gt=0)] = 20,
    compile: bool = False,
    variants: str = "",
    processes: Annotated[int, Field(ge=1)] = max(1, CORES - 2),
) -> list[Table]:
    """CIFAR-10 on one GPU without Ray: k-NN, minutes, images/s, memory, share of the bf16 peak; lightly's loop beside.

    Trains each of `recipes` for `epochs` (0: only speed). variants=eager,compiled,lightly,lightly_bf16 measures the
    speed of these first, for `seconds` each.
    """
    torch.backends.cudnn.benchmark = True
    tables = []
    if variants:
        experiment = _experiment(recipes.split(",")[0], store)
        peak = _peak_flops()
        rows = [_speed(name, experiment, images, seconds, processes, peak) for name in variants.split(",")]
        columns = ("loop", "images/s", "GB", "bf16 peak, %", "GPU waits, %")
        note = f"SimCLR, ResNet-18, batch 512; peak {peak / 1e12:.0f} TFLOP/s, measured by a product of matrices"
        tables.append(Table(f"speed on {_device_name()}", columns, rows, note))
    if epochs:
        rows = [_train(name, store, epochs, compile, processes) for name in recipes.split(",")]
        columns = ("recipe", "epochs", "k-NN %", "random %", "minutes", "images/s", "GB")
        tables.append(
            Table("CIFAR-10", columns, rows, "weighted k-NN as the recipe says, on the last epoch; test split")
        )
    return tables


def _experiment(recipe: str, store: Path, **changes: Any) -> Experiment:
    settings = {"data.store": str(store), "training.log_every": 50, **changes}
    return find_recipe(recipe)().override(settings).fitted(Store(store))


# ---- ours -----------------------------------------------------------------------------------------------------------


def _train(recipe: str, store: Path, epochs: float, compile: bool, processes: int) -> tuple[Cell, ...]:
    count = Store(store).count("train")
    experiment = _experiment(recipe, store, **{"training.images_seen": int(epochs * count)})
    experiment = experiment.override({"training.compile": compile})
    state = fresh_state(experiment, DEVICE)
    before = _knn(state.objective, experiment, processes)
    began = time.perf_counter()
    rows = _run(state, experiment, experiment.total_steps, processes, tell=True)
    _synchronize()
    minutes = (time.perf_counter() - began) / 60
    rates = sorted(row.images_per_second for row in rows)
    score = _knn(state.objective, experiment, processes)
    return recipe, epochs, score, before, minutes, rates[len(rates) // 2], _gigabytes()


def _run(
    state: TrainState,
    experiment: Experiment,
    stop: int,
    processes: int,
    tell: bool = False,
    until: float = math.inf,
) -> list[LogRow]:
    stream, views = open_stream(experiment, experiment.data.open()), experiment.device_views()
    rows: list[LogRow] = []

    def log(row: LogRow) -> None:
        rows.append(row)
        if tell and row.step % 1000 == 0:
            print(f"step {row.step}: {row.metrics}, {row.images_per_second:,.0f} images/s", flush=True)

    train(
        state,
        stream.processes(state.step, stop, processes=processes),
        training=experiment.training,
        optimizer=experiment.optimizer,
        batch_size=experiment.data.batch_size,
        total_steps=experiment.total_steps,
        prepare=lambda columns: to_batch(columns, views, DEVICE),
        on_log=log,
        must_leave=lambda: time.perf_counter() > until,
    )
    return rows


def _knn(objective: Objective, experiment: Experiment, processes: int) -> float:
    """Weighted k-NN on the test split, %."""
    store = experiment.data.open()
    objective.eval()
    bank, labels = _embed(objective, experiment, store, "train", processes)
    queries, truth = _embed(objective, experiment, store, "test", processes)
    objective.train()
    evaluation = experiment.evaluation
    found = knn_predictions(bank, labels, queries, evaluation.neighbours, evaluation.neighbour_temperature)
    return 100 * float((found == truth).mean())


@torch.inference_mode()
def _embed(
    objective: Objective, experiment: Experiment, store: Store, split: Any, processes: int
) -> tuple[np.ndarray, np.ndarray]:
    numbers = store.select(split)
    size = 1000 if len(numbers) % 1000 == 0 else len(numbers)
    plan = Plan(samples=len(numbers), batch_size=size, lanes=1, seed=0)  # an epoch: each sample once
    reader = Reader(CenterCrop(experiment.encoder.image_size), place=store.place)
    views, found, labels = experiment.device_views(plain=True), [], []
    for columns in Stream(store, numbers, plan, reader).processes(0, len(numbers) // size, processes=processes):
        batch = to_batch(columns, views, DEVICE)
        found.append(objective.embed(batch.views[0]).float().cpu().numpy())
        labels.append(columns["label"])
    return np.concatenate(found), np.concatenate(labels)


# ---- speed ----------------------------------------------------------------------------------------------------------


@dataclass
class _Loop:
    """A training loop that takes one step a call, and tells how long it waited for data."""

    step: Callable[[Any], None]
    batches: Iterator[Any]


def _speed(
    name: str, experiment: Experiment, images: Path | None, seconds: float, processes: int, peak: float
) -> tuple[Cell, ...]:
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    if name in ("eager", "compiled"):
        return _our_speed(name, experiment, seconds, processes, peak)
    if images is None:
        raise ValueError("images is not set: lightly reads a folder of CIFAR-10's training images")
    batch = experiment.data.batch_size
    loop = _lightly(images, batch, name.endswith("bf16"), CORES if name.endswith("bf16") else PEER_PROCESSES)
    for raw in islice(loop.batches, 30):
        loop.step(raw)
    _synchronize()
    began, steps, waited = time.perf_counter(), 0, 0.0
    while time.perf_counter() - began < seconds:
        asked = time.perf_counter()
        raw = next(loop.batches)
        waited += time.perf_counter() - asked
        loop.step(raw)
        steps += 1
    _synchronize()
    elapsed = time.perf_counter() - began
    return f"{name}", steps * batch / elapsed, _gigabytes(), None, 100 * waited / elapsed


def _our_speed(name: str, experiment: Experiment, seconds: float, processes: int, peak: float) -> tuple[Cell, ...]:
    endless = {"training.compile": name == "compiled", "training.images_seen": 10**9}
    experiment = experiment.override(endless)
    state = fresh_state(experiment, DEVICE)
    flops = _flops_per_image(state.objective, experiment)
    _run(state, experiment, state.step + 100, processes)  # warm-up, and compiling
    began = time.perf_counter()
    rows = _run(state, experiment, experiment.total_steps, processes, until=began + seconds + 4)[2:]
    steps = rows[-1].step - rows[0].step
    rate = steps * experiment.data.batch_size / (rows[-1].ended - rows[0].ended)
    wait = sum(row.data_wait_seconds for row in rows[1:]) / (rows[-1].ended - rows[0].ended)
    return f"feral, {name}", rate, _gigabytes(), 100 * rate * flops / peak, 100 * wait


def _flops_per_image(objective: Objective, experiment: Experiment) -> float:
    """Of a forward and a backward pass over all views, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    from ssl_models.batch import Batch

    objective = copy.deepcopy(objective)
    side, size = experiment.encoder.image_size, 16
    views = tuple(torch.randn(size, 3, side, side, device=DEVICE) for _ in range(experiment.num_views))
    batch = Batch(views, torch.arange(size, device=DEVICE))
    with FlopCounterMode(display=False) as counter:
        objective(batch, Step(0, 0.0, 0))["loss"].backward()
    return counter.get_total_flops() / size


def _peak_flops(size: int = 8192, turns: int = 20) -> float:
    """bf16 FLOP/s of a product of two random matrices."""
    if DEVICE.type != "cuda":
        return float("nan")
    first, second = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        first @ second
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(turns):
        first @ second
    end.record()
    torch.cuda.synchronize()
    return 2 * size**3 * turns / (start.elapsed_time(end) / 1000)


def _lightly(images: Path, batch_size: int, half: bool, processes: int) -> _Loop:
    from lightly.loss import NTXentLoss
    from lightly.models import ResNetGenerator
    from lightly.models.modules.heads import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform
    from torch import nn
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    resnet = ResNetGenerator("resnet-18")
    backbone = nn.Sequential(*list(resnet.children())[:-1], nn.AdaptiveAvgPool2d(1))
    model = nn.Sequential(backbone, nn.Flatten(), SimCLRProjectionHead(512, 512, 128)).to(DEVICE).train()
    criterion = NTXentLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06 * batch_size / 128, momentum=0.9, weight_decay=5e-4)
    data = ImageFolder(str(images), transform=SimCLRTransform(input_size=32, cj_strength=0.5, gaussian_blur=0.0))
    loader = DataLoader(data, batch_size, shuffle=True, drop_last=True, num_workers=processes, pin_memory=half)

    def step(raw: tuple[list[Tensor], Tensor]) -> None:
        first, second = (view.to(DEVICE, non_blocking=True) for view in raw[0])
        with torch.autocast(DEVICE.type, torch.bfloat16) if half else nullcontext():
            loss = criterion(model(first), model(second))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def forever() -> Iterator[Any]:
        while True:
            yield from loader

    return _Loop(step, forever())


def _synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def _gigabytes() -> float | None:
    """The most of the GPU's memory that tensors took."""
    return torch.cuda.max_memory_allocated() / 1e9 if DEVICE.type == "cuda" else None


def _device_name() -> str:
    return torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
