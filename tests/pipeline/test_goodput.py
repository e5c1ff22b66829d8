"""Goodput: every second of a run is in one bucket, and in the right one."""

import random
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.train.goodput import BUCKETS, Goodput, duration, goodput, goodput_line, percent

BEGIN = 1_790_000_000.0  # Unix seconds


class Story:
    """Acts a run out on its own clock: notes what driver and workers would, and beside it where the seconds went."""

    def __init__(self) -> None:
        self.now, self.step, self.attempts = BEGIN, 0, 0
        self.events: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.spent: list[tuple[float, str, int]] = []  # seconds, bucket, at which step of the run; 0: at none

    def pass_time(self, seconds: float, bucket: str, step: int = 0) -> "Story":
        self.now += seconds
        self.spent.append((seconds, bucket, step))
        return self

    def note(self, event: str, **facts: Any) -> "Story":
        self.events.append({"event": event, "time": self.now, **facts})
        return self

    def command(self, start_up: float = 5) -> "Story":
        return self.note("command", pid=1).note("fit").pass_time(start_up, "start-up")

    def attempt(self, restored: int = 0, restore: float = 2, start_up: float = 1) -> "Story":
        """Steps after `restored` that were done so far are lost."""
        self.spent = [(s, "lost work" if step > restored else bucket, step) for s, bucket, step in self.spent]
        self.attempts, self.step, self.restored = self.attempts + 1, restored, restored
        began = self.now
        self.pass_time(restore, "start-up")
        self.note("attempt", attempt=self.attempts, step=restored, world_size=2, began=began, restore_seconds=restore)
        return self.pass_time(start_up, "start-up")

    def steps(self, count: int, seconds: float = 1.0, wait: float = 0.25) -> "Story":
        """A row a step."""
        for _ in range(count):
            self.step += 1
            began = self.now
            self.pass_time(wait, "data wait", self.step).pass_time(seconds - wait, "step", self.step)
            self.rows.append({"step": self.step, "began": began, "time": self.now, "data_wait_seconds": wait,
                              "attempt": self.attempts, "restored_step": self.restored})  # fmt: skip
        return self

    def save(self, blocked: float = 0.5) -> "Story":
        self.note("checkpoint", attempt=self.attempts, step=self.step, blocked_seconds=blocked, seconds=9, bytes=1)
        return self.pass_time(blocked, "checkpoint")

    def evaluate(self, seconds: float = 7) -> "Story":
        return self.note("fit_ended").note("evaluate").pass_time(seconds, "evaluation").note("evaluated")

    def end(self, code: int = 0, shut_down: float = 1) -> "Story":
        return self.pass_time(shut_down, "start-up").note("end", code=code)

    @property
    def expected(self) -> dict[str, float]:
        return {name: sum(seconds for seconds, bucket, _ in self.spent if bucket == name) for name in BUCKETS}

    def told(self) -> Goodput:
        """What the record says of it: the buckets must be those of the story, to the millisecond."""
        found = goodput(self.events, self.rows)
        assert found.seconds == pytest.approx(self.expected, abs=1e-3)
        assert found.wall_seconds == pytest.approx(self.now - BEGIN, abs=1e-3)
        return found


def test_an_undisturbed_run() -> None:
    found = Story().command().attempt().steps(20).save().steps(20).save().evaluate().end().told()
    assert found.seconds == pytest.approx(
        {"step": 30, "data wait": 10, "checkpoint": 1, "evaluation": 7, "start-up": 9, "lost work": 0, "idle": 0},
        abs=1e-3,
    )
    assert found.share == pytest.approx(30 / 57, abs=1e-4)
    (attempt,) = found.attempts
    assert (attempt.ended, attempt.interrupted, attempt.reached_step) == ("finished", False, 40)
    assert attempt.recovery_seconds is None


def test_a_worker_is_killed() -> None:
    story = Story().command().attempt().steps(4).save().steps(3).pass_time(6, "lost work").attempt(4).steps(6).save()
    found = story.evaluate().end().told()
    assert found.seconds["lost work"] == pytest.approx(3 + 6, abs=1e-3)
    first, second = found.attempts
    assert (first.ended, first.interrupted, first.steps_redone) == ("workers or their node were lost", True, 3)
    assert (second.ended, second.interrupted, second.restored_step) == ("finished", False, 4)
    assert second.recovery_seconds == pytest.approx(6 + 2 + 1, abs=1e-3)
    assert (found.interruptions, found.steps_redone, found.commands) == (1, 3, 1)


def test_the_command_is_killed_and_given_again_after_a_pause() -> None:
    story = Story().command().attempt().steps(4).save().steps(3).pass_time(3600, "idle")
    found = story.command().attempt(4).steps(6).save().evaluate().end().told()
    first, second = found.attempts
    assert (first.ended, first.interrupted) == ("the command was killed", True)
    assert second.recovery_seconds == pytest.approx(5 + 2 + 1, abs=1e-3)  # the pause is nobody's recovery
    assert (found.commands, found.steps_redone) == (2, 3)


