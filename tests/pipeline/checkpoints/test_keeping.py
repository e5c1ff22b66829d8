"""Checkpoints: one writer at a time, and what it keeps."""

import errno
import shutil
import threading

import pytest

from pipeline.train.checkpoints import (
    MARKER,
    CheckpointWriter,
    Superseded,
    checkpoints,
    commit,
    newest_checkpoint,
    writing,
)
from tests.pipeline.checkpoints.saving import FILES, FULL, cut, failing_flush, flip, names, small_state, write


def test_an_attempt_that_was_taken_over_publishes_nothing(tmp_path, monkeypatch):
    asked = []

    def is_current():
        asked.append(names(tmp_path))
        return len(asked) < 6

    writer = write(tmp_path, 4, is_current=is_current)  # asked at start, before the try, before the commit, at the end
    state = small_state()
    state.step = 8
    writer.save(state)
    with pytest.raises(Superseded, match="another attempt"):
        writer.close()
    assert len(asked) == 6
    assert asked[-1][0].startswith(".step_000000008")  # all was written but the name
    assert names(tmp_path) == ["step_000000004"]


def test_an_attempt_that_was_taken_over_stops_trying_and_removes_nothing(tmp_path, monkeypatch):
    write(tmp_path, 2, 4).close()
    (tmp_path / ".step_000000008.of-the-successor").mkdir()
    current = [True]
    failing_flush(monkeypatch, lambda: (current.clear(), FULL)[1])
    writer = CheckpointWriter(tmp_path, keep=1, is_current=lambda: False)
    writer.wait()
    assert names(tmp_path) == [".step_000000008.of-the-successor", "step_000000002", "step_000000004"]
    with pytest.raises(Superseded):
        write(tmp_path, 8, is_current=lambda: bool(current), sleep=lambda seconds: None)


def test_a_writer_whose_files_were_removed_saves_anew(tmp_path, monkeypatch):
    """As when a second writer cleans up, though this one lives."""
    commit_write, removed = commit.Commit.write, []

    def late(self, directory):
        if not removed:
            removed.append(directory)
            shutil.rmtree(directory)
        commit_write(self, directory)

    monkeypatch.setattr(commit.Commit, "write", late)
    write(tmp_path, 4).close()
    assert removed
    assert newest_checkpoint(tmp_path).step == 4


@pytest.mark.parametrize(
    ("keep", "keep_best", "expected"),
    [
        (2, 0, [5, 6]),
        (1, 1, [2, 6]),
        (2, 2, [2, 3, 5, 6]),  # 2 and 3 have the lowest
        (9, 1, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_the_newest_and_the_best_stay(tmp_path, keep, keep_best, expected):
    scores = [5.0, 1.0, 2.0, 9.0, 3.0, None]
    write(tmp_path, 1, 2, 3, 4, 5, 6, scores=scores, keep=keep, keep_best=keep_best).close()
    assert [c.step for c in checkpoints(tmp_path)] == expected


def test_steps_that_were_asked_for_stay(tmp_path):
    write(tmp_path, 1, 2, 3, 4, 5, keep=1, keep_at={2, 3}).close()
    assert [c.step for c in checkpoints(tmp_path)] == [2, 3, 5]


def test_damaged_checkpoints_do_not_count_among_those_kept(tmp_path):
    write(tmp_path, 1, 2, 3, 4, scores=[0.0, 5.0, 6.0, 7.0]).close()
    flip(tmp_path / "step_000000001" / FILES[0])  # the best
    cut(tmp_path / "step_000000003" / FILES[0])
    (tmp_path / "step_000000004" / MARKER).unlink()
    (tmp_path / "step_000000009").mkdir()
    write(tmp_path, 5, scores=[8.0], keep=1, keep_best=1).close()
    assert [c.step for c in checkpoints(tmp_path)] == [2, 5]
    assert newest_checkpoint(tmp_path, pytest.fail).step == 5


def test_a_checkpoint_damaged_while_the_writer_lives_does_not_stop_it(tmp_path):
    writer = write(tmp_path, 1, 2, keep=2)
    cut(tmp_path / "step_000000002" / FILES[0])
    shutil.rmtree(tmp_path / "step_000000001")
    state = small_state()
    for state.step in (3, 4):
        writer.save(state)
    writer.close()
    assert [c.step for c in checkpoints(tmp_path)] == [3, 4]


def test_a_removal_that_fails_is_said_and_made_up_for(tmp_path, monkeypatch, capsys):
    rmtree = shutil.rmtree

    def refuses(path, **options):
        if path.name.startswith(".step_removed"):
            raise OSError(errno.EBUSY, "busy")
        rmtree(path, **options)

    monkeypatch.setattr(writing.shutil, "rmtree", refuses)
    write(tmp_path, 1, 2, keep=1).close()
    assert "cannot be removed" in capsys.readouterr().out
    assert [c.step for c in checkpoints(tmp_path)] == [2]
    monkeypatch.undo()
    write(tmp_path, 3, keep=1).close()
    assert names(tmp_path) == ["step_000000003"]


def test_readers_never_lose_sight_while_a_writer_removes(tmp_path):
    write(tmp_path, 1).close()
    done, seen, lines = threading.Event(), [], []

    def read():
        while not done.is_set():
            checkpoint = newest_checkpoint(tmp_path, lines.append)
            seen.append(checkpoint.step if checkpoint else -1)
            checkpoints(tmp_path)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        write(tmp_path, *range(2, 50), keep=1).close()
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert lines == []
    assert min(seen) >= 1
    assert len(set(seen)) > 5
