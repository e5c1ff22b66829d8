"""What a run keeps of itself, and what a crash in the middle of a write leaves of it."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.run import Run


@pytest.fixture
def run(small_experiment: Any, tmp_path: Path) -> Run:
    return Run.prepare(tmp_path / "run", small_experiment, ["feral", "pretrain"])


def test_resuming_does_not_write_the_experiment_again(run: Run) -> None:
    before = run.experiment_file.stat()
    Run.prepare(run.path, run.experiment, ["feral", "pretrain"])
    after = run.experiment_file.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_an_experiment_that_changed_is_replaced_as_a_whole(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is computed is not part of what a run is: only that may change."""
    more = run.experiment.override({"cluster.workers": 2})
    monkeypatch.setattr("os.fsync", lambda file: 1 / 0)  # killed, or the disk is full
    with pytest.raises(ZeroDivisionError):
        Run.prepare(run.path, more, ["feral", "pretrain"])
    assert run.experiment.cluster.workers == 1
    monkeypatch.undo()
    Run.prepare(run.path, more, ["feral", "pretrain"])
    assert run.experiment.cluster.workers == 2


@pytest.mark.parametrize("content", [b"", b'{"data": {"sto', b"\xff\xfe"])
def test_a_damaged_experiment_is_named_with_the_way_out(run: Run, content: bytes) -> None:
    experiment = run.experiment
    run.experiment_file.write_bytes(content)
    with pytest.raises(ValueError, match=r"experiment\.json is damaged .*: restore it, or remove it and give"):
        Run.prepare(run.path, experiment, ["feral", "pretrain"])
    run.experiment_file.unlink()
    assert Run.prepare(run.path, experiment, ["feral", "pretrain"]).experiment == experiment


def test_a_line_that_a_crash_cut_short_costs_that_command_only(run: Run) -> None:
    with run.commands_file.open("a") as file:
        file.write('{"command": ["fer')
    Run.prepare(run.path, run.experiment, ["feral", "again"])
    assert [note["command"] for note in run.commands] == [["feral", "pretrain"], ["feral", "again"]]
    run.commands_file.write_text("{")
    with pytest.raises(ValueError, match=r"commands\.jsonl names no command"):
        run.commands  # noqa: B018
