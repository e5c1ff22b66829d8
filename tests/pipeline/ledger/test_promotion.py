"""Names: one winner of a race, no change without a reason, back to the exact bytes (P20), on both databases."""

import json
import threading
from contextlib import suppress

import pytest

from pipeline.ledger import promotion
from pipeline.ledger.database import Ledger
from pipeline.ledger.promotion import Outrun, current, events, hold, names, resolve, roll_back, standing
from pipeline.ledger.records import record_checkpoint, record_run
from pipeline.promote import promote
from pipeline.run import Run
from tests.pipeline.ledger.runs import HEALTH, judge, trained


@pytest.fixture
def runs(small_experiment, tmp_path) -> list[Run]:
    found = [trained(small_experiment, tmp_path / name, seed=seed) for seed, name in enumerate(("a", "b", "c"))]
    for run, share in zip(found, (0.5, 0.7, 0.9), strict=True):
        judge(run, share)
    return found


def digest(run: Run) -> str:
    checkpoint = run.newest_checkpoint()
    assert checkpoint is not None
    return checkpoint.digest


def champion(ledger: Ledger) -> str | None:
    with ledger.reading() as connection:
        return current(connection, "champion")


def test_the_better_of_two_is_promoted_and_the_worse_is_held(ledger, runs):
    a, b, c = runs
    assert promote(ledger, b).action == "promoted"
    worse = promote(ledger, a)
    assert worse.action == "held"
    assert worse.gate is not None
    assert worse.gate.held_for == ("guard", "target")
    assert champion(ledger) == digest(b)
    better = promote(ledger, c, reason="more birds", by="ann")
    assert (better.action, better.champion) == ("promoted", digest(b))
    assert champion(ledger) == digest(c)
    assert promote(ledger, c).action == "unchanged"
    with ledger.reading() as connection:
        told = events(connection)
        assert [row.action for row in told] == ["promoted", "held", "promoted"]
        assert [row.before for row in told] == [None, digest(b), digest(b)]
        assert (told[-1].actor, told[-1].reason) == ("ann", "more birds")
        assert "knn_top1" in {check["what"] for check in told[-1].gate}
        assert [row.action for row in events(connection, last=1)] == ["promoted"]
        assert events(connection, "other") == []
        assert names(connection)[0].version == 2


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"scores": []}, "complete"),
        ({"encoder_digest": "of other weights"}, "complete"),
        ({"health": HEALTH | {"trained": HEALTH["trained"].model_copy(update={"mean_cosine": 0.9999})}}, "collapse"),
        ({"health": {}}, "collapse"),
    ],
)
def test_the_incomplete_and_the_collapsed_are_never_champion(ledger, runs, changes, kind):
    for before in (None, runs[0]):
        if before is not None:
            promote(ledger, before)
        judge(runs[2], 1.0, **changes)
        found = promote(ledger, runs[2])
        assert found.action == "held"
        assert found.gate is not None
        assert kind in found.gate.held_for
        assert champion(ledger) == (digest(before) if before else None)


def test_a_run_that_is_not_finished_or_not_judged_is_held(ledger, small_experiment, tmp_path):
    half = trained(small_experiment, tmp_path / "half", step=4)
    judge(half, 1.0)
    assert "at step 4 of 12" in promote(ledger, half).reason
    unjudged = trained(small_experiment, tmp_path / "unjudged", seed=1)
    assert "not judged yet: feral evaluate" in promote(ledger, unjudged).reason
    assert champion(ledger) is None


def test_force_needs_a_reason_and_is_told_apart(ledger, runs):
    a, b, _ = runs
    promote(ledger, b)
    with pytest.raises(ValueError, match="with --reason"):
        promote(ledger, a, force=True)
    assert promote(ledger, a, force=True, reason="the test images were wrong").action == "forced"
    assert champion(ledger) == digest(a)
    with ledger.reading() as connection:
        assert events(connection)[-1].action == "forced"
        assert "guard" in {check["kind"] for check in events(connection)[-1].gate if not check["passed"]}


