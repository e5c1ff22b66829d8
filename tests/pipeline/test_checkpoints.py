"""Checkpoints: what is restored is what was saved, whatever happens to the process, the disk and the files."""

import copy
import errno
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.train.checkpoints import (
    MARKER,
    CheckpointFailed,
    CheckpointWriter,
    Damaged,
    Superseded,
    checkpoints,
    commit,
    newest_checkpoint,
    save_checkpoint,
    saving,
    writing,
)
from pipeline.train.loop import TrainState
from ssl_models.optimizers import OptimizerConfig
from tests.ssl_models.contract import build

CPU = torch.device("cpu")
FILES = ("objective.safetensors", "optimizers.pt", MARKER)
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def make_state(optimizer="adamw", objective="simclr", seed=0) -> TrainState:
    return TrainState.fresh(build(objective, seed=seed), OptimizerConfig(name=optimizer), 256, CPU)


def advance(state: TrainState) -> TrainState:
    """One step with gradients that depend on the step number alone."""
    torch.manual_seed(state.step)
    for optimizer in state.optimizers.values():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    for name, buffer in state.objective.named_buffers():
        if name.endswith("running_mean"):
            buffer += 1
    state.step += 1
    return state


def contents(value):
    """Everything that a state holds, comparable: each tensor as dtype, shape, strides and values."""
    if isinstance(value, TrainState):
        optimizers = {phase: o.state_dict() for phase, o in value.optimizers.items()}
        return value.step, contents(dict(value.objective.state_dict())), contents(optimizers)
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.stride(), value.tolist()
    if isinstance(value, dict):
        return {key: contents(inner) for key, inner in value.items()}
    return [contents(inner) for inner in value] if isinstance(value, list | tuple) else value


def small_state() -> TrainState:
    torch.manual_seed(0)
    objective = nn.Linear(3, 2)
    return TrainState(objective, {"main": torch.optim.SGD(objective.parameters(), lr=0.1, momentum=0.9)})


def write(directory: Path, *steps: int, scores=(), **options) -> CheckpointWriter:
    """Saves a small state at each step, one after the other."""
    writer = CheckpointWriter(directory, **{"keep": 9, "sleep": lambda seconds: None, **options})
    state = advance(small_state())
    for i, state.step in enumerate(steps):
        writer.save(state, score=scores[i] if scores else None)
        writer.wait()
    return writer


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def failing_flush(monkeypatch, fails):
    """Every flush of a file or directory to the disk asks `fails()` for an error."""
    flush = commit.flush

    def flaky(path):
        if (error := fails()) is not None:
            raise error
        flush(path)

    monkeypatch.setattr(commit, "flush", flaky)
    monkeypatch.setattr(writing, "flush", flaky)


# ---- what is saved, and what is restored ---------------------------------------------------------------------------


@pytest.mark.parametrize(("optimizer", "objective"), [("sgd", "simclr"), ("adamw", "mae"), ("lars", "clip")])
@pytest.mark.parametrize("background", [True, False])
def test_a_restored_state_equals_the_saved_one(tmp_path, optimizer, objective, background):
    state = advance(advance(make_state(optimizer, objective)))
    if background:
        writer = CheckpointWriter(tmp_path, keep=1)
        writer.save(state)
        writer.close()
    else:
        save_checkpoint(tmp_path, state, keep=1)
    restored = make_state(optimizer, objective, seed=1)
    newest_checkpoint(tmp_path).restore(restored)
    assert contents(restored) == contents(state)
    assert contents(advance(restored)) == contents(advance(state))


