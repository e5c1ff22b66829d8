"""Writing one checkpoint whole or not at all, and removing those that are no longer kept."""

import os
import re
import shutil
import uuid
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from pipeline.train.checkpoints.checkpoint import Checkpoint, by_score
from pipeline.train.checkpoints.commit import (
    KEEP,
    OBJECTIVE,
    OPTIMIZERS,
    Commit,
    Damaged,
    Fingerprint,
    flush,
    step_directories,
    step_directory,
)
from pipeline.train.loop import TrainState


class Superseded(Exception):
    """Another attempt has taken over the run: this one may publish no more checkpoints."""


def save_checkpoint(directory: Path, state: TrainState, keep: int) -> Checkpoint:
    """Writes the state, waits for it, and removes all but the newest `keep`; CheckpointWriter is for training loops."""
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in state.objective.state_dict().items()
    }
    checkpoint = write_checkpoint(directory, state.step, tensors, optimizer_states(state))
    remove_old(directory, keep=keep, verified={checkpoint.path})
    return checkpoint


def optimizer_states(state: TrainState) -> dict[str, Any]:
    """By phase: the optimizer's state_dict, with the optimizer's kind."""
    return {phase: {"kind": type(o).__name__, **o.state_dict()} for phase, o in state.optimizers.items()}


def write_checkpoint(
    directory: Path,
    step: int,
    tensors: dict[str, Tensor],
    optimizers: dict[str, Any],
    *,
    score: float | None = None,
    is_current: Callable[[], bool] = lambda: True,
) -> Checkpoint:
    """Writes a checkpoint beside its place, flushes it to the disk, and renames: it appears whole or not at all.

    Args:
        tensors: the objective's state_dict on the CPU, contiguous, none sharing memory with another.
        is_current: asked last before the rename.

    Raises:
        OSError: a file could not be written; nothing of the try is left.
        Superseded: `is_current` said no; nothing of the try is left.
    """
    target = step_directory(directory, step)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        _write_files(temporary, tensors, optimizers)
        files = {}
        for path in (temporary / OBJECTIVE, temporary / OPTIMIZERS):
            flush(path)
            files[path.name] = Fingerprint.of(path)  # read back
        commit = Commit(step=step, score=score, files=files)
        commit.write(temporary)
        if not is_current():
            raise Superseded(f"another attempt has taken over the run: step {step} is not saved in {directory}")
        temporary.rename(target)
        try:
            flush(directory)
        except OSError:
            target.rename(temporary)  # a name that might not outlast a power cut is no commit
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # of a try that failed: it may have filled the disk
    return Checkpoint.of(target, commit)


def remove_old(
    directory: Path,
    *,
    keep: int,
    keep_best: int = 0,
    keep_at: Container[int] = (),
    verified: set[Path],
) -> None:
    """Removes the whole checkpoints that are neither among the newest `keep` nor among the best `keep_best`, nor of the
    steps `keep_at`, and were never promoted.

    Damaged ones count for neither, and are set aside. Digests are compared once for each directory that is not yet in
    `verified`, which is added to. What cannot be read now or cannot be removed stays, with a line.
    """
    whole = []
    for path in step_directories(directory):
        try:
            whole.append(Checkpoint.read(path, digests=path not in verified))
            verified.add(path)
        except Damaged as damage:
            _set_aside(path, str(damage))
        except OSError as error:
            print(f"checkpoint {path} cannot be read now, and stays: {error}", flush=True)
    asked = [c for c in whole if c.step in keep_at or (c.path / KEEP).exists()]
    kept = {c.path for c in [*whole[-keep:], *by_score(whole)[:keep_best], *asked]}
    for old in whole:
        if old.path not in kept:
            _discard(old.path)


def remove_unfinished(directory: Path) -> None:
    """Removes what saves and removals that died have left. A writer that still lives notices, and tries anew."""
    for path in directory.glob(".step_*"):
        _discard(path)


def _set_aside(path: Path, why: str) -> None:
    """Takes a damaged checkpoint out of the row. One is kept, the last: a person may still want what is left in it."""
    for earlier in path.parent.glob("damaged-*"):
        _discard(earlier)
    aside = path.with_name(f"damaged-{path.name}")
    if _moved(path, aside):
        print(f"checkpoint {path} is damaged ({why}) and now called {aside.name}", flush=True)


def _discard(path: Path) -> None:
    """Removes a directory so that no reader sees half of it."""
    hidden = path.with_name(f".step_removed.{uuid.uuid4().hex}")
    if not _moved(path, hidden):
        return
    try:
        shutil.rmtree(hidden) if hidden.is_dir() else hidden.unlink()
    except OSError as error:
        print(f"{hidden}, a checkpoint no longer kept, cannot be removed now: {error}", flush=True)


def _moved(path: Path, target: Path) -> bool:
    try:
        path.rename(target)
    except FileNotFoundError:
        return False  # somebody else was first
    except OSError as error:
        print(f"checkpoint {path} cannot be removed, and stays: {error}", flush=True)
        return False
    return True


def _write_files(temporary: Path, tensors: dict[str, Tensor], optimizers: dict[str, Any]) -> None:
    try:
        save_file(tensors, temporary / OBJECTIVE)
        with (temporary / OPTIMIZERS).open("wb") as file:  # given a path, torch would lose the reason of a failure
            torch.save(optimizers, file)
    except (SafetensorError, RuntimeError) as error:  # how the two wrap an OSError
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number:
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(temporary / OBJECTIVE)) from error
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None
