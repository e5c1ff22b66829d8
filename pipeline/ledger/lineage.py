"""Lineage, both ways: what fed a checkpoint, and what descends from it. All functions take any connection."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Row, Select, select

from pipeline.ledger.promotion import current
from pipeline.ledger.tables import checkpoint, dump, evaluation, run, run_input, selection


@dataclass(frozen=True)
class Trained:
    """One run of a lineage."""

    run: Row
    digest: str | None  # of the checkpoint that the lineage goes through; None: the ledger does not know it
    step: int | None
    inputs: tuple[Row, ...]  # role, planned, consumed; the selection's store, name, samples; the dump's id, admit_no


def find_checkpoint(connection: Connection, text: str) -> Row:
    """A recorded checkpoint by a name, the beginning of its digest, or the directory of it or of its run.

    Raises:
        ValueError: there is none, or there are several.
    """
    from pathlib import Path

    digest = current(connection, text)
    if digest is not None:
        return connection.execute(select(checkpoint).where(checkpoint.c.digest == digest)).one()
    path = str(Path(text).absolute())
    of_run = select(checkpoint).join(run).where(run.c.path == path).order_by(checkpoint.c.step.desc())
    begins = checkpoint.c.digest.startswith(text.lower(), autoescape=True)
    ways: list[Select] = [select(checkpoint).where(checkpoint.c.path == path), of_run.limit(1)]
    if len(text) >= 6:
        ways.append(select(checkpoint).where(begins))
    for way in ways:
        found = connection.execute(way).all()
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(f"{len(found)} checkpoints begin with {text}: give more of the digest")
    raise ValueError(
        f"the ledger knows no {text}: give a name, a run's directory, or six or more digits of a checkpoint's digest "
        "(`feral ledger` lists them); `feral promote RUN` records a run"
    )


def fed(connection: Connection, digest: str) -> list[Trained]:
    """The runs that led to a checkpoint: its own, the one which that started from, and so on to the first."""
    found: list[Trained] = []
    at: str | None = digest
    while at is not None:
        row = connection.execute(select(checkpoint).where(checkpoint.c.digest == at)).one_or_none()
        if row is None or any(one.run.run_id == row.run_id for one in found):
            break
        of = connection.execute(select(run).where(run.c.run_id == row.run_id)).one()
        found.append(Trained(of, row.digest, row.step, inputs(connection, of.run_id)))
        at = of.base
    return found


def inputs(connection: Connection, run_id: str) -> tuple[Row, ...]:
    read = (
        select(
            run_input.c.role,
            run_input.c.planned,
            run_input.c.consumed,
            selection.c.selection_id,
            selection.c.store,
            selection.c.name,
            selection.c.samples,
            dump.c.dump_id,
            dump.c.admit_no,
            dump.c.source_id,
            dump.c.seq,
        )
        .select_from(run_input)
        .join(selection, selection.c.selection_id == run_input.c.selection_id)
        .join(dump, dump.c.dump_id == selection.c.dump_id)
        .where(run_input.c.run_id == run_id)
        .order_by(dump.c.admit_no)
    )
    return tuple(connection.execute(read).all())


def dumps_of(lineage: Sequence[Trained]) -> list[str]:
    """The dumps that fed it, each once, in the order in which they were admitted."""
    found = {one.dump_id: one.admit_no for trained in lineage for one in trained.inputs}
    return sorted(found, key=lambda dump_id: found[dump_id])


def descendants(connection: Connection, digests: Sequence[str]) -> list[Row]:
    """The checkpoints of all runs that start from these, and from those, and so on; without these themselves."""
    begun = select(run.c.run_id).where(run.c.base.in_(digests)).cte("begun", recursive=True)
    further = (
        select(run.c.run_id)
        .join(checkpoint, checkpoint.c.digest == run.c.base)
        .join(begun, begun.c.run_id == checkpoint.c.run_id)
    )
    begun = begun.union(further)  # not all: a run is found once
    found = (
        select(checkpoint)
        .join(begun, begun.c.run_id == checkpoint.c.run_id)
        .where(checkpoint.c.digest.not_in(digests))
        .order_by(checkpoint.c.recorded_at, checkpoint.c.step)
    )
    return list(connection.execute(found).all())


def evaluations(connection: Connection, digest: str) -> list[Row]:
    judged = select(evaluation).where(evaluation.c.checkpoint == digest).order_by(evaluation.c.recorded_at)
    return list(connection.execute(judged).all())
