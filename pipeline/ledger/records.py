"""What was made of dumps: selections, runs, checkpoints, evaluations. All functions take a writing connection; what is
recorded again is brought up to date, and never doubled."""

import hashlib
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, select

from pipeline.evaluate.protocol import Evaluation
from pipeline.ingest.selection import read_selection
from pipeline.ingest.store import Store
from pipeline.ledger.database import now
from pipeline.ledger.dumps import discover, move, seal
from pipeline.ledger.tables import checkpoint, delivery, evaluation, run, run_input, selection
from pipeline.run import Run
from pipeline.train.checkpoints import Checkpoint
from pipeline.train.checkpoints.commit import read_commit
from pipeline.train.inputs import inputs_of


@dataclass(frozen=True)
class Input:
    """A selection that a run reads: how many of its samples it was to see, and has seen."""

    selection_id: str
    planned: int
    consumed: int
    role: str = "new"


def record_store(connection: Connection, store: Store, dump_id: str | None = None) -> str:
    """Records the selection that a store was opened with, and returns its id. A store that was curated by hand, of no
    dump that the ledger knows, is recorded as a dump, too: the digest of its content names it.

    Raises:
        ValueError: its selection cannot be read.
    """
    card, manifest = read_selection(store, store.selection), store.manifest
    selection_id = hashlib.sha256(f"{manifest.index_sha256} {card.digest}".encode()).hexdigest()
    known = connection.execute(
        select(selection.c.dump_id).where(selection.c.selection_id == selection_id)
    ).scalar_one_or_none()
    if known is None and dump_id is None:
        dump_id = _by_hand(connection, store)
    facts = {"store": str(store.path), "name": card.name, "samples": card.splits["train"], "digest": card.digest}
    _put(connection, selection, {"selection_id": selection_id}, facts | {"dump_id": known or dump_id})
    return selection_id


def _by_hand(connection: Connection, store: Store) -> str:
    manifest = store.manifest
    sealed = connection.execute(
        select(delivery.c.dump_id).where(delivery.c.uri == manifest.source, delivery.c.listing == manifest.listing)
    ).scalar()
    if sealed is not None:
        return sealed  # of a delivery that a scheduler sealed, or of another selection of the same
    # not under its listing: a cycle that comes to the same place has not read it yet
    discover(connection, None, manifest.source, manifest.digest)
    files = (*manifest.shards, *manifest.files)
    found = seal(
        connection,
        manifest.source,
        manifest.digest,
        manifest.digest,
        files=len(files),
        size=sum(file.bytes for file in files),
    )
    if found.is_new:
        move(connection, found.dump_id, "sealed", "curated", "by hand")
    return found.dump_id


def record_run(connection: Connection, found: Run, *, work_id: str | None = None, with_inputs: bool = True) -> str:
    """Records a run, and before it the run that it starts or goes on from. Returns its id: the digest of its
    experiment, so that a run that was moved, or done again elsewhere, is the same.

    Args:
        with_inputs: also what it reads, as far as it came; not, where its store is gone.

    Raises:
        ValueError: there is no run, its store is gone, or is not the one that the run was judged on.
    """
    experiment, run_id = found.experiment, found.experiment.digest
    training = experiment.training
    base = training.continue_digest or training.start_digest
    came_from = training.continue_from or training.start_from
    if came_from and Path(came_from, "experiment.json").is_file():
        _record_start(connection, Run.open(Path(came_from)), base)
    facts: dict[str, Any] = {
        "path": str(found.path),
        "base": base,
        "experiment": experiment.model_dump(mode="json"),
        "versions": found.commands[-1].get("packages", {}) if found.commands_file.exists() else {},
        "seed": training.seed,
        "recorded_at": now(connection),
    }
    _put(connection, run, {"run_id": run_id}, facts | ({"work_id": work_id} if work_id else {}))
    for one in _inputs(connection, found) if with_inputs else ():
        key = {"run_id": run_id, "selection_id": one.selection_id, "role": one.role}
        _put(connection, run_input, key, {"planned": one.planned, "consumed": one.consumed})
    return run_id


def _inputs(connection: Connection, found: Run) -> list[Input]:
    experiment, store, judged = found.experiment, found.experiment.data.open(), found.evaluation
    if judged is not None and judged.store_digest != store.manifest.digest:
        raise ValueError(
            f"{store.path} was made anew since {found.path} was judged on it: what the run was trained on is not known "
            "any more; bring the store back as it was, or train again"
        )
    if experiment.data.replay:
        *old, new = inputs_of(found).stores
        return [
            Input(record_store(connection, Store(one.store, one.selection)), one.planned, one.consumed, role)
            for role, stores in (("replay", old), ("new", [new]))
            for one in stores
        ]
    kept, batch, begun = found.kept_checkpoints(), experiment.data.batch_size, experiment.training.continue_step
    return [
        Input(
            record_store(connection, store),
            planned=(experiment.total_steps - begun) * batch,
            consumed=(kept[-1].step - begun) * batch if kept else 0,
        )
    ]


def _record_start(connection: Connection, found: Run, digest: str | None) -> None:
    """The run that another starts from, with the checkpoint that it takes, as far as they are still there."""
    if not connection.execute(select(run.c.run_id).where(run.c.run_id == found.experiment.digest)).all():
        try:
            record_run(connection, found)
        except ValueError:  # its store is gone: lineage then says that its data is not known
            record_run(connection, found, with_inputs=False)
    for one in found.kept_checkpoints():
        if one.digest == digest:
            record_checkpoint(connection, found, one)


def record_checkpoint(connection: Connection, found: Run, one: Checkpoint) -> str:
    """Records a whole checkpoint of a recorded run, and returns its digest: the weights name it, wherever they lie."""
    facts = {
        "path": str(one.path),
        "commit": read_commit(one.path, digests=False).digest,
        "step": one.step,
        "recorded_at": now(connection),
    }
    known = connection.execute(select(checkpoint.c.path).where(checkpoint.c.digest == one.digest)).scalar()
    if known is None or not Path(known).exists():  # new, or it was moved
        _put(connection, checkpoint, {"digest": one.digest}, facts | {"run_id": found.experiment.digest})
    return one.digest


def record_evaluation(
    connection: Connection, digest: str, judged: Evaluation, file: Path, *, complete: bool = True
) -> None:
    """Records how a checkpoint was judged on a store; of several times, the last."""
    _put(
        connection,
        evaluation,
        {"checkpoint": digest, "store_digest": judged.store_digest},
        {
            "complete": int(complete),
            "scores": {one.name: one.trained if isfinite(one.trained) else None for one in judged.scores},
            "file": str(file),
            "recorded_at": now(connection),
        },
    )


def _put(connection: Connection, table: Table, key: dict[str, Any], facts: dict[str, Any]) -> None:
    here = [table.c[name] == value for name, value in key.items()]
    if not connection.execute(table.update().where(*here).values(facts)).rowcount:
        connection.execute(table.insert().values(**key, **facts))
