"""A day of ticks, undisturbed and killed at every boundary of every stage, ends in the same ledger and champion (P2,
P15); two ticks at once do each stage once; whoever was overtaken publishes nothing (P17)."""

import errno
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from sqlalchemy import select

from pipeline.cycle.engine import run_pass
from pipeline.cycle.job import EXIT, Ended, Job
from pipeline.ingest.storage import unusable
from pipeline.ledger.database import Ledger, Unusable
from pipeline.ledger.promotion import events, names
from pipeline.ledger.resolutions import retry
from pipeline.ledger.tables import dump, work
from tests.pipeline.cycle import day
from tests.pipeline.cycle.day import KILLED, cycle_of, deadly, deliver, ended, killed_once, one_pass, stages, start


def morning(incoming: Path) -> None:
    deliver(incoming / "a", "a1", "a2", "a3")
    deliver(incoming / "b", "b1", "b2", "a1", files=2)


def noon(incoming: Path) -> None:
    shutil.copytree(incoming / "a", incoming / "copy of a")
    deliver(incoming / "renamed", "a1", "a2", "a3", files=3)
    deliver(incoming / "c", "c1", "bad")
    deliver(incoming / "growing", "g1", whole=False)


def afternoon(incoming: Path) -> None:
    (incoming / "b" / "late.txt").write_text("b4")
    deliver(incoming / "empty", files=0)
    deliver(incoming / "poisoned", "p1", "poison")
    deliver(incoming / "growing", "g1", "g2")


ALL_BUT_CURATE = ["train", "cooldown", "evaluate", "promote", "report"]
DAY = ((morning, 0), (noon, 20), (lambda incoming: None, 10), (afternoon, 30), (lambda incoming: None, 10))
STATES = ["promoted", "promoted", "held", "skipped", "promoted", "skipped", "promoted", "quarantined"]


def undisturbed(root: Path, where: str) -> dict:
    for deliveries, status in DAY:
        deliveries(root / "incoming")
        assert ended(start(cycle_of(root), where, stages())) == status
    return day.state_of(where, root)


def test_a_day(tmp_path):
    """What each delivery comes to."""
    ledger = str(tmp_path / "ledger.db")
    undisturbed(tmp_path, ledger)
    with Ledger.open(ledger).reading() as connection:
        rows = connection.execute(select(dump).order_by(dump.c.admit_no)).all()
        assert [row.state for row in rows] == STATES
        late, parent = (next(row for row in rows if row.admit_no == number) for number in (5, 2))
        champion = next(row for row in names(connection) if row.name == "champion")
        assert [event.action for event in events(connection, "champion")] == ["promoted"] * 2 + ["held"] + [
            "promoted"
        ] * 2
    assert late.parent_id == parent.dump_id
    assert late.files == 1
    words = Path(champion.path).read_text().split()
    assert words == ["cooled", "a1", "a2", "a3", "b1", "b2", "b4", "g1", "g2"]  # each once, and nothing of the held one


@pytest.mark.slow
def test_a_day_that_is_killed_at_every_boundary_of_every_stage_ends_the_same(tmp_path, where):
    """Of a dump that goes on from a base, one that is held, one of late files, and those that end early."""
    struck = (2,) if "://" in where else (2, 3, 4, 5, 8)
    expected = undisturbed(tmp_path / "calm", str(tmp_path / "calm.db"))
    root, kills = tmp_path / "stormy", 0
    for deliveries, status in DAY:
        deliveries(root / "incoming")

        def tell(line: str) -> None:
            if not line.startswith("dump ") and "waiting" not in line:  # a delivery was sealed
                killed_once(root, line.replace("/", " ")[:80])

        while (code := ended(start(cycle_of(root), where, deadly(root, struck), tell))) == KILLED:
            kills += 1
        assert code in (status, 0, 10)  # what made the status may have been published before the last kill
    stages_gone_through = [1 if state in ("skipped", "quarantined") else 6 for state in STATES]
    assert kills == 3 * sum(stages_gone_through[number - 1] for number in struck) + len(STATES) + 1  # the copy, too
    assert day.state_of(where, root) == expected


