"""A checkpoint and what it restores; which of a run's checkpoints to take."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import Optimizer

from pipeline.train.checkpoints.commit import OBJECTIVE, OPTIMIZERS, Commit, Damaged, read_commit, step_directories
from pipeline.train.loop import TrainState


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # standard output may be one JSON object


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk. It does not know how many workers wrote it, and restores on any number."""

    path: Path
    step: int
    score: float | None = field(default=None, compare=False)
    bytes: int = field(default=0, compare=False)  # of all its files but the marker
    digest: str = field(default="", compare=False)  # sha256 of the objective's file: names the weights

    @classmethod
    def read(cls, path: Path, *, digests: bool = True) -> "Checkpoint":
        """The checkpoint at `path`, once its files are found to be as committed; see `read_commit` for the errors."""
        return cls.of(path, read_commit(path, digests=digests))

    @classmethod
    def of(cls, path: Path, commit: Commit) -> "Checkpoint":
        size = sum(file.bytes for file in commit.files.values())
        return cls(path, commit.step, commit.score, size, commit.files[OBJECTIVE].sha256)

    def restore(self, state: TrainState) -> None:
        """Loads the objective, the optimizers and the step number into `state`.

        Raises:
            ValueError: the checkpoint is of another objective, encoder or optimizer.
        """
        # Mapped, not read: the copies below are the only ones in memory.
        saved = torch.load(self.path / OPTIMIZERS, map_location="cpu", weights_only=True, mmap=True)
        self.restore_objective(state.objective)
        self._refuse_other_optimizers(saved, state.optimizers)
        for phase, optimizer in state.optimizers.items():
            # load_state_dict would keep the mapped tensors themselves, and so depend on a file that will be removed
            optimizer.load_state_dict(map_tensors(torch.clone, saved[phase]))
        state.step = self.step

    def restore_objective(self, objective: torch.nn.Module) -> None:
        """Loads the objective alone.

        Raises:
            ValueError: the checkpoint is of another objective or encoder.
        """
        try:
            objective.load_state_dict(load_file(self.path / OBJECTIVE))
        except RuntimeError as error:
            raise ValueError(f"{self.path} holds another objective or encoder than the experiment: {error}") from error

    def _refuse_other_optimizers(self, saved: dict[str, Any], optimizers: dict[str, Optimizer]) -> None:
        def described(groups: dict[str, tuple[str, list[int]]]) -> str:
            return ", ".join(f"{phase}: {kind} of {counts} parameters" for phase, (kind, counts) in groups.items())

        mine = {phase: (type(o).__name__, _parameter_counts(o.param_groups)) for phase, o in optimizers.items()}
        theirs = {
            phase: (s.get("kind") or mine.get(phase, ("?", []))[0], _parameter_counts(s["param_groups"]))
            for phase, s in saved.items()
        }  # version 0.1 did not write the kind
        if mine != theirs:
            raise ValueError(
                f"{self.path} holds other optimizers ({described(theirs)}) than the experiment ({described(mine)}): "
                "give another run directory, or the `optimizer` and `objective` that the run began with"
            )


def newest_checkpoint(directory: Path, on_damaged: Callable[[str], None] = _say) -> Checkpoint | None:
    """The newest checkpoint whose files are all as they were committed; None if there is none.

    A damaged one is passed over, and `on_damaged` receives a line that says what is wrong with it. A writer may save
    and remove checkpoints meanwhile.

    Raises:
        OSError: no checkpoint is whole, and at least one cannot be read: to begin anew would be a mistake.
    """
    unreadable: OSError | None = None
    passed_over: set[Path] = set()
    while True:
        left = [path for path in step_directories(directory) if path not in passed_over]
        if not left:
            break
        try:
            return Checkpoint.read(left[-1])
        except (Damaged, OSError) as error:
            if not os.path.lexists(left[-1]):
                continue  # removed since it was listed, because newer ones have been saved
            unreadable = error if isinstance(error, OSError) else unreadable
            on_damaged(f"checkpoint {left[-1]} is damaged and passed over: {error}")
        passed_over.add(left[-1])
    if unreadable is not None:
        raise OSError(f"no checkpoint below {directory} can be read: {unreadable}") from unreadable
    return None


def checkpoints(directory: Path) -> list[Checkpoint]:
    """All checkpoints whose markers are sound and whose files have the committed sizes, oldest first."""
    found = []
    for path in step_directories(directory):
        try:
            found.append(Checkpoint.read(path, digests=False))
        except (Damaged, OSError):
            continue
    return found


def checkpoint_of(directory: Path, digest: str) -> Checkpoint:
    """The checkpoint with these weights, once every byte was compared.

    Raises:
        ValueError: it is not kept any more, or is damaged; says what is there.
    """
    kept = checkpoints(directory)
    why = f"it keeps {', '.join(checkpoint.path.name for checkpoint in kept) or 'none'}, with other weights"
    for checkpoint in reversed(kept):
        if checkpoint.digest == digest:
            try:
                return Checkpoint.read(checkpoint.path)
            except (Damaged, OSError) as error:
                why = f"{checkpoint.path.name} is damaged: {error}"
    raise ValueError(f"{directory} has no whole checkpoint {digest[:12]}: {why}")


def by_score(found: list[Checkpoint]) -> list[Checkpoint]:
    """Those with a score, best (lowest) first, the newer of equals first."""
    return sorted((c for c in reversed(found) if c.score is not None), key=lambda c: c.score or 0.0)


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same nest of dicts, lists and tuples, with `function` of every tensor in it."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: map_tensors(function, inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(function, inner) for inner in value)
    return value


def _parameter_counts(groups: list[dict[str, Any]]) -> list[int]:
    return [len(group["params"]) for group in groups]