class Awkward(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.one.weight
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("turned", torch.arange(6.0).view(2, 3).T)
        self.register_buffer("slice", torch.arange(9.0)[3:6])
        self.register_buffer("bfloat", torch.ones(2, dtype=torch.bfloat16))


@pytest.mark.parametrize("background", [True, False])
def test_tied_weights_empty_optimizers_and_odd_tensors_survive(tmp_path, background):
    def make():
        objective = Awkward()
        one = torch.optim.AdamW(objective.one.parameters(), amsgrad=True)
        two = torch.optim.SGD(objective.tied.parameters(), lr=0.1)  # no momentum: it has no state
        return TrainState(objective, {"first": one, "second": two})

    state = advance(make())
    state.objective.count += 1
    if background:
        writer = CheckpointWriter(tmp_path, keep=1)
        writer.save(state)
        writer.close()
    else:
        save_checkpoint(tmp_path, state, keep=1)
    restored = make()
    newest_checkpoint(tmp_path).restore(restored)
    assert contents(restored) == contents(state)
    assert restored.objective.tied.weight is restored.objective.one.weight


def test_what_many_workers_saved_one_can_restore_and_back(tmp_path):
    """Rank 0 saves the whole state; only BatchNorm's class differs with the number of workers."""
    alone, many = advance(make_state()), make_state(seed=1)
    many.objective = nn.SyncBatchNorm.convert_sync_batchnorm(many.objective)
    save_checkpoint(tmp_path / "one", alone, keep=1).restore(many)
    assert contents(many) == contents(alone)
    fresh = make_state(seed=2)
    save_checkpoint(tmp_path / "many", many, keep=1).restore(fresh)
    assert contents(fresh) == contents(alone)


def test_a_restored_state_does_not_depend_on_the_files(tmp_path):
    checkpoint = save_checkpoint(tmp_path, advance(make_state()), keep=1)
    restored = make_state(seed=1)
    checkpoint.restore(restored)
    before = contents(restored)
    for path in checkpoint.path.iterdir():
        with path.open("r+b") as file:  # in place: mapped pages would see it
            file.write(bytes(path.stat().st_size))
    assert contents(restored) == before


def test_training_goes_on_while_a_save_runs(tmp_path, monkeypatch):
    may_write, write_files = threading.Event(), writing._write_files

    def slowly(*arguments):
        assert may_write.wait(10)
        write_files(*arguments)

    monkeypatch.setattr(writing, "_write_files", slowly)
    state = advance(make_state())
    saved = contents(state)
    writer = CheckpointWriter(tmp_path, keep=2)
    writer.save(state)
    advance(state)
    assert contents(state) != saved
    assert newest_checkpoint(tmp_path) is None
    may_write.set()
    writer.save(state)  # waits for the first, whose buffers it uses again
    writer.close()
    for checkpoint, expected in zip(checkpoints(tmp_path), (saved, contents(state)), strict=True):
        restored = make_state(seed=1)
        checkpoint.restore(restored)
        assert contents(restored) == expected


def test_copies_use_the_same_memory_again():
    host, state = saving.HostCopy(), advance(make_state())
    first = {name: tensor.data_ptr() for name, tensor in host.of(state)[0].items()}
    tensors, optimizers = host.of(advance(state))
    assert {name: tensor.data_ptr() for name, tensor in tensors.items()} == first
    assert contents(optimizers) == contents(writing.optimizer_states(state))
    live = {tensor.data_ptr() for tensor in state.objective.state_dict().values()}
    assert not live & set(first.values())


def test_a_checkpoint_carries_score_and_extra_as_they_were(tmp_path):
    saved = []
    writer = CheckpointWriter(tmp_path, keep=2, on_saved=saved.append)
    extra, state = {"skips": [[4, 2]], "odd": [1e300, 1e-7, "ä\n", 2**70, None, {"1": 0.1}]}, small_state()
    expected = copy.deepcopy(extra)
    blocked = writer.save(state, score=0.1, extra=extra)
    extra["skips"].append("later")  # must not reach what was saved
    with pytest.raises(TypeError, match="JSON"):
        writer.save(state, extra={"when": object()})
    with pytest.raises(ValueError, match="JSON"):
        writer.save(state, extra={"loss": float("inf")})
    state.step = 1
    writer.save(state, score=float("nan"))
    writer.close()
    first, second = checkpoints(tmp_path)
    assert (first.score, first.extra) == (0.1, expected)
    assert (second.score, second.extra) == (None, {})
    assert [(s.step, s.path) for s in saved] == [(0, first.path), (1, second.path)]
    assert saved[0].bytes == first.bytes == sum((first.path / name).stat().st_size for name in FILES[:2])
    assert saved[0].blocked_seconds == blocked < saved[0].seconds


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: make_state(objective="mae"), "another objective or encoder"),
        (lambda: make_state("sgd"), r"main: AdamW of \[\d+, \d+\] parameters\) than .* \(main: SGD of"),
        (lambda: TrainState(build("simclr"), {"critic": make_state().optimizers["main"]}), "critic"),
        (lambda: TrainState(build("simclr"), {"main": torch.optim.AdamW(nn.Linear(1, 1).parameters())}), r"of \[2\]"),
    ],
)
def test_a_checkpoint_of_another_experiment_is_refused(tmp_path, other, message):
    with pytest.raises(ValueError, match=message):
        save_checkpoint(tmp_path, advance(make_state()), keep=1).restore(other())


