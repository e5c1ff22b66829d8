"""What an MLflow server has of a run: settings, metrics, scores; brought up to date from the run's own files.

Nothing is queued in memory: the queue is `metrics.jsonl`, and RUN/mlflow.json says how far it was taken over. What is
sent twice is one value there, so that any pass can be done again. Steps that were done again after a fault stand there
twice, as in the file.
"""

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pipeline.ingest.write import replaced
from pipeline.mirror.server import NotMirrored, Server, calling, connect, wanted
from pipeline.run import Run
from pipeline.settings import settings
from pipeline.train.record import METRICS, PLACE, Rows, added

FILE = "mlflow.json"
PAUSE, LONGEST_PAUSE = 10.0, 300.0  # seconds between passes; doubled up to the other while none succeeds
ROWS = 500  # of metrics a pass, at most: of more, some are left out, evenly
PATIENCE = 20.0  # seconds that the end of a command may wait for the last pass
AGAIN = "the same command once more, or `feral ledger mirror`, sends the rest"
MOST_VALUES, MOST_PARAMS, LONGEST_PARAM = 1000, 100, 6000  # of a call, by MLflow's own rules
RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"  # MLflow's words


@dataclass
class RunCopy:
    """What `server` has of `run`."""

    server: Server
    run: Run
    id: str = ""
    position: int = 0  # bytes of metrics.jsonl that were taken over
    judged: float = 0.0  # when the evaluation was written that was taken over

    def update(self, status: str | None = None) -> None:
        """Sends what is new. `status`: of the run from now on; None: as it was.

        Raises:
            NotMirrored: not all of it was taken; the next call goes on.
        """
        with calling():
            if not self.id:
                self._open()
            if status == RUNNING:
                self.server.client.update_run(self.id, status)
            self._send_rows()
            self._send_scores()
            if status not in (None, RUNNING):
                self.server.client.set_terminated(self.id, status)

    def _open(self) -> None:
        """Finds the run on the server, or makes it there, and sends its settings."""
        from mlflow.entities import Param, RunTag

        client, experiment = self.server.client, self.run.experiment
        known = self._known()
        if known is None:
            found = client.get_experiment_by_name(self.server.name)
            group = found.experiment_id if found else client.create_experiment(self.server.name)
            known = {"run": client.create_run(group, run_name=self.run.path.name).info.run_id, "position": 0}
            client.set_terminated(known["run"], FINISHED)  # unless a command that works on it says something else
        self.id, self.position = known["run"], known["position"]
        self._note()
        flat = settings(experiment.model_dump(mode="json", exclude={"cluster"}))  # where it is computed may change
        for part in _parts([Param(key, _text(value)) for key, value in flat.items()], MOST_PARAMS):
            client.log_batch(self.id, params=part)
        commit = self.run.commands[-1].get("commit") if self.run.commands_file.exists() else None
        tags = {"feral.run": experiment.digest, "feral.path": str(self.run.path), "feral.commit": commit or "unknown"}
        client.log_batch(self.id, tags=[RunTag(key, value) for key, value in tags.items()])

    def _known(self) -> dict[str, Any] | None:
        """What the run's file says of this server, if the server still has that."""
        from mlflow.exceptions import MlflowException

        try:
            known = json.loads((self.run.path / FILE).read_text())
        except (OSError, ValueError):
            return None
        if known.get("server") != self.server.shown:
            return None
        try:
            info = self.server.client.get_run(known["run"]).info
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return known if info.lifecycle_stage == "active" else None

    def _note(self) -> None:
        with replaced(self.run.path / FILE) as file:
            known = {"server": self.server.shown, "run": self.id, "position": self.position}
            file.write(json.dumps(known).encode())

    def _send_rows(self) -> None:
        from mlflow.entities import Metric

        rows, position = added(self.run.path / METRICS, self.position)
        values = [
            Metric(name, value, int(1000 * row["time"]), row["step"])
            for row in thinned(rows, ROWS)
            for name, value in measured(row).items()
        ]
        for part in _parts(values, MOST_VALUES):
            self.server.client.log_batch(self.id, metrics=part)
        if position > self.position:
            self.position = position
            self._note()

    def _send_scores(self) -> None:
        from mlflow.entities import Metric

        file = self.run.evaluation_file
        written = file.stat().st_mtime if file.exists() else 0.0
        if written == self.judged or (evaluation := self.run.evaluation) is None:
            return
        found = {
            f"evaluation/{score.name}{suffix}": value
            for score in evaluation.scores
            for suffix, value in (("", score.trained), ("/random_encoder", score.random_encoder),
                                  ("/raw_pixels", score.raw_pixels), ("/supervised", score.supervised))
            if value is not None
        }  # fmt: skip
        if "trained" in evaluation.health:
            health = evaluation.health["trained"]
            found |= {f"evaluation/health/{name}": getattr(health, name) for name in ("rank", "spread", "mean_cosine")}
        sent = [Metric(name, value, int(1000 * written), evaluation.step) for name, value in found.items()]
        self.server.client.log_batch(self.id, metrics=sent)
        self.judged = written


def measured(row: Mapping[str, Any]) -> dict[str, float]:
    """The measurements of a row of `metrics.jsonl`."""
    return {
        name: float(value)
        for name, value in row.items()
        if name not in PLACE and isinstance(value, int | float) and not isinstance(value, bool)
    }


def thinned(rows: Rows, most: int) -> Rows:
    """At most so many rows, evenly spread, the last among them."""
    stride = -(-len(rows) // most) or 1
    return rows[::-1][::stride][::-1]


def _text(value: Any) -> str:
    return (value if isinstance(value, str) else json.dumps(value))[:LONGEST_PARAM]


def _parts(values: list[Any], size: int) -> Iterator[Sequence[Any]]:
    return (values[start : start + size] for start in range(0, len(values), size))


class RunMirror:
    """Mirrors a run while a command works on it, from a thread of its own that nobody waits for, but `close` for some
    seconds. Where no server is named it does nothing. `tell` takes lines for a person."""

    def __init__(self, run: Run, tell: Callable[[str], None], *, pause: float = PAUSE) -> None:
        self.run, self.tell, self.pause = run, tell, pause
        self.status = RUNNING
        self.ending, self.over = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        if wanted():
            self.thread.start()

    def close(self, code: int, patience: float = PATIENCE) -> None:
        """Sends the rest, and that the command ended with an exit code."""
        if not self.thread.is_alive():
            return
        self.status = FINISHED if code == 0 else KILLED if code > 128 else FAILED
        self.ending.set()
        self.thread.join(patience)
        if self.thread.is_alive():
            self.over.set()
            self.tell(f"MLflow did not take all of the run in {patience:g} s: {AGAIN}")

    def _work(self) -> None:
        with suppress(OSError, AttributeError):  # not on every system
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        try:
            copy = RunCopy(connect(), self.run)
        except NotMirrored as error:
            self.tell(f"not mirrored to MLflow: {error}")
            return
        pause, well = self.pause, None
        while not self.over.is_set():
            last = self.ending.is_set()
            try:
                copy.update(self.status)
            except NotMirrored as error:
                if well is not False:
                    self.tell(f"MLflow at {copy.server.shown}: {error}; the run goes on, and this is tried again")
                pause, well = min(2 * pause, LONGEST_PAUSE), False
            else:
                if not well:
                    self.tell(f"mirrored to MLflow at {copy.server.shown}")
                if last:
                    return
                pause, well = self.pause, True
            if last:
                self.over.wait(1)
            else:
                self.ending.wait(pause)
