"""What a run was fed: how many samples of each of its stores, as planned and as consumed."""

from collections.abc import Sequence

import numpy as np

from pipeline.experiment import Experiment
from pipeline.ingest.selection import read_selection
from pipeline.ingest.store import Store
from pipeline.ingest.write import replaced
from pipeline.run import Run
from pipeline.train.record import Rows, read_metrics
from ssl_models.config import Config

INPUTS = "inputs.json"


class Input(Config):
    """One store of a run, through a selection."""

    store: str  # its path
    selection: str
    store_digest: str  # of the manifest
    selection_digest: str
    images: int  # training images of the selection
    planned: int  # samples until the run's last step, an image each time that it comes
    consumed: int  # samples of the steps that count


class Inputs(Config):
    """`inputs.json`: the stores of a run, oldest first; the last is its own, the others are replayed."""

    step: int  # until which samples were consumed
    stores: tuple[Input, ...]

    @property
    def line(self) -> str:
        """As in: 14,977 of dump1, 45,023 of dump2 (planned: 15,000, 45,000)."""
        parts = [f"{one.consumed:,} of {shown(one.store, one.selection)}" for one in self.stores]
        planned = ", ".join(f"{one.planned:,}" for one in self.stores)
        return f"{', '.join(parts)} (planned: {planned})"


def shown(store: str, selection: str) -> str:
    """A store's name, with the selection where it is not the usual one."""
    name = store.rstrip("/").rpartition("/")[2]
    return name if selection == "default" else f"{name}@{selection}"


def inputs_of(run: Run) -> Inputs:
    """What a run was fed until now: planned by the shares of its stores, consumed by the rows of the steps that count.

    Raises:
        ValueError: a store is gone, or not what it was when the run began.
    """
    experiment, rows = run.experiment, read_metrics(run.path)
    stores = experiment.open_stores()
    step = rows[-1]["step"] if rows else experiment.training.continue_step
    found = [
        Input(
            store=str(store.path),
            selection=store.selection,
            store_digest=store.manifest.digest,
            selection_digest=read_selection(store, store.selection).digest,
            images=len(experiment.training_samples(store)[0]),
            planned=planned,
            consumed=consumed,
        )
        for store, planned, consumed in zip(
            stores, planned_samples(experiment, stores), consumed_samples(experiment, rows), strict=True
        )
    ]
    return Inputs(step=step, stores=tuple(found))


def write_inputs(run: Run) -> Inputs:
    """Writes `inputs.json`. Raises ValueError as `inputs_of`."""
    found = inputs_of(run)
    with replaced(run.path / INPUTS) as file:
        file.write(found.model_dump_json(indent=1).encode())
    return found


def planned_samples(experiment: Experiment, stores: Sequence[Store]) -> list[int]:
    """Samples of each store in the whole run: the new one's share of each batch, and the rest in proportion to the
    older ones' entries, rounded to whole samples that sum to all."""
    data = experiment.data
    steps = experiment.total_steps - experiment.training.continue_step
    entries = [_entries(experiment, store) for store in stores]
    if not data.replayed:
        return _shared(steps * data.batch_size, entries)
    return [*_shared(steps * data.replayed, entries[:-1]), steps * (data.batch_size - data.replayed)]


def consumed_samples(experiment: Experiment, rows: Rows) -> list[int]:
    """Samples of each store in the steps of some rows, each step in one of them."""
    if experiment.data.replay:
        counts = [row["stores"] for row in rows]
        return np.sum(counts, axis=0).tolist() if counts else [0] * (len(experiment.data.replay) + 1)
    done = rows[-1]["step"] - experiment.training.continue_step if rows else 0
    return [done * experiment.data.batch_size]


def _entries(experiment: Experiment, store: Store) -> float:
    samples, weights = experiment.training_samples(store)
    return len(samples) if weights is None else float(np.sum(weights, dtype=np.float64))


def _shared(total: int, entries: Sequence[float]) -> list[int]:
    ends = np.round(np.cumsum(entries) / sum(entries) * total).astype(int)
    return np.diff(ends, prepend=0).tolist()
