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


def mixture(old: Sequence[Supply], new: Supply, data: DataConfig, seed: int) -> Mixture:
    """Batches of the new store with the share of the older ones that `data` says; their samples are all alike."""
    if not data.replayed:
        everything = (*old, new)
        return Mixture((Part(data.plan(*_joined(everything), seed), everything),), data.first_step)
    shares = lane_shares(data.replayed, data.lanes)
    rest = tuple(data.batch_size // data.lanes - share for share in shares)
    again = data.plan(*_joined(old), seed, batch_size=data.replayed, shares=shares)
    fresh = data.plan(*_joined([new]), seed, batch_size=data.batch_size - data.replayed, shares=rest)
    return Mixture((Part(again, tuple(old)), Part(fresh, (new,))), data.first_step)


def _joined(supplies: Sequence[Supply]) -> tuple[int, np.ndarray | None]:
    """How many samples some supplies have, and their weights."""
    total = sum(len(supply.numbers) for supply in supplies)
    if all(supply.weights is None for supply in supplies):
        return total, None  # nothing is made for a billion samples
    each = [np.ones(len(one.numbers), np.float32) if one.weights is None else one.weights for one in supplies]
    return total, np.concatenate(each)


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
