"""Checkpoints: a directory a step, whole only when its commit marker says so."""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from pipeline.train.loop import TrainState

MARKER = "COMMIT.json"  # written last: size and sha256 of every other file


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    path: Path
    step: int

    def restore(self, state: TrainState) -> None:
        """Loads the objective, the optimizers and the step number into `state`.

        Raises:
            ValueError: the checkpoint is of another objective or encoder.
        """
        self.restore_objective(state.objective)
        saved = torch.load(self.path / "optimizers.pt", map_location="cpu", weights_only=True)
        for phase, optimizer in state.optimizers.items():
            optimizer.load_state_dict(saved[phase])
        state.step = self.step

    def restore_objective(self, objective: torch.nn.Module) -> None:
        try:
            objective.load_state_dict(load_file(self.path / "objective.safetensors"))
        except RuntimeError as error:
            raise ValueError(f"{self.path} holds another objective or encoder than the experiment: {error}") from error


def save_checkpoint(directory: Path, state: TrainState, keep: int) -> Checkpoint:
    """Writes `directory/step_*` whole or not at all, then removes all but the newest `keep`."""
    target = directory / f"step_{state.step:09d}"
    temporary = directory / f".{target.name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    tensors = {name: tensor.contiguous() for name, tensor in state.objective.state_dict().items()}
    save_file(tensors, temporary / "objective.safetensors")
    torch.save({phase: opt.state_dict() for phase, opt in state.optimizers.items()}, temporary / "optimizers.pt")
    files = {path.name: _fingerprint(path) for path in sorted(temporary.iterdir())}
    (temporary / MARKER).write_text(json.dumps({"step": state.step, "files": files}, indent=1))
    shutil.rmtree(target, ignore_errors=True)  # a damaged one of the same step
    temporary.rename(target)
    for old in _steps(directory)[:-keep]:
        shutil.rmtree(old)
    return Checkpoint(target, state.step)


def newest_checkpoint(directory: Path) -> Checkpoint | None:
    """The newest checkpoint whose files are all as they were committed; damaged ones are passed over."""
    for path in reversed(_steps(directory)):
        try:
            marker = json.loads((path / MARKER).read_text())
            if all(_fingerprint(path / name) == known for name, known in marker["files"].items()):
                return Checkpoint(path, marker["step"])
        except (OSError, ValueError, KeyError):
            pass
        print(f"checkpoint {path} is damaged and passed over", flush=True)
    return None


def _steps(directory: Path) -> list[Path]:
    return sorted(directory.glob("step_*"))


def _fingerprint(path: Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}
