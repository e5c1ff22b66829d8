"""The verb: compare a run with the champion, record both in the ledger, and promote or hold; all in one transaction."""

import getpass
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sqlalchemy import Connection

from pipeline.evaluate.embed import Embedding
from pipeline.evaluate.encoders import RunEncoders
from pipeline.evaluate.protocol import EvaluationConfig
from pipeline.evaluate.transfer import judge_all
from pipeline.gate import TOLERANCE, Gate, Judged, gate
from pipeline.ingest.store import Store
from pipeline.ledger import promotion, records
from pipeline.ledger.database import Ledger
from pipeline.mirror.registry import keep_up
from pipeline.run import Run
from pipeline.train.checkpoints import keep

EVALUATIONS = "evaluations"  # of the candidate's run: both encoders on the stores that were asked for


@dataclass(frozen=True)
class Promotion:
    action: Literal["promoted", "forced", "held", "unchanged"]
    name: str
    run: Path
    checkpoint: str  # digest
    champion: str | None  # digest of what the name stood for before
    gate: Gate | None  # None: nothing was compared
    reason: str


def promote(
    ledger: Ledger,
    run: Run,
    *,
    name: str = promotion.CHAMPION,
    reason: str = "",
    force: bool = False,
    stores: Sequence[Store] = (),
    tolerance: float = TOLERANCE,
    by: str | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Promotion:
    """Lets a name of the ledger stand for a run's newest checkpoint, if that passes the gate; else notes that it is
    held. What the ledger does not know of the run and its data yet is recorded.

    Args:
        reason: for the ledger; default: what the gate says.
        force: promotes what does not pass; needs a reason.
        stores: where both are judged first, with Ray, which must be connected; default: as they were judged already.
        by: who promotes; default: the user.

    Raises:
        ValueError: the run has no whole checkpoint or no store any more, or a reason is missing.
        promotion.Outrun: somebody else promoted meanwhile.
    """
    if force and not reason.strip():
        raise ValueError("--force promotes against the gate: say why, with --reason")
    weighed = weigh(ledger, run, name=name, stores=stores, tolerance=tolerance, tell=tell)
    if weighed.gate is None:
        done = Promotion("unchanged", name, run.path, weighed.digest, weighed.before, None, f"it is {name} already")
    else:
        with ledger.writing() as connection:
            done = settle(connection, weighed, reason=reason, force=force, by=by)
    keep_up(ledger, tell)
    return done


@dataclass(frozen=True)
class Weighed:
    """A candidate that was compared with what the name stands for; nothing is decided yet."""

    name: str
    run: Run
    candidate: RunEncoders
    judged: tuple[Judged, ...]  # the candidate, on each store
    before: str | None  # digest of the champion that it was compared with
    gate: Gate | None  # None: it is the champion

    @property
    def digest(self) -> str:
        return self.candidate.checkpoint.digest


def weigh(
    ledger: Ledger,
    run: Run,
    *,
    name: str = promotion.CHAMPION,
    stores: Sequence[Store] = (),
    tolerance: float = TOLERANCE,
    folder: Path | None = None,
    config: EvaluationConfig | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Weighed:
    """The first half of `promote`, which changes nothing.

    Args:
        folder: of the evaluations on `stores`; default: in the run.
        config: of these.
    """
    candidate = RunEncoders.of(run)
    with ledger.reading() as connection:
        before = promotion.current(connection, name)
    if before == candidate.checkpoint.digest:
        return Weighed(name, run, candidate, (), before, None)
    folder, config = folder or candidate.directory / EVALUATIONS, config or EvaluationConfig()
    mine, theirs = _judge(candidate, _champion(ledger, name) if before else None, stores, folder, config, tell)
    found = gate(mine, theirs, unfinished=_unfinished(candidate), tolerance=tolerance)
    return Weighed(name, run, candidate, tuple(mine), before, found)


def settle(
    connection: Connection, weighed: Weighed, *, reason: str = "", force: bool = False, by: str | None = None
) -> Promotion:
    """The second half of `promote`, in a transaction of the ledger: records, and moves the name or holds."""
    found, run, name, digest, by = weighed.gate, weighed.run, weighed.name, weighed.digest, by or actor()
    assert found is not None
    action: Literal["promoted", "forced", "held"] = "promoted" if found.passed else "forced" if force else "held"
    why = (reason.strip() if action != "held" else "") or found.reason
    records.record_run(connection, run)
    records.record_checkpoint(connection, run, weighed.candidate.checkpoint)
    for one in weighed.judged:
        if one.evaluation is not None and one.file is not None:
            complete = "complete" not in found.held_for
            records.record_evaluation(connection, digest, one.evaluation, one.file, complete=complete)
    if action == "held":
        promotion.hold(connection, name, digest, actor=by, reason=why, gate=found.rows())
    else:
        keep(weighed.candidate.checkpoint.path)
        promotion.promote(
            connection, name, digest, expected=weighed.before, actor=by, reason=why, gate=found.rows(),
            forced=action == "forced",
        )  # fmt: skip
    return Promotion(action, name, run.path, digest, weighed.before, found, why)


def _champion(ledger: Ledger, name: str) -> RunEncoders | str:
    """What a name stands for; or why that cannot be compared with: it is for the gate to hold then, and for a person to
    go on by force."""
    try:
        with ledger.reading() as connection:
            named = promotion.resolve(connection, name)
        assert named is not None
        return RunEncoders.of(Run(named.run, pinned=named.digest))
    except ValueError as error:
        return str(error)


def _judge(
    candidate: RunEncoders,
    champion: RunEncoders | str | None,
    stores: Sequence[Store],
    folder: Path,
    config: EvaluationConfig,
    tell: Callable[[str], None],
) -> tuple[list[Judged], list[Judged] | None]:
    """Candidate and champion as they were judged on each store; without stores, each as its run was."""
    encoders = [one for one in (candidate, champion) if isinstance(one, RunEncoders)]
    if stores:
        files = judge_all(encoders, stores, folder, config, Embedding(candidate.experiment.cluster), tell)
        parts = [[one.file for one in files[place :: len(encoders)]] for place in range(len(encoders))]
    else:
        parts = [[Run(one.directory).evaluation_file] for one in encoders]
    judged = [
        [Judged.read(file, one.digest, f"feral evaluate {one.directory}") for file in files]
        for one, files in zip(encoders, parts, strict=True)
    ]
    if isinstance(champion, str):
        return judged[0], [Judged(None, fault=champion) for _ in judged[0]]
    return judged[0], judged[1] if champion else None


def _unfinished(candidate: RunEncoders) -> str | None:
    step, total, path = candidate.step, candidate.experiment.total_steps, candidate.directory
    return None if step >= total else f"at step {step:,} of {total:,}: feral pretrain … --run {path}"


def actor() -> str:
    """Who promotes, for the ledger."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # in a container, of a user without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