def test_a_checkpoint_of_version_0_1_is_restored(tmp_path):
    state = advance(make_state())
    path = tmp_path / "step_000000001"
    path.mkdir()
    save_file({name: t.contiguous() for name, t in state.objective.state_dict().items()}, path / FILES[0])
    torch.save({phase: o.state_dict() for phase, o in state.optimizers.items()}, path / FILES[1])
    files = {
        name: {
            "bytes": (path / name).stat().st_size,
            "sha256": hashlib.sha256((path / name).read_bytes()).hexdigest(),
        }
        for name in FILES[:2]
    }
    (path / MARKER).write_text(json.dumps({"step": 1, "files": files}, indent=1))
    restored = make_state(seed=1)
    newest_checkpoint(tmp_path).restore(restored)
    assert contents(restored) == contents(state)


# ---- processes that die --------------------------------------------------------------------------------------------

DEATHS = {  # where the process is killed: the n-th flush, or a call; and the step that must be chosen then
    "half a file": 4,
    "flush 1": 4,  # objective.safetensors is written
    "flush 2": 4,  # and optimizers.pt
    "flush 3": 4,  # and the marker
    "flush 4": 4,  # all, before the directory has its name
    "flush 5": 8,  # has its name
    "removal": 8,  # an old one has been moved aside
}


def die_in_every_way(root: Path) -> None:
    """Run in a process of its own: for each death a child that saves step 8 beside 2 and 4, and is killed."""
    small_state()  # what torch imports late, the children need not
    for death in DEATHS:
        child = os.fork()
        if child == 0:
            write(root / death, 2, 4).close()
            die_at(death)
            write(root / death, 8, keep=2).close()
            os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), death


def die_at(death: str) -> None:
    flush, rmtree, flushes = commit.flush, shutil.rmtree, iter(range(1, 9))

    def kill():
        os.kill(os.getpid(), signal.SIGKILL)

    if death == "half a file":
        writing.save_file = lambda tensors, path: (path.write_bytes(b"half"), kill())
    elif death == "removal":
        shutil.rmtree = lambda path, **options: (
            kill() if path.name.startswith(".step_removed") else rmtree(path, **options)
        )
    else:
        writing.flush = commit.flush = lambda path: kill() if f"flush {next(flushes)}" == death else flush(path)


def run_out_of_space(root: Path) -> None:
    """Run in a process of its own: the system refuses to let files grow, then lets them."""
    writer = write(root / "limited", 4)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    state = make_state()
    for step, objective in ((8, state.objective), (9, nn.Linear(1, 1))):  # either file is the one that fails
        writer.save(TrainState(objective, advance(state).optimizers, step))
        try:
            writer.wait()
        except CheckpointFailed as failed:
            (root / f"message {step}").write_text(str(failed))
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    state.step = 12
    writer.save(state)
    writer.close()


@pytest.fixture(scope="module")
def after_accidents(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("accidents")
    code = (
        "import sys, pathlib, tests.pipeline.test_checkpoints as t\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "t.die_in_every_way(root)\nt.run_out_of_space(root)"
    )
    repository = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code, root], cwd=repository, check=True, timeout=300)
    return root


