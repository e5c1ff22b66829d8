"""Batches of several stores: the new one's samples, and a share of older ones' that come again (replay)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from pipeline.ingest.store import Store
from pipeline.stream.batches import Batches, DataConfig, rank_visits
from pipeline.stream.plan import Plan
from pipeline.stream.read import Columns, Reader

STORE = "store"  # column: which of the supplies a sample comes from
Samples = tuple[np.ndarray, np.ndarray | None]  # of a store: numbers (N,), entries of each an epoch (N,); None: one


@dataclass(frozen=True, eq=False)
class Supply:
    """What a run takes of one store."""

    store: Store
    numbers: np.ndarray  # (N,) of its samples
    weights: np.ndarray | None  # (N,) entries of each an epoch; None: one
    reader: Reader


@dataclass(frozen=True)
class Part:
    """Supplies whose samples stand in one order, all of them alike, and that give some samples of each batch."""

    plan: Plan
    supplies: tuple[Supply, ...]


@dataclass(frozen=True)
class Mixture(Batches):
    """Each batch has the same number of samples from each part. Each part goes through its epochs by itself: when a
    small new store begins again, replay goes on without a sample coming twice. The parts' shares of a lane sum to the
    same number in each, so that a worker serves whole lanes, as of a single store."""

    parts: tuple[Part, ...]
    first_step: int = 0  # of the run, at which the plans begin

    @property
    def batch_size(self) -> int:  # type: ignore[override]
        return sum(part.plan.batch_size for part in self.parts)

    @cached_property
    def supplies(self) -> tuple[Supply, ...]:
        return tuple(supply for part in self.parts for supply in part.supplies)

    @cached_property
    def reader(self) -> "StoresReader":  # type: ignore[override]
        return StoresReader(tuple((str(supply.store.path), supply.reader) for supply in self.supplies))

    def references(self, step: int, stop: int, rank: int, world_size: int) -> pa.Table:
        """As of one store, with a column that tells the supply."""
        which, rows, visits = (column.ravel() for column in self.entries(step, stop, rank, world_size))
        tables, places = [], []
        for index, supply in enumerate(self.supplies):
            at = np.flatnonzero(which == index)
            table = supply.reader.references(supply.store, supply.numbers[rows[at]], visits[at])
            tables.append(table.append_column(STORE, pa.array(np.full(len(at), index))).replace_schema_metadata())
            places.append(at)
        # what only an index in place has of a sample is null for the others
        table = pa.concat_tables(tables, promote_options="permissive").unify_dictionaries().combine_chunks()
        return table.take(np.argsort(np.concatenate(places))).combine_chunks()

    def entries(self, step: int, stop: int, rank: int, world_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Supplies, rows of their numbers, and visits, each (stop - step, batch_size / world_size), lane by lane."""
        which, rows, visits, lanes, before = [], [], [], [], 0
        for part in self.parts:
            row, visit = rank_visits(part.plan, self.first_step, step, stop, rank, world_size)
            ends = np.cumsum([len(supply.numbers) for supply in part.supplies])
            inside = np.searchsorted(ends, row, side="right")
            which.append(before + inside)
            rows.append(row - np.append(0, ends)[inside])
            visits.append(visit)
            lanes.append(_rank_lanes(part.plan, rank, world_size))
            before += len(part.supplies)
        order = np.argsort(np.concatenate(lanes), kind="stable")
        found = (np.concatenate(columns, axis=1)[:, order] for columns in (which, rows, visits))
        return tuple(found)  # type: ignore[return-value]

    def origin(self, columns: Columns, row: int) -> tuple[Store, int]:
        supply = self.supplies[columns[STORE][row]]
        return supply.store, int(columns["number"][row]) - supply.reader.first_number

    def counts(self, columns: Columns) -> tuple[int, ...]:
        """Samples of a batch from each supply."""
        return tuple(np.bincount(columns[STORE], minlength=len(self.supplies)).tolist())


