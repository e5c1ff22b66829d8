"""Who may write to a run, what driver and workers tell each other, and the alarm of a worker that hangs."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.lock import locked
from pipeline.train.attempts import (
    Attempt,
    Skips,
    clear_messages,
    message_of,
    note_failure,
    read_failure,
    request_stop,
    stop_requested,
)

ROOT = Path(__file__).parents[2]


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


HOLD = """
import sys, time
from pathlib import Path
from pipeline.lock import locked
with locked(Path(sys.argv[1]), "the run"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_process_works_on_a_run_and_a_killed_one_lets_go(tmp_path):
    holder = python(HOLD, str(tmp_path))
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(ValueError, match=rf"another command works on the run .*process {holder.pid} on .* since"),
            locked(tmp_path, "the run"),
        ):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with locked(tmp_path, "the run"):
        pass


def test_a_later_attempt_ends_the_right_of_an_earlier_one(tmp_path):
    first = Attempt.claim(tmp_path)
    assert (first.number, first.is_current) == (1, True)
    second = Attempt.claim(tmp_path)
    assert second.number == 2
    assert not first.is_current
    assert second.is_current


CLAIM = """
import sys
from pathlib import Path
from pipeline.train.attempts import Attempt
print(*[Attempt.claim(Path(sys.argv[1])).number for _ in range(50)])
"""


def test_two_claimants_never_get_the_same_attempt(tmp_path):
    claimants = [python(CLAIM, str(tmp_path)) for _ in range(3)]
    numbers = [int(number) for claimant in claimants for number in claimant.communicate()[0].split()]
    assert sorted(numbers) == list(range(1, 151))


def test_the_first_failure_is_heard_and_a_new_command_begins_without_it(tmp_path):
    note_failure(tmp_path, ValueError("the shard is damaged"))
    note_failure(tmp_path, ValueError("connection closed by peer"))
    assert read_failure(tmp_path) == {"kind": "ValueError", "message": "the shard is damaged"}
    request_stop(tmp_path)
    assert stop_requested(tmp_path)
    clear_messages(tmp_path)
    assert read_failure(tmp_path) is None
    assert not stop_requested(tmp_path)


def test_the_message_of_an_error_is_that_of_its_cause():
    outer = RuntimeError("task failed: a long traceback")
    outer.__cause__ = ValueError("sample 3 is damaged")
    assert message_of(outer) == "sample 3 is damaged"
    assert message_of(KeyError()) == "KeyError"


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), max_size=5), st.integers(0, 40), st.integers(0, 40))
def test_skips_move_the_plan_on_and_never_back(made, step, length):
    skips = Skips(tuple(made))
    expected = [skips.plan_step(number) for number in range(step, step + length)]
    found = [number for first, end in skips.stretches(step, step + length) for number in range(first, end)]
    assert found == expected
    assert all(after > before for before, after in pairwise(expected))


def test_the_batches_of_a_bad_stretch_are_left_out_and_noted(tmp_path):
    skips = Skips().with_skip(tmp_path, restored=4, bad=7)  # steps 5, 6 and 7 read the batches 4, 5 and 6 of the plan
    assert [skips.plan_step(step) for step in (3, 4, 5)] == [3, 7, 8]
    assert Skips.read(tmp_path) == skips
    again = skips.with_skip(tmp_path, restored=4, bad=5)  # step 5 read batch 7, which was bad too
    assert again.plan_step(4) == 8
    assert Skips.read(tmp_path) == again


ALARM = """
import sys, time
from pathlib import Path
from pipeline.train.alarm import Alarm
alarm = Alarm(Path(sys.argv[1]), 2.0)
for _ in range(4):
    alarm.put_off()
    time.sleep(1.1)
print("alive", flush=True)
alarm.cancel()  # as after a value that is not finite, before the run goes back
alarm.put_off()
def where_it_hangs():
    time.sleep(60)
if sys.argv[2] == "hang":
    where_it_hangs()
alarm.cancel()
time.sleep(2.5)
print("done", flush=True)
"""


def test_a_process_that_hangs_ends_and_says_where(tmp_path):
    hanging, working = (python(ALARM, str(tmp_path / name), name) for name in ("hang", "work"))
    assert hanging.communicate(timeout=30)[0] == "alive\n"
    assert hanging.returncode == 1
    assert "where_it_hangs" in (tmp_path / "hang").read_text()
    assert working.communicate(timeout=30)[0] == "alive\ndone\n"
    assert not (tmp_path / "work").exists()