def test_two_ticks_at_once_do_every_stage_once(tmp_path, where):
    for name in "abcd":
        deliver(tmp_path / "incoming" / name, f"{name}1", f"{name}2")
    log = tmp_path / "log"

    def noted(name: str) -> day.Work:
        def work(job: Job, digest: str) -> Ended:
            with log.open("a") as file:
                file.write(f"{name} {job.dump.admit_no} {os.getpid()}\n")
            time.sleep(0.02)
            return day.WORK[name](job, digest)

        return work

    Ledger.open(where, create=True)
    table = stages(**{name: noted(name) for name in day.WORK})
    for _ in range(20):
        racers = [start(cycle_of(tmp_path), where, table) for _ in range(2)]
        codes = [ended(racer) for racer in racers]
        assert set(codes) <= {0, 10}
        if codes == [10, 10]:
            break
    done = [line.rsplit(" ", 1) for line in log.read_text().splitlines()]
    assert sorted(unit for unit, _ in done) == sorted(f"{name} {number}" for name in day.WORK for number in range(1, 5))
    assert set(states(where)) == {"promoted"}


def test_an_owner_that_was_stopped_beyond_its_lease_is_stopped_for_good_and_publishes_nothing(tmp_path, where):
    deliver(tmp_path / "incoming" / "a", "a1")
    cycle = cycle_of(tmp_path, lease_seconds=0.5)
    began, woke = tmp_path / "began", tmp_path / "woke"

    def slow(job: Job, digest: str) -> Ended:
        began.touch()
        try:
            time.sleep(60)
        finally:
            woke.touch()
        return day.train(job, digest)

    child = start(cycle, where, stages(train=slow))
    wait_for(began)
    os.kill(child, signal.SIGSTOP)
    time.sleep(0.7)
    found = one_pass(cycle, where, stages())
    assert [step.stage for step in found.steps if step.kind == "done"] == [
        name for name in day.WORK if name != "curate"
    ]
    before, since = day.state_of(where, tmp_path), time.monotonic()
    os.kill(child, signal.SIGCONT)
    assert ended(child) in (0, 10)  # its curation counted; the rest was done by the other
    assert woke.exists()
    assert time.monotonic() - since < 10
    assert day.state_of(where, tmp_path) == before


def test_told_to_stop_a_tick_gives_its_stage_back_and_the_next_goes_on(tmp_path):
    deliver(tmp_path / "incoming" / "a", "a1")
    ledger, began = str(tmp_path / "ledger.db"), tmp_path / "began"

    def slow(job: Job, digest: str) -> Ended:
        began.touch()
        time.sleep(60)
        return day.train(job, digest)

    child = start(cycle_of(tmp_path), ledger, stages(train=slow))
    wait_for(began)
    os.kill(child, signal.SIGTERM)
    assert ended(child) == 128 + signal.SIGTERM
    with Ledger.open(ledger).reading() as connection:
        unit = connection.execute(select(work).where(work.c.stage == "train")).one()
    assert (unit.state, unit.attempt, unit.owner) == ("ready", 0, None)
    assert one_pass(cycle_of(tmp_path), ledger, stages()).status == "done"


def test_a_stage_that_fails_so_often_quarantines_its_dump_and_others_go_on(tmp_path):
    deliver(tmp_path / "incoming" / "a", "a1")
    deliver(tmp_path / "incoming" / "b", "b1")
    ledger, cycle = str(tmp_path / "ledger.db"), cycle_of(tmp_path, attempts=2)

    def fails(job: Job, digest: str) -> Ended:
        if job.dump.admit_no == 1:
            raise OSError("the disk is full")
        return day.train(job, digest)

    found = one_pass(cycle, ledger, stages(train=fails))
    assert found.status == "error"
    assert any("the disk is full (attempt 1 of 2" in step.said for step in found.steps)
    assert any(step.kind == "waits" and step.admit_no == 2 for step in found.steps)
    found = one_pass(cycle, ledger, stages(train=fails))
    assert EXIT[found.status] == 30
    assert states(ledger) == ["quarantined", "promoted"]
    with Ledger.open(ledger).reading() as connection:
        assert connection.execute(select(dump.c.reason).where(dump.c.admit_no == 1)).scalar() == (
            "train failed 2 times; last: the disk is full"
        )


