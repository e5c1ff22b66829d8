"""What there is, for a person or a scheduler that looks."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, select

from pipeline.ledger.dumps import gaps, unsealed
from pipeline.ledger.tables import alias, checkpoint, delivery, dump, event, run, work
from pipeline.ledger.work import SUPERSEDED


def overview(connection: Connection) -> dict[str, list[Any]]:
    """Rows of names, runs, dumps, of the work that is not done, and of deliveries that are not whole yet; gaps."""
    last = (
        select(event.c.name, func.max(event.c.event_id).label("event_id"))
        .where(event.c.action != "held")
        .group_by(event.c.name)
        .subquery()
    )
    names = (
        select(
            alias.c.name, alias.c.version, checkpoint.c.digest, checkpoint.c.step, run.c.path.label("run"),
            event.c.at.label("since"), event.c.actor, event.c.reason,
        )
        .join(checkpoint, checkpoint.c.digest == alias.c.checkpoint)
        .join(run, run.c.run_id == checkpoint.c.run_id)
        .join(last, last.c.name == alias.c.name)
        .join(event, event.c.event_id == last.c.event_id)
        .order_by(alias.c.name)
    )  # fmt: skip
    runs = (
        select(
            run.c.run_id, run.c.path, run.c.base, run.c.seed, run.c.recorded_at,
            func.count(checkpoint.c.digest).label("checkpoints"), func.max(checkpoint.c.step).label("step"),
        )
        .outerjoin(checkpoint, checkpoint.c.run_id == run.c.run_id)
        .group_by(run.c.run_id, run.c.path, run.c.base, run.c.seed, run.c.recorded_at)
        .order_by(run.c.recorded_at)
    )  # fmt: skip
    first = select(delivery.c.dump_id, func.min(delivery.c.uri).label("uri")).group_by(delivery.c.dump_id).subquery()
    dumps = select(dump, first.c.uri).outerjoin(first, first.c.dump_id == dump.c.dump_id).order_by(dump.c.admit_no)
    undone = (
        select(work, dump.c.admit_no)
        .join(dump, dump.c.dump_id == work.c.dump_id)
        .where(work.c.state != "done", work.c.output.is_distinct_from(SUPERSEDED))
        .order_by(dump.c.admit_no, work.c.stage)
    )
    parts = {"names": names, "runs": runs, "dumps": dumps, "work": undone}
    found: dict[str, list[Any]] = {part: list(connection.execute(rows).all()) for part, rows in parts.items()}
    return found | {"deliveries": unsealed(connection), "gaps": _gaps(connection)}


@dataclass(frozen=True)
class Gap:
    """Numbers of a source's deliveries that are missing below the last that came."""

    source_id: str
    last: int
    missing: list[int]


def _gaps(connection: Connection) -> list[Gap]:
    last = select(dump.c.source_id, func.max(dump.c.seq)).where(dump.c.seq.is_not(None)).group_by(dump.c.source_id)
    found = [
        Gap(source_id, highest, gaps(connection, source_id)[1])
        for source_id, highest in connection.execute(last.order_by(dump.c.source_id))
    ]
    return [one for one in found if one.missing]
