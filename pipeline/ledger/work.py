"""Work on dumps, claimed with a lease and a fence: two schedulers never do one thing twice, and one that was taken for
dead cannot publish. All functions take a writing connection. What comes before what is for those to say who claim.

A stage of a dump under one configuration is a unit: `waiting → ready → running → done | failed`. A claim raises the
unit's fence; whoever holds an older one is stale, however alive: heartbeat and publish tell it so.
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Connection, and_, or_, select

from pipeline.ledger.database import now
from pipeline.ledger.tables import JUDGED, dump, work
from pipeline.redaction import without_secrets

LEASE_SECONDS, HEARTBEAT_SECONDS = 300.0, 60.0
MAX_ATTEMPTS = 3
SUPERSEDED = "superseded"  # output of a unit whose configuration is not asked for


class LeaseLost(Exception):
    """The unit belongs to somebody else by now, or is done: stop at once, and publish nothing."""


@dataclass(frozen=True)
class Lease:
    work_id: str
    fence: int
    attempt: int  # from 1


def add_work(connection: Connection, dump_id: str, stage: str, config_digest: str, *, ready: bool = True) -> str:
    """A unit of work, or the one that is there: the same dump, stage and configuration are never done twice.

    Args:
        config_digest: of everything that changes the output: settings, versions, inputs.
        ready: whether it may be claimed; else it waits for `make_ready`.
    """
    work_id = hashlib.sha256(f"{dump_id} {stage} {config_digest}".encode()).hexdigest()[:16]
    if connection.execute(select(work.c.work_id).where(work.c.work_id == work_id)).scalar() is None:
        state = "ready" if ready else "waiting"
        connection.execute(
            work.insert().values(
                work_id=work_id, dump_id=dump_id, stage=stage, config_digest=config_digest, state=state
            )
        )
    return work_id


def make_ready(connection: Connection, work_id: str) -> None:
    """Lets a unit be claimed that waits, or that was superseded by a configuration which is not asked for any more; one
    that is further stays what it is."""
    superseded = (work.c.state == "failed") & (work.c.output == SUPERSEDED)
    here = (work.c.work_id == work_id) & or_(work.c.state == "waiting", superseded)
    connection.execute(work.update().where(here).values(state="ready", output=None))


def claim(
    connection: Connection,
    work_id: str,
    owner: str,
    lease_seconds: float = LEASE_SECONDS,
    max_attempts: int = MAX_ATTEMPTS,
) -> Lease | None:
    """Takes a unit, until the lease runs out; None: it is done, not ready, somebody else is at it, or its attempts are
    used up: then it fails now, as by `give_up`."""
    time = now(connection)
    unit = connection.execute(select(work).where(work.c.work_id == work_id, _free(time))).one_or_none()
    if unit is None:
        return None
    if unit.attempt >= max_attempts:
        _fail(connection, unit.work_id, unit.dump_id, f"{unit.stage} ended {unit.attempt} times without a word")
        return None
    taken = connection.execute(
        work.update()
        .where(work.c.work_id == work_id, _free(time))
        .values(
            state="running",
            owner=owner,
            fence=work.c.fence + 1,
            attempt=work.c.attempt + 1,
            expires_at=time + lease_seconds,
        )
        .returning(work.c.fence, work.c.attempt)
    ).one_or_none()
    return Lease(work_id, *taken) if taken else None


def heartbeat(connection: Connection, lease: Lease, lease_seconds: float = LEASE_SECONDS) -> None:
    """Prolongs a lease.

    Raises:
        LeaseLost: it ran out and another took over.
    """
    _change(connection, lease, expires_at=now(connection) + lease_seconds)


def publish(connection: Connection, lease: Lease, output: str) -> None:
    """Ends a unit: its output counts. What else the transaction writes counts with it, or not at all.

    Raises:
        LeaseLost: another took over; let it undo the transaction.
    """
    _change(connection, lease, state="done", output=output, owner=None, expires_at=None)


def give_up(connection: Connection, lease: Lease, why: str, max_attempts: int = MAX_ATTEMPTS) -> None:
    """An attempt failed: the unit is ready for the next, or has failed with it, and its dump is quarantined. One that
    was judged already stays what it is: the unit alone has failed.

    Raises:
        LeaseLost: another took over.
    """
    why = without_secrets(why)
    _change(connection, lease, state="ready", output=why, owner=None, expires_at=None)
    if lease.attempt >= max_attempts:
        unit = connection.execute(select(work).where(work.c.work_id == lease.work_id)).one()
        _fail(connection, unit.work_id, unit.dump_id, f"{unit.stage} failed {unit.attempt} times; last: {why}")


def failure(connection: Connection, dump_id: str, stage: str, config_digest: str) -> str | None:
    """Why a unit failed for good, and waits for a person; None: it did not, or there is none."""
    unit = (work.c.dump_id == dump_id) & (work.c.stage == stage) & (work.c.config_digest == config_digest)
    failed = unit & (work.c.state == "failed") & (work.c.output != SUPERSEDED)
    return connection.execute(select(work.c.output).where(failed)).scalar()


def let_go(connection: Connection, lease: Lease) -> None:
    """Gives a unit back that was told to stop: no attempt was made.

    Raises:
        LeaseLost: another took over.
    """
    _change(connection, lease, state="ready", owner=None, expires_at=None, attempt=work.c.attempt - 1)


def end_leases(connection: Connection, owners: Collection[str]) -> None:
    """Lets the units of owners that are known to be dead be claimed at once, instead of when their leases run out."""
    held = (work.c.state == "running") & work.c.owner.in_(owners)
    connection.execute(work.update().where(held).values(expires_at=0.0))


def supersede(connection: Connection, work_id: str) -> None:
    """Ends the other units of the same dump and stage that nobody is at: their configuration is not asked for now."""
    one = select(work.c.dump_id, work.c.stage).where(work.c.work_id == work_id).subquery()
    others = (
        (work.c.dump_id == select(one.c.dump_id).scalar_subquery())
        & (work.c.stage == select(one.c.stage).scalar_subquery())
        & (work.c.work_id != work_id)
        & or_(work.c.state == "waiting", _free(now(connection)))
    )
    connection.execute(
        work.update().where(others).values(state="failed", output=SUPERSEDED, owner=None, expires_at=None)
    )


def _free(time: float):
    return or_(work.c.state == "ready", and_(work.c.state == "running", work.c.expires_at < time))


def _change(connection: Connection, lease: Lease, **values) -> None:
    held = (work.c.work_id == lease.work_id) & (work.c.fence == lease.fence) & (work.c.state == "running")
    if not connection.execute(work.update().where(held).values(values)).rowcount:
        raise LeaseLost(f"work {lease.work_id} is no longer held with fence {lease.fence}: stop, and publish nothing")


def _fail(connection: Connection, work_id: str, dump_id: str, why: str) -> None:
    connection.execute(
        work.update().where(work.c.work_id == work_id).values(state="failed", output=why, owner=None, expires_at=None)
    )
    unjudged = (dump.c.dump_id == dump_id) & dump.c.state.not_in(JUDGED)
    connection.execute(dump.update().where(unjudged).values(state="quarantined", reason=why))