@pytest.mark.parametrize("dies", [True, False], ids=["without a word", "with a reason"])
def test_a_report_that_fails_takes_no_promotion_back_and_a_person_may_have_it_tried_again(tmp_path, dies):
    deliver(tmp_path / "incoming" / "a", "a1")
    ledger, cycle = str(tmp_path / "ledger.db"), cycle_of(tmp_path, attempts=2)

    def fails(job: Job, digest: str) -> Ended:
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("no font")

    table, why = stages(report=fails), "report ended 2 times without a word" if dies else "last: no font"
    for _ in range(2):
        assert ended(start(cycle, ledger, table)) == (KILLED if dies else EXIT["error"])
    if dies:  # the next tick finds out
        found = one_pass(cycle, ledger, table)
        assert (found.status, [step.kind for step in found.steps]) == ("error", ["failed"])
    assert states(ledger) == ["promoted"]
    for _ in range(2):
        found = one_pass(cycle, ledger, stages())
        assert (found.status, [step.kind for step in found.steps]) == ("nothing", ["waits"])
        assert why in found.steps[0].said
        assert "it stays promoted; `feral ledger retry 1 --reason …` tries this again" in found.steps[0].said
    with Ledger.open(ledger).writing() as connection:
        assert retry(connection, "1", actor="me", reason="fonts came")[1] == "promoted"
    found = one_pass(cycle, ledger, stages())
    assert [(step.kind, step.stage) for step in found.steps] == [("done", "report")]


def test_two_cycles_in_one_ledger_do_not_wait_for_each_other(tmp_path):
    ledger, others = str(tmp_path / "ledger.db"), tmp_path / "other"
    deliver(tmp_path / "incoming" / "a", "a1")
    deliver(others / "incoming" / "b", "b1")

    def fails(job: Job, digest: str) -> Ended:
        raise OSError("the disk is full")

    assert one_pass(cycle_of(tmp_path), ledger, stages(train=fails)).status == "error"  # dump 1 is to be trained again
    source = {"name": "other", "root": str(others / "incoming"), "quiet_minutes": 0}
    other = cycle_of(others, sources=[source], champion="best", base="ground")
    assert one_pass(other, ledger, stages()).status == "done"
    assert states(ledger) == ["curated", "promoted"]


@pytest.mark.parametrize(("after_held", "expected"), [("continue", "promoted"), ("wait", "curated")])
def test_after_a_dump_is_held_later_ones_go_on_from_the_old_base_or_wait(tmp_path, after_held, expected):
    for name, samples in {"a": ("a1",), "b": ("bad",), "c": ("c1",)}.items():
        deliver(tmp_path / "incoming" / name, *samples)
    ledger, cycle = str(tmp_path / "ledger.db"), cycle_of(tmp_path, after_held=after_held)
    found = one_pass(cycle, ledger, stages())
    assert EXIT[found.status] == 20
    assert states(ledger) == ["promoted", "held", expected]


def test_what_is_wrong_with_the_configuration_costs_no_dump_an_attempt(tmp_path):
    deliver(tmp_path / "incoming" / "a", "a1")
    ledger = str(tmp_path / "ledger.db")

    def refused(job: Job) -> None:
        raise ValueError("settings.data.batch_size: …")

    table = [day.replace(stage, inputs=refused) if stage.name == "train" else stage for stage in stages()]
    for _ in range(5):
        assert EXIT[one_pass(cycle_of(tmp_path, attempts=2), ledger, table).status] == 1
    assert states(ledger) == ["curated"]
    assert one_pass(cycle_of(tmp_path), ledger, stages()).status == "done"