def test_two_kills_without_progress() -> None:
    story = Story().command().attempt().steps(4).save().steps(3).pass_time(6, "lost work")
    story.attempt(4, start_up=0).pass_time(20, "lost work")  # it died before its first row
    found = story.attempt(4).steps(6).save().evaluate().end().told()
    assert [attempt.interrupted for attempt in found.attempts] == [True, True, False]
    assert [attempt.steps_redone for attempt in found.attempts] == [3, 0, 0]
    recoveries = [attempt.recovery_seconds for attempt in found.attempts]
    assert recoveries == [None, None, pytest.approx(6 + 2 + 20 + 2 + 1, abs=1e-3)]


def test_a_checkpoint_every_step_and_one_that_ends_late() -> None:
    story = Story().command().attempt()
    for _ in range(10):
        story.steps(1).save(0.25)
    story.events.append({**story.events.pop(), "time": story.now - 0.25})  # noted when its files were whole
    found = story.evaluate().end().told()
    assert found.seconds["checkpoint"] == pytest.approx(2.5, abs=1e-3)


def test_leaving_in_peace_loses_nothing() -> None:
    """Preemption and a request to stop save first; what follows is starting up again."""
    story = Story().command().attempt().steps(4).note("preempted", attempt=1).save().pass_time(8, "start-up")
    story.note("fit_ended").note("fit").attempt(4).steps(2).note("stopping", attempt=2).save().note("fit_ended")
    found = story.end(code=143).pass_time(100, "idle").command().attempt(6).steps(2).evaluate().end().told()
    assert [attempt.ended for attempt in found.attempts] == ["preempted", "asked to stop", "finished"]
    assert [attempt.interrupted for attempt in found.attempts] == [True, False, False]
    assert found.seconds["lost work"] == 0


def test_a_kill_after_a_preemption_is_a_kill() -> None:
    story = Story().command().attempt().steps(4).note("preempted", attempt=1).save().note("fit_ended").note("fit")
    story.attempt(4).steps(2).pass_time(1, "lost work").note("checkpoint", attempt=2, step=6).pass_time(60, "idle")
    attempts = story.command().attempt(4).steps(2).evaluate().end().told().attempts
    assert [attempt.ended for attempt in attempts] == ["preempted", "the command was killed", "finished"]


def test_time_to_log_between_two_rows_is_no_step() -> None:
    story = Story().command().attempt()
    for _ in range(10):
        story.steps(1).pass_time(0.1, "checkpoint")
    assert story.steps(1).evaluate().end().told().seconds["checkpoint"] == pytest.approx(1, abs=1e-3)


def test_going_back_after_a_value_that_is_not_finite() -> None:
    story = Story().command().attempt().steps(4).save().steps(1).pass_time(2, "lost work")
    found = story.note("nonfinite", attempt=1, step=7, skipped=True).attempt(4).steps(4).evaluate().end().told()
    assert found.attempts[0].ended == "a value was not finite"
    assert found.steps_redone == 1


def test_a_command_that_gave_up() -> None:
    story = Story().command().attempt().steps(3).pass_time(9, "lost work").note("fit_ended")
    (attempt,) = story.pass_time(1, "lost work").note("end", code=1).told().attempts
    assert (attempt.ended, attempt.interrupted) == ("the command failed (code 1)", True)


def test_a_failed_evaluation_takes_nothing_from_the_training() -> None:
    story = Story().command().attempt().steps(3).note("fit_ended").note("evaluate").pass_time(4, "evaluation")
    assert story.note("end", code=1).told().attempts[0].ended == "finished"


def test_a_run_at_work_and_one_that_has_just_begun() -> None:
    found = Story().command().attempt().steps(3).told()
    assert found.attempts[0].ended == "at work, or killed"
    begun = goodput([{"event": "command", "time": BEGIN}], [])
    assert (begun.wall_seconds, begun.share, sum(begun.seconds.values())) == (0, 0, 0)
    assert goodput_line(begun) == "0 % of 0 s went into steps that count"


def test_without_events_there_is_no_goodput_and_a_reason() -> None:
    with pytest.raises(ValueError, match=r"has no events\.jsonl"):
        goodput([], [{"step": 1, "time": BEGIN}])


def test_rows_of_a_version_without_attempts_count_for_nothing() -> None:
    story = Story()
    story.rows.append({"step": 1, "time": BEGIN - 1000, "seconds": 3.0})
    story.command().attempt(1).steps(3).evaluate().end().told()


