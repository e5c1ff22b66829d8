"""What makes a checkpoint whole: a marker, written last, that says the size and the digest of every file."""

import hashlib
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from ssl_models.config import Config

MARKER, KEEP = "COMMIT.json", "KEEP"
OBJECTIVE, OPTIMIZERS = "objective.safetensors", "optimizers.pt"
# "step_000000008"; a step saved again beside a whole one is "step_000000008.1": nothing is ever written over.
_NAME = re.compile(r"step_(\d{9,})(?:\.(\d+))?")
_READ_AGAIN_SECONDS = (0.2, 1.0)  # pauses before what could not be read is tried again

T = TypeVar("T")


class Damaged(Exception):
    """A step directory is not as it was committed; the message says which file, and what is wrong."""


class Fingerprint(Config):
    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "Fingerprint":
        return cls(bytes=path.stat().st_size, sha256=_sha256(path))


class Commit(Config):
    """What the marker holds. Markers of version 0.1 have neither score, extra nor a digest of their own."""

    step: int = Field(ge=0)
    score: float | None = None
    extra: dict[str, Any] = Field(default_factory=dict)  # of no use any more; part of the digests of old markers
    files: dict[str, Fingerprint]
    sha256: str | None = None  # of all the other fields

    @property
    def digest(self) -> str:
        rest = json.dumps(self.model_dump(exclude={"sha256"}), sort_keys=True)
        return hashlib.sha256(rest.encode()).hexdigest()

    def write(self, directory: Path) -> None:
        """Writes the marker with its digest, and flushes it and the directory to the disk."""
        marker = directory / MARKER
        marker.write_text(json.dumps({**self.model_dump(), "sha256": self.digest}, indent=1))
        flush(marker)
        flush(directory)


def read_commit(path: Path, *, digests: bool = True) -> Commit:
    """Checks a step directory against its marker; without `digests` only the sizes of its files.

    Raises:
        Damaged: it is not as it was committed.
        OSError: it cannot be read, though it was tried again.
    """
    try:
        commit = Commit.model_validate_json(_patiently((path / MARKER).read_bytes), strict=True)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        empty = path.is_dir() and not any(path.iterdir())
        raise Damaged("the directory is empty" if empty else f"{MARKER} is missing: it was not saved whole") from None
    except ValidationError as error:
        raise Damaged(f"{MARKER} is unreadable: {error.errors()[0]['msg']}") from None
    if commit.sha256 not in (None, commit.digest):
        raise Damaged(f"{MARKER} is not as it was written")
    if _order(path.name)[0] != commit.step:
        raise Damaged(f"{MARKER} is of step {commit.step}")
    for file in (OBJECTIVE, OPTIMIZERS):
        if file not in commit.files:
            raise Damaged(f"{MARKER} does not list {file}")
    for file, known in commit.files.items():
        _check(path / Path(file).name, known, digests)
    return commit


def _check(path: Path, known: Fingerprint, digests: bool) -> None:
    try:
        size = _patiently(path.stat).st_size
        if size != known.bytes:
            raise Damaged(f"{path.name} has {size} of {known.bytes} bytes")
        if digests and _patiently(lambda: _sha256(path)) != known.sha256:
            raise Damaged(f"{path.name} has another sha256 than was committed")
    except FileNotFoundError:
        raise Damaged(f"{path.name} is missing") from None
    except IsADirectoryError:
        raise Damaged(f"{path.name} is no file") from None


def step_directories(directory: Path) -> list[Path]:
    """What bears a checkpoint's name, whole or not, oldest first."""
    try:
        names = _patiently(lambda: os.listdir(directory))
    except FileNotFoundError:
        return []
    return [directory / name for name in sorted(filter(_NAME.fullmatch, names), key=_order)]


def step_of(path: Path) -> int:
    """Which step a checkpoint's directory is of, by its name."""
    return _order(path.name)[0]


def step_directory(directory: Path, step: int) -> Path:
    """A path for a new checkpoint, where nothing is yet."""
    path, again = directory / f"step_{step:09d}", 0
    while os.path.lexists(path):
        again += 1
        path = directory / f"step_{step:09d}.{again}"
    return path


def keep(path: Path) -> None:
    """Keeps a checkpoint from being removed when newer ones are saved: a name of the ledger stands for it, or stood."""
    (path / KEEP).touch()


def flush(path: Path) -> None:
    """To the disk itself: the bytes of a file, or the names in a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _order(name: str) -> tuple[int, int]:
    match = _NAME.fullmatch(name)
    assert match is not None, name
    return int(match[1]), int(match[2] or 0)


def _patiently(read: Callable[[], T]) -> T:
    """`read()`, tried again after an error that may pass."""
    for pause in _READ_AGAIN_SECONDS:
        try:
            return read()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise
        except OSError:
            time.sleep(pause)
    return read()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