@pytest.mark.parametrize("death", DEATHS)
def test_a_save_that_died_is_never_chosen_and_is_cleaned_up(after_accidents, tmp_path, death):
    directory = tmp_path / "checkpoints"
    shutil.copytree(after_accidents / death, directory)
    assert any(path.name.startswith(".") for path in directory.iterdir()) == (death != "flush 5")
    lines = []
    assert newest_checkpoint(directory, lines.append).step == DEATHS[death]
    assert not lines
    write(directory, 12).close()
    assert not [name for name in names(directory) if not name.startswith("step_")]
    assert newest_checkpoint(directory).step == 12


def test_files_that_may_not_grow_fail_the_save_and_nothing_else(after_accidents):
    directory = after_accidents / "limited"
    assert names(directory) == ["step_000000004", "step_000000012"]
    assert newest_checkpoint(directory).step == 12
    for message in (after_accidents / "message 8", after_accidents / "message 9"):
        assert "the file is larger than this system allows" in message.read_text()
        assert "the last good checkpoint is of step 4" in message.read_text()


# ---- damaged files -------------------------------------------------------------------------------------------------


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def _flip(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)


def _rewrite(**fields):
    def damage(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return damage


DAMAGES = {
    **{
        f"{name} {what}": (name, damage, message)
        for name in FILES[:2]
        for what, damage, message in (
            ("cut short", _cut, f"{name} has .* of .* bytes"),
            ("emptied", lambda path: path.write_bytes(b""), f"{name} has 0 of"),
            ("flipped", _flip, f"{name} has another sha256"),
            ("missing", Path.unlink, f"{name} is missing"),
            ("a directory", lambda path: (path.unlink(), path.mkdir()), f"{name} (is no file|has .* of .* bytes)"),
        )
    },
    "marker missing": (MARKER, Path.unlink, f"{MARKER} is missing"),
    "marker cut short": (MARKER, _cut, f"{MARKER} is unreadable: Invalid JSON"),
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
    _cut(tmp_path / "step_000000008" / MARKER)
    assert newest_checkpoint(tmp_path) is None
    assert "step_000000008 is damaged and passed over" in capsys.readouterr().out


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
        _flip(tmp_path / f"step_{step:09d}" / FILES[1])
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


# ---- storage that fails --------------------------------------------------------------------------------------------


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


# ---- one writer, and what it keeps ---------------------------------------------------------------------------------


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
    ("keep", "keep_best", "higher", "expected"),
    [
        (2, 0, False, [5, 6]),
        (1, 1, False, [2, 6]),
        (1, 1, True, [4, 6]),
        (2, 2, False, [2, 3, 5, 6]),  # 2 and 5 have the lowest, then 3
        (9, 1, False, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_the_newest_and_the_best_stay(tmp_path, keep, keep_best, higher, expected):
    scores = [5.0, 1.0, 2.0, 9.0, 3.0, None]
    write(tmp_path, 1, 2, 3, 4, 5, 6, scores=scores, keep=keep, keep_best=keep_best, higher_is_better=higher).close()
    assert [c.step for c in checkpoints(tmp_path)] == expected


def test_damaged_checkpoints_do_not_count_among_those_kept(tmp_path):
    write(tmp_path, 1, 2, 3, 4, scores=[0.0, 5.0, 6.0, 7.0]).close()
    _flip(tmp_path / "step_000000001" / FILES[0])  # the best
    _cut(tmp_path / "step_000000003" / FILES[0])
    (tmp_path / "step_000000004" / MARKER).unlink()
    (tmp_path / "step_000000009").mkdir()
    write(tmp_path, 5, scores=[8.0], keep=1, keep_best=1).close()
    assert [c.step for c in checkpoints(tmp_path)] == [2, 5]
    assert newest_checkpoint(tmp_path, pytest.fail).step == 5


def test_a_checkpoint_damaged_while_the_writer_lives_does_not_stop_it(tmp_path):
    writer = write(tmp_path, 1, 2, keep=2)
    _cut(tmp_path / "step_000000002" / FILES[0])
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
