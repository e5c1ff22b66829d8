"""What a person decides of a dump that waits: another try, or to leave it out; with a reason, and on record."""

import pytest
from sqlalchemy import select

from pipeline.ledger.database import Ledger
from pipeline.ledger.resolutions import HARMLESS, find_dump, resolutions, retry, skip
from pipeline.ledger.tables import dump, work
from pipeline.ledger.work import SUPERSEDED, add_work
from tests.pipeline.cycle import day
from tests.pipeline.cycle.day import cycle_of, deliver, one_pass, stages


@pytest.fixture
def waiting(tmp_path) -> Ledger:
    """After a tick: 1 is promoted, 2 held, 3 quarantined; 4 was skipped."""
    incoming = tmp_path / "incoming"
    for name, samples in {"a": ("a1",), "b": ("bad",), "c": ("c1", "poison"), "d": ("a1",)}.items():
        deliver(incoming / name, *samples, files=2 if name == "d" else 1)
    one_pass(cycle_of(tmp_path), str(tmp_path / "ledger.db"), stages())
    return Ledger.open(str(tmp_path / "ledger.db"))


def states(ledger: Ledger) -> list[str]:
    with ledger.reading() as connection:
        return list(connection.execute(select(dump.c.state).order_by(dump.c.admit_no)).scalars())


def decide(ledger: Ledger, verb, text: str, reason: str = "looked at it"):
    with ledger.writing() as connection:
        return verb(connection, text, actor="me", reason=reason)


def test_a_retried_dump_goes_on_where_it_stopped_and_training_that_was_done_counts(waiting, tmp_path):
    assert states(waiting) == ["promoted", "held", "quarantined", "skipped"]
    runs = sorted((tmp_path / "production" / "runs").iterdir())
    assert decide(waiting, retry, "2")[1] == "curated"
    found = one_pass(cycle_of(tmp_path), waiting.shown, stages(promote=approving))
    assert [step.stage for step in found.steps if step.admit_no == 2] == [s for s in day.WORK if s != "curate"]
    assert states(waiting)[1] == "promoted"
    assert sorted((tmp_path / "production" / "runs").iterdir()) == runs  # by the same inputs, in the same place


def test_a_retried_dump_waits_for_what_is_under_way_and_goes_on_from_that(waiting, tmp_path):
    """Else one of the two would be lost to the base."""
    deliver(tmp_path / "incoming" / "e", "e1")
    one_pass(cycle_of(tmp_path), waiting.shown, stages()[:2])  # as if another tick were at its cooldown
    decide(waiting, retry, "2")
    found = one_pass(cycle_of(tmp_path), waiting.shown, stages(promote=approving))
    assert [(step.kind, step.said) for step in found.steps if step.admit_no == 2] == [
        ("waits", "dump 5 is under way, which is trained")
    ]
    assert states(waiting)[4] == "promoted"
    decide(waiting, skip, "2")


def test_a_curation_under_another_configuration_does_not_hide_the_one_that_is_done(waiting):
    with waiting.writing() as connection:
        other = add_work(connection, find_dump(connection, "2").dump_id, "curate", "of a file that was edited back")
        connection.execute(work.update().where(work.c.work_id == other).values(state="failed", output=SUPERSEDED))
    assert decide(waiting, retry, "2")[1] == "curated"


def approving(job, digest):
    return day.Ended("by a person", state="promoted", reason="by a person")


def test_what_had_nothing_to_show_for_is_curated_anew(waiting, tmp_path):
    """A skipped dump, once the thresholds were changed; a quarantined one, too."""
    for number in ("3", "4"):
        assert decide(waiting, retry, number)[1] == "verified"
    found = one_pass(cycle_of(tmp_path), waiting.shown, stages())
    assert [(step.admit_no, step.kind) for step in found.steps] == [(3, "quarantined"), (4, "skipped")]


def test_a_skipped_dump_is_left_out_and_its_samples_are_new_again(waiting, tmp_path):
    before = decide(waiting, skip, "2", "one advertisement")
    assert before.state == "held"
    deliver(tmp_path / "incoming" / "again", "bad", files=2)
    assert one_pass(cycle_of(tmp_path), waiting.shown, stages()).status == "held"
    with waiting.reading() as connection:
        (one,) = resolutions(connection)
        row = find_dump(connection, before.dump_id[:8])
    assert (one.action, one.before, one.actor, one.reason, one.admit_no) == (
        "skipped", "held", "me", "one advertisement", 2,
    )  # fmt: skip
    assert (row.state, row.reason) == ("skipped", "one advertisement")


def test_a_reason_is_kept_without_its_secrets(waiting):
    decide(waiting, skip, "2", "from s3://me:hunter2@bucket")
    decide(waiting, retry, "2", "token=hunter2")
    with waiting.reading() as connection:
        assert [one.reason for one in resolutions(connection)] == ["from s3://me:***@bucket", "token=***"]


@pytest.mark.parametrize(
    ("verb", "text", "reason", "said"),
    [
        (retry, "2", " ", "say why"),
        (retry, "1", "x", "part of the plateau"),
        (skip, "1", "x", "part of the plateau"),
        (retry, "9", "x", "there is no dump '9'"),
        (retry, "", "x", "there is no dump ''"),
    ],
)
def test_mistakes(waiting, verb, text, reason, said):
    with pytest.raises(ValueError, match=said):
        decide(waiting, verb, text, reason)
    with waiting.reading() as connection:
        assert resolutions(connection) == []


def test_a_dump_that_goes_on_by_itself_is_not_retried_and_one_that_is_worked_on_is_not_skipped(waiting, tmp_path):
    deliver(tmp_path / "incoming" / "e", "e1")
    one_pass(cycle_of(tmp_path), waiting.shown, stages()[:1])
    with pytest.raises(ValueError, match="it goes on by itself"):
        decide(waiting, retry, "5")
    with waiting.writing() as connection:
        connection.execute(
            work.update()
            .where(work.c.dump_id == find_dump(connection, "5").dump_id)
            .values(state="running", owner="host 1", expires_at=2e10)
        )
    with pytest.raises(ValueError, match=r"is at its stage curate \(host 1\): stop that first"):
        decide(waiting, skip, "5")


def test_one_that_is_held_without_harm_is_in_the_base_already(tmp_path):
    def harmless(job, digest):
        return day.Ended("not better", HARMLESS, "held", "not better")

    deliver(tmp_path / "incoming" / "a", "a1")
    ledger = str(tmp_path / "ledger.db")
    one_pass(cycle_of(tmp_path), ledger, stages(promote=harmless))
    for verb in (retry, skip):
        with pytest.raises(ValueError, match="part of the plateau"):
            decide(Ledger.open(ledger), verb, "1")
