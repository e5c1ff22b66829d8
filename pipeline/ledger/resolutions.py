"""What a person decides of a dump that waits for one: another try, or to leave it out; with a reason, for those who
read the ledger later. All functions take a writing connection."""

from sqlalchemy import ColumnElement, Connection, Row, select

from pipeline.ledger.database import now
from pipeline.ledger.dumps import move
from pipeline.ledger.tables import ENDED, JUDGED, dump, resolution, work
from pipeline.ledger.work import SUPERSEDED
from pipeline.redaction import without_secrets

WAITING = ("held", *ENDED)  # states from which a dump does not go on by itself


def find_dump(connection: Connection, text: str) -> Row:
    """A dump by its number of admission, or by the beginning of its digest.

    Raises:
        ValueError: there is none, or there are several.
    """
    found = select(dump).where(dump.c.dump_id.startswith(text.lower(), autoescape=True))
    if text.isdigit() and len(text) < 6:
        found = select(dump).where(dump.c.admit_no == int(text))
    rows = connection.execute(found).all() if text else []
    if len(rows) == 1:
        return rows[0]
    there = f"{len(rows)} dumps begin with {text}: give more of the digest" if rows else f"there is no dump {text!r}"
    raise ValueError(f"{there} (`feral ledger` lists them)")


def retry(connection: Connection, text: str, *, actor: str, reason: str) -> tuple[Row, str]:
    """Lets a dump that is held, quarantined, drifted or skipped be taken up again, where it stopped. One that was held
    is trained again from the plateau of now: if that is still the same, the training that was done counts. Where a
    dump was judged, and a stage failed after that, only this stage is tried again.

    Returns:
        The dump as it was, and its state now.

    Raises:
        ValueError: no reason, no such dump, or one that does not wait for a person.
    """
    found = _named(connection, text, reason)
    done = select(work.c.stage).where(work.c.dump_id == found.dump_id, work.c.state == "done")
    failed = (work.c.state == "failed") & (work.c.output != SUPERSEDED) & work.c.stage.not_in(done)
    if found.state in JUDGED and _revived(connection, found, failed):
        _note(connection, "retried", found, actor, reason)
        return found, found.state
    _refuse_used(connection, found)
    if found.state not in WAITING:
        raise ValueError(f"dump {found.admit_no} is {found.state}: it goes on by itself, with the next tick")
    store = (work.c.dump_id == found.dump_id) & (work.c.stage == "curate") & (work.c.state == "done")
    curated = connection.execute(select(work.c.output).where(store, work.c.output != "")).first() is not None
    _revived(connection, found, *([work.c.stage != "curate"] if curated else []))
    state = "curated" if curated else "verified"
    move(connection, found.dump_id, found.state, state, f"again: {reason}")
    _note(connection, "retried", found, actor, reason)
    return found, state


def skip(connection: Connection, text: str, *, actor: str, reason: str) -> Row:
    """Leaves a dump out, for good unless it is retried: its images are not known to later dumps. Returns it as it was.

    Raises:
        ValueError: no reason, no such dump, one that was trained on for good, or that is being worked on.
    """
    found = _named(connection, text, reason)
    _refuse_used(connection, found)
    busy = select(work.c.stage, work.c.owner).where(
        work.c.dump_id == found.dump_id, work.c.state == "running", work.c.expires_at >= now(connection)
    )
    if (one := connection.execute(busy).first()) is not None:
        raise ValueError(f"dump {found.admit_no} is at its stage {one.stage} ({one.owner}): stop that first")
    move(connection, found.dump_id, found.state, "skipped", reason)
    _note(connection, "skipped", found, actor, reason)
    return found


def resolutions(connection: Connection, last: int | None = None) -> list[Row]:
    """What persons decided of dumps, oldest first."""
    found = (
        select(resolution, dump.c.admit_no)
        .join(dump, dump.c.dump_id == resolution.c.dump_id)
        .order_by(resolution.c.resolution_id.desc())
    )
    return list(connection.execute(found.limit(last)).all())[::-1]


def _revived(connection: Connection, found: Row, *which: ColumnElement[bool]) -> int:
    """Lets units of a dump be claimed anew, with all of their attempts; how many."""
    fresh = {"state": "waiting", "attempt": 0, "owner": None, "expires_at": None, "output": None}
    return connection.execute(work.update().where(work.c.dump_id == found.dump_id, *which).values(fresh)).rowcount


def _named(connection: Connection, text: str, reason: str) -> Row:
    if not reason.strip():
        raise ValueError("say why, with --reason, for those who read the ledger later")
    found = find_dump(connection, text)
    if found.source_id is None:
        raise ValueError(f"dump {found.admit_no} was curated by hand: no cycle works on it")
    return found


def _refuse_used(connection: Connection, found: Row) -> None:
    if found.state == "promoted" or in_base(connection, found.dump_id):
        raise ValueError(
            f"dump {found.admit_no} is part of the plateau that later dumps go on from: `feral rollback` takes back a "
            "name, `feral block` pictures"
        )


def in_base(connection: Connection, dump_id: str) -> bool:
    """Whether a dump that is held has moved the base nevertheless: the gate found no harm in it."""
    output = select(work.c.output).where(work.c.dump_id == dump_id, work.c.stage == "promote", work.c.state == "done")
    return HARMLESS in connection.execute(output).scalars().all()


HARMLESS = "held, harmless"  # output of a promotion that moves the base alone


def _note(connection: Connection, action: str, found: Row, actor: str, reason: str) -> None:
    connection.execute(
        resolution.insert().values(
            at=now(connection),
            dump_id=found.dump_id,
            action=action,
            before=found.state,
            actor=actor,
            reason=without_secrets(reason),
        )
    )
