"""What there is, for a person or a scheduler that looks."""

from sqlalchemy import Connection, Row, func, select

from pipeline.ledger.tables import alias, checkpoint, delivery, dump, event, run, work


def overview(connection: Connection) -> dict[str, list[Row]]:
    """Rows of names, runs, dumps, and of the work that is not done."""
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
        .where(work.c.state != "done")
        .order_by(dump.c.admit_no, work.c.stage)
    )
    parts = {"names": names, "runs": runs, "dumps": dumps, "work": undone}
    return {part: list(connection.execute(rows).all()) for part, rows in parts.items()}
