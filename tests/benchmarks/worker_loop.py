"""What a step of our Ray Train worker costs beyond a bare torch loop, on the same batches in memory.

Both train the same model in the same process, a step each in turns. To the bare loop, the worker adds: the loop's
own bookkeeping, meters, a row of metrics every ten steps on disk and in TensorBoard, the alarm against hanging, the
learning rate's curve, and asking whether it must leave.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from jobs.bench import Cell, Table
from pipeline.cluster import KEEP_FREED_MEMORY, connected
from pipeline.curate import curate
from pipeline.experiment import build_experiment
from pipeline.ingest.config import CurateConfig
from pipeline.run import Run
from pipeline.stream.batches import to_batch
from pipeline.stream.read import Columns
from pipeline.train.loop import TrainState
from pipeline.train.worker import Start, Worker
from ssl_models.batch import Step
from tests.benchmarks.processes import Cost
from tests.benchmarks.scenes import pictures

TARGET = 3.0  # %
IMAGES, SIDE = 256, 48  # of the store
WARM_UP = 3  # bare steps
HELD = 2  # batches in memory, again and again
PLAIN = {"flip": 0, "jitter": (0, 0, 0, 0), "grayscale": 0}  # views that are only normalised: no part of a loop
RESNET = "ResNet-18 at 32 px, batch 128"
MODELS: dict[str, dict[str, Any]] = {
    RESNET: {
        "data": {"batch_size": 128, "lanes": 4},
        "encoder": {"name": "resnet18", "image_size": 32, "stem": "small_stride2"},
    },
    "8 channels at 16 px, batch 32": {
        "data": {"batch_size": 32, "lanes": 4},
        "encoder": {
            "name": "resnet18",
            "image_size": 16,
            "stem": "small_stride2",
            "arguments": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
        },
    },
}


def main(
    rounds: Annotated[int, Field(ge=1)] = 5,
    steps: Annotated[int, Field(ge=10, multiple_of=10)] = 10,
    models: str | int = "all",
) -> list[Table]:
    """What a step of the Ray worker costs beyond a bare torch loop with the same batches in memory.

    `steps` of each in turns, `rounds` times (about three minutes); models=8 measures only those whose names begin so.
    """
    chosen = {name: model for name, model in MODELS.items() if models == "all" or name.startswith(str(models))}
    if not chosen:
        raise ValueError(f"models={models}: none begins so; there are {', '.join(MODELS)}")
    with tempfile.TemporaryDirectory(prefix="bench") as temporary, connected(cpus=2):
        folder = Path(temporary)
        (folder / "source").mkdir()
        for number, raw in enumerate(pictures(IMAGES, SIDE)):
            (folder / "source" / f"{number}.jpg").write_bytes(raw)
        curate(folder / "source", folder / "store", CurateConfig(holdout=0))
        found = _in_ray(folder, list(chosen), rounds, steps)
    rows = [_row(name, found[name], steps) for name in chosen]
    columns = (
        "model",
        "bare ms",
        "ours ms",
        "more µs",
        "more %",
        "bare CPU ms",
        "ours CPU ms",
        "more CPU %",
        "wanted %",
    )
    note = f"ms a step: medians of {rounds} × {steps} steps in turns, and of the differences; "
    threads = f"{torch.get_num_threads()} threads"
    return [Table("our Ray worker's steps beside a bare loop's", columns, rows, note + threads)]


def _row(name: str, pairs: list[tuple[Cost, Cost]], steps: int) -> tuple[Cell, ...]:
    """`pairs` of (bare, ours)."""
    bare, ours = (Cost(*map(statistics.median, zip(*costs, strict=True))) for costs in zip(*pairs, strict=True))
    more = statistics.median(own.wall - plain.wall for plain, own in pairs)
    more_cpu = statistics.median(own.cpu - plain.cpu for plain, own in pairs)
    each = 1000 / steps
    return (
        name, bare.wall * each, ours.wall * each, more * each * 1000, 100 * more / bare.wall,
        bare.cpu * each, ours.cpu * each, 100 * more_cpu / bare.cpu, TARGET,
    )  # fmt: skip


def _in_ray(folder: Path, models: list[str], rounds: int, steps: int) -> dict[str, list[tuple[Cost, Cost]]]:
    """Runs `_train_in_turns` on one worker of Ray Train, set up as `fit` does it."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    TorchTrainer(
        _train_in_turns,
        train_loop_config={"folder": str(folder), "models": models, "rounds": rounds, "steps": steps,
                           "threads": torch.get_num_threads()},
        scaling_config=ScalingConfig(num_workers=1),
        torch_config=TorchConfig(backend="gloo"),
        run_config=RunConfig(
            name="bench", storage_path=str(folder / "ray"), worker_runtime_env={"env_vars": KEEP_FREED_MEMORY}
        ),
    ).fit()  # fmt: skip
    found = json.loads((folder / "found.json").read_text())
    return {name: [(Cost(*bare), Cost(*ours)) for bare, ours in pairs] for name, pairs in found.items()}


def _train_in_turns(config: dict[str, Any]) -> None:
    """What the worker of Ray Train runs."""
    torch.set_num_threads(config["threads"])
    folder, rounds, steps = Path(config["folder"]), config["rounds"], config["steps"]
    found: dict[str, list[tuple[Cost, Cost]]] = {}
    for name in config["models"]:
        model = MODELS[name]
        batch = model["data"]["batch_size"]
        experiment = build_experiment(
            {
                "data": model["data"] | {"store": str(folder / "store")},
                "views": PLAIN,
                "encoder": model["encoder"],
                "objective": {"name": "simclr"},
                "training": {"images_seen": (rounds * steps + 1) * batch, "checkpoint_every": 10**9},
            }
        )
        run = Run.prepare(folder / f"run{len(found)}", experiment, ["bench"])
        start = Start.look(run)
        assert start is not None
        worker = InTurns(run, experiment, start, torch.device("cpu"), 0, 1, time.time())
        worker.rounds, worker.steps, worker.pairs = rounds, steps, []
        worker.train()
        found[name] = worker.pairs
    (folder / "found.json").write_text(json.dumps(found))


class InTurns(Worker):
    """A worker whose stream is in memory, and does steps of its own between those of the worker."""

    rounds: int
    steps: int
    pairs: list[tuple[Cost, Cost]]  # of bare and of our steps

    def _train(self, state: TrainState) -> None:
        self.state = state
        super()._train(state)

    def _batches(self, step: int) -> Generator[Columns]:
        held = list(self.stream.local(0, HELD))
        self._bare(held, 0, WARM_UP)
        for _ in range(self.rounds):
            costs = []
            for number in range(self.steps):
                times = [_now()]
                self._bare(held, number, 1)
                times.append(_now())
                yield held[number % HELD]
                times.append(_now())  # the worker wants the next batch: it has done all that belongs to a step
                costs.append([Cost(*np.subtract(*pair)) for pair in zip(times[1:], times, strict=False)])
            bare, ours = (Cost(*map(sum, zip(*own, strict=True))) for own in zip(*costs, strict=True))
            self.pairs.append((bare, ours))
        yield held[0]  # the last step is not measured: nothing is asked for after it

    def _bare(self, held: list[Columns], first: int, steps: int) -> None:
        model, (optimizer,) = self.state.objective, self.state.optimizers.values()
        for number in range(first, first + steps):
            batch = to_batch(held[number % HELD], self.views, self.device)
            with torch.autocast(self.device.type, torch.bfloat16):
                loss = model(batch, Step(number, 0.0, 0))["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def _now() -> Cost:
    return Cost(time.process_time(), time.perf_counter())
