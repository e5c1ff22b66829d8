"""A run is a directory: stages hand over by path."""

import json
import platform
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.evaluate.protocol import Evaluation
from pipeline.experiment import FITTED, ORIGINS, Experiment, build_experiment
from pipeline.ingest.write import replaced
from pipeline.redaction import without_secrets
from pipeline.settings import settings
from pipeline.train.checkpoints import Checkpoint, checkpoint_of, checkpoints, newest_checkpoint
from pipeline.train.record import append_row, read_rows


@dataclass(frozen=True)
class Run:
    path: Path
    pinned: str | None = None  # digest of the weights that a name of the ledger stands for; None: the newest

    @property
    def experiment_file(self) -> Path:
        return self.path / "experiment.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def evaluation_file(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def embeddings(self) -> Path:
        return self.path / "embeddings"

    @property
    def report_file(self) -> Path:
        return self.path / "report.html"

    @property
    def commands_file(self) -> Path:
        return self.path / "commands.jsonl"

    @classmethod
    def prepare(cls, path: Path, experiment: Experiment, command: list[str]) -> "Run":
        """Makes the directory, or takes up the one that is there; notes the command.

        Raises:
            ValueError: the directory belongs to another experiment; says what differs.
        """
        run = cls(path.absolute())
        if run.experiment_file.exists():
            run._refuse_other(experiment)
        run.path.mkdir(parents=True, exist_ok=True)
        content = experiment.model_dump_json(indent=1).encode()
        if not run.experiment_file.exists() or run.experiment_file.read_bytes() != content:
            with replaced(run.experiment_file) as file:
                file.write(content)
        append_row(run.commands_file, {"command": [*map(without_secrets, command)], "time": time.time(), **_machine()})
        return run

    @classmethod
    def open(cls, path: Path) -> "Run":
        """A run that exists.

        Raises:
            ValueError: there is none at `path`.
        """
        run = cls(path.absolute())
        if not run.experiment_file.exists():
            raise ValueError(f"{path} is no run: it has no experiment.json; `feral pretrain` makes runs")
        return run

    @property
    def experiment(self) -> Experiment:
        """
        Raises:
            ValueError: its file is damaged, or of settings that this version refuses.
        """
        try:
            content = json.loads(self.experiment_file.read_bytes())
        except ValueError as error:  # of JSON, and of bytes that are no text
            raise ValueError(
                f"{self.experiment_file} is damaged ({error}): restore it, or remove it and give the command that "
                f"began the run again, as {self.commands_file} has it: the checkpoints are taken up"
            ) from None
        return build_experiment(content)

    def start_of(self, experiment: Experiment) -> Experiment:
        """An experiment that leaves open which weights of another run it starts from, with those that this run, if it
        is there, has started from: it goes on with them, whatever became of the other one; and with what its stores
        held then."""
        asked = experiment.training
        if not self.experiment_file.exists() or asked.start_digest or asked.continue_digest:
            return experiment
        here = self.experiment
        mine, theirs = (settings(each.model_dump(mode="json")) for each in (here, experiment))
        if any(mine.get(key) != theirs.get(key) for key in ORIGINS):
            return experiment  # another one, which will be told
        return experiment.override({key: mine[key] for key in FITTED})

    @property
    def evaluation(self) -> Evaluation | None:
        if not self.evaluation_file.exists():
            return None
        return Evaluation.model_validate_json(self.evaluation_file.read_text())

    @property
    def commands(self) -> list[dict[str, Any]]:
        """The commands that worked on this run, oldest first, each with time, versions and machine.

        Raises:
            ValueError: none is on record.
        """
        found = read_rows(self.commands_file)
        if not found:
            raise ValueError(f"{self.commands_file} names no command: restore it, or resume the run, which notes one")
        return found

    def newest_checkpoint(self) -> Checkpoint | None:
        """The newest whole one; of a run that was found by a name, the one that the name stands for.

        Raises:
            ValueError: that one is gone or damaged.
        """
        if self.pinned is not None:
            return checkpoint_of(self.checkpoints, self.pinned)
        return newest_checkpoint(self.checkpoints)

    def kept_checkpoints(self) -> list[Checkpoint]:
        """Oldest first, by their sizes only."""
        return checkpoints(self.checkpoints)

    def _refuse_other(self, experiment: Experiment) -> None:
        here = self.experiment
        if here.digest == experiment.digest:
            return
        mine, new = (settings(e.model_dump(mode="json", exclude={"cluster"})) for e in (here, experiment))
        differ = [key for key in {**mine, **new} if mine.get(key) != new.get(key)]
        changed = [f"{key}: {mine.get(key)} there, {new.get(key)} now" for key in differ]
        raise ValueError(
            f"{self.path} holds another experiment ({'; '.join(changed[:5])}): give another --run directory, or the "
            "settings that it began with"
        )


def _commit() -> str | None:
    """Of the code that runs, with "-dirty" where it was changed since; None where it is no checkout."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    with suppress(OSError, subprocess.SubprocessError):  # no git, or not for this user: then it is not on record
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    return None


def _machine() -> dict[str, Any]:
    import os
    from importlib.metadata import version

    packages = {name: version(name) for name in ("feral", "torch", "timm", "ray")}
    return {
        "commit": _commit(),
        "python": sys.version.split()[0],
        "packages": packages,
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
    }
