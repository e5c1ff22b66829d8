"""One trial of a sweep: a normal run, and `validation.json` in its directory, which says what it is worth."""

import json
import os
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.evaluate.online import OnlineProbe
from pipeline.evaluate.validation import Metric, validate
from pipeline.experiment import Experiment, build_experiment
from pipeline.ingest.write import replaced
from pipeline.run import Run
from pipeline.train.attempts import message_of, read_failure
from pipeline.train.cost import cost_of
from pipeline.train.goodput import goodput
from pipeline.train.record import append_event, read_all_metrics, read_events, read_metrics
from pipeline.tune.trials import trial_run
from ssl_models.objectives import build_objective

FILE = "validation.json"
ONLINE_IMAGES = 2_000  # that a trial is judged on while it trains, unless evaluation.online_images says otherwise
TRAINED = ("step", "data wait")  # buckets of goodput that are no overhead


@dataclass(frozen=True)
class Trial:
    """A trial as it stands in `sweep.json`: see `pipeline.tune.sweep`."""

    number: int
    changes: dict[str, Any]
    seed: int | None
    run: str | None
    state: str
    repeat: str | None = None
    score: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    queries: int | None = None  # images that the score is of
    curve: list[tuple[int, float]] = field(default_factory=list)
    images: int = 0
    seconds: float = 0.0
    overhead_seconds: float = 0.0
    overhead: dict[str, float] = field(default_factory=dict)
    images_per_second: float | None = None
    peak_memory_bytes: int | None = None
    loss: float | None = None
    parameters: int | None = None
    error: str | None = None

    @property
    def ended(self) -> bool:
        return self.state in ("finished", "stopped")

    def cost(self, kind: str | None) -> float | None:
        """What is minimised beside the score."""
        return {"seconds": self.seconds, "memory": self.peak_memory_bytes}[kind] if kind else None


@dataclass(frozen=True)
class Judging:
    """How the trials of a sweep are judged: all on the same images."""

    metric: Metric
    selection: str  # of the store
    rungs: tuple[int, ...] = ()  # in images seen; after them, a trial may be stopped


def run_trial(config: dict[str, Any]) -> None:
    """Runs in a process of its own on the cluster: trains, judges, and writes what came of it. A trial that was told to
    stop has saved, and can be taken up again with `feral pretrain`."""
    from ray import tune

    from pipeline.train.fit import Stopped, fit

    experiment, judging = build_experiment(json.loads(config["experiment"])), Judging(**config["judging"])
    run = Run.prepare(trial_run(experiment, Path(config["directory"])), experiment, config["command"])
    append_event(run.path, "command", pid=os.getpid(), time=config["asked"])
    (run.path / FILE).unlink(missing_ok=True)  # what an earlier try came to
    batch, code = experiment.data.batch_size, 1
    images = experiment.evaluation.online_images or ONLINE_IMAGES

    def judged(found: dict[str, Any]) -> None:
        tune.report({"images": found["step"] * batch, "score": found["knn"]})

    try:
        last = max((event["step"] for event in read_events(run.path) if event["event"] == "probe"), default=0)
        steps = [step for rung in judging.rungs if last < (step := ceil(rung / batch)) < experiment.total_steps]
        probe = OnlineProbe(run, images, lambda line: None, at=steps, on_judged=judged, selection=judging.selection)
        try:
            fit(experiment, run, sharing=config["sharing"], probe=probe if steps else None)
        except Stopped as stopped:
            _write(run, step=stopped.step, stopped=True)
        else:
            append_event(run.path, "evaluate")
            found = validate(run, judging.metric, config["sharing"], judging.selection, images)
            append_event(run.path, "probe", **found.probe)
            append_event(run.path, "evaluated")
            hits = {name: np.packbits(values).tobytes().hex() for name, values in found.hits.items()}
            _write(run, step=experiment.total_steps, scores=found.scores, queries=found.queries, hits=hits)
        code = 0
    except Exception as error:
        _write(run, error=message_of(error).splitlines()[0])
        raise
    finally:
        append_event(run.path, "end", code=code)
    tune.report({"done": True})


def _write(run: Run, **facts: Any) -> None:
    with replaced(run.path / FILE) as file:
        file.write(json.dumps(facts, indent=1).encode())


def read_trial(
    number: int,
    changes: dict[str, Any],
    experiment: Experiment,
    directory: Path,
    metric: Metric,
    repeat: str | None = None,
    error: str | None = None,
) -> Trial:
    """What the run directory of a trial tells. `error`: what its process died of, where it could not say so itself.

    A trial counts as finished or stopped if it is so with this metric: another metric judges it again.
    """
    run = Run(trial_run(experiment, directory))
    found = json.loads((run.path / FILE).read_text()) if (run.path / FILE).exists() else {}
    scores = found.get("scores", {})
    state = "running"
    if found.get("step") == experiment.total_steps and metric in scores:
        state = "finished"
    elif found.get("stopped") and run.experiment_file.exists():
        state = "stopped"
    elif error := found.get("error") or error:
        state = "failed"
    rows, events = read_metrics(run.path), read_events(run.path)
    spent = goodput(events, read_all_metrics(run.path)).seconds if events else {}
    overhead = {name: round(seconds, 2) for name, seconds in spent.items() if name not in (*TRAINED, "idle")}
    cost = cost_of(rows) if rows else None
    batch = experiment.data.batch_size
    probes = {event["step"]: event["knn"] for event in events if event["event"] == "probe"}
    return Trial(
        number,
        changes,
        experiment.training.seed,
        str(run.path.relative_to(directory.absolute())),
        state,
        repeat,
        score=scores[metric] if state == "finished" else None,
        scores=scores,
        queries=found.get("queries"),
        curve=[(step * batch, knn) for step, knn in sorted(probes.items()) if knn is not None],
        images=rows[-1]["step"] * batch if rows else 0,
        seconds=round(cost.seconds, 2) if cost else 0.0,
        overhead_seconds=round(sum(overhead.values()), 2),
        overhead=overhead,
        images_per_second=cost.images_per_second if cost else None,
        peak_memory_bytes=cost.peak_memory_bytes if cost else None,
        loss=rows[-1]["loss"] if rows else None,
        parameters=encoder_parameters(experiment),
        error=error if state == "failed" else None,
    )


def read_hits(run: Path, metric: Metric, queries: int) -> np.ndarray:
    """Which of the held-back images a finished trial was right about: (queries,) of 0 and 1."""
    packed = bytes.fromhex(json.loads((run / FILE).read_text())["hits"][metric])
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=queries)


def diverged(trial: Trial, directory: Path) -> bool:
    """Whether a trial failed for a value that was not finite: that tells something about its settings."""
    failure = read_failure(directory / trial.run) if trial.run and trial.state == "failed" else None
    return failure is not None and failure["kind"] == "NotFinite"


def encoder_parameters(experiment: Experiment) -> int:
    with torch.device("meta"):
        encoder = build_objective(experiment.objective, experiment.encoder).encoder
    return sum(weight.numel() for weight in encoder.parameters())
