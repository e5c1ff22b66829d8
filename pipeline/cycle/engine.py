"""One pass over the cycle: what is whole is sealed, and each dump, in order of admission, goes through its stages.

It knows no stage by name: the table of stages is given, with what each waits for. A pass may be killed anywhere, and
run twice at once: a stage is done when the ledger says so, in the transaction that also moves the dump and its names.
"""

import hashlib
import json
import logging
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, select

from pipeline.cycle.config import Cycle
from pipeline.cycle.deliveries import look
from pipeline.cycle.job import Ended, Job, Kind, Pass, Stage, Step
from pipeline.cycle.lease import Keeper, Told, stoppable
from pipeline.cycle.outage import is_outage
from pipeline.cycle.owner import is_dead, this_process
from pipeline.ledger.database import Ledger, Unusable
from pipeline.ledger.database import now as time_of
from pipeline.ledger.dumps import Moved, move
from pipeline.ledger.promotion import Outrun
from pipeline.ledger.resolutions import in_base
from pipeline.ledger.tables import ENDED, JUDGED, dump, work
from pipeline.ledger.work import (
    Lease,
    LeaseLost,
    add_work,
    claim,
    end_leases,
    failure,
    give_up,
    let_go,
    make_ready,
    publish,
    supersede,
)
from pipeline.lock import locked
from pipeline.train.fit import Stopped

_LOST = "another tick took over; nothing is published"
log = logging.getLogger(__name__)


