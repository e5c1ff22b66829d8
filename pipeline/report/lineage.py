"""Where an encoder comes from and where it went, as far as the run's directory and its store have it on record."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.evaluate.protocol import Evaluation
from pipeline.export.exporting import is_export
from pipeline.ingest.selection import read_selection
from pipeline.ingest.store import DATA_CARD, Store
from pipeline.report.page import link_to
from pipeline.run import Run
from pipeline.train.checkpoints import Checkpoint
from pipeline.train.record import read_events
from pipeline.tune.finetune import FOLDER
from pipeline.tune.finetune_table import TABLE


@dataclass(frozen=True)
class Stage:
    """A link of the chain."""

    kind: str
    name: str
    facts: tuple[str, ...] = ()
    digest: str = ""
    link: str | None = None  # relative to the run's directory


def stages(run: Run, store: Store | None, checkpoint: Checkpoint | None, evaluation: Evaluation | None) -> list[Stage]:
    """The chain, oldest first: dump, store, selection, the run whose encoder it began with, run, checkpoint, and what
    was made of it. What is not on record is not there."""
    return [
        *(_data(run, store) if store is not None else ()),
        *_start(run),
        _training(run),
        *(_made(run, checkpoint, evaluation) if checkpoint is not None or evaluation is not None else ()),
    ]


def _data(run: Run, store: Store) -> Iterator[Stage]:
    manifest, selection = store.manifest, read_selection(store, store.selection)
    yield Stage(
        "dump", Path(manifest.source).name or manifest.source, (f"{manifest.seen:,} samples seen",), manifest.listing
    )
    sealed = f"sealed {manifest.created[:10]}"
    yield Stage(
        "store", store.path.name, (f"{manifest.admitted:,} samples stored", sealed), manifest.digest,
        link_to(store.path / DATA_CARD, run.path),
    )  # fmt: skip
    kept = [f"{selection.kept:,} samples", *(f"{count:,} {split}" for split, count in selection.splits.items())]
    if selection.based_on:
        kept.append(f"narrows {selection.based_on[:12]}")
    yield Stage("selection", selection.name, tuple(kept), selection.digest)


def _start(run: Run) -> Iterator[Stage]:
    training = run.experiment.training
    origins = (
        ("encoder from", training.start_from, training.start_digest, "the weights that it began with"),
        ("cooled down from" if training.cooldown else "goes on from", training.continue_from, training.continue_digest,
         f"all of its state at step {training.continue_step:,}"),
    )  # fmt: skip
    for kind, path, digest, what in origins:
        if path:
            yield Stage(kind, Path(path).name, (what,), digest or "", link_to(Path(path) / "report.html", run.path))


def _training(run: Run) -> Stage:
    experiment = run.experiment
    facts = (f"{experiment.objective.name}, {experiment.encoder.name}", f"seed {experiment.training.seed}")
    return Stage("run", run.path.name, facts, experiment.digest)


def _made(run: Run, checkpoint: Checkpoint | None, evaluation: Evaluation | None) -> Iterator[Stage]:
    if checkpoint is not None:
        yield Stage("checkpoint", checkpoint.path.name, (f"step {checkpoint.step:,}",), checkpoint.digest)
    if evaluation is not None:
        yield Stage(
            "evaluation", evaluation.checkpoint, (f"{len(evaluation.scores)} scores",), evaluation.encoder_digest
        )
    table = run.path / FOLDER / TABLE
    if table.exists():
        yield Stage("fine-tuning", FOLDER, link=link_to(table, run.path))
    for folder in sorted((run.path / "exports").glob("*")):
        if is_export(folder):
            yield Stage("export", folder.name, link=link_to(folder / "README.md", run.path))


def made_with(run: Run) -> list[tuple[str, str]]:
    """Code, libraries, machine and workers of the newest command that worked on the run."""
    note = run.commands[-1]
    versions: dict[str, Any] = {"python": note["python"], **note["packages"]}
    code = f"feral {versions.pop('feral')}" + (f", commit {note['commit']}" if note.get("commit") else "")
    attempts = [event for event in read_events(run.path) if event["event"] == "attempt"]
    workers = ", ".join(dict.fromkeys(str(event["world_size"]) for event in attempts))
    device = "GPU" if run.experiment.cluster.use_gpu else "CPU"
    rows = [
        ("code", code),
        ("libraries", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("machine of the command", f"{note['machine']}, {note['cpus']} CPUs"),
    ]
    return [*rows, ("workers", f"{workers} on {device}")] if workers else rows