def test_an_attempt_whose_event_could_not_be_written() -> None:
    story = Story().command().attempt().steps(4).save().steps(2).pass_time(4, "lost work")
    story.attempt(4, restore=0, start_up=0).steps(3).evaluate().end()
    story.events = [event for event in story.events if event.get("attempt") != 2]
    assert [attempt.restored_step for attempt in story.told().attempts] == [0, 4]


seconds = st.floats(0, 50).map(lambda value: round(value, 3))
actions = st.one_of(
    st.tuples(st.just("steps"), st.integers(1, 4), st.floats(0.1, 5), st.floats(0, 0.1)),
    st.tuples(st.just("save"), seconds),
    st.tuples(st.just("lose workers"), seconds, st.integers(0, 5)),
    st.tuples(st.just("kill the command"), seconds, st.integers(0, 5)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(actions, max_size=12), st.booleans())
def test_any_story_is_told_as_it_was(acts: list[tuple[Any, ...]], ends: bool) -> None:
    story = Story().command().attempt(start_up=0)
    for name, *facts in acts:
        if name == "steps":
            story.steps(*facts)
        elif name == "save":
            story.save(*facts)
        else:
            story.pass_time(facts[0], "lost work" if name == "lose workers" else "idle")
            if name != "lose workers":
                story.command()
            story.attempt(max(0, story.step - facts[1]), start_up=0)
    if ends:
        story.evaluate().end()
    found = story.told()
    assert sum(found.seconds.values()) == pytest.approx(found.wall_seconds, abs=1e-6)
    assert len(found.attempts) == story.attempts


moments = st.floats(BEGIN - 100, BEGIN + 100)
events = st.lists(
    st.fixed_dictionaries(
        {
            "event": st.sampled_from(("command", "fit", "fit_ended", "evaluate", "evaluated", "end", "attempt",
                                      "checkpoint", "nonfinite", "preempted", "stopping", "of a later version")),
            "time": moments,
            "attempt": st.integers(1, 4),
            "step": st.integers(0, 9),
            "blocked_seconds": st.floats(0, 30),
            "code": st.integers(0, 2),
        },
        optional={"began": moments, "restore_seconds": st.floats(0, 30)},
    ),
    min_size=1, max_size=12,
)  # fmt: skip
rows = st.lists(
    st.fixed_dictionaries(
        {"step": st.integers(1, 9), "began": moments, "time": moments, "data_wait_seconds": st.floats(0, 300),
         "attempt": st.integers(1, 4), "restored_step": st.integers(0, 9)},
    ),
    max_size=12,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(events, rows)
def test_whatever_the_evidence_every_second_is_in_one_bucket(
    events: list[dict[str, Any]], rows: list[dict[str, Any]]
) -> None:
    """Clocks that run backwards, overlaps, events without their beginning."""
    found = goodput(events, rows)
    assert list(found.seconds) == list(BUCKETS)
    assert min(found.seconds.values()) >= 0
    assert sum(found.seconds.values()) == pytest.approx(found.wall_seconds, abs=1e-6)
    assert 0 <= found.share <= 1
    for attempt in found.attempts:
        assert attempt.steps_redone >= 0
        assert attempt.recovery_seconds is None or attempt.recovery_seconds >= 0
    assert goodput_line(found)


def test_a_long_run_is_reckoned_in_little_time() -> None:
    story, draw = Story().command().attempt(), random.Random(0)
    for _ in range(50):
        story.steps(200).save(0.01).steps(draw.randrange(50)).pass_time(3, "lost work").attempt(story.step // 200 * 200)
    begun = time.process_time()
    found = goodput(story.events, story.rows)
    assert time.process_time() - begun < 2  # 11,000 rows
    assert found.interruptions == 50


@pytest.mark.parametrize(
    ("story", "line"),
    [
        (Story().command(2).attempt(0, 1, 0).steps(97, wait=0).evaluate(0).end(0, 0),
         "97 % of 1 min 40 s went into steps that count; 3 % start-up"),
        (Story().command(2).attempt(0, 1, 0).steps(80, wait=0).save(2).steps(1, wait=0).pass_time(6, "lost work")
         .attempt(80, 1, 0).steps(7, wait=0),
         "87 % of 1 min 40 s went into steps that count; 7 % lost work, 4 % start-up, 2 % checkpoint (1 interruption, "
         "1 step done again)"),
    ],
)  # fmt: skip
def test_the_line_says_what_went_where(story: Story, line: str) -> None:
    assert goodput_line(story.told()) == line


def test_a_share_is_never_rounded_to_none_or_all() -> None:
    assert [percent(share) for share in (0, 0.001, 0.014, 0.5, 0.996, 0.9999, 1)] == [
        "0 %", "< 1 %", "1 %", "50 %", "99.6 %", "100 %", "100 %",
    ]  # fmt: skip
    assert [duration(value) for value in (3, 61, 3661)] == ["3 s", "1 min 01 s", "1 h 01 min"]
