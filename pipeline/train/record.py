"""The record of a run: what happened (`events.jsonl`) and what was measured (`metrics.jsonl`, TensorBoard).

Both files are only ever appended to, a JSON object a line. Steps that were done again after a fault are there twice;
`read_metrics` gives those that count. Every event has `event` and `time` (Unix seconds):

    written by the command
    command      begins to work on the run: pid
    fit          training begins; fit_ended: it is over, for whatever reason
    probe        a checkpoint was judged while training went on: step, knn, queries, health
    evaluate     evaluation begins; evaluated: it is done
    end          the command ends: code. One that was killed has none

    written by rank 0 of the workers
    attempt      a worker group is about to start its stream: attempt (counted over the whole run, from 1),
                 step (restored; 0: a new run), world_size, restore_seconds, began (when the group began to set up)
    checkpoint   attempt, step, time (when the loop began to stand still), blocked_seconds, seconds, bytes
    nonfinite    step, values, ids, skipped (whether the attempt goes back, and leaves the batches out)
    preempted    a node is about to go; stopping: the command was asked to stop. Both save before they leave
"""

import errno
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.train.meter import LogRow

Rows = list[dict[str, Any]]

EVENTS, METRICS, TENSORBOARD = "events.jsonl", "metrics.jsonl", "tensorboard"
# Fields of a row that say which steps it is about, and are no measurement.
PLACE = ("step", "seconds", "time", "began", "data_wait_seconds", "attempt", "restored_step", "samples", "read_retries",
         "stores")  # fmt: skip

_PAUSES = (0.1, 0.5, 2.0)  # seconds before each further try to write a line

log = logging.getLogger(__name__)


def append_event(directory: Path, event: str, **facts: Any) -> None:
    """Notes an event of now, or of `time`. Where a run's time went is not worth a run: if the line cannot be
    written, a warning says so and the run goes on."""
    try:
        append_row(directory / EVENTS, {"event": event, "time": time.time(), **facts})
    except OSError as error:
        log.warning("the event %s is not noted: %s", event, error)


class Recorder:
    """Writes the rows of one attempt; one process writes.

    `restored_step` stands in every row: it tells which rows of earlier attempts were done again.
    """

    def __init__(self, directory: Path, attempt: int, restored_step: int) -> None:
        self.path = directory / METRICS
        self.place = {"attempt": attempt, "restored_step": restored_step}
        self.tensorboard: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.tensorboard = SummaryWriter(str(directory / TENSORBOARD), purge_step=restored_step + 1)
        except Exception as error:
            self._give_up_tensorboard(error)

    def write(self, row: LogRow) -> dict[str, Any]:
        """Appends a row, and returns what it wrote.

        Raises:
            OSError: `metrics.jsonl` cannot be written, after some seconds of trying.
        """
        flat = {
            "step": row.step,
            "images_seen": row.images_seen,
            **row.metrics,
            "learning_rate": row.learning_rate,
            "images_per_second": round(row.images_per_second, 1),
            "data_wait_ratio": round(row.data_wait_ratio, 4),
            "data_wait_seconds": round(row.data_wait_seconds, 4),
            "seconds": round(row.seconds, 2),
            "began": round(row.began, 4),
            "time": round(row.ended, 4),
            "samples": row.samples,
            "peak_memory_bytes": row.peak_memory_bytes,
            **({"read_retries": row.read_retries} if row.read_retries else {}),
            **({"stores": row.stores} if row.stores else {}),
            **self.place,
        }
        append_row(self.path, flat)
        if self.tensorboard is not None:
            try:
                for name, value in flat.items():
                    if name not in PLACE:
                        self.tensorboard.add_scalar(name, value, row.step)
                self.tensorboard.flush()
            except Exception as error:  # its disk, its protocol buffers: none of it is worth the run
                self._give_up_tensorboard(error)
        return flat

    def _give_up_tensorboard(self, error: Exception) -> None:
        self.tensorboard = None
        log.warning("no more TensorBoard from this attempt, training goes on: %s: %s", type(error).__name__, error)


def read_metrics(directory: Path) -> Rows:
    """The rows of the steps that count, each step once."""
    return surviving(read_all_metrics(directory))


def read_all_metrics(directory: Path) -> Rows:
    """Every row that was ever written, with those of steps that were done again."""
    return read_rows(directory / METRICS)


