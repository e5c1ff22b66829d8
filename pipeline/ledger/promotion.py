"""Names of checkpoints, and how they are moved: forwards by a promotion, backwards by a rollback.

Every move is a compare-and-set: of two who promote at once, one wins, and the other is told. Every move, and every
time that one was refused, is an event with an actor and a reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, select

from pipeline.ledger.database import now
from pipeline.ledger.tables import ACTIONS, alias, checkpoint, event
from pipeline.redaction import without_secrets
from pipeline.train.checkpoints import Checkpoint, Damaged
from pipeline.train.checkpoints.commit import read_commit

CHAMPION = "champion"


class Outrun(ValueError):
    """Somebody else moved the name since it was looked at."""


@dataclass(frozen=True)
class Named:
    """A checkpoint that a name stands for, with all bytes as they were when it was promoted."""

    name: str
    digest: str
    path: Path  # of the checkpoint, in its run's directory
    run_id: str

    @property
    def run(self) -> Path:
        return self.path.parent.parent


def current(connection: Connection, name: str) -> str | None:
    """The digest of the checkpoint that a name stands for."""
    return connection.execute(select(alias.c.checkpoint).where(alias.c.name == name)).scalar()


def names(connection: Connection) -> list[Row]:
    """name, version, digest, step, path and run_id of every alias."""
    found = select(alias.c.name, alias.c.version, checkpoint).join(
        checkpoint, checkpoint.c.digest == alias.c.checkpoint
    )
    return list(connection.execute(found.order_by(alias.c.name)).all())


def resolve(connection: Connection, name: str) -> Named | None:
    """What a name stands for, once its bytes were compared; None: there is no such name.

    Raises:
        ValueError: the checkpoint is gone, or is not what was recorded.
    """
    digest = current(connection, name)
    return None if digest is None else verified(connection, digest, name)


def verified(connection: Connection, digest: str, name: str) -> Named:
    """A recorded checkpoint, once every byte of it was compared.

    Raises:
        ValueError: it is gone, or is not what was recorded.
    """
    row = connection.execute(select(checkpoint).where(checkpoint.c.digest == digest)).one()
    path, fault = Path(row.path), None
    try:
        if Checkpoint.read(path).digest != digest or read_commit(path, digests=False).digest != row.commit:
            fault = "it holds other weights, or another marker"
    except (Damaged, OSError) as error:
        fault = str(error)
    if fault:
        raise ValueError(
            f"{name} is checkpoint {digest[:12]} at {path}, and that is not what was recorded: {fault}; restore it, or "
            f"`feral rollback --name {name} --reason …`"
        )
    return Named(name, digest, path, row.run_id)


def promote(
    connection: Connection,
    name: str,
    digest: str,
    *,
    expected: str | None,
    actor: str,
    reason: str,
    gate: Sequence[dict[str, Any]] | None = None,
    forced: bool = False,
) -> None:
    """Lets a name stand for a recorded checkpoint, if it still stands for `expected` (None: for nothing yet).

    Raises:
        Outrun: it does not.
        ValueError: no reason.
    """
    _refuse_unexplained(reason)
    if current(connection, name) != expected:
        raise Outrun(
            f"somebody else promoted to {name} meanwhile: the gate compared with another checkpoint; try again"
        )
    _move(connection, name, digest)
    _note(connection, "forced" if forced else "promoted", name, expected, digest, actor, reason, gate)


def hold(
    connection: Connection, name: str, digest: str, *, actor: str, reason: str, gate: Sequence[dict[str, Any]] | None
) -> None:
    """Notes that a checkpoint did not pass the gate. Nothing else changes."""
    _refuse_unexplained(reason)
    _note(connection, "held", name, current(connection, name), digest, actor, reason, gate)


def roll_back(connection: Connection, name: str, *, actor: str, reason: str) -> Named:
    """Lets a name stand again for what it stood for before, once its bytes were compared. A second rollback goes one
    further back.

    Raises:
        ValueError: no reason, no such name, nothing before, or bytes that are not those that were promoted.
    """
    _refuse_unexplained(reason)
    history = standing(connection, name)
    if len(history) < 2:
        there = ", ".join(row.name for row in names(connection)) or "none"
        why = f"{name} has stood for nothing else before" if history else f"there is no {name} (names: {there})"
        raise ValueError(f"{why}: there is nothing to roll back to")
    found = verified(connection, history[-2], name)
    _move(connection, name, found.digest)
    _note(connection, "rolled back", name, history[-1], found.digest, actor, reason, None)
    return found


def standing(connection: Connection, name: str) -> list[str]:
    """The digests that a name stood for, oldest first, without those that were rolled back; the last is the one now."""
    moves = select(event.c.action, event.c.checkpoint).where(event.c.name == name).order_by(event.c.event_id)
    found: list[str] = []
    for action, digest in connection.execute(moves):
        if action in ("promoted", "forced"):
            found.append(digest)
        elif action == "rolled back":
            found.pop()
    return found


def events(connection: Connection, name: str | None = None, last: int | None = None) -> list[Row]:
    """What happened to names, oldest first."""
    found = select(event).order_by(event.c.event_id.desc())
    if name is not None:
        found = found.where(event.c.name == name)
    return list(connection.execute(found.limit(last)).all())[::-1]


def _move(connection: Connection, name: str, digest: str) -> None:
    here = alias.update().where(alias.c.name == name).values(checkpoint=digest, version=alias.c.version + 1)
    if not connection.execute(here).rowcount:
        connection.execute(alias.insert().values(name=name, checkpoint=digest, version=1))


def _note(
    connection: Connection,
    action: str,
    name: str,
    before: str | None,
    digest: str,
    actor: str,
    reason: str,
    gate: Sequence[dict[str, Any]] | None,
) -> None:
    assert action in ACTIONS, action
    connection.execute(
        event.insert().values(
            at=now(connection),
            action=action,
            name=name,
            before=before,
            checkpoint=digest,
            actor=actor,
            reason=without_secrets(reason),
            gate=None if gate is None else list(gate),
        )
    )


def _refuse_unexplained(reason: str) -> None:
    if not reason.strip():
        raise ValueError("a promotion, hold or rollback needs a reason, for those who read the ledger later")