@dataclass(frozen=True)
class StoresReader:
    """Reads samples of several stores, each with its own reader. It is sent to data tasks."""

    readers: tuple[tuple[str, Reader], ...]  # path of the store, for messages

    @property
    def sample_bytes(self) -> int:
        return self.readers[0][1].sample_bytes

    def read(self, references: pa.Table) -> Columns:
        """As `Reader.read`, with the column that tells the supply. Raises as that."""
        which = references[STORE].to_numpy()
        columns: Columns = {STORE: which.astype(np.int64)}
        for index in np.unique(which):
            path, reader = self.readers[index]
            at = np.flatnonzero(which == index)
            for name, values in reader.read(_own(references.take(pa.array(at)), path, reader)).items():
                whole = columns.setdefault(name, np.empty((len(which), *values.shape[1:]), values.dtype))
                whole[at] = values
        return columns


def _own(references: pa.Table, path: str, reader: Reader) -> pa.Table:
    """The references of one store as its reader made them."""
    foreign = [] if reader.place else [name for name in ("digest", "plain") if name in references.column_names]
    return references.drop_columns([STORE, *foreign]).combine_chunks().replace_schema_metadata({"store": path})


def _rank_lanes(plan: Plan, rank: int, world_size: int) -> np.ndarray:
    """The lane of each sample that a rank takes of a plan's batch."""
    own = plan.lanes // world_size
    return np.repeat(np.arange(own), plan.lane_shares[rank * own : (rank + 1) * own])


def lane_shares(samples: int, lanes: int) -> tuple[int, ...]:
    """So many samples spread over the lanes as evenly as can be."""
    return tuple(np.diff(np.arange(lanes + 1) * samples // lanes).tolist())


@dataclass(frozen=True)
class Order:
    """Some of a run's stores, whose samples stand in one order, all of them alike."""

    stores: range = range(1)  # of all, oldest first
    shares: tuple[int, ...] | None = None  # samples of a batch that each lane takes of it; None: all

    def plan(self, samples: Sequence[Samples], data: DataConfig, seed: int) -> Plan:
        """The order of what is trained on in each of the stores: numbers and weights."""
        total = sum(len(numbers) for numbers, _ in samples)
        weights = None  # nothing is made for a billion samples
        if any(own is not None for _, own in samples):
            weights = np.concatenate([np.ones(len(numbers), np.float32) if own is None else own
                                      for numbers, own in samples])  # fmt: skip
        part = {} if self.shares is None else {"shares": self.shares, "batch_size": sum(self.shares)}
        return data.plan(total, weights, seed, **part)


def orders(data: DataConfig) -> tuple[Order, ...]:
    """Of the stores of a run: one for all that are alike, or one for what comes again and one for what is new."""
    new = len(data.replay)
    if not data.replayed:
        return (Order(range(new + 1)),)
    again = lane_shares(data.replayed, data.lanes)
    fresh = tuple(data.batch_size // data.lanes - share for share in again)
    return Order(range(new), again), Order(range(new, new + 1), fresh)


def mixture(supplies: Sequence[Supply], data: DataConfig, seed: int) -> Mixture:
    """Batches of several stores, oldest first; the last is the new one, and the others have the share that `data`
    says."""
    parts = []
    for order in orders(data):
        own = tuple(supplies[index] for index in order.stores)
        parts.append(Part(order.plan([(supply.numbers, supply.weights) for supply in own], data, seed), own))
    return Mixture(tuple(parts), data.first_step)


def first_numbers(stores: Sequence[Store]) -> list[int]:
    """The number of each store's first sample among those of all: a sample has one number in a run, and keeps it when
    newer stores come after. Two selections of one store share its numbers."""
    found: dict[str, int] = {}
    total = 0
    for store in stores:
        if str(store.path) not in found:
            found[str(store.path)] = total
            total += store.manifest.admitted
    return [found[str(store.path)] for store in stores]


def total_samples(stores: Sequence[Store]) -> int:
    """Numbers that samples of these stores can have."""
    return sum({str(store.path): store.manifest.admitted for store in stores}.values())


def refuse_shared_samples(stores: Sequence[Store]) -> None:
    """Raises ValueError: two selections of one store have samples in common, which would then be two samples each."""
    for at, store in enumerate(stores):
        for other in stores[:at]:
            if store.path != other.path:
                continue
            mine, theirs = (one.select("train", with_blocked=True) for one in (store, other))
            shared = len(np.intersect1d(mine, theirs))
            if shared:
                raise ValueError(
                    f"{shared:,} training images of {store.path} are in the selection {other.selection!r} and in "
                    f"{store.selection!r}: an image has one place in a run; name the store once, or make selections "
                    "that share none"
                )