def read_events(directory: Path) -> Rows:
    """The events in the order of writing; none for a run that noted none."""
    return read_rows(directory / EVENTS)


def surviving(rows: Rows) -> Rows:
    """The rows of the final lineage, in order, each step once: those of the newest attempt, before them those that led
    to the checkpoint that it restored, and so on.

    A checkpoint leads back to the newest attempt that had come as far: storage may hide one for a while, so that an
    attempt in between began earlier. Rows without `attempt` are of a version that dropped superseded rows itself.
    """
    lineages: list[dict[int, dict[str, Any]]] = [{}]  # by step; the newest last, before it older ones that came further
    for _, group in groupby(sorted(rows, key=_attempt), _attempt):  # workers taken for dead may write late
        own = {row["step"]: row for row in group}
        restored = next(iter(own.values())).get("restored_step", 0)
        before = next((one for one in reversed(lineages) if max(one, default=0) >= restored), lineages[-1])
        lineage = {step: row for step, row in before.items() if step <= restored} | own
        lineages = [*(one for one in lineages if max(one, default=0) > max(lineage)), lineage]
    return list(lineages[-1].values())


def attempts(rows: Rows) -> list[Rows]:
    """The rows of each attempt at the run that left some."""
    return [list(part) for _, part in groupby(rows, _attempt)]


def _attempt(row: dict[str, Any]) -> int:
    return row.get("attempt", 0)


def follow(path: Path) -> Iterator[Rows]:
    """Each `next` gives what was added to `metrics.jsonl` or `events.jsonl` since the one before, at first since this
    call."""
    return _added(path, path.stat().st_size if path.exists() else 0)


def _added(path: Path, position: int) -> Iterator[Rows]:
    while True:
        rows, position = added(path, position)
        yield rows


def added(path: Path, position: int) -> tuple[Rows, int]:
    """What whole lines of a file of the record stand after a position in bytes, and the position after them."""
    if not path.exists():
        return [], position
    with path.open("rb") as file:
        file.seek(position)
        text = file.read()
    text = text[: text.rfind(b"\n") + 1]
    return _parse(text), position + len(text)


def fingerprint(numbers: np.ndarray, epochs: np.ndarray) -> int:
    """A number that tells a set of samples from another: two runs are compared sample by sample from their metrics.

    The sum of 32 bits of a SplitMix64 hash (Steele, Lea, Flood 2014) of each (sample number, epoch): it does not
    depend on order, and adds over steps and ranks.

    Args:
        numbers: (B,) integers.
        epochs: (B,) integers, or one for all.
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):  # modulo 2^64 is meant
        bits = _mix(np.asarray(numbers).astype(np.uint64) + golden)
        bits = _mix(bits + np.asarray(epochs).astype(np.uint64) + golden)
    return int((bits & np.uint64(0xFFFFFFFF)).sum())


def _mix(bits: np.ndarray) -> np.ndarray:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Appends a line to a file of the record. Tries for some seconds: storage fails now and then.

    Raises:
        OSError: in words.
    """
    line = json.dumps(row).encode() + b"\n"
    for pause in _PAUSES:
        with suppress(OSError):
            return _append_line(path, line)
        time.sleep(pause)
    try:
        return _append_line(path, line)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror or error}: the record of the run could not be written in {sum(_PAUSES):.1f} s of trying; "
            "make room or repair the storage, and give the same command again: it resumes",
            str(path),
        ) from error


def _append_line(path: Path, line: bytes) -> None:
    """One write at the end of the file, so that lines of two writers never mix; and on a line of its own after one
    that a killed writer left without its end (or that another is just writing: then an empty line comes between)."""
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        end = os.lseek(file, 0, os.SEEK_END)
        if end and os.pread(file, 1, end - 1) != b"\n":
            line = b"\n" + line
        if os.write(file, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(file)


def read_rows(path: Path) -> Rows:
    """The whole lines of a file of the record; none, where there is no file."""
    return _parse(path.read_bytes()) if path.exists() else []


def _parse(text: bytes) -> Rows:
    """A line that a crash cut short is left out."""
    rows = []
    for line in text.split(b"\n"):
        with suppress(ValueError):  # of JSON, and of bytes that are no text
            row = json.loads(line)
            if isinstance(row, dict):
                rows.append(row)
    return rows
