"""Checkpoints: what is restored is what was saved."""

import hashlib
import json
import threading

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.train.checkpoints import (
    MARKER,
    CheckpointWriter,
    checkpoints,
    newest_checkpoint,
    save_checkpoint,
    saving,
    writing,
)
from pipeline.train.loop import TrainState
from tests.pipeline.checkpoints.saving import (
    FILES,
    advance,
    contents,
    make_state,
    small_state,
)
from tests.ssl_models.contract import build


def saved(directory, state, background):
    if not background:
        save_checkpoint(directory, state, keep=1)
        return
    writer = CheckpointWriter(directory, keep=1)
    writer.save(state)
    writer.close()


@pytest.mark.parametrize(("optimizer", "objective"), [("sgd", "simclr"), ("adamw", "mae"), ("lars", "clip")])
@pytest.mark.parametrize("background", [True, False])
def test_a_restored_state_equals_the_saved_one(tmp_path, optimizer, objective, background):
    state = advance(advance(make_state(optimizer, objective)))
    saved(tmp_path, state, background)
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
    saved(tmp_path, state, background)
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


def test_a_checkpoint_carries_its_score(tmp_path):
    saved = []
    writer = CheckpointWriter(tmp_path, keep=2, on_saved=saved.append)
    state = small_state()
    blocked = writer.save(state, score=0.1)
    state.step = 1
    writer.save(state, score=float("nan"))
    writer.close()
    first, second = checkpoints(tmp_path)
    assert (first.score, second.score) == (0.1, None)
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
