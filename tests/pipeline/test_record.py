"""The record of a run: appended whole lines, each step once when read, never in the way of training."""

import errno
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.train import record
from pipeline.train.meter import LogRow
from pipeline.train.record import (
    Recorder,
    append_event,
    fingerprint,
    follow,
    read_all_metrics,
    read_events,
    read_metrics,
    surviving,
)


def row(step: int, loss: float = 1.0) -> LogRow:
    return LogRow(
        step=step, images_seen=step * 32, learning_rate=0.1, images_per_second=100.0, data_wait_ratio=0.25, seconds=1.0,
        metrics={"loss": loss}, began=1e9 + step, ended=1e9 + step + 1, data_wait_seconds=0.25, samples=step << 40,
        peak_memory_bytes=1 << 30,
    )  # fmt: skip


def steps_and_losses(directory: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in read_metrics(directory)]


def test_a_row_says_what_was_measured_and_where(tmp_path: Path) -> None:
    written = Recorder(tmp_path, attempt=3, restored_step=4).write(row(5, 0.5))
    assert read_metrics(tmp_path) == [written]
    assert written == {
        "step": 5, "images_seen": 160, "loss": 0.5, "learning_rate": 0.1, "images_per_second": 100.0,
        "data_wait_ratio": 0.25, "data_wait_seconds": 0.25, "seconds": 1.0, "began": 1e9 + 5, "time": 1e9 + 6,
        "samples": 5 << 40, "peak_memory_bytes": 1 << 30, "attempt": 3, "restored_step": 4,
    }  # fmt: skip


def test_each_step_is_read_once_and_nothing_is_ever_removed(tmp_path: Path) -> None:
    first = Recorder(tmp_path, attempt=1, restored_step=0)
    for step in (1, 2, 3):
        first.write(row(step, 1.0))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # the process died here
    before = (tmp_path / "metrics.jsonl").read_bytes()
    second = Recorder(tmp_path, attempt=2, restored_step=2)
    assert steps_and_losses(tmp_path) == [(1, 1.0), (2, 1.0), (3, 1.0)]
    second.write(row(3, 2.0))
    assert steps_and_losses(tmp_path) == [(1, 1.0), (2, 1.0), (3, 2.0)]
    first.write(row(4, 1.0))  # it was taken for dead, and is not
    assert steps_and_losses(tmp_path) == [(1, 1.0), (2, 1.0), (3, 2.0)]
    assert (tmp_path / "metrics.jsonl").read_bytes().startswith(before)
    assert [row["step"] for row in read_all_metrics(tmp_path)] == [1, 2, 3, 3, 4]


def rows_of(attempt: int, restored: int, reached: int) -> list[dict[str, int]]:
    return [{"step": step, "attempt": attempt, "restored_step": restored} for step in range(restored + 1, reached + 1)]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=6))
def test_the_final_lineage_has_each_step_once_without_a_gap(attempts: list[tuple[int, int]]) -> None:
    """Each attempt restores any step that an earlier one had reached, however far others have come."""
    rows: list[dict[str, int]] = []
    came_to, last = 0, []
    for number, (back, steps) in enumerate(attempts, 1):
        restored = max(0, came_to - back)
        own = rows_of(number, restored, restored + steps)
        rows, last, came_to = [*rows, *own], own or last, max(came_to, restored + steps)
    found = surviving(rows)
    assert [row["step"] for row in found] == list(range(1, last[-1]["step"] + 1 if last else 1))
    assert found[len(found) - len(last) :] == last
    assert [row["attempt"] for row in found] == sorted(row["attempt"] for row in found)


def test_a_checkpoint_that_was_hidden_for_a_while_leads_back_to_those_who_made_it() -> None:
    rows = [*rows_of(1, 0, 8), *rows_of(2, 4, 6), *rows_of(3, 8, 9)]  # the second could not read step 8
    assert [(row["attempt"], row["step"]) for row in surviving(rows)] == [*((1, step) for step in range(1, 9)), (3, 9)]


def test_rows_of_a_version_without_attempts_are_a_first_attempt() -> None:
    old = [{"step": 1}, {"step": 2}, {"step": 3}]
    assert surviving(old) == old
    assert surviving([*old, *rows_of(1, 2, 4)]) == [*old[:2], *rows_of(1, 2, 4)]


def test_a_follower_sees_each_row_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n')
    new = follow(path)
    seen = []
    for text in ('{"step": 1}\n{"step": 2}\n{"st', 'ep": 3}\n{"cut', '\n{"step": 4}\n', ""):
        with path.open("a") as file:
            file.write(text)
        seen.append([row["step"] for row in next(new)])
    assert seen == [[1, 2], [3], [4], []]
    assert next(follow(tmp_path / "not yet there")) == []


def test_events_of_many_writers_are_whole_lines(tmp_path: Path) -> None:
    def write(writer: int) -> None:
        for number in range(50):
            append_event(tmp_path, "checkpoint", writer=writer, number=number, padding="x" * 2000)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([line for line in (tmp_path / "events.jsonl").read_text().splitlines() if line]) == 200
    events = read_events(tmp_path)
    assert len(events) == 200
    assert {(event["writer"], event["number"]) for event in events} == {(w, n) for w in range(4) for n in range(50)}
    assert all(event["event"] == "checkpoint" and event["time"] > 1e9 for event in events)


