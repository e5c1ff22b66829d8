"""Checkpoints: damaged files are passed over, with the reason."""

import json
import re
import shutil
from pathlib import Path

import pytest

from pipeline.train.checkpoints import (
    MARKER,
    Damaged,
    commit,
    newest_checkpoint,
)
from tests.pipeline.checkpoints.saving import FILES, cut, flip, names, write


def _rewrite(**fields):
    def damage(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return damage


DAMAGES = {
    **{
        f"{name} {what}": (name, damage, message)
        for name in FILES[:2]
        for what, damage, message in (
            ("cut short", cut, f"{name} has .* of .* bytes"),
            ("emptied", lambda path: path.write_bytes(b""), f"{name} has 0 of"),
            ("flipped", flip, f"{name} has another sha256"),
            ("missing", Path.unlink, f"{name} is missing"),
            ("a directory", lambda path: (path.unlink(), path.mkdir()), f"{name} (is no file|has .* of .* bytes)"),
        )
    },
    "marker missing": (MARKER, Path.unlink, f"{MARKER} is missing"),
    "marker cut short": (MARKER, cut, f"{MARKER} is unreadable: Invalid JSON"),
    "marker emptied": (MARKER, lambda path: path.write_text(""), f"{MARKER} is unreadable: Invalid JSON"),
    "marker no JSON": (MARKER, lambda path: path.write_bytes(b"\xff\x00step"), f"{MARKER} is unreadable"),
    "marker a list": (MARKER, lambda path: path.write_text("[]"), f"{MARKER} is unreadable"),
    "marker of wrong types": (MARKER, _rewrite(step="8", sha256=None), f"{MARKER} is unreadable"),
    "marker with no files": (MARKER, _rewrite(files={}, sha256=None), "does not list objective.safetensors"),
    "marker of another step": (MARKER, _rewrite(step=7, sha256=None), f"{MARKER} is of step 7"),
    "marker changed": (MARKER, _rewrite(score=0.5), f"{MARKER} is not as it was written"),
    "directory emptied": (
        "",
        lambda path: [file.unlink() for file in path.iterdir()],
        "the directory is empty",
    ),
    "directory a file": ("", lambda path: (shutil.rmtree(path), path.write_text("")), f"{MARKER} is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_with_the_reason(tmp_path, damage):
    file, do, message = DAMAGES[damage]
    write(tmp_path, 4, 8).close()
    do(tmp_path / "step_000000008" / file)
    lines = []
    assert newest_checkpoint(tmp_path, lines.append).step == 4
    (line,) = lines
    assert re.search(rf"step_000000008 is damaged and passed over: .*{message}", line)


def test_a_damaged_checkpoint_is_announced_unless_said_otherwise(tmp_path, capsys):
    write(tmp_path, 8).close()
    cut(tmp_path / "step_000000008" / MARKER)
    assert newest_checkpoint(tmp_path) is None
    said = capsys.readouterr()
    assert said.out == ""  # `--json` prints its one object there
    assert "step_000000008 is damaged and passed over" in said.err


def test_a_missing_directory_is_no_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path / "nowhere") is None
    write(tmp_path, 4, 8).close()
    shutil.rmtree(tmp_path / "step_000000008")
    assert newest_checkpoint(tmp_path).step == 4


def test_every_flipped_bit_of_a_marker_is_noticed(tmp_path):
    write(tmp_path, 8, scores=[0.5]).close()
    marker = tmp_path / "step_000000008" / MARKER
    whole = marker.read_bytes()
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        marker.write_bytes(flipped)
        with pytest.raises(Damaged):
            commit.read_commit(marker.parent)


def test_a_damaged_checkpoint_is_set_aside_when_the_run_writes_on(tmp_path):
    write(tmp_path, 4, 8, 12).close()
    for step in (8, 12):
        flip(tmp_path / f"step_{step:09d}" / FILES[1])
    write(tmp_path, 8, keep=2).close()
    assert names(tmp_path) == ["damaged-step_000000012", "step_000000004", "step_000000008"]
    assert newest_checkpoint(tmp_path).step == 8


def test_a_whole_checkpoint_is_never_written_over(tmp_path):
    write(tmp_path, 8).close()
    before = {path.name: (path.stat().st_ino, path.read_bytes()) for path in (tmp_path / "step_000000008").iterdir()}
    for _ in range(11):
        write(tmp_path, 8, keep=20).close()
    newest = newest_checkpoint(tmp_path)
    assert (newest.step, newest.path.name) == (8, "step_000000008.11")
    after = {path.name: (path.stat().st_ino, path.read_bytes()) for path in (tmp_path / "step_000000008").iterdir()}
    assert after == before
