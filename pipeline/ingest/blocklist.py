"""The operator's block-list: pictures that must never be used again, named by hash.

A line names a picture: the sha256 of its file, or `phash:` and 16 hex digits of its perceptual hash (the column `phash`
of a store's index), which also covers re-encoded and resized copies. `#` begins a comment. The list is honoured when a
selection is made, and again whenever samples are read: a takedown works on stores that are sealed.

The file is the operator's: what stands in it stays as it is, and lines are added. Only those that `feral verify
--quarantine` added, which say so, go when the store is written anew: the damage that they stand for is gone then.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.ingest.store import BLOCKLIST
from pipeline.ingest.write import replaced
from pipeline.lock import locked

if TYPE_CHECKING:
    from pipeline.ingest.store import Store

NEAR = 4  # bits in which a perceptual hash may differ from a blocked one
_DAMAGED = "  # damaged: see quarantine.jsonl"  # ends the lines of a quarantine
_LINE = re.compile(r"(?:sha256:)?([0-9a-f]{64})|phash:([0-9a-f]{16})")


@dataclass(frozen=True)
class BlockList:
    """Blocked pictures: by sha256 (hex) and by perceptual hash."""

    ids: frozenset[str] = frozenset()
    hashes: tuple[int, ...] = ()

    @property
    def digest(self) -> str:
        """Names the content, whatever its order."""
        return hashlib.sha256("\n".join(self.lines).encode()).hexdigest()

    @property
    def lines(self) -> list[str]:
        """One line a picture, sorted."""
        return sorted(self.ids) + [f"phash:{value:016x}" for value in sorted(self.hashes)]

    def __or__(self, other: "BlockList") -> "BlockList":
        return BlockList(self.ids | other.ids, tuple(sorted({*self.hashes, *other.hashes})))

    def near(self, phash: int) -> bool:
        """Whether a perceptual hash is near to a blocked one."""
        return any((phash ^ value).bit_count() <= NEAR for value in self.hashes)

    def blocks(self, ids: pa.ChunkedArray, hashes: np.ndarray) -> np.ndarray:
        """Which of the samples (ids, perceptual hashes uint64) are blocked; (n,) bool."""
        blocked = pc.is_in(ids, pa.array(sorted(self.ids), pa.string())).to_numpy(zero_copy_only=False).copy()
        for value in self.hashes:
            blocked |= np.bitwise_count(hashes ^ np.uint64(value)) <= NEAR
        return blocked


def read_block_list(path: Path) -> BlockList:
    """Reads a block-list; none there means nothing is blocked.

    Raises:
        ValueError: a line that is neither a hash nor a comment. A list that is misread would block nothing.
    """
    return parse_block_list(_text(path).splitlines(), str(path))


def parse_block_list(lines: Iterable[str], where: str) -> BlockList:
    """The pictures that lines name; `where` is shown to people. Raises ValueError as `read_block_list`."""
    ids, hashes = set(), set()
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip().lower()
        if not text:
            continue
        found = _LINE.fullmatch(text)
        if found is None:
            raise ValueError(
                f"{where}, line {number}: {text[:80]!r} is no hash: write the 64 hex digits of a file's sha256, or "
                "phash: and 16 hex digits"
            )
        if found[1]:
            ids.add(found[1])
        else:
            hashes.add(int(found[2], 16))
    return BlockList(frozenset(ids), tuple(sorted(hashes)))


def block(store: Path, more: BlockList, *, damaged: bool = False) -> BlockList:
    """Adds to the block-list of the store at `store` what is not on it; returns the whole list. What is blocked only
    since it is `damaged` is not blocked for good."""
    path = store / BLOCKLIST
    if not more.lines:
        return read_block_list(path)
    with locked(path, "the block-list", wait=True):
        listed, text = read_block_list(path), _text(path)
        for_good = [line for line in text.splitlines() if not line.endswith(_DAMAGED)]
        known = {*(listed if damaged else parse_block_list(for_good, str(path))).lines}
        if missing := [line for line in more.lines if line not in known]:
            end = "" if text.endswith("\n") or not text else "\n"
            _write(path, text + end + "".join(f"{line}{_DAMAGED * damaged}\n" for line in missing))
    return listed | more


def forget_damaged(store: Path) -> None:
    """Takes off the block-list of a store, which is about to be written anew, what is on it only since it was
    damaged."""
    path = store / BLOCKLIST
    if _DAMAGED in _text(path):
        with locked(path, "the block-list", wait=True):
            lines = _text(path).splitlines(keepends=True)
            _write(path, "".join(line for line in lines if not line.rstrip().endswith(_DAMAGED)))


def _text(path: Path) -> str:
    """Any bytes may stand in a comment, and stay what they are."""
    return path.read_bytes().decode(errors="surrogateescape") if path.exists() else ""


def _write(path: Path, text: str) -> None:
    with replaced(path) as file:
        file.write(text.encode(errors="surrogateescape"))


def blocked_numbers(store: "Store") -> np.ndarray:
    """Numbers (n,) int64 of the samples that the store's block-list names now, ascending."""
    listed = read_block_list(store.path / BLOCKLIST)
    if listed == BlockList():
        return np.array([], np.int64)
    columns = store.columns("id", "phash")
    return np.flatnonzero(listed.blocks(columns["id"], columns["phash"].to_numpy())).astype(np.int64)


def replaced_numbers(numbers: np.ndarray, blocked: np.ndarray) -> np.ndarray:
    """`numbers` (n,) ascending, with each blocked one replaced by the next that is not (the first, after the last).

    The order of training stays what it was for all other samples, so that a run can be resumed after a takedown.

    Raises:
        ValueError: nothing would be left.
    """
    if not len(blocked):
        return numbers  # of a billion samples, perhaps
    bad = np.isin(numbers, blocked)
    if not bad.any():
        return numbers
    if bad.all():
        raise ValueError("the block-list names every sample of the selection: nothing is left to train on")
    good = np.flatnonzero(~bad)
    return numbers[good[np.searchsorted(good, np.arange(len(numbers))) % len(good)]]
