"""The stream of a rank: its samples in the plan's order, as batches."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from math import ceil
from os import scandir
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field, field_validator, model_validator
from torch.utils.data import IterableDataset, get_worker_info

from pipeline.ingest.store import DEFAULT, MANIFEST, SHARDS, Store
from pipeline.ingest.verify import quarantined
from pipeline.stream.labels import few_labels
from pipeline.stream.plan import Plan
from pipeline.stream.ray_reading import Reads, read_with_ray
from pipeline.stream.read import Columns, Reader
from pipeline.stream.views import DeviceViews, to_device
from ssl_models.batch import Batch
from ssl_models.config import Config

MAX_EPOCHS = 2**24  # of a run; the copies of a sample in an epoch are visits of their own
SEGMENT_SAMPLES = 2**20  # one Ray Data execution: bounds the memory for references


class DataConfig(Config):
    store: str = Field("", description="a sealed store, made by `feral curate`")
    selection: str = Field(DEFAULT, description="which of its samples: a name given to `feral select`")
    replay: tuple[str, ...] = Field(
        (), description="older stores whose images come again, oldest first; STORE@NAME: those of a selection"
    )
    replay_share: float | None = Field(
        0.25, gt=0, lt=1, description="of each batch that comes from them; null: all images of all stores alike"
    )
    digests: tuple[str, ...] = Field(
        (), description="of all stores and their selections, oldest first: a change is noticed; filled in"
    )
    first_step: int = Field(0, ge=0, description="step at which the order of samples begins; filled in")
    labels: float | None = Field(
        None, gt=0, le=1, description="share of the labelled images of each class that is learned from; null: all"
    )
    shots: int | None = Field(None, ge=1, description="labelled images of each class, instead of a share")
    labels_draw: int = Field(0, ge=0, description="which part of the labelled images it is")
    batch_size: int = Field(256, ge=2, description="global: over all workers")
    lanes: int = Field(16, ge=1, description="equal shares of each batch; the most workers that can ever join")
    run_length: int = Field(16, ge=1, description="neighbouring samples that stay together: read from one place")
    runs_per_chunk: int = Field(64, ge=1, description="runs, from anywhere in the store, that are shuffled together")

    @field_validator("replay", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return store_names(value)

    @model_validator(mode="after")
    def _one_budget(self) -> "DataConfig":
        if self.labels is not None and self.shots is not None:
            raise ValueError(f"data.labels={self.labels} and data.shots={self.shots} are two budgets: give one of them")
        if self.labels_draw and not self.few_labels:
            raise ValueError(f"data.labels_draw={self.labels_draw} draws labels: give data.labels or data.shots, too")
        return self

    @property
    def few_labels(self) -> bool:
        """Whether only labelled images are used, and of those a part."""
        return self.labels is not None or self.shots is not None

    @property
    def replayed(self) -> int:
        """Images of a batch that come from the older stores, where they have a share: the nearest whole number."""
        if not self.replay or self.replay_share is None:
            return 0
        return min(self.batch_size - 1, max(1, round(self.replay_share * self.batch_size)))

    def plan(self, samples: int, weights: np.ndarray | None, seed: int, **shares: Any) -> Plan:
        """The order of so many samples; of those that are but a part of each batch, with `batch_size` and `shares`."""
        layout = {name: getattr(self, name) for name in ("batch_size", "lanes", "run_length", "runs_per_chunk")}
        return Plan(samples=samples, weights=weights, seed=seed, **(layout | shares))

    def open(self) -> Store:
        """The store, through the selection."""
        return Store(self.store, self.selection)

    def open_all(self) -> tuple[Store, ...]:
        """The older stores, oldest first, and the store, each through its selection."""
        return *(named_store(name) for name in self.replay), self.open()

    def found_digests(self) -> tuple[str, ...]:
        """What `digests` would be now."""
        return tuple(store.selected_digest for store in self.open_all())


def store_names(value: Any) -> Any:
    """What a person types for several stores, as a list: one name, "A,B" and "[A,B]"."""
    return [name.strip() for name in value.strip("[]").split(",")] if isinstance(value, str) else value


def named_store(name: str) -> Store:
    """A store by its path, or through one of its selections: STORE@NAME."""
    path, at, selection = name.rpartition("@")
    if at and not Path(name, MANIFEST).exists():  # else the folder's own name has an @
        return Store(path, selection)
    return Store(name)


class Batches(ABC):
    """Batches that are a function of the step, read here, by processes, or by Ray Data."""

    batch_size: int  # global
    reader: Reads

    @abstractmethod
    def references(self, step: int, stop: int, rank: int, world_size: int) -> pa.Table:
        """What is to be read for one rank's batches of the steps [step, stop), in their order."""

    @abstractmethod
    def origin(self, columns: Columns, row: int) -> tuple[Store, int]:
        """Where a sample of a batch comes from: the store, and its number there."""

    def local(self, step: int, stop: int, rank: int = 0, world_size: int = 1) -> Iterator[Columns]:
        """One rank's batches for the steps [step, stop), read in this process: for tests, and machines without Ray."""
        for number in range(step, stop):
            yield self.reader.read(self.references(number, number + 1, rank, world_size))

    def processes(
        self, step: int, stop: int, rank: int = 0, world_size: int = 1, *, processes: int = 8
    ) -> Iterator[Columns]:
        """The same batches, read ahead by processes of this machine, without Ray: each reads whole batches in turn."""
        from torch.utils.data import DataLoader

        turns = _Turns(self, step, stop, rank, world_size)
        yield from DataLoader(turns, batch_size=None, num_workers=processes, prefetch_factor=4, collate_fn=_as_is)  # type: ignore[arg-type]

    def distributed(
        self, step: int, stop: int, rank: int = 0, world_size: int = 1, cpus: float | None = None
    ) -> Generator[Columns, None, None]:
        """The same batches through Ray Data, using at most `cpus` CPUs at a time."""
        batch = self.batch_size // world_size
        steps = max(1, SEGMENT_SAMPLES // batch)
        for first in range(step, stop, steps):
            references = self.references(first, min(first + steps, stop), rank, world_size)
            yield from read_with_ray(self.reader, references, batch, cpus)


@dataclass(frozen=True)
class Stream(Batches):
    """The training samples of a store, in the order of a plan."""

    store: Store
    selection: np.ndarray  # (N,) sample numbers
    plan: Plan
    reader: Reader
    first_step: int = 0  # of the run, at which the plan begins

    @property
    def batch_size(self) -> int:  # type: ignore[override]
        return self.plan.batch_size

    def references(self, step: int, stop: int, rank: int, world_size: int) -> pa.Table:
        rows, visits = rank_visits(self.plan, self.first_step, step, stop, rank, world_size)
        return self.reader.references(self.store, self.selection[rows.ravel()], visits.ravel())

    def origin(self, columns: Columns, row: int) -> tuple[Store, int]:
        return self.store, int(columns["number"][row])


def rank_visits(
    plan: Plan, first_step: int, step: int, stop: int, rank: int, world_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and visits (steps, rank's samples) of a plan that begins at step `first_step` of a run.

    (sample, visit) never comes again, neither in a run nor in those that go on from it with other data, which begin at
    a later step: an epoch's number is less than the number of steps until its end.
    """
    rows, epochs, copies = plan.rank_entries(step - first_step, stop - first_step, rank, world_size)
    return rows, first_step + epochs + copies * MAX_EPOCHS


@dataclass(frozen=True)
class _Turns(IterableDataset):
    """Worker w of W reads the batches of the steps w, w + W, …; a DataLoader takes from its workers in turn."""

    stream: Batches
    step: int
    stop: int
    rank: int
    world_size: int

    def __iter__(self) -> Iterator[Columns]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        for number in range(self.step + first, self.stop, stride):
            yield from self.stream.local(number, number + 1, self.rank, self.world_size)


def _as_is(columns: Columns) -> Columns:
    return columns


def training_samples(
    store: Store, data: DataConfig, *, with_text: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """What a run trains on, ascending numbers, and its weights: of the train split those with a caption, where text is
    read, and those that few labels leave. Few of them for a batch come in it several times, each as a view of its own.

    Blocked samples are among them: see `replaced_numbers`.

    Raises:
        ValueError: the store has no labels, or not enough.
    """
    selection, weights = store.select("train", with_blocked=True), store.weights("train")
    kept = captioned(store, selection) if with_text else selection
    if data.few_labels:
        kept = few_labels(store, kept, share=data.labels, shots=data.shots, draw=data.labels_draw)
    if weights is not None and len(kept) < len(selection):
        weights = weights[np.searchsorted(selection, kept)]
    if data.few_labels:  # else nothing is summed over a billion samples
        entries = len(kept) if weights is None else int(weights.sum())
        if 0 < entries < data.batch_size:
            times = np.float32(ceil(data.batch_size / entries))
            weights = np.full(len(kept), times) if weights is None else weights * times
    return kept, weights


def captioned(store: Store, selection: np.ndarray) -> np.ndarray:
    """The samples of a selection that have a caption."""
    ends = store.captions.offsets.to_numpy()
    return selection[ends[selection + 1] > ends[selection]]


def check_files(store: Store) -> None:
    """Compares the sizes of all shards with the sealed ones, by one listing: for the start of a run. Shards that have
    samples in quarantine are known to be damaged. (In place nothing is cheap to compare: reading compares sha256.)

    Raises:
        ValueError: shards are missing or of another size; says which.
    """
    folder = store.path / SHARDS
    with scandir(folder) as listed:
        sizes = {file.name: file.stat().st_size for file in listed}
    known, faults = {sample.file for sample in quarantined(store)}, []
    for shard in store.manifest.shards:
        size = sizes.get(shard.name)
        if size != shard.bytes and shard.name not in known:
            is_now = "missing" if size is None else f"{size:,} bytes long"
            faults.append(f"{folder / shard.name} is {is_now}, and was sealed with {shard.bytes:,} bytes")
    if faults:
        more = f" (and {len(faults) - 1:,} more shards)" if len(faults) > 1 else ""
        raise ValueError(
            f"{faults[0]}{more}: restore what is missing, or `feral verify {store.path} --quarantine` sets the samples "
            "aside, then the same command goes on"
        )


def to_batch(columns: Columns, views: DeviceViews, device: torch.device) -> Batch:
    """Moves a batch to the device and makes its views there."""
    ids, visits = _tensor(columns["number"]), _tensor(columns["visit"])
    wanted = [name for name in ("crops", "local_crops", "tokens", "label") if name in columns]
    moved = {name: to_device(_tensor(columns[name]), device) for name in wanted}
    made = views(moved["crops"], ids, visits)
    if "local_crops" in moved:
        made += views(moved["local_crops"], ids, visits, first_view=len(made))
    return Batch(views=made, ids=to_device(ids, device), tokens=moved.get("tokens"), labels=moved["label"])


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.require(array, requirements="W"))  # Ray's arrays are read-only; torch wants writable
