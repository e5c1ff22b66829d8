"""Checkpoints: storage that fails, for a moment or for good."""

import errno
import random

import pytest

from pipeline.train.checkpoints import (
    CheckpointFailed,
    CheckpointWriter,
    checkpoints,
    commit,
    newest_checkpoint,
    writing,
)
from tests.pipeline.checkpoints.saving import (
    FULL,
    failing_flush,
    names,
    small_state,
    write,
)


def test_a_save_is_tried_again_when_the_disk_was_full(tmp_path, monkeypatch):
    errors, slept = [None, FULL, None, None, FULL], []
    failing_flush(monkeypatch, lambda: errors.pop(0) if errors else None)
    left = []
    writer = CheckpointWriter(tmp_path, keep=2, sleep=lambda s: (slept.append(s), left.extend(tmp_path.iterdir())))
    writer.save(small_state())
    writer.close()
    assert newest_checkpoint(tmp_path).step == 0
    assert slept == [1.0, 2.0]
    assert left == []  # a full disk: what a failed try wrote is gone before the next


def test_a_disk_that_stays_full_ends_in_a_message_and_the_last_good_checkpoint(tmp_path, monkeypatch):
    writer = write(tmp_path, 4)
    full = [True]
    failing_flush(monkeypatch, lambda: FULL if full else None)
    state = small_state()
    state.step = 8
    writer.save(state)
    writer._thread.submit(lambda: None).result()  # until the save has ended
    assert isinstance(writer.failure, CheckpointFailed)
    with pytest.raises(CheckpointFailed) as failed:
        writer.save(state)
    for part in (
        "step 8",
        str(tmp_path),
        "5 tries over 15 s",
        "the disk is full (No space left on device)",
        "MB are free",
        "last good checkpoint is of step 4",
        "the same command",
    ):
        assert part in str(failed.value)
    assert isinstance(failed.value.__cause__, OSError)
    assert names(tmp_path) == ["step_000000004"]
    assert newest_checkpoint(tmp_path).step == 4
    full.clear()  # space returns
    assert writer.failure is None
    writer.save(state)
    writer.close()
    assert newest_checkpoint(tmp_path).step == 8


def test_the_first_save_that_fails_says_that_there_is_nothing_yet(tmp_path, monkeypatch):
    failing_flush(monkeypatch, lambda: OSError(errno.EDQUOT, "quota"))
    with pytest.raises(CheckpointFailed, match=r"disk quota is used up.*there is no checkpoint yet"):
        write(tmp_path / "new", 1)
    assert names(tmp_path / "new") == []


def test_an_error_that_is_not_the_storage_is_raised_at_once(tmp_path, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("no such dtype")

    monkeypatch.setattr(writing, "save_file", broken)
    with pytest.raises(RuntimeError, match="no such dtype"):
        write(tmp_path, 1, sleep=lambda seconds: pytest.fail("tried again"))
    assert names(tmp_path) == []


@pytest.mark.parametrize("seed", range(5))
def test_storage_that_fails_now_and_then_costs_no_checkpoint(tmp_path, monkeypatch, seed):
    """Writes fail at p = 0.3 a try, reads at p = 0.3 a file: all is saved, none is called damaged."""
    draw, error = random.Random(seed), OSError(errno.EIO, "Input/output error")
    failing_flush(monkeypatch, lambda: error if draw.random() < 1 - 0.7 ** (1 / 5) else None)  # 5 flushes a try
    write(tmp_path, *range(12), keep=3).close()
    assert [c.step for c in checkpoints(tmp_path)] == [9, 10, 11]

    read, fails = commit._sha256, [0]

    def flaky(path):
        fails[0] = fails[0] + 1 if draw.random() < 0.3 and fails[0] < 2 else 0  # never three times on end
        if fails[0]:
            raise error
        return read(path)

    monkeypatch.setattr(commit, "_sha256", flaky)
    monkeypatch.setattr(commit, "_READ_AGAIN_SECONDS", (0.0, 0.0))
    assert all(newest_checkpoint(tmp_path, pytest.fail).step == 11 for _ in range(8))


def test_unreadable_is_passed_over_but_never_means_to_begin_anew(tmp_path, monkeypatch):
    write(tmp_path, 4, 8).close()
    bad, read, lines = {"step_000000008"}, commit._sha256, []

    def failing(path):
        if path.parent.name in bad:
            raise OSError(errno.EIO, "Input/output error")
        return read(path)

    monkeypatch.setattr(commit, "_sha256", failing)
    monkeypatch.setattr(commit, "_READ_AGAIN_SECONDS", (0.0,))
    assert newest_checkpoint(tmp_path, lines.append).step == 4
    assert "Input/output error" in lines[0]
    writing.remove_old(tmp_path, keep=1, verified=set())
    assert "step_000000008" in names(tmp_path)  # it may be whole
    bad.add("step_000000004")
    with pytest.raises(OSError, match=r"no checkpoint below .* can be read"):
        newest_checkpoint(tmp_path, lines.append)
