"""Saving in the background: training waits for a copy of its state, not for the disk."""

import errno
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Container
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.train.checkpoints.checkpoint import Checkpoint, map_tensors, newest_checkpoint
from pipeline.train.checkpoints.writing import (
    Superseded,
    optimizer_states,
    remove_old,
    remove_unfinished,
    write_checkpoint,
)
from pipeline.train.loop import TrainState

PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds before each further try, after the storage has failed
_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than this system allows",
    errno.EROFS: "the storage has become read-only",
    errno.EACCES: "this user may not write there",
}


class CheckpointFailed(Exception):
    """The storage has failed again and again; the message says what to do. The last good checkpoint is intact."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is on the disk, and what it cost."""

    path: Path
    step: int
    bytes: int
    began: float  # time.time()
    seconds: float  # from the call of `save` to the commit
    blocked_seconds: float  # of them, those that the caller waited


class CheckpointWriter:
    """Saves checkpoints in a thread of its own. One process makes one, after it has taken over the run.

    `save` waits for an unfinished save before it and for a copy of the state in host memory, no more. What went wrong
    in the thread is raised by the next `save`, `wait` or `close`, and can be looked at in `failure`.

    Args:
        keep: the newest checkpoints that stay.
        keep_best: the best ones by score, those with the lowest, that stay besides.
        keep_at: steps whose checkpoints stay, too.
        is_current: whether this attempt may still write to the run; asked before each try and last before the commit.
        on_saved: called in the thread after each commit.
        sleep: waits before a further try.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int,
        keep_best: int = 0,
        keep_at: Container[int] = (),
        is_current: Callable[[], bool] = lambda: True,
        on_saved: Callable[[Saved], None] = lambda saved: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.directory = directory
        self._remove_old = partial(remove_old, directory, keep=keep, keep_best=keep_best, keep_at=keep_at)
        self._is_current, self._on_saved, self._sleep = is_current, on_saved, sleep
        self._copy = HostCopy()
        self._verified: set[Path] = set()
        self._thread = ThreadPoolExecutor(1, "checkpoints", initializer=_step_back)
        self._pending: Future[None] | None = self._thread.submit(self._tidy)

    def save(self, state: TrainState, *, score: float | None = None) -> float:
        """Copies the state and has the copy saved; returns the seconds that this took.

        Args:
            score: what `keep_best` compares; one that is not finite is none.

        Raises:
            CheckpointFailed, Superseded: the save before.
        """
        clock, began = time.perf_counter(), time.time()
        score = score if score is not None and math.isfinite(score) else None
        self.wait()
        step, (tensors, optimizers) = state.step, self._copy.of(state)
        blocked = time.perf_counter() - clock

        def run() -> None:
            checkpoint = self._write(step, tensors, optimizers, score)
            seconds = time.perf_counter() - clock
            self._on_saved(Saved(checkpoint.path, step, checkpoint.bytes, began, seconds, blocked))
            self._tidy()

        self._pending = self._thread.submit(run)
        return blocked

    @property
    def failure(self) -> BaseException | None:
        """What the last save raised, if it has ended; does not wait."""
        return self._pending.exception() if self._pending is not None and self._pending.done() else None

    def wait(self) -> None:
        """Until the last save has ended; raises what it raised, once."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Waits for the last save and ends the thread; raises what the save raised."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _write(
        self, step: int, tensors: dict[str, Tensor], optimizers: dict[str, Any], score: float | None
    ) -> Checkpoint:
        for pause in (*PAUSES, None):
            try:
                if not self._is_current():
                    raise Superseded(f"another attempt has taken over the run: step {step} is not saved")
                return write_checkpoint(
                    self.directory, step, tensors, optimizers, score=score, is_current=self._is_current
                )
            except OSError as error:
                if pause is None:
                    raise CheckpointFailed(self._explanation(step, error)) from error
                print(f"checkpoint of step {step}: {_reason(error)}; again in {pause:g} s", flush=True)
                self._sleep(pause)
        raise AssertionError

    def _explanation(self, step: int, error: OSError) -> str:
        try:
            space = f"{shutil.disk_usage(self.directory).free / 1e6:,.1f} MB are free there"
            last = newest_checkpoint(self.directory, on_damaged=lambda line: None)
            good = (
                f"the last good checkpoint is of step {last.step} ({last.bytes / 1e6:,.1f} MB)"
                if last
                else "there is no checkpoint yet"
            )
        except OSError:
            space, good = "its free space is unknown", "earlier checkpoints could not be read now"
        return (
            f"the checkpoint of step {step} could not be written to {self.directory} in "
            f"{len(PAUSES) + 1} tries over {sum(PAUSES):g} s: {_reason(error)}; {space}, and {good}. When the storage "
            "has space and works again, the same command takes the run up from there"
        )

    def _tidy(self) -> None:
        try:
            if self._is_current():
                remove_unfinished(self.directory)
                self._remove_old(verified=self._verified)
        except OSError as error:
            print(f"old checkpoints below {self.directory} cannot be removed now: {error}", flush=True)


class HostCopy:
    """A copy of the state in host memory, in buffers that serve from save to save: allocating and faulting anew would
    take longer than copying."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[Any, ...], Tensor] = {}

    def of(self, state: TrainState) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The objective's tensors (contiguous, each with memory of its own) and the optimizers' states."""
        used: dict[tuple[Any, ...], Tensor] = {}

        def copy(tensor: Tensor, memory_format: torch.memory_format = torch.preserve_format) -> Tensor:
            key = (len(used), tensor.dtype, tensor.shape, tensor.stride())
            buffer = self._buffers.get(key)
            if buffer is None:
                buffer = torch.empty_like(tensor, device="cpu", memory_format=memory_format, pin_memory=tensor.is_cuda)
            used[key] = buffer
            return buffer.copy_(tensor, non_blocking=tensor.is_cuda)

        with torch.no_grad():
            # Copied by name: tied weights, which safetensors refuses, become two of equal value.
            tensors = {name: copy(t, torch.contiguous_format) for name, t in state.objective.state_dict().items()}
            # Strides are kept: a fused optimizer reads its moments in the order of its parameters.
            optimizers = map_tensors(copy, optimizer_states(state))
        device = next(state.objective.parameters()).device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self._buffers = used
        return tensors, optimizers


def _reason(error: OSError) -> str:
    words = _REASONS.get(error.errno or 0, "the storage has failed")
    return f"{words} ({error.strerror or error})"


def _step_back() -> None:
    """The thread takes what computing leaves over."""
    if sys.platform == "linux":
        os.nice(10)  # there, of this thread only
