"""The record of a run: one JSON line a log step, and the same in TensorBoard."""

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.train.loop import LogRow


class MetricsWriter:
    """Appends to `metrics.jsonl` and to TensorBoard; one process writes. Rows after the restored step are dropped:
    those steps are done again."""

    def __init__(self, directory: Path, restored_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = directory / "metrics.jsonl"
        kept = [row for row in read_metrics(directory) if row["step"] <= restored_step]
        self.path.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self.tensorboard = SummaryWriter(str(directory / "tensorboard"), purge_step=restored_step + 1)

    def write(self, row: LogRow) -> dict[str, Any]:
        flat = {
            "step": row.step,
            "images_seen": row.images_seen,
            **row.metrics,
            "learning_rate": row.learning_rate,
            "images_per_second": round(row.images_per_second, 1),
            "data_wait_ratio": round(row.data_wait_ratio, 4),
            "seconds": round(row.seconds, 2),
            "time": round(time.time(), 2),
        }
        with self.path.open("a") as file:
            file.write(json.dumps(flat) + "\n")
        for name, value in flat.items():
            if name not in ("step", "time", "seconds"):
                self.tensorboard.add_scalar(name, value, row.step)
        self.tensorboard.flush()
        return flat


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`; a last line cut by a crash is left out."""
    path = directory / "metrics.jsonl"
    return _parse(path.read_text()) if path.exists() else []


def follow_metrics(directory: Path) -> Iterator[list[dict[str, Any]]]:
    """Each `next` gives the rows that were added since the one before, or since the begin."""
    path = directory / "metrics.jsonl"
    position = path.stat().st_size if path.exists() else 0
    while True:
        added = b""
        if path.exists():
            position = min(position, path.stat().st_size)  # a restarted worker group has dropped rows
            with path.open("rb") as file:
                file.seek(position)
                added = file.read()
            added = added[: added.rfind(b"\n") + 1]
            position += len(added)
        yield _parse(added.decode())


def _parse(text: str) -> list[dict[str, Any]]:
    rows = []
    for line in text.splitlines():
        with suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows
