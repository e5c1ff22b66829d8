"""A production day in seconds: the real engine, ledger and deliveries, with stages that only write text.

A delivery holds text files, a sample a line. A plateau is a line of all that it was trained on; a candidate's score is
how many samples those are, less 100 if one is called "bad". A pass runs in a process of its own, that can be killed.
"""

import hashlib
import os
import signal
import traceback
from collections.abc import Callable, Container, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from pipeline.cycle.config import Cycle
from pipeline.cycle.contents import read_contents
from pipeline.cycle.engine import run_pass
from pipeline.cycle.job import EXIT, Ended, Job, Pass, Stage
from pipeline.cycle.lease import Told
from pipeline.cycle.stages import MIDWAY, UNREAD
from pipeline.ledger import promotion
from pipeline.ledger.database import Ledger
from pipeline.ledger.tables import checkpoint, dump, metadata, run, work

Work = Callable[[Job, str], Ended]
KILLED = -signal.SIGKILL


def deliver(folder: Path, *samples: str, files: int = 1, whole: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        (folder / f"{number}.txt").write_text("\n".join(samples[number::files]))
    if whole:
        (folder / "_SUCCESS").touch()
    return folder


def cycle_of(root: Path, **changes: Any) -> Cycle:
    facts: dict[str, Any] = {
        "root": root / "production", "recipe": "text", "images_per_dump": 1, "attempts": 100,
        "sources": [{"name": "web", "root": str(root / "incoming"), "quiet_minutes": 0}],
    }  # fmt: skip
    return Cycle.model_validate(facts | changes)


def curate(job: Job, digest: str) -> Ended:
    contents = read_contents(job.cycle.root, job.dump.dump_id)
    place = Path(contents.uri)
    found = {line for path in contents.files for line in (place / path).read_text().split()}
    if "poison" in found:
        return Ended("poison", state="quarantined", reason="poison")
    new = sorted(found - set(_history(job)))
    if not new:
        return Ended("no new samples", state="skipped", reason="no new samples")
    return Ended(f"{len(new)} new", _write(job, "stores", digest, " ".join(new)), "curated")


def train(job: Job, digest: str) -> Ended:
    base = _alias(job, job.cycle.base)
    before = base[1].read_text() if base else ""
    path = _write(job, "runs", digest, f"{before} {Path(job.outputs['curate']).read_text()}".strip())
    return Ended("trained", path, "trained", record=_recorded(path, base[0] if base else None))


def cooldown(job: Job, digest: str) -> Ended:
    path = _write(job, "candidates", digest, f"cooled {Path(job.outputs['train']).read_text()}")
    return Ended("cooled", path, record=_recorded(path, _digest(job.outputs["train"])))


def evaluate(job: Job, digest: str) -> Ended:
    return Ended("judged", _write(job, "scores", digest, str(score(job.outputs["cooldown"]))), "evaluated")


def promote(job: Job, digest: str) -> Ended:
    champion, mine = _alias(job, job.cycle.champion), job.outputs["cooldown"]
    base = _alias(job, job.cycle.base)
    passed = champion is None or score(mine) > score(champion[1])

    def record(connection: Connection, work_id: str) -> None:
        if not passed:
            promotion.hold(connection, job.cycle.champion, _digest(mine), actor="day", reason="worse", gate=None)
            return
        for name, path, before in (
            (job.cycle.champion, mine, champion), (job.cycle.base, job.outputs["train"], base),
        ):  # fmt: skip
            promotion.promote(
                connection, name, _digest(path), expected=before[0] if before else None, actor="day", reason="better"
            )

    state = "promoted" if passed else "held"
    return Ended("better" if passed else "worse", state, state, "better" if passed else "worse", record)


def report(job: Job, digest: str) -> Ended:
    return Ended("page", _write(job, "reports", digest, job.outputs["promote"]))


WORK: dict[str, Work] = {
    "curate": curate, "train": train, "cooldown": cooldown, "evaluate": evaluate, "promote": promote, "report": report,
}  # fmt: skip


def stages(**other: Work) -> tuple[Stage, ...]:
    """The table; some of the work may be other."""
    nothing: tuple[str, ...] = ()
    rows = [
        ("curate", ("verified",), UNREAD, nothing, lambda job: sorted(_history(job))),
        ("train", ("curated",), (*UNREAD, "curated"), MIDWAY,
         lambda job: [job.outputs["curate"][-8:], _alias_digest(job, "base")]),
        ("cooldown", ("trained",), nothing, nothing, lambda job: _digest(job.outputs["train"])),
        ("evaluate", ("trained",), nothing, nothing, lambda job: _digest(job.outputs["cooldown"])),
        ("promote", ("evaluated",), nothing, nothing,
         lambda job: [_alias_digest(job, name) for name in ("champion", "base")]),
        ("report", ("promoted", "held"), nothing, nothing, lambda job: job.outputs["promote"]),
    ]  # fmt: skip
    return tuple(Stage(name, *conditions, (WORK | other)[name]) for name, *conditions in rows)


def score(path: str | Path) -> int:
    words = Path(path).read_text().split()
    return len(words) - 100 * ("bad" in words)


def _write(job: Job, kind: str, digest: str, text: str) -> str:
    path = job.cycle.root / kind / f"{job.name}-{digest[:6]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def _digest(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _history(job: Job) -> list[str]:
    states = ("curated", "trained", "evaluated", "promoted", "held")
    earlier = (
        select(work.c.output)
        .join(dump, dump.c.dump_id == work.c.dump_id)
        .where(work.c.stage == "curate", work.c.state == "done", work.c.output != "", dump.c.state.in_(states))
    )
    with job.ledger.reading() as connection:
        paths = connection.execute(earlier).scalars().all()
    return [word for path in paths for word in Path(path).read_text().split()]


def _alias(job: Job, name: str) -> tuple[str, Path] | None:
    with job.ledger.reading() as connection:
        digest = promotion.current(connection, name)
        if digest is None:
            return None
        rows = select(checkpoint.c.path).where(checkpoint.c.digest == digest)
        return digest, Path(connection.execute(rows).scalar_one())


def _alias_digest(job: Job, name: str) -> str | None:
    found = _alias(job, name)
    return found[0] if found else None


def _recorded(path: str, base: str | None) -> Callable[[Connection, str], None]:
    def record(connection: Connection, work_id: str) -> None:
        digest = _digest(path)
        if connection.execute(select(checkpoint.c.digest).where(checkpoint.c.digest == digest)).first():
            return
        connection.execute(
            run.insert().values(
                run_id=f"run {digest}", path=path, work_id=work_id, base=base, experiment={}, versions={}, seed=0,
                recorded_at=0.0,
            )
        )  # fmt: skip
        connection.execute(
            checkpoint.insert().values(
                digest=digest, run_id=f"run {digest}", step=1, path=path, commit="", recorded_at=0.0
            )
        )

    return record


# ---- passes in processes of their own ------------------------------------------------------------------------------


def one_pass(cycle: Cycle, where: str, table: Sequence[Stage], tell: Callable[[str], None] = lambda line: None) -> Pass:
    """A pass in this process."""
    return run_pass(cycle, Ledger.open(where, create=True), table, tell=tell)


def start(cycle: Cycle, where: str, table: Sequence[Stage], tell: Callable[[str], None] = lambda line: None) -> int:
    """A pass in a process of its own, which ends with the status of `feral tick`; returns its number."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        code = EXIT[one_pass(cycle, where, table, tell).status]
    except Told as told:
        code = 128 + told.signal
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(child: int) -> int:
    """Its exit status, below zero for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_once(root: Path, place: str) -> None:
    """Kills this process here, the first time that it comes here."""
    mark = root / "killed" / place
    mark.parent.mkdir(exist_ok=True)
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def deadly(root: Path, dumps: Container[int]) -> tuple[Stage, ...]:
    """The stages; before, after and in the publication of each, for each of these dumps, the process is killed once."""

    def struck(name: str, work: Work) -> Work:
        def strike(job: Job, digest: str) -> Ended:
            if job.dump.admit_no not in dumps:
                return work(job, digest)
            place = f"{name} {job.dump.admit_no}"
            killed_once(root, f"{place} before")
            found = work(job, digest)
            killed_once(root, f"{place} after")

            def record(connection: Connection, work_id: str) -> None:
                found.record(connection, work_id)
                killed_once(root, f"{place} in the transaction")

            return replace(found, record=record)

        return strike

    return tuple(replace(stage, work=struck(stage.name, stage.work)) for stage in stages())


def state_of(where: str, root: Path) -> dict[str, list[tuple]]:
    """All that the ledger holds, but for times, attempts, fences and where it lies."""
    left_out = (
        "sealed_at",
        "stable_since",
        "at",
        "expires_at",
        "attempt",
        "fence",
        "owner",
        "recorded_at",
        "listing",
        "event_id",
    )  # PostgreSQL counts those that were undone
    found = {}
    with Ledger.open(where).reading() as connection:
        for table in metadata.sorted_tables:
            columns = [column for column in table.c if column.name not in left_out]
            rows = connection.execute(select(*columns)).all()
            found[table.name] = sorted(
                (tuple(str(value).replace(str(root), "ROOT") for value in row) for row in rows), key=str
            )
    return found