def test_a_cluster_that_does_not_answer_is_told_once_and_costs_no_dump_an_attempt(tmp_path):
    for name in "ab":
        deliver(tmp_path / "incoming" / name, f"{name}1")
    ledger, asked = Ledger.open(str(tmp_path / "ledger.db"), create=True), []

    def away():
        asked.append("Ray")
        raise ValueError("no Ray cluster answers")

    for _ in range(2):
        found = run_pass(cycle_of(tmp_path, attempts=1), ledger, stages(), around=away)
        assert (found.status, found.errors) == ("error", ["no Ray cluster answers"])
        assert [(step.kind, step.admit_no) for step in found.steps] == [("waits", 2)]
    assert len(asked) == 2
    assert states(ledger.shown) == ["verified", "verified"]
    with ledger.reading() as connection:
        assert connection.execute(select(work)).all() == []


def test_for_what_another_tick_is_at_no_cluster_is_asked(tmp_path):
    deliver(tmp_path / "incoming" / "a", "a1")
    ledger = Ledger.open(str(tmp_path / "ledger.db"), create=True)

    def away(job: Job, digest: str) -> Ended:
        raise ConnectionError("away")

    run_pass(cycle_of(tmp_path), ledger, stages(curate=away))
    with ledger.writing() as connection:
        connection.execute(work.update().values(state="running", owner="host 1", expires_at=2e10))
    found = run_pass(cycle_of(tmp_path), ledger, stages(), around=lambda: pytest.fail("asked"))
    assert [(step.kind, step.said) for step in found.steps] == [("busy", "host 1 is at it")]
    assert found.errors == []


def outages() -> list[Exception]:
    behind, full = ValueError("the storage does not answer"), OSError(errno.ENOSPC, "No space left on device")
    behind.__cause__ = ConnectionError("timed out")
    away = unusable("s3://dumps/a", "When listing objects: AWS Error NETWORK_CONNECTION: curlCode: 7, no connection")
    busy = unusable("s3://dumps/a", "When listing objects: AWS Error SLOW_DOWN: please reduce your request rate")
    storage = [ConnectionError("reset"), behind, away, busy]
    return [*storage, full, RuntimeError(f"OSError: {full}"), Unusable("locked for too long")]


@pytest.mark.parametrize("error", outages(), ids=lambda error: f"{type(error).__name__} {error}")
def test_storage_that_is_away_or_full_costs_no_dump_an_attempt(tmp_path, error):
    deliver(tmp_path / "incoming" / "a", "a1")
    ledger, cycle = str(tmp_path / "ledger.db"), cycle_of(tmp_path, attempts=1)

    def fails(job: Job, digest: str) -> Ended:
        raise error

    if isinstance(error, Unusable):
        with pytest.raises(Unusable):
            one_pass(cycle, ledger, stages(curate=fails))
    else:
        found = one_pass(cycle, ledger, stages(curate=fails))
        assert (found.status, found.steps[0].kind) == ("error", "failed")
        assert f"{error} (no fault of the dump: the next tick tries again)" in found.steps[0].said
    assert states(ledger) == ["verified"]
    with Ledger.open(ledger).reading() as connection:
        assert [tuple(row) for row in connection.execute(select(work.c.state, work.c.attempt))] == [("ready", 0)]


def test_with_another_configuration_only_what_is_not_done_is_done_anew(tmp_path):
    deliver(tmp_path / "incoming" / "a", "a1")
    ledger = str(tmp_path / "ledger.db")

    def fails(job: Job, digest: str) -> Ended:
        raise OSError("full")

    one_pass(cycle_of(tmp_path), ledger, stages(train=fails))
    table = [day.replace(stage, inputs=lambda job: "other") for stage in stages()]
    found = one_pass(cycle_of(tmp_path), ledger, table)
    assert [step.stage for step in found.steps] == ALL_BUT_CURATE
    deliver(tmp_path / "incoming" / "b", "b1")
    assert one_pass(cycle_of(tmp_path), ledger, stages()).status == "done"  # the unit that was left does not block it


def states(where: str) -> list[str]:
    with Ledger.open(where).reading() as connection:
        return list(connection.execute(select(dump.c.state).order_by(dump.c.admit_no)).scalars())


def wait_for(path: Path, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.01)
