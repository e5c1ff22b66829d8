"""What the plan of a run costs, at any size and any step; and how often a batch has a sample twice."""

import re
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from jobs.bench import Cell, Table
from pipeline.stream.plan import Plan

BATCH, LANES = 256, 16
KINDS: tuple[Literal["every sample once", "weighted"], ...] = ("every sample once", "weighted")
WEIGHT = 0.75  # of all samples alike: an array of one number, for a file of 10⁹ would be 4 GB
ROOT = Path(__file__).parent.parent.parent


def main(
    samples: Annotated[int, Field(ge=10_000)] = 1_000_000_000,
    small: Annotated[int, Field(ge=10_000)] = 1_000_000,
    steps: Annotated[int, Field(ge=1)] = 100,
) -> list[Table]:
    """Time and memory of a plan and of the steps asked of it, for few and many samples; copies of a sample in a batch.

    A run that is resumed makes a plan and asks for the steps from the one where it stopped: neither may grow with it.
    """
    costs = [_cost(kind, size, steps) for kind in KINDS for size in (small, samples)]
    columns = ("plan", "samples", "make s", "step 0", "half an epoch", "3 epochs", "rows/s", "peak MB", "process MB")
    note = (
        f"CPU s; ms for {steps} steps of {BATCH} rows from there; rows/s of one core, {steps} steps at a time; peak of "
        "what Python and numpy hold, and of a process of its own, with its libraries (on Linux)"
    )
    weights = {"all 2": (2.0, 2.0), "all 4": (4.0, 4.0), "0.5 or 3": (0.5, 3.0), "0.2 or 5": (0.2, 5.0)}
    rows = [_copies(name, least, most) for name, (least, most) in weights.items()]
    found = ("weights", "entries an epoch", "pairs a batch", "by chance", "batches with any")
    about = "pairs of the same sample in a batch of 256; 100,000 samples; by chance: if the epoch were shuffled whole"
    return [Table("the plan", columns, costs, note), Table("copies of a sample", found, rows, about)]


def made(kind: str, samples: int) -> Plan:
    """A plan over synthetic samples."""
    weights = np.broadcast_to(np.float32(WEIGHT), samples) if kind == "weighted" else None
    return Plan(samples, BATCH, LANES, seed=0, weights=weights)


def _cost(kind: str, samples: int, steps: int) -> tuple[Cell, ...]:
    plan, seconds = _timed(lambda: made(kind, samples))
    epoch = plan.steps_per_epoch
    places = (0, epoch // 2, 3 * epoch)
    asked = [_timed(lambda step=step: plan.rank_rows(step, step + steps, 0, 1))[1] for step in places]
    tracemalloc.start()
    _resumed(kind, samples, steps)
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return (
        kind, samples, seconds, *(1000 * one for one in asked), 3 * steps * BATCH / sum(asked), peak,
        _process_mb(kind, samples, steps),
    )  # fmt: skip


def _timed(work: Callable[[], Plan | tuple[np.ndarray, np.ndarray]]) -> tuple[Plan, float]:
    began = time.process_time()
    return work(), time.process_time() - began  # type: ignore[return-value]


def _resumed(kind: str, samples: int, steps: int) -> None:
    plan = made(kind, samples)
    plan.rank_rows(3 * plan.steps_per_epoch, 3 * plan.steps_per_epoch + steps, 0, 1)


def _process_mb(kind: str, samples: int, steps: int) -> float:
    """The largest resident size of a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.plan", kind, str(samples), str(steps)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout)


def _copies(name: str, least: float, most: float, samples: int = 100_000) -> tuple[Cell, ...]:
    """A sixth of the samples, spread at random, has the greater weight."""
    weights = np.where(np.random.default_rng(0).random(samples) < 1 / 6, most, least).astype(np.float32)
    plan = Plan(samples, BATCH, LANES, seed=0, weights=weights)
    batches = np.sort(plan.rank_rows(0, plan.steps_per_epoch, 0, 1)[0], axis=1)
    pairs = sum((batches[:, by:] == batches[:, :-by]).sum(1) for by in range(1, int(np.ceil(most))))  # (steps,)
    counts = np.bincount(batches.ravel())
    chance = (counts * (counts - 1) / 2).sum() * (BATCH - 1) / (batches.size - 1) / len(batches)
    return name, plan.entries, float(pairs.mean()), float(chance), float((pairs > 0).mean())


if __name__ == "__main__":
    _resumed(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())  # ru_maxrss would count the parent's
    assert peak is not None
    print(int(peak[1]) / 2**10)