def test_of_two_who_promote_at_once_one_wins_and_the_other_is_told(ledger, where, runs):
    a, b, c = runs
    promote(ledger, a)
    with ledger.writing() as connection:
        for run in (b, c):
            record_run(connection, run)
            record_checkpoint(connection, run, run.newest_checkpoint())
    start, said = threading.Barrier(2), []

    def go(new: str) -> None:
        own = Ledger.open(where)
        start.wait()
        try:
            with own.writing() as connection:
                promotion.promote(connection, "champion", new, expected=digest(a), actor="me", reason="first!")
            said.append(new)
        except Outrun as outrun:
            said.append(str(outrun))

    racers = [threading.Thread(target=go, args=[digest(run)]) for run in (b, c)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    winners = [one for one in said if one in (digest(b), digest(c))]
    assert winners == [champion(ledger)]
    assert len([one for one in said if "meanwhile" in one]) == 1
    with ledger.reading() as connection:
        assert len(events(connection)) == 2


def test_a_gate_that_compared_with_another_champion_does_not_count(ledger, runs, monkeypatch):
    a, b, c = runs
    promote(ledger, a)
    recorded = record_run

    def meanwhile(connection, run, **options):
        monkeypatch.undo()
        record_run(connection, c)
        record_checkpoint(connection, c, c.newest_checkpoint())
        promotion._move(connection, "champion", digest(c))
        return recorded(connection, run, **options)

    monkeypatch.setattr("pipeline.promote.records.record_run", meanwhile)
    with pytest.raises(Outrun, match="somebody else promoted to champion meanwhile"):
        promote(ledger, b)
    assert champion(ledger) == digest(a)  # all of the transaction is undone


def test_a_rollback_goes_back_to_the_exact_bytes_and_further_each_time(ledger, runs):
    for run in runs:
        promote(ledger, run)
    for run in reversed(runs[:-1]):
        with ledger.writing() as connection:
            found = roll_back(connection, "champion", actor="me", reason="birds")
        assert found.run == run.path
        assert champion(ledger) == digest(run)
    with pytest.raises(ValueError, match="nothing else before"), ledger.writing() as connection:
        roll_back(connection, "champion", actor="me", reason="further")
    promote(ledger, runs[2])
    with ledger.reading() as connection:
        assert standing(connection, "champion") == [digest(runs[0]), digest(runs[2])]
        assert [row.action for row in events(connection)].count("rolled back") == 2


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_rollback_to_other_bytes_is_refused_and_nothing_is_moved(ledger, runs, damage):
    a, b, _ = runs
    promote(ledger, a)
    promote(ledger, b)
    folder = a.newest_checkpoint().path
    file = folder / "objective.safetensors"
    content = file.read_bytes()
    if damage == "gone":
        folder.rename(folder.with_name("elsewhere"))
    else:
        file.write_bytes(content[:-1] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"not what was recorded.*restore it"), ledger.writing() as connection:
        roll_back(connection, "champion", actor="me", reason="birds")
    assert champion(ledger) == digest(b)


def test_bytes_that_are_whole_but_not_those_that_were_promoted_are_refused(ledger, runs, small_experiment, tmp_path):
    """A checkpoint that was written anew in the same place is whole by its own marker."""
    a, b, _ = runs
    promote(ledger, a)
    promote(ledger, b)
    folder = a.newest_checkpoint().path
    other = trained(small_experiment, tmp_path / "other", seed=9).newest_checkpoint().path
    folder.rename(folder.with_name("elsewhere"))
    other.rename(folder)
    with pytest.raises(ValueError, match="other weights"), ledger.writing() as connection:
        roll_back(connection, "champion", actor="me", reason="birds")


def test_nothing_moves_without_a_reason_or_a_history(ledger, runs):
    promote(ledger, runs[0])
    for deed in (
        lambda c: roll_back(c, "champion", actor="me", reason=" "),
        lambda c: hold(c, "champion", digest(runs[0]), actor="me", reason="", gate=None),
        lambda c: promotion.promote(c, "champion", digest(runs[0]), expected=digest(runs[0]), actor="me", reason=""),
    ):
        with pytest.raises(ValueError, match="needs a reason"), ledger.writing() as connection:
            deed(connection)
    with pytest.raises(ValueError, match=r"there is no bese \(names: champion\)"), ledger.writing() as connection:
        roll_back(connection, "bese", actor="me", reason="a slip")


def test_a_champion_that_is_gone_holds_until_a_person_forces(ledger, runs):
    a, b, _ = runs
    promote(ledger, a)
    (a.newest_checkpoint().path / "COMMIT.json").unlink()
    with pytest.raises(ValueError, match="not what was recorded"), ledger.reading() as connection:
        resolve(connection, "champion")
    found = promote(ledger, b)
    assert found.action == "held"
    assert "champion: champion is checkpoint" in found.reason
    assert promote(ledger, b, force=True, reason="the old one is lost").action == "forced"


def test_a_promoted_checkpoint_outlasts_those_that_come_after_it(ledger, small_experiment, tmp_path):
    """A run that was promoted by force before its end, and goes on, removes old checkpoints, but not that one."""
    import torch

    from pipeline.train.checkpoints import save_checkpoint
    from pipeline.train.worker import fresh_state

    run = trained(small_experiment, tmp_path / "run", step=4)
    judge(run, 0.8)
    promote(ledger, run, force=True, reason="to show it")
    state = fresh_state(run.experiment, torch.device("cpu"))
    for step in (8, 10, 12):
        state.step = step
        save_checkpoint(run.checkpoints, state, keep=1)
    assert [one.step for one in run.kept_checkpoints()] == [4, 12]
    with ledger.reading() as connection:
        assert resolve(connection, "champion").path.name == "step_000000004"


def test_two_names_move_in_one_transaction_or_not_at_all(ledger, runs):
    """As a cycle moves champion and base."""
    a, b, _ = runs
    promote(ledger, a)
    promote(ledger, b, name="base")
    move = {"actor": "tick", "reason": "cycle 2"}
    with suppress(Outrun), ledger.writing() as connection:
        promotion.promote(connection, "champion", digest(b), expected=digest(a), **move)
        promotion.promote(connection, "base", digest(a), expected=digest(a), **move)
    assert champion(ledger) == digest(a)
    with ledger.writing() as connection:
        promotion.promote(connection, "champion", digest(b), expected=digest(a), **move)
        promotion.promote(connection, "base", digest(a), expected=digest(b), **move)
    assert champion(ledger) == digest(b)


def test_the_table_of_the_gate_is_json(ledger, runs):
    found = promote(ledger, runs[0])
    assert found.gate is not None
    assert json.loads(json.dumps(found.gate.rows(), allow_nan=False))