def run_pass(
    cycle: Cycle,
    ledger: Ledger,
    stages: Sequence[Stage],
    *,
    tell: Callable[[str], None] = lambda line: None,
    around: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Pass:
    """Does all that is due now. `around` surrounds the work, if there is any: a connection to Ray. If that fails, it is
    an error of the pass, and of no dump.

    Raises:
        Told: by a signal, to stop; what was running is given back.
        Unusable: the ledger cannot be used now.
    """
    with stoppable(), ExitStack() as stack:
        cycle.root.mkdir(parents=True, exist_ok=True)
        return _Running(cycle, ledger, stages, tell, around, stack).run()


@dataclass
class _Running:
    cycle: Cycle
    ledger: Ledger
    stages: Sequence[Stage]
    tell: Callable[[str], None]
    around: Callable[[], AbstractContextManager[Any]]
    stack: ExitStack
    owner: str = field(default_factory=this_process)
    found: Pass = field(default_factory=Pass)
    entered: bool | None = None  # `around`; False: it failed

    def run(self) -> Pass:
        self._look()
        with self.ledger.writing() as connection:
            running = connection.execute(select(work.c.owner).where(work.c.state == "running")).scalars()
            if dead := [owner for owner in running if owner and is_dead(owner)]:
                end_leases(connection, dead)
        for dump_id in self._dumps():
            while self._advance(dump_id):
                pass
        return self.found

    def _look(self) -> None:
        """One at a time: reading a large delivery takes longer than the time between two ticks."""
        try:
            with locked(self.cycle.root / "deliveries", "the deliveries of"):
                for source in self.cycle.sources:
                    try:
                        for finding in look(self.ledger, self.cycle.root, source):
                            self.found.findings.append(finding)
                            self.tell(f"{finding.name}: {finding.kind}: {finding.said}")
                    except Unusable:
                        raise
                    except ValueError as error:
                        self._error(f"source {source.name}: {error}")
        except Unusable:
            raise
        except ValueError:
            self.tell("another tick reads the deliveries now")

    def _surrounded(self) -> bool:
        """Enters `around`, once. Returns whether it is entered."""
        if self.entered is None:
            try:
                self.stack.enter_context(self.around())
                self.entered = True
            except Exception as error:
                self._error(str(error) or type(error).__name__)
                self.entered = False
        return self.entered

    def _error(self, said: str) -> None:
        self.found.errors.append(said)
        self.tell(f"error: {said}")

    def _dumps(self) -> list[str]:
        names = [source.name for source in self.cycle.sources]
        rows = select(dump.c.dump_id).where(dump.c.source_id.in_(names), dump.c.state.not_in(ENDED))
        with self.ledger.reading() as connection:
            return list(connection.execute(rows.order_by(dump.c.admit_no)).scalars())

    def _advance(self, dump_id: str) -> bool:
        """Does the next stage of a dump. Returns whether there may be one more."""
        with self.ledger.reading() as connection:
            job, done = self._job(connection, dump_id)
            stage = next((s for s in self.stages if job.dump.state in s.due and s.name not in done), None)
            if stage is None:
                return False
            if waits := self._waits(connection, stage, job.dump):
                self._step(job, stage, "waits", waits)
                return False
        try:
            digest = _digest(stage.inputs(job))
        except ValueError as error:
            self._step(job, stage, "error", str(error))
            return False
        with self.ledger.reading() as connection:
            occupied = self._occupied(connection, job, stage, digest)
        if occupied:
            self._step(job, stage, *occupied)
            return False
        if not self._surrounded():  # before an attempt is counted
            return False
        lease = self._claim(job, stage, digest)
        return lease is not None and self._work(job, stage, digest, lease)

    def _job(self, connection: Connection, dump_id: str) -> tuple[Job, set[str]]:
        row = connection.execute(select(dump).where(dump.c.dump_id == dump_id)).one()
        units = select(work.c.stage, work.c.output).where(work.c.dump_id == dump_id, work.c.state == "done")
        outputs = {unit.stage: unit.output for unit in connection.execute(units)}
        return Job(self.cycle, self.ledger, row, outputs, self.tell), set(outputs)

    def _waits(self, connection: Connection, stage: Stage, row: Row) -> str | None:
        """Which other dump comes first, if one does."""
        names = [source.name for source in self.cycle.sources]
        earlier = select(dump).where(dump.c.source_id.in_(names), dump.c.admit_no < row.admit_no)
        for one in connection.execute(earlier.order_by(dump.c.admit_no)):
            if one.state in stage.waits_for:
                return f"dump {one.admit_no} comes first, which is {one.state}"
            harmful = one.state == "held" and not in_base(connection, one.dump_id)
            if harmful and self.cycle.after_held == "wait" and stage.not_during:
                return f'dump {one.admit_no} is held, and after_held = "wait": retry or skip it'
        others = select(dump).where(
            dump.c.source_id.in_(names), dump.c.dump_id != row.dump_id, dump.c.state.in_(stage.not_during)
        )
        if (other := connection.execute(others.limit(1)).first()) is not None:
            return f"dump {other.admit_no} is under way, which is {other.state}"
        return None

    def _occupied(self, connection: Connection, job: Job, stage: Stage, digest: str) -> tuple[Kind, str] | None:
        """Why a stage that is due is not begun: somebody is at it, also under another configuration; or it failed for
        good under this one."""
        mine = (work.c.dump_id == job.dump.dump_id) & (work.c.stage == stage.name)
        held = mine & (work.c.state == "running") & (work.c.expires_at >= time_of(connection))
        if owner := connection.execute(select(work.c.owner).where(held)).scalar():
            return "busy", f"{owner} is at it"
        failed = failure(connection, job.dump.dump_id, stage.name, digest)
        return ("waits", f"{failed}; {_retry(job)}") if failed else None

    def _claim(self, job: Job, stage: Stage, digest: str) -> Lease | None:
        dump_id = job.dump.dump_id
        with self.ledger.writing() as connection:
            now, done = self._job(connection, dump_id)
            if now.dump.state != job.dump.state or stage.name in done or self._waits(connection, stage, now.dump):
                return None  # another tick was here meanwhile
            lease, said = None, self._occupied(connection, job, stage, digest)
            if said is None:
                work_id = add_work(connection, dump_id, stage.name, digest, ready=False)
                supersede(connection, work_id)
                make_ready(connection, work_id)
                lease = claim(connection, work_id, self.owner, self.cycle.lease_seconds, self.cycle.attempts)
                if lease is None:  # its attempts are used up
                    why = failure(connection, dump_id, stage.name, digest) or ""
                    said = self._failed_for_good(job, why)
        if said:
            self._step(job, stage, *said)
        return lease

    def _work(self, job: Job, stage: Stage, digest: str, lease: Lease) -> bool:
        """Returns whether the next stage may follow at once."""
        self.tell(f"dump {job.dump.admit_no} {stage.name} …")
        began, keeper = time.monotonic(), Keeper(self.ledger, lease, self.cycle.lease_seconds)
        try:
            with keeper:
                ended = stage.work(job, digest)
            self._publish(job, lease, ended)
        except (KeyboardInterrupt, Stopped) as stop:
            if not keeper.lost:
                self._give_back(lease)
                raise Told(getattr(stop, "signal", signal.SIGINT)) from None
            self._step(job, stage, "lost", _LOST)
            return False
        except LeaseLost:
            self._step(job, stage, "lost", _LOST)
            return False
        except (Moved, Outrun) as error:  # the dump, or a name, was moved: what is asked for now is another thing
            self._give_back(lease)
            self.tell(f"dump {job.dump.admit_no} {stage.name}: {error}")
            return isinstance(error, Outrun)
        except Unusable:
            self._give_back(lease)  # if that can be told now; else the lease runs out
            raise
        except Exception as error:
            self._failed(job, stage, lease, error)
            return False
        kind: Kind = "done"
        if ended.state in ("skipped", "held", "quarantined", "drifted"):
            kind = ended.state  # type: ignore[assignment]
        self._step(job, stage, kind, ended.said, time.monotonic() - began, ended.output, ended.facts)
        return True

    def _give_back(self, lease: Lease) -> None:
        with suppress(LeaseLost, Unusable), self.ledger.writing() as connection:
            let_go(connection, lease)

    def _publish(self, job: Job, lease: Lease, ended: Ended) -> None:
        with self.ledger.writing() as connection:
            publish(connection, lease, ended.output)
            if ended.state is not None:
                move(connection, job.dump.dump_id, job.dump.state, ended.state, ended.reason)
            ended.record(connection, lease.work_id)

    def _failed(self, job: Job, stage: Stage, lease: Lease, error: Exception) -> None:
        log.debug("%s of dump %s failed", stage.name, job.dump.dump_id, exc_info=error)
        why = str(error) or type(error).__name__
        if is_outage(error):
            self._give_back(lease)
            self._step(job, stage, "failed", f"{why} (no fault of the dump: the next tick tries again)")
            return
        try:
            with self.ledger.writing() as connection:
                give_up(connection, lease, why, self.cycle.attempts)
        except LeaseLost:
            self._step(job, stage, "lost", _LOST)
        else:
            if lease.attempt < self.cycle.attempts:
                again = f"attempt {lease.attempt} of {self.cycle.attempts}: the next tick tries again"
                self._step(job, stage, "failed", f"{why} ({again})")
            else:
                self._step(job, stage, *self._failed_for_good(job, f"failed {lease.attempt} times; last: {why}"))

    def _failed_for_good(self, job: Job, why: str) -> tuple[Kind, str]:
        return ("failed", f"{why}; {_retry(job)}") if job.dump.state in JUDGED else ("quarantined", why)

    def _step(self, job: Job, stage: Stage, kind: Kind, said: str | None, *rest: Any) -> None:
        step = Step(kind, job.dump.admit_no, job.dump.dump_id, stage.name, said or "", *rest)
        self.found.steps.append(step)
        took = f" ({step.seconds:.0f} s)" if step.seconds >= 1 else ""
        shown = "" if kind == "done" else f" {kind}:"
        self.tell(f"dump {step.admit_no} {stage.name}:{shown} {step.said}{took}")


def _retry(job: Job) -> str:
    return f"it stays {job.dump.state}; `feral ledger retry {job.dump.admit_no} --reason …` tries this again"


def _digest(inputs: Any) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
