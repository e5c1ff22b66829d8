"""The bytes of samples: neighbours in joined ranges, read ahead of decoding, and tried again when the storage fails.
What is given out without a fault was compared with what was sealed.

Local files are read ahead by the system, which is told what comes: threads would cost some per cent of decoding where
the files are in memory. Object storage is read ahead by threads.
"""

import errno
import hashlib
import random
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from threading import Event, Lock
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.ingest.places import Place
from pipeline.ingest.ranges import LocalRanges, Ranges

TRIES = 5
PAUSE_SECONDS = 0.25  # before the second try; then twice as long each time, ± half: about 4 s in all
AHEAD_BYTES, AHEAD_RANGES = 32 * 2**20, 64  # read and not yet decoded, or being read
THREADS = 16
OPEN_SHARDS = 256  # kept open from task to task
CHANGED = "its bytes are not those that were sealed"
# Bytes read along between two samples, and bytes of joined samples (one that is larger is a range of its own).
LOCAL, REMOTE = (2**14, 2**19), (2**17, 2**22)
_NOT_THERE = {None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}  # errors that tell what lies there


class Sample(NamedTuple):
    """The bytes of the sample in `row`; with a fault: why they are not those that were sealed."""

    row: int
    data: memoryview
    fault: str | None


@dataclass
class _Range:
    """Bytes [start, end) of a file, which hold the samples in `rows`."""

    file: int
    start: int
    end: int
    rows: list[int]


class _Content(NamedTuple):
    data: bytes
    fault: str | None  # why there are fewer bytes than the range has


@dataclass
class Fetch:
    """Fetches the samples of one task, in the order of storage.

    `files` (B,) indexes `paths`, which are paths in `place` or, without one, on this machine; `offsets` and `lengths`
    (B,) are bytes. `whole` tells whether the bytes of a row are those that were sealed.
    """

    place: Place | None
    paths: Sequence[str]
    files: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    whole: Callable[[int, memoryview], bool]
    failures: np.ndarray = field(init=False)  # (B,) int32: tries that failed, told at the first sample of their range

    def __post_init__(self) -> None:
        self.failures = np.zeros(len(self.files), np.int32)
        self._remote = self.place is not None and not self.place.is_local
        self._opened = {int(file): _File(self.place, self.paths[file]) for file in np.unique(self.files)}
        self._stop = Event()

    def __iter__(self) -> Iterator[Sample]:
        """
        Raises:
            ConnectionError: the storage failed, again and again; that says nothing about the samples.
        """
        ranges, pending, ahead = deque(self._ranges()), deque[tuple[_Range, Callable[[], _Content]]](), 0
        pool = ThreadPoolExecutor(THREADS)  # starts none until it is given work
        try:
            while ranges or pending:
                while ranges and (not pending or (ahead < AHEAD_BYTES and len(pending) < AHEAD_RANGES)):
                    coming = ranges.popleft()
                    ahead += coming.end - coming.start
                    pending.append((coming, self._begun(coming, pool)))
                now, content = pending.popleft()
                yield from self._samples(now, content())
                ahead -= now.end - now.start
                following = pending[0][0] if pending else ranges[0] if ranges else None
                if following is None or following.file != now.file:
                    del self._opened[now.file]
        finally:
            self._stop.set()
            pool.shutdown(cancel_futures=True)

    def _begun(self, range_: _Range, pool: ThreadPoolExecutor) -> Callable[[], _Content]:
        """Has a range read ahead; what it gives waits for the content."""
        if self._remote:
            return pool.submit(self._read, range_).result
        self._opened[range_.file].expect(range_.start, range_.end)
        return partial(self._read, range_)

    def _ranges(self) -> Iterator[_Range]:
        order = np.lexsort((self.offsets, self.files))
        columns = (self.files, self.offsets, self.offsets + self.lengths)
        gap, most = REMOTE if self._remote else LOCAL
        now: _Range | None = None
        for row, file, start, end in zip(order.tolist(), *(column[order].tolist() for column in columns), strict=True):
            if now and file == now.file and start <= now.end + gap and end - now.start <= most:
                now.end = max(now.end, end)
                now.rows.append(row)
                continue
            if now:
                yield now
            now = _Range(file, start, end, [row])
        if now:
            yield now

    def _samples(self, range_: _Range, content: _Content) -> Iterator[Sample]:
        view = memoryview(content.data)
        for row in range_.rows:
            start, length = int(self.offsets[row]) - range_.start, int(self.lengths[row])
            sample = self._judged(row, view[start : start + length], content.fault)
            if sample.fault == CHANGED:  # a second look: what a network gave wrongly, or a stale cache, is no damage
                self.failures[row] += 1
                self._opened[range_.file].reopen()
                again = self._read(_Range(range_.file, range_.start + start, range_.start + start + length, [row]))
                sample = self._judged(row, memoryview(again.data), again.fault)
            yield sample

    def _judged(self, row: int, data: memoryview, fault: str | None) -> Sample:
        if fault is None or len(data) == self.lengths[row]:
            fault = None if self.whole(row, data) else CHANGED
        return Sample(row, data, fault)

    def _read(self, range_: _Range) -> _Content:
        """Reads a range, in a thread: all of it, or what there is and why there is no more."""
        file, pause, last = self._opened[range_.file], PAUSE_SECONDS, OSError()
        for attempt in range(1, TRIES + 1):
            found: _Content | None = None
            try:
                found = file.read(range_.start, range_.end)
                if found.fault is None:
                    return found
            except OSError as error:
                last = error
            self.failures[range_.rows[0]] += 1
            missing = found is not None and not found.data
            if attempt == TRIES or (missing and attempt > 1) or self._stop.is_set():
                break
            file.reopen()
            self._stop.wait(pause * random.uniform(0.5, 1.5))  # not all tasks at the same moment
            pause *= 2
        if found is not None:
            return found
        raise ConnectionError(
            f"{file.path} cannot be read: {last}; tried {attempt} times. This says nothing about the samples: when "
            "the storage answers again, the same command resumes"
        ) from last


