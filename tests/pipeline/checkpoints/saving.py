"""Small states and writers of checkpoints."""

import errno
import os
from pathlib import Path

import torch
from torch import nn

from pipeline.train.checkpoints import (
    MARKER,
    CheckpointWriter,
    commit,
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


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
