"""The words between the engine and its stages: a job, what it ended with, and what became of a whole pass."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import Connection, Row

from pipeline.cycle.config import Cycle
from pipeline.cycle.deliveries import Finding
from pipeline.ledger.database import Ledger


@dataclass(frozen=True)
class Job:
    """A dump on its way, as a stage sees it."""

    cycle: Cycle
    ledger: Ledger
    dump: Row
    outputs: Mapping[str, str]  # of the stages that are done
    tell: Callable[[str], None]

    @property
    def name(self) -> str:
        """Of the folders of the dump."""
        return f"{self.dump.admit_no:04d}-{self.dump.dump_id[:8]}"


@dataclass(frozen=True)
class Ended:
    """What a stage has come to. Nothing of it counts before it is published."""

    said: str
    output: str = ""  # where it is; "": nothing came of it
    state: str | None = None  # of the dump from then on; None: as it was
    reason: str | None = None  # of the state
    record: Callable[[Connection, str], None] = lambda connection, work_id: None  # more of the same transaction
    facts: Mapping[str, Any] = field(default_factory=dict)  # for schedulers


@dataclass(frozen=True)
class Stage:
    """One of the steps that a dump goes through."""

    name: str
    due: tuple[str, ...]  # states of the dump in which it is, unless it is done
    waits_for: tuple[str, ...]  # states of dumps that were admitted earlier: these come first
    not_during: tuple[str, ...]  # states of any other dump: they end in what this one would go on from
    inputs: Callable[[Job], Any]  # plain data: all that changes the output. A ValueError is the configuration's fault
    work: Callable[[Job, str], Ended]  # with the digest of the inputs


Kind = Literal["done", "skipped", "held", "quarantined", "drifted", "failed", "error", "busy", "lost", "waits"]
GRAVEST = ("error", "quarantined", "held", "done", "nothing")  # first
EXIT = {"done": 0, "nothing": 10, "held": 20, "quarantined": 30, "error": 1}


@dataclass(frozen=True)
class Step:
    """What became of one stage in a pass."""

    kind: Kind
    admit_no: int
    dump_id: str
    stage: str
    said: str
    seconds: float = 0.0
    output: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Pass:
    """What became of all of it."""

    findings: list[Finding] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)  # of no dump

    @property
    def status(self) -> str:
        """The gravest: error, quarantined (or drifted), held, done, nothing."""
        status = {"failed": "error", "drifted": "quarantined", "skipped": "done", "late": "done", "sealed": "done",
                  "known": "done", "changed": "done"}  # fmt: skip
        kinds: list[str] = [one.kind for one in self.findings]
        kinds += [one.kind for one in self.steps] + (["error"] if self.errors else [])
        found = {status.get(kind, kind) for kind in kinds} | {"nothing"}
        return next(one for one in GRAVEST if one in found)