def test_an_event_after_a_torn_line_stands_on_its_own(tmp_path: Path) -> None:
    assert read_events(tmp_path) == []
    (tmp_path / "events.jsonl").write_bytes(b'{"event": "command", "time": 1}\n{"event": "fi\xff')
    append_event(tmp_path, "checkpoint", time=7.0, step=3)
    assert read_events(tmp_path) == [
        {"event": "command", "time": 1},
        {"event": "checkpoint", "time": 7.0, "step": 3},
    ]


class FailingDisk:
    """Fails the next writes, the first after half of the line."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
        self.left, self.write = failures, os.write
        monkeypatch.setattr(record.os, "write", self)
        monkeypatch.setattr(record, "_PAUSES", (0.0, 0.0, 0.0))

    def __call__(self, file: int, line: bytes) -> int:
        self.left -= 1
        if self.left >= 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.write(file, line[: len(line) // 2] if self.left == 0 else line)


def test_storage_that_fails_now_and_then_costs_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(tmp_path, 1, 0)
    recorder.write(row(1))
    FailingDisk(monkeypatch, failures=3)
    recorder.write(row(2))
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]
    assert len((tmp_path / "metrics.jsonl").read_bytes().splitlines()) == 3  # with the half that had found room


def test_a_full_disk_stops_a_row_with_words_and_an_event_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(tmp_path, 1, 0)
    FailingDisk(monkeypatch, failures=1000)
    with pytest.raises(
        OSError, match=r"No space left.*could not be written.*same command again.*metrics\.jsonl"
    ) as error:
        recorder.write(row(1))
    assert error.value.errno == errno.ENOSPC
    with caplog.at_level(logging.WARNING):
        append_event(tmp_path, "end", code=1)
    assert "the event end is not noted" in caplog.text


@pytest.mark.parametrize("fails", ["at the start", "later", "in its thread"])
def test_without_tensorboard_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fails: str
) -> None:
    import torch.utils.tensorboard
    from tensorboard.summary.writer.record_writer import RecordWriter

    def fail(*arguments: Any, **more: Any) -> None:
        raise RuntimeError("broken")

    if fails == "at the start":
        monkeypatch.setattr(torch.utils.tensorboard, "SummaryWriter", fail)
    recorder = Recorder(tmp_path, 1, 0)
    recorder.write(row(1))
    if fails == "later":
        monkeypatch.setattr(torch.utils.tensorboard.SummaryWriter, "add_scalar", fail)
    elif fails == "in its thread":
        monkeypatch.setattr(RecordWriter, "write", fail)
        monkeypatch.setattr(threading, "excepthook", lambda arguments: None)  # its thread dies aloud
    for step in range(2, 20):
        recorder.write(row(step))
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(1, 20))
    assert caplog.text.count("no more TensorBoard") == 1
    assert "broken" in caplog.text


def test_tensorboard_shows_each_step_once_after_a_restart(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for attempt, restored in ((1, 0), (2, 2)):
        recorder = Recorder(tmp_path, attempt, restored)
        for step in range(restored + 1, restored + 4):
            recorder.write(row(step, loss=float(attempt)))
        time.sleep(1.1)  # TensorBoard orders files by the second in their names, then by a number, ".10" before ".9"
    shown = EventAccumulator(str(tmp_path / "tensorboard"))
    shown.Reload()
    assert [(event.step, event.value) for event in shown.Scalars("loss")] == [(1, 1), (2, 1), (3, 2), (4, 2), (5, 2)]
    assert set(shown.Tags()["scalars"]) == {
        "loss", "learning_rate", "images_seen", "images_per_second", "data_wait_ratio", "peak_memory_bytes",
    }  # fmt: skip


def test_fingerprints_add_over_steps_and_ranks_and_forget_the_order() -> None:
    numbers, epochs = np.arange(64) * 7, np.arange(64) // 40
    whole = fingerprint(numbers, epochs)
    assert whole == fingerprint(numbers[::-1], epochs[::-1])
    assert whole == fingerprint(numbers[:10], epochs[:10]) + fingerprint(numbers[10:], epochs[10:])
    assert whole == sum(fingerprint(numbers[i : i + 1], epochs[i : i + 1]) for i in range(64))
    assert fingerprint(numbers[:0], epochs[:0]) == 0
    assert 0 <= whole < 64 * 2**32


def test_a_fingerprint_tells_samples_and_epochs_apart() -> None:
    """Also a swap of two samples' epochs, and a sample that comes twice for another."""
    seen = {fingerprint(np.array([number]), np.array([epoch])) for number in range(500) for epoch in range(10)}
    assert len(seen) >= 4998  # of 5,000 numbers of 32 bits, chance makes two equal in one of 340 tries
    assert fingerprint(np.array([1, 2]), np.array([0, 1])) != fingerprint(np.array([1, 2]), np.array([1, 0]))
    assert fingerprint(np.array([1, 3]), np.array([0, 0])) != fingerprint(np.array([2, 2]), np.array([0, 0]))


def test_a_fingerprint_is_the_same_for_ever() -> None:
    """Runs of different versions are compared by it; SplitMix64 as in its paper, written with Python's integers."""

    def mix(bits: int) -> int:
        bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        bits = (bits ^ bits >> 27) * 0x94D049BB133111EB % 2**64
        return bits ^ bits >> 31

    golden = 0x9E3779B97F4A7C15
    expected = sum(mix((mix((n + golden) % 2**64) + e + golden) % 2**64) % 2**32 for n, e in ((5, 0), (10**12, 3)))
    assert fingerprint(np.array([5, 10**12]), np.array([0, 3])) == expected
    assert fingerprint(np.array([5, 10**12], np.int64), np.array([0, 3], np.int32)) == expected
