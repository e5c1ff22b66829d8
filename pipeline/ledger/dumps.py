"""Deliveries and dumps: what was found where, and when it was sealed. All functions take a writing connection."""

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, Row, func, select

from pipeline.ledger.database import now
from pipeline.ledger.tables import DUMP_STATES, delivery, dump, source
from pipeline.redaction import without_secrets


class Moved(ValueError):
    """A dump is not in the state that it should be moved from: somebody else was first."""


@dataclass(frozen=True)
class Sealed:
    """`is_new`: no earlier delivery held the same bytes."""

    dump_id: str
    admit_no: int
    is_new: bool


def add_source(
    connection: Connection, source_id: str, root: str, seal_rule: str = "marker", quota: float | None = None
) -> None:
    """Names a place where deliveries appear; the same name again changes what is known of it."""
    facts = {"root": without_secrets(root), "seal_rule": seal_rule, "quota": quota}
    if not connection.execute(source.update().where(source.c.source_id == source_id).values(facts)).rowcount:
        connection.execute(source.insert().values(source_id=source_id, **facts))


def discover(connection: Connection, source_id: str | None, uri: str, listing: str) -> float:
    """Notes that a place holds files of this listing. Returns for how many seconds it has been so: what a quiet period
    is compared with. Another listing begins anew, and what was seen there before, and not sealed, is forgotten. What an
    older version noted under the listing when it was curated by hand is the source's own from then on, and unsealed.
    """
    here = delivery.c.uri == uri
    found = connection.execute(select(delivery.c.stable_since).where(here, delivery.c.listing == listing)).scalar()
    time = now(connection)
    connection.execute(
        delivery.delete().where(
            here,
            delivery.c.listing != listing,
            delivery.c.dump_id.is_(None),
            delivery.c.source_id.is_not_distinct_from(source_id),
        )
    )  # an earlier state of a delivery that was still growing
    if found is None:
        connection.execute(
            delivery.insert().values(uri=uri, listing=listing, source_id=source_id, stable_since=time, dump_id=None)
        )
    elif source_id is not None:
        by_hand = (here, delivery.c.listing == listing, delivery.c.source_id.is_(None))
        connection.execute(delivery.update().where(*by_hand).values(source_id=source_id, dump_id=None))
    return time - found if found is not None else 0.0


def forget(connection: Connection, uri: str) -> None:
    """Forgets a delivery that was never sealed, and is no more."""
    connection.execute(delivery.delete().where(delivery.c.uri == uri, delivery.c.dump_id.is_(None)))


def seal(
    connection: Connection,
    uri: str,
    listing: str,
    dump_id: str,
    *,
    files: int,
    size: int,
    seq: int | None = None,
    parent_id: str | None = None,
) -> Sealed:
    """Makes a discovered delivery a dump, or finds that these bytes came before: then no dump is added.

    Args:
        dump_id: digest of the content.
        size: bytes of all files.
        seq: the dump's number in its source, where its name tells one; default: the next.
        parent_id: the dump that these files came too late for; such a dump has no number.

    Raises:
        ValueError: no such delivery, or another dump of the source has this `seq`.
    """
    here = (delivery.c.uri == uri) & (delivery.c.listing == listing)
    found = connection.execute(select(delivery).where(here)).one_or_none()
    if found is None:
        raise ValueError(f"{uri} was not discovered with this listing: it changed meanwhile, or is not known yet")
    known = connection.execute(select(dump.c.admit_no).where(dump.c.dump_id == dump_id)).scalar()
    if known is None:
        seq = None if parent_id else _free_seq(connection, found.source_id, seq)
        connection.execute(
            dump.insert().values(
                dump_id=dump_id,
                source_id=found.source_id,
                seq=seq,
                admit_no=_next(connection, dump.c.admit_no),
                state="sealed",
                parent_id=parent_id,
                files=files,
                bytes=size,
                sealed_at=now(connection),
            )
        )
    connection.execute(delivery.update().where(here).values(dump_id=dump_id))
    admit_no = connection.execute(select(dump.c.admit_no).where(dump.c.dump_id == dump_id)).scalar_one()
    return Sealed(dump_id, admit_no, known is None)


def _free_seq(connection: Connection, source_id: str | None, seq: int | None) -> int | None:
    if source_id is None:
        return None
    of_source = dump.c.source_id == source_id
    if seq is None:
        return _next(connection, dump.c.seq, of_source)
    check_number(connection, source_id, seq)
    return seq


def check_number(
    connection: Connection, source_id: str, seq: int, *, files: int | None = None, size: int | None = None
) -> None:
    """Before a delivery is read: may it have its number? With as many files and bytes it may be what has it.

    Raises:
        ValueError: another dump of the source has it.
    """
    taken = connection.execute(select(dump).where(dump.c.source_id == source_id, dump.c.seq == seq)).first()
    if taken is not None and (taken.files, taken.bytes) != (files, size):
        raise ValueError(
            f"number {seq} of source {source_id} is dump {taken.dump_id[:12]} already, with other content: a delivery "
            "must not be changed once it was sealed; deliver what is new under a name of its own"
        )


def _next(connection: Connection, column, *where) -> int:
    return connection.execute(select(func.coalesce(func.max(column), 0) + 1).where(*where)).scalar_one()


def move(connection: Connection, dump_id: str, before: str, after: str, reason: str | None = None) -> None:
    """Changes the state of a dump, if it still is `before`.

    Raises:
        Moved: it is not.
    """
    assert after in DUMP_STATES, after
    reason = without_secrets(reason) if reason else None
    changed = connection.execute(
        dump.update().where(dump.c.dump_id == dump_id, dump.c.state == before).values(state=after, reason=reason)
    )
    if not changed.rowcount:
        state = connection.execute(select(dump.c.state).where(dump.c.dump_id == dump_id)).scalar()
        raise Moved(f"dump {dump_id[:12]} is {state or 'unknown'}, not {before}: it is not moved to {after}")


def unsealed(connection: Connection) -> list[Row]:
    """The deliveries that wait to be sealed, the longest stable first."""
    waiting = select(delivery).where(delivery.c.dump_id.is_(None)).order_by(delivery.c.stable_since)
    return list(connection.execute(waiting).all())


def gaps(connection: Connection, source_id: str) -> tuple[int | None, list[int]]:
    """The watermark of a source, which is the highest number that no gap is below, and the numbers that are missing
    above it; (None, []) before the first dump."""
    numbers = select(dump.c.seq).where(dump.c.source_id == source_id, dump.c.seq.is_not(None)).order_by(dump.c.seq)
    return _gaps(connection.execute(numbers).scalars())


def _gaps(numbers: Iterable[int]) -> tuple[int | None, list[int]]:
    missing: list[int] = []
    watermark = last = None
    for number in numbers:
        if last is not None:
            missing += range(last + 1, number)
        watermark = number if not missing else watermark
        last = number
    return watermark, missing
