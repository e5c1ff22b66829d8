"""What an MLflow server has of the ledger: a registered model with a version for each checkpoint that was promoted, and
an alias for each name, as `champion`. Stages are not used: MLflow gives them up.

A version is an export in safetensors with its model card; nothing in it is a pickle. The ledger is the truth: any pass
brings the server up to date with it, whatever was missed before.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Row, select

from pipeline.export.exporting import export
from pipeline.ledger.database import Ledger
from pipeline.ledger.lineage import evaluations
from pipeline.ledger.promotion import events, names
from pipeline.ledger.tables import checkpoint, run
from pipeline.lock import locked
from pipeline.mirror.runs import RunCopy
from pipeline.mirror.server import NotMirrored, Server, calling, connect, wanted
from pipeline.run import Run

CHECKPOINT = "feral.checkpoint"  # tag of a version: the digest of its weights
Tell = Callable[[str], None]


def keep_up(ledger: Ledger, tell: Tell) -> None:
    """Mirrors names and what they stood for, where a server is named. What fails is told, and is no failure here."""
    if not wanted():
        return
    try:
        mirror_registry(connect(), ledger, tell)
    except NotMirrored as error:
        tell(
            f"not mirrored to MLflow: {error}; the ledger holds, and the next promotion or `feral ledger mirror` tries"
        )


def mirror_runs(server: Server, ledger: Ledger, tell: Tell) -> None:
    """Brings every recorded run up to date that is still there, and on which no command works.

    Raises:
        NotMirrored: the server does not take it.
    """
    with ledger.reading() as connection:
        recorded = [Path(path) for path in connection.execute(select(run.c.path).order_by(run.c.recorded_at)).scalars()]
    for path in recorded:
        if not (path / "experiment.json").is_file():
            tell(f"{path} is gone: not mirrored")
            continue
        try:
            with locked(path, "the run"):
                Run(path).experiment  # noqa: B018  # one that cannot be read is no fault of the server
                RunCopy(server, Run(path)).update()
        except (ValueError, OSError) as error:
            tell(f"{path} is passed over: {error}")
            continue
        tell(f"{path} is mirrored to {server.shown}")


def mirror_registry(server: Server, ledger: Ledger, tell: Tell) -> None:
    """Registers what was promoted and has no version yet, then lets the aliases stand as the names of the ledger do.

    Raises:
        NotMirrored: not all of it could be done; it says what.
    """
    faults = []
    with ledger.reading() as connection:
        moves = {row.checkpoint: row for row in events(connection) if row.action in ("promoted", "forced")}
    with calling():
        versions = _versions(server)
        for digest, move in moves.items():
            if digest in versions:
                continue
            try:
                versions[digest] = _register(server, ledger, move)
            except ValueError as error:  # of our own: its bytes are gone, or cannot be exported
                faults.append(f"checkpoint {digest[:12]} has no version: {error}")
                continue
            tell(f"registered in MLflow: {server.name} version {versions[digest]} ({digest[:12]})")
        faults += _set_aliases(server, ledger, versions, tell)
    if faults:
        raise NotMirrored("; ".join(faults))


def _versions(server: Server) -> dict[str, str]:
    """Digest → version, of what is registered."""
    if not server.client.search_registered_models(f"name='{server.name}'"):
        server.client.create_registered_model(server.name, description="promoted by feral; its ledger is the truth")
    found: dict[str, str] = {}
    token = None
    while True:
        page = server.client.search_model_versions(f"name='{server.name}'", page_token=token)
        found |= {one.tags[CHECKPOINT]: str(one.version) for one in page if CHECKPOINT in one.tags}
        token = page.token
        if not token:
            return found


def _register(server: Server, ledger: Ledger, move: Row) -> str:
    """A version of a checkpoint that was promoted. Raises ValueError: it cannot be exported any more."""
    with ledger.reading() as connection:
        row = connection.execute(select(checkpoint).where(checkpoint.c.digest == move.checkpoint)).one()
        scores = {name: value for one in evaluations(connection, row.digest) for name, value in one.scores.items()}
    found = Run(Path(row.path).parent.parent, pinned=row.digest)
    if not found.experiment_file.is_file():
        raise ValueError(f"{found.path} is gone")
    folder = f"model-{row.digest[:12]}"
    with tempfile.TemporaryDirectory() as scratch:
        export(found, "safetensors", Path(scratch) / folder)
        copy = RunCopy(server, found)
        copy.update()
        server.client.log_artifacts(copy.id, str(Path(scratch) / folder), folder)
    tags: dict[str, Any] = {CHECKPOINT: row.digest, "feral.run": row.run_id, "feral.step": row.step}
    tags |= {f"evaluation/{name}": f"{value:.4f}" for name, value in scores.items() if value is not None}
    made = server.client.create_model_version(
        server.name, f"runs:/{copy.id}/{folder}", copy.id, {key: str(value) for key, value in tags.items()},
        description=f"{found.path.name}, step {row.step:,}, {move.action} by {move.actor}: {move.reason}",
        await_creation_for=0,
    )  # fmt: skip
    return str(made.version)


def _set_aliases(server: Server, ledger: Ledger, versions: dict[str, str], tell: Tell) -> list[str]:
    """Moves the aliases that stand elsewhere than the names do, which may be moved meanwhile. Returns what cannot be
    done."""
    moved = True
    while moved:  # until a look at the ledger finds nothing to do
        with ledger.reading() as connection:
            standing = {row.name: row.digest for row in names(connection)}
        there = {name: str(version) for name, version in
                 server.client.get_registered_model(server.name).aliases.items()}  # fmt: skip
        moved = False
        for name, digest in standing.items():
            version = versions.get(digest)
            if version is not None and there.get(name) != version:
                server.client.set_registered_model_alias(server.name, name, version)
                tell(f"in MLflow, {name} is {server.name} version {version} now")
                moved = True
    return [
        f"{name} stands for a checkpoint that has no version" for name, one in standing.items() if one not in versions
    ]
