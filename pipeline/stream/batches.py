"""The stream of a rank: its samples in the plan's order, read ahead by Ray Data on any CPU of the cluster."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pydantic import Field

from pipeline.ingest.store import DEFAULT, Store
from pipeline.stream.patience import Patience
from pipeline.stream.plan import Plan
from pipeline.stream.read import Columns, Reader
from pipeline.stream.views import DeviceViews
from ssl_models.batch import Batch
from ssl_models.config import Config

TASK_SAMPLES = 256  # one data task: long enough to hide its start, short enough for an early first batch
READ_AHEAD_BYTES = 2**28  # of crops waiting for a worker; more would only take memory, and CPU from early steps
SEGMENT_SAMPLES = 2**20  # one Ray Data execution: bounds the memory for references


class DataConfig(Config):
    store: str = Field("", description="a sealed store, made by `feral curate`")
    selection: str = Field(DEFAULT, description="which of its samples: a name given to `feral select`")
    batch_size: int = Field(256, ge=2, description="global: over all workers")
    lanes: int = Field(16, ge=1, description="equal shares of each batch; the most workers that can ever join")

    def open(self) -> Store:
        """The store, through the selection."""
        return Store(self.store, self.selection)


@dataclass(frozen=True)
class Stream:
    """The training samples of a store, in the order of a plan."""

    store: Store
    selection: np.ndarray  # (N,) sample numbers
    plan: Plan
    reader: Reader

    def local(self, step: int, stop: int, rank: int = 0, world_size: int = 1) -> Iterator[Columns]:
        """One rank's batches for the steps [step, stop), read in this process: for tests, and machines without Ray."""
        for number in range(step, stop):
            yield self.reader.read(self._references(number, number + 1, rank, world_size))

    def distributed(
        self, step: int, stop: int, rank: int = 0, world_size: int = 1, cpus: float | None = None
    ) -> Iterator[Columns]:
        """The same batches through Ray Data, using at most `cpus` CPUs at a time."""
        batch = self.plan.batch_size // world_size
        steps = max(1, SEGMENT_SAMPLES // batch)
        for first in range(step, stop, steps):
            references = self._references(first, min(first + steps, stop), rank, world_size)
            yield from read_with_ray(self.reader, references, batch, cpus)

    def _references(self, step: int, stop: int, rank: int, world_size: int) -> pa.Table:
        rows, epochs = self.plan.rank_rows(step, stop, rank, world_size)
        return self.reader.references(self.store, self.selection[rows.ravel()], epochs.ravel())


def captioned(store: Store, selection: np.ndarray) -> np.ndarray:
    """The samples of a selection that have a caption."""
    counts = pc.list_value_length(store.column("captions")).to_numpy()
    return selection[counts[selection] > 0]


def read_with_ray(
    reader: Reader, references: pa.Table, batch_size: int, cpus: float | None = None
) -> Iterator[Columns]:
    """Reads referred samples in their order, in batches (the last may be short).

    What flows through Ray is references in and fixed-shape crops out: encoded bytes never become rows.
    """
    data = reading_dataset(reader, references)
    if cpus is not None:
        from ray.data import ExecutionResources

        view_bytes = reader.geometry.num_views * reader.geometry.size**2 * 3
        data.context.execution_options.resource_limits = ExecutionResources.for_limits(
            cpu=cpus, object_store_memory=max(READ_AHEAD_BYTES, 4 * batch_size * view_bytes)
        )
    yield from data.iter_batches(batch_size=batch_size, batch_format="numpy", prefetch_batches=2)


def reading_dataset(reader: Reader, references: pa.Table):
    """A lazy Ray Dataset of crops, in the order of the references."""
    import logging
    import warnings

    import ray

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its notes would tear a progress line
    tasks = ceil(len(references) / TASK_SAMPLES)
    table = ray.put(references)

    def read(batch: Columns) -> Iterator[Columns]:
        torch.set_num_threads(1)  # one task, one core
        shared = ray.get(table)  # mapped from the object store, not copied
        for task in batch["id"]:
            yield reader.read(shared.slice(int(task) * TASK_SAMPLES, TASK_SAMPLES))

    data = ray.data.range(tasks, override_num_blocks=tasks)
    data.context.execution_options.preserve_order = True
    data.context.execution_options.verbose_progress = False
    data.context.enable_progress_bars = False
    data.context.custom_execution_callback_classes = [Patience]
    data.context.execution_no_progress_timeout_s = -1  # a paused consumer (checkpoint, evaluation) is no fault
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")  # no other way to max_retries in Ray 2.60
        return data.map_batches(read, batch_format="numpy", max_retries=2)  # the default, without end, hides a crash


def to_batch(columns: Columns, views: DeviceViews, device: torch.device) -> Batch:
    """Moves a batch to the device and makes its views there. All samples are of one epoch."""
    ids = _tensor(columns["number"]).to(device)
    crops = _tensor(columns["crops"]).to(device, non_blocking=True)
    tokens = _tensor(columns["tokens"]).to(device) if "tokens" in columns else None
    return Batch(
        views=views(crops, ids, int(columns["epoch"][0])),
        ids=ids,
        tokens=tokens,
        labels=_tensor(columns["label"]).to(device),
    )


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.require(array, requirements="W"))  # Ray's arrays are read-only; torch wants writable
