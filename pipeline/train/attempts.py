"""Who may write to a run, and what driver and workers tell each other through its directory.

RUN/attempts/000003    exists when the third worker group began; only the newest may write
RUN/failure.json       why training cannot go on: no restart would help
RUN/stop               a request to save and leave
RUN/skips.json         batches that were left out after a value that is not finite
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from pipeline.ingest.write import replaced
from pipeline.redaction import without_secrets

ATTEMPTS, FAILURE, STOP, SKIPS = "attempts", "failure.json", "stop", "skips.json"


@dataclass(frozen=True)
class Attempt:
    """One start of the workers, counted over the whole run. A later one ends its right to write: workers that were
    taken for dead, and are not, cannot damage what their successors do."""

    directory: Path
    number: int

    @classmethod
    def claim(cls, run: Path) -> "Attempt":
        """The next attempt; two claimants never get the same."""
        directory = run / ATTEMPTS
        directory.mkdir(parents=True, exist_ok=True)
        number = max((int(path.name) for path in directory.iterdir()), default=0) + 1
        while True:
            try:
                (directory / f"{number:06d}").open("x").close()
                return cls(directory, number)
            except FileExistsError:
                number += 1

    @property
    def is_current(self) -> bool:
        return not (self.directory / f"{self.number + 1:06d}").exists()


# ---- what the workers tell the driver ------------------------------------------------------------------------------


def note_failure(run: Path, error: BaseException) -> None:
    """Says why no restart would help; the first to say so is heard."""
    if not (run / FAILURE).exists():
        with replaced(run / FAILURE) as file:
            file.write(json.dumps({"kind": type(error).__name__, "message": message_of(error)}).encode())


def read_failure(run: Path) -> dict[str, Any] | None:
    return _read(run / FAILURE)


def message_of(error: BaseException) -> str:
    """What the innermost error says, without the layers (Ray's, Ray Data's) that carried it."""
    while inner := getattr(error, "cause", None) or error.__cause__:
        error = inner
    return without_secrets(str(error).strip()) or type(error).__name__


# ---- what the driver tells the workers -----------------------------------------------------------------------------


def clear_messages(run: Path) -> None:
    """Before a command begins to train: what an earlier one left is not meant for it."""
    for name in (FAILURE, STOP):
        (run / name).unlink(missing_ok=True)


def request_stop(run: Path) -> None:
    (run / STOP).touch()


def stop_requested(run: Path) -> bool:
    return (run / STOP).exists()


# ---- batches that are left out -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Skips:
    """Batches that are left out: `(step, count)` says that from step `step` on the plan is read `count` later."""

    made: tuple[tuple[int, int], ...] = ()

    @classmethod
    def read(cls, run: Path) -> "Skips":
        found = _read(run / SKIPS)
        return cls(tuple((step, count) for step, count in found["skips"])) if found else cls()

    def plan_step(self, step: int) -> int:
        """Which step of the plan gives the batch of step `step` of the run."""
        return step + sum(count for at, count in self.made if at <= step)

    def stretches(self, step: int, stop: int) -> Iterator[tuple[int, int]]:
        """The steps [step, stop) of the run as stretches [first, end) of the plan."""
        bounds = [step, *sorted(at for at, _ in self.made if step < at < stop), stop]
        for first, end in pairwise(bounds):
            if first < end:
                yield self.plan_step(first), self.plan_step(first) + end - first

    def with_skip(self, run: Path, restored: int, bad: int) -> "Skips":
        """Leaves out the batches of the steps from `restored` to the bad one (counted from 1), and says so in the
        run's directory."""
        more = Skips((*self.made, (restored, bad - restored)))
        with replaced(run / SKIPS) as file:
            file.write(json.dumps({"skips": more.made}).encode())
        return more


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None
