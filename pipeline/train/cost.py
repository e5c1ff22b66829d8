"""What training cost, from the record of a run."""

from dataclasses import dataclass
from statistics import median

from pipeline.train.record import Rows, attempts


@dataclass(frozen=True)
class TrainingCost:
    seconds: float  # of the steps that count, with their waiting and saving
    images_per_second: float  # median over the rows
    peak_memory_bytes: int | None  # of rank 0; None: the version that trained it did not note it


def cost_of(rows: Rows) -> TrainingCost:
    """The cost of the rows of `read_metrics`, at least one."""
    return TrainingCost(
        seconds=sum(part[-1]["seconds"] for part in attempts(rows)),
        images_per_second=median(row["images_per_second"] for row in rows),
        peak_memory_bytes=max((row["peak_memory_bytes"] for row in rows if "peak_memory_bytes" in row), default=None),
    )
