"""The report of a run: one page that opens anywhere, offline, and says how good the encoder is, and what tells so."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.evaluate.forgetting import read_forgetting
from pipeline.evaluate.protocol import Evaluation
from pipeline.experiment import Experiment
from pipeline.ingest.selection import read_selection
from pipeline.ingest.store import DATA_CARD, Store
from pipeline.report import pictures
from pipeline.report.curves import draw_curves, probe_rows
from pipeline.report.efficiency import convergence_plots, efficiency_plot
from pipeline.report.judged import judged_content
from pipeline.report.lineage import made_with, stages
from pipeline.report.page import Part, write_page
from pipeline.report.plane import run_plane
from pipeline.run import Run
from pipeline.settings import describe
from pipeline.stream.views import ViewsConfig
from pipeline.train.checkpoints import Checkpoint
from pipeline.train.cost import cost_of
from pipeline.train.goodput import BUCKETS, goodput, goodput_line, percent
from pipeline.train.inputs import inputs_of
from pipeline.train.record import Rows, attempts, read_all_metrics, read_events, surviving
from pipeline.tune.finetune_table import read_table
from ssl_models.objectives import MAE, OBJECTIVES, build_objective


def write_report(run: Run) -> Path:
    """Writes `report.html` of a run, whole or not at all, from what the run's directory and its store hold.

    What is not there yet, or can no longer be read, is left out with the reason: an unfinished or unjudged run has a
    report too. Needs no Ray and no accelerator.
    """
    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng(devices=[]):
            return write_page(run.report_file, "run_report.html", _content(run))
    finally:
        torch.set_num_threads(threads)


def _content(run: Run) -> dict[str, Any]:
    experiment, evaluation, all_rows = run.experiment, run.evaluation, read_all_metrics(run.path)
    rows = surviving(all_rows)
    checkpoint = run.newest_checkpoint()
    events = read_events(run.path)
    spent = Part.of(lambda: time_spent(events, all_rows))
    opened = Part.of(experiment.data.open)
    store: Store | None = opened.content

    def of_store(make: Callable[[Store], Any]) -> Part:
        return opened if store is None else Part.of(lambda: make(store))

    def of_checkpoint(make: Callable[[Checkpoint, Store], Any]) -> Part:
        if checkpoint is None:
            return Part(missing="the run has no checkpoint yet")
        return of_store(lambda store: make(checkpoint, store))

    rebuilt = retrieved = None  # no such section
    if issubclass(OBJECTIVES[experiment.objective.name], MAE):
        rebuilt = of_checkpoint(lambda checkpoint, store: pictures.reconstructions(experiment, checkpoint, store))
    if experiment.compares_text:
        retrieved = of_checkpoint(lambda checkpoint, store: pictures.retrieved_captions(experiment, checkpoint, store))
    finetuned, sides = Part.of(lambda: read_table(run)), (f"from {run.path.name}", "from scratch")
    forgotten = Part.of(lambda: read_forgetting(run.path))
    return {
        "run": run,
        "headline": headline(experiment, rows, checkpoint, store),
        "experiment": experiment,
        **judged_content(evaluation, run.evaluation_file, of_store, _twin_command(run, evaluation)),
        "told_classes": experiment.needs_labels,
        "plane": run_plane(evaluation, events),
        "curves": draw_curves(rows, probe_rows(events, experiment.data.batch_size)),
        "efficiency": finetuned.content and efficiency_plot(finetuned.content["rows"], sides),
        "convergence": convergence_plots(finetuned.content["convergence"], sides) if finetuned.content else [],
        "finetuned": finetuned if finetuned.content or finetuned.missing else None,  # else no such section
        "time": spent,
        "restarts": len(spent.content["attempts"] if spent.content else attempts(rows)) - 1,
        "operations": operations(experiment.views),
        "views": of_store(lambda store: pictures.training_views(experiment)),
        "reconstructions": rebuilt,
        "retrieved": retrieved,
        "data": of_store(data_summary),
        "stages": stages(run, store, checkpoint, evaluation),
        "made_with": made_with(run),
        "forgotten": forgotten if forgotten.content or forgotten.missing else None,
        "inputs": Part.of(lambda: inputs_of(run)) if experiment.data.replay else None,  # else no such table
        "commands": [
            {**note, "line": shlex.join(note["command"]), "versions": {"python": note["python"], **note["packages"]}}
            for note in run.commands
        ],
        "settings": [(key, json.dumps(value, default=str), meaning) for key, value, meaning in describe(experiment)],
    }


def _twin_command(run: Run, evaluation: Evaluation | None) -> str | None:
    """What trains the supervised twin; None: there are no labels, or the run itself learned from them."""
    if evaluation is None or evaluation.score("linear_top1") is None or run.experiment.needs_labels:
        return None
    return f"feral evaluate {shlex.quote(str(run.path))} --supervised"


# ---- headline ------------------------------------------------------------------------------------------------------


def headline(experiment: Experiment, rows: Rows, checkpoint: Checkpoint | None, store: Store | None) -> dict[str, Any]:
    """What was trained on what, how far, how fast."""
    with torch.device("meta"):
        encoder = build_objective(experiment.objective, experiment.encoder).encoder
    step = max(rows[-1]["step"] if rows else 0, checkpoint.step if checkpoint else 0)
    images = None
    if store is not None and not experiment.data.replay:  # of several stores, the table of the data tells it
        images = len(experiment.training_samples(store)[0])
    seen = max(0, step - experiment.training.continue_step) * experiment.data.batch_size
    return {
        "objective": OBJECTIVES[experiment.objective.name].__name__,
        "encoder": experiment.encoder.name,
        "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
        "images": images,
        "data": Path(experiment.data.store).name + _older(len(experiment.data.replay)),
        "step": step,
        "total": experiment.total_steps,
        "finished": step >= experiment.total_steps,
        "checkpoint": checkpoint.step if checkpoint else None,
        "images_seen": seen,
        "passes": seen / images if images else None,
        "cost": cost_of(rows) if rows else None,
    }


def _older(count: int) -> str:
    return f" and {count} older store{'s' if count > 1 else ''}" if count else ""


def operations(views: ViewsConfig) -> str:
    """What is done at random to make a view."""
    done = {
        "cropped": True,
        "flipped": views.flip,
        "rotated": views.rotate,
        "recoloured": views.jitter_probability and any(views.jitter),
        "turned grey": views.grayscale,
        "blurred": views.blur,
        "solarized": views.solarize,
        "reduced to edges": views.sobel,
        "noised": views.noise,
        "partly cut out": views.cutout,
    }
    *words, last = [word for word, is_done in done.items() if is_done]
    return f"{', '.join(words)} and {last}" if words else last


# ---- time ----------------------------------------------------------------------------------------------------------


def time_spent(events: Rows, rows: Rows) -> dict[str, Any]:
    """Where the wall-clock went, and the attempts at the run.

    Raises:
        ValueError: the run noted no events.
    """
    found = goodput(events, rows)
    shares = {name: seconds / (found.wall_seconds or 1.0) for name, seconds in found.seconds.items()}
    return {
        "line": goodput_line(found),
        "buckets": [
            {"name": name, "seconds": found.seconds[name], "share": shares[name], "meaning": meaning}
            for name, meaning in BUCKETS.items()
        ],
        "words": ", ".join(f"{name} {percent(share)}" for name, share in shares.items() if share),
        "commands": found.commands,
        "attempts": found.attempts,
    }


# ---- data ----------------------------------------------------------------------------------------------------------


def data_summary(store: Store) -> dict[str, Any]:
    """What was trained on: the store and its selection, as manifest, index and the selection's card say."""
    numbers = np.concatenate([store.select("train"), store.select("test")])
    labels = store.column("label").to_numpy()[numbers]
    counts = np.bincount(labels[labels >= 0], minlength=len(store.manifest.classes))
    sides = {
        name: np.quantile(store.column(name).to_numpy()[numbers], (0, 0.5, 1)).astype(int).tolist()
        for name in ("width", "height")
    }
    seconds = [value for name, value in store.manifest.seconds.items() if not name.startswith("tasks")]
    return {
        "manifest": store.manifest,
        "selection": read_selection(store, store.selection),
        "path": store.path,
        "card": store.path / DATA_CARD,
        "classes": list(zip(store.manifest.classes, counts.tolist(), strict=True)),
        "unlabelled": int((labels < 0).sum()),
        "sizes": [f"{width} × {height}" for width, height in zip(sides["width"], sides["height"], strict=True)],
        "bytes": sum(shard.bytes for shard in store.manifest.shards),
        "seconds": sum(seconds),
    }