def sealed_bytes(places: pa.Table) -> Callable[[int, memoryview], bool]:
    """Tells whether bytes are those that were sealed of a row of `Store.places`: by its checksum, which finds damage;
    in place by sha256, since there a stranger may have put others."""
    if "digest" in places.column_names:
        digests = places["digest"].to_pylist()
        return lambda row, data: hashlib.sha256(data).digest() == digests[row]
    checksums = places["checksum"].to_numpy().tolist()
    return lambda row, data: zlib.crc32(data) == checksums[row]


def no_file(error: OSError) -> str:
    """Why a file is not there to be read."""
    return "the file is missing" if error.errno == errno.ENOENT else f"the file is not there: {error.strerror or error}"


class _File:
    """A file that is opened when it is first read, by any of several threads."""

    def __init__(self, place: Place | None, path: str) -> None:
        self._place, self.path, self._lock = place, path, Lock()
        self._opened: Ranges | None = None

    def read(self, start: int, end: int) -> _Content:
        """Bytes [start, end), as far as the file has them.

        Raises:
            OSError: it cannot be read now.
        """
        data, piece = b"", b""
        try:
            file = self._open()
            while len(data) < end - start and (piece := file.read_at(start + len(data), end - start - len(data))):
                data = data + piece if data else piece
        except OSError as error:
            if isinstance(error, ConnectionError) or error.errno not in _NOT_THERE:
                raise
            return _Content(b"", no_file(error))
        return _Content(data, None if len(data) == end - start else f"the file ends at byte {start + len(data)}")

    def expect(self, start: int, end: int) -> None:
        """Has the system read bytes [start, end) ahead."""
        with suppress(OSError):  # reading will tell
            self._open().expect(start, end - start)

    def reopen(self) -> None:
        """What is read next is read from what lies there now."""
        with self._lock:
            self._opened = None
        _shard.cache_clear()

    def _open(self) -> Ranges:
        with self._lock:
            if self._opened is None:
                self._opened = _shard(self.path) if self._place is None else self._place.open_ranges(self.path)
            return self._opened


@lru_cache(OPEN_SHARDS)
def _shard(path: str) -> Ranges:
    return LocalRanges(Path(path).open("rb", buffering=0))  # closed when nobody refers to it any more
