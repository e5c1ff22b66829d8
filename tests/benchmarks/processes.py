"""Processor time and memory of this process and all that it started, from /proc (so on Linux only)."""

import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Self

KINDS = ("driver", "worker", "decoder", "ray")
_TICK, _PAGE = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")


class Process(NamedTuple):
    """One process. A worker is one of Ray's; a decoder, the guarded child of one; ray, what Ray itself runs."""

    kind: str  # of KINDS
    rss: int  # bytes
    own: int  # of these, neither shared memory nor mapped files
    cpu: float  # seconds


class Cost(NamedTuple):
    """Seconds."""

    cpu: float  # of one or more processes
    wall: float


def tree() -> dict[int, Process]:
    """This process and its descendants."""
    parents, facts = dict[int, int](), dict[int, tuple[int, int, float]]()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                _, resident, shared, *_ = map(int, (entry / "statm").read_text().split())
            except OSError:  # it has ended
                continue
            pid = int(entry.name)
            parents[pid] = int(fields[1])
            cpu = (int(fields[11]) + int(fields[12])) / _TICK
            facts[pid] = resident * _PAGE, (resident - shared) * _PAGE, cpu
    ours = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return {pid: Process(_kind(pid), *facts[pid]) for pid in ours}


def _kind(pid: int) -> str:
    if pid == os.getpid():
        return "driver"
    try:
        command = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return "ray"
    return "decoder" if "decoder_child" in command else "worker" if command.startswith("ray::") else "ray"


def cost(work: Callable[[], object]) -> Cost:
    """What `work` costs once, in this process and in decoders that live on."""

    def decoders() -> float:
        return sum(process.cpu for process in tree().values() if process.kind == "decoder")

    before, cpu, wall = decoders(), time.process_time(), time.perf_counter()
    work()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return Cost(cpu + decoders() - before, wall)


def costs(repeats: int, *works: Callable[[], object]) -> list[Cost]:
    """Median cost of each, one after the other in turns, so that all meet the same load."""
    turns = [[cost(work) for work in works] for _ in range(repeats)]
    return [Cost(*map(statistics.median, zip(*found, strict=True))) for found in zip(*turns, strict=True)]


class Watch:
    """Samples the tree in a thread: the largest process of each kind by `phase`, of all that is in its memory or of its
    own only; and the processor time in the end."""

    def __init__(self, memory: Literal["rss", "own"] = "rss", seconds: float = 0.2) -> None:
        self.phase = "start"
        self.peaks: dict[str, dict[str, int]] = {}  # phase → kind → bytes
        self.cpu: dict[int, float] = {}  # of each process, as last seen
        self._first: dict[int, float] | None = None
        self._memory, self._seconds, self._ended = memory, seconds, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._look()
        self._first = dict(self.cpu)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._look()

    @property
    def seconds(self) -> float:
        """Processor time since the start."""
        return sum(self.cpu.values()) - sum((self._first or {}).values())

    def _run(self) -> None:
        while not self._ended.wait(self._seconds):
            self._look()

    def _look(self) -> None:
        now = self.peaks.setdefault(self.phase, dict.fromkeys(KINDS, 0))
        for pid, process in tree().items():
            now[process.kind] = max(now[process.kind], getattr(process, self._memory))
            self.cpu[pid] = process.cpu


@dataclass
class Memory:
    """Of this process, in bytes."""

    before: int  # its own, without mapped files
    own: int = 0  # the most of that since
    resident: int = 0  # the most, with the pages of mapped files that happen to be in memory

    @property
    def grown(self) -> int:
        return max(0, self.own - self.before)


@contextmanager
def anonymous(seconds: float = 0.005) -> Iterator[Memory]:
    """Samples the memory of this process in a thread."""
    found, ended = Memory(_status("RssAnon")), threading.Event()

    def sample() -> None:
        while not ended.wait(seconds):
            found.own = max(found.own, _status("RssAnon"))
            found.resident = max(found.resident, _status("VmRSS"))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
