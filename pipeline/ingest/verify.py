"""Is a store still what was sealed? Every byte is read and compared; what is damaged can be set aside, so that training
goes on without it."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.ingest.blocklist import BlockList, block
from pipeline.ingest.fetch import Fetch, no_file, sealed_bytes
from pipeline.ingest.selection import check_selection, selections_of
from pipeline.ingest.store import FILES, INDEX, PLACES, QUARANTINE, SHARDS, SealedFile, Store, file_sha256
from pipeline.ingest.write import replaced
from ssl_models.config import Config

_STRETCH = 1024  # samples of an index in place that are read at a time


class Damaged(Config):
    """A sample whose bytes are not those that were sealed."""

    number: int
    id: str
    file: str  # name of the shard; in place, path in the source
    offset: int
    why: str


@dataclass(frozen=True)
class Verdict:
    """What was found. Always `samples == whole + len(damaged)`, where samples were checked."""

    samples: int
    checked: bool  # False: the index is damaged, which says where samples are
    damaged: tuple[Damaged, ...]
    faults: tuple[str, ...]  # of files; a quarantine does not help against these

    @property
    def whole(self) -> int:
        """Samples whose bytes are those that were sealed."""
        return self.samples - len(self.damaged)

    def loose(self, blocked: np.ndarray) -> list[Damaged]:
        """Damaged samples that are not set aside: not among the numbers (n,) that the block-list names."""
        aside = np.isin([sample.number for sample in self.damaged], blocked)
        return [sample for sample, is_aside in zip(self.damaged, aside, strict=True) if not is_aside]


@dataclass(frozen=True)
class _Part:
    """Samples [first, stop) of a store, checked in one go: all of a shard, or a stretch of an index in place."""

    first: int
    stop: int
    shard: SealedFile | None


def verify(store: Store, on_progress: Callable[[int, int], None] = lambda done, of: None) -> Verdict:
    """Compares all files of a store with the manifest and, where they differ, each sample with its checksum. In place,
    where there is no file of ours, all samples with their sha256. `on_progress` is told samples, done and of all.

    Raises:
        ConnectionError: the storage failed, again and again.
    """
    total = store.manifest.admitted
    changed = [sealed.name for sealed in store.manifest.files if file_sha256(store.path / sealed.name) != sealed.sha256]
    faults = list(_file_faults(store, changed))
    if not {INDEX, PLACES, FILES}.isdisjoint(changed):
        return Verdict(total, False, (), tuple(faults))
    damaged: list[Damaged] = []
    parts = list(_parts(store))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for part, (found, fault) in zip(parts, pool.map(lambda part: _checked(store, part), parts), strict=True):
            damaged += found
            faults += [fault] if fault else []
            on_progress(part.stop, total)
    return Verdict(total, True, tuple(damaged), tuple(faults))


def quarantine(store: Store, damaged: list[Damaged]) -> None:
    """Sets samples aside: records why, then puts their ids on the block-list, which is honoured whenever samples are
    read. Whole copies with the same id are blocked with them. The order of all other samples stays."""
    if not damaged:
        return
    known = {sample.number: sample for sample in (*damaged, *quarantined(store))}  # what was said first stays
    with replaced(store.path / QUARANTINE) as file:
        file.write("".join(f"{known[number].model_dump_json()}\n" for number in sorted(known)).encode())
    block(store.path, BlockList(frozenset(sample.id for sample in damaged)), damaged=True)


def quarantined(store: Store) -> list[Damaged]:
    """What was set aside so far, by number."""
    path = store.path / QUARANTINE
    if not path.exists():
        return []
    try:
        return [Damaged.model_validate_json(line) for line in path.read_text().splitlines()]
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: remove it, and `feral verify {store.path} --quarantine`") from error


def whole_again(store: Store, verdict: Verdict, blocked: np.ndarray) -> int:
    """How many samples are blocked though they are whole, since they, or copies of them, were set aside."""
    ids = pa.array({sample.id for sample in quarantined(store)}, pa.string())
    aside = blocked[pc.is_in(store.column("id").take(pa.array(blocked)), ids).to_numpy(zero_copy_only=False)]
    return int((~np.isin(aside, [sample.number for sample in verdict.damaged])).sum())


def _file_faults(store: Store, changed: list[str]) -> Iterator[str]:
    """What is wrong with the index and what lies beside it."""
    for name in changed:
        yield (
            f"{store.path / name} was changed after it was sealed: restore it, or write the store anew with `feral "
            f"curate {store.manifest.source} --to {store.path} --overwrite`"
        )
    for name in selections_of(store.path):
        yield from check_selection(store, name)


def _parts(store: Store) -> Iterator[_Part]:
    total, shards = store.manifest.admitted, store.manifest.shards
    if store.manifest.in_place:
        yield from (_Part(first, min(first + _STRETCH, total), None) for first in range(0, total, _STRETCH))
        return
    of_rows = store.places["shard"].to_numpy()  # ascending
    bounds = np.searchsorted(of_rows, np.arange(len(shards) + 1)).tolist()
    yield from (_Part(*pair) for pair in zip(bounds, bounds[1:], shards, strict=False))


def _checked(store: Store, part: _Part) -> tuple[list[Damaged], str | None]:
    """The damaged samples of a part, and what is wrong with its shard but with none of its samples."""
    path = store.path / SHARDS / part.shard.name if part.shard else None
    try:
        if path and part.shard and file_sha256(path) == part.shard.sha256:
            return [], None
    except OSError:
        pass  # reading its samples tells more
    places = store.places.slice(part.first, part.stop - part.first)
    faults = dict(_sample_faults(store, places, path))
    rows = np.array(sorted(faults), np.int64)
    ids = store.column("id").take(pa.array(part.first + rows)).to_pylist()
    names = [path.name] * len(rows) if path else store.paths.take(places["shard"].take(rows)).to_pylist()
    found = [
        Damaged(number=part.first + row, id=id_, file=name, offset=places["offset"][row].as_py(), why=faults[row])
        for row, id_, name in zip(rows.tolist(), ids, names, strict=True)
    ]
    only_shard = f"{path} was changed after it was sealed, but the images in it are whole: restore it"
    return found, only_shard if path and not found else None


def _sample_faults(store: Store, places: pa.Table, shard: Path | None) -> Iterator[tuple[int, str]]:
    """Row and reason of the samples that are not what was sealed."""
    if shard:
        files, paths = np.zeros(len(places), np.int64), [str(shard)]
    else:
        used, files = np.unique(places["shard"].to_numpy(), return_inverse=True)
        paths = store.paths.take(pa.array(used)).to_pylist()
    offsets, lengths = places["offset"].to_numpy(), places["length"].to_numpy()
    reasons = [_no_file(store, shard, path) for path in paths]
    ends = np.array([size for size, _ in reasons])
    there = offsets + lengths <= ends[files]  # what lies beyond the end is not looked for, again and again
    yield from ((row, reasons[files[row]][1]) for row in np.flatnonzero(~there).tolist())
    rows = np.flatnonzero(there)
    whole = sealed_bytes(places.take(rows))
    for row, _, fault in Fetch(store.place, paths, files[rows], offsets[rows], lengths[rows], whole):
        if fault:
            yield int(rows[row]), fault


def _no_file(store: Store, shard: Path | None, path: str) -> tuple[int, str]:
    """How many bytes a file has, and what that means for samples beyond. Of object storage only reading tells."""
    if store.place and not store.place.is_local:
        return 2**62, ""
    try:
        size = shard.stat().st_size if shard else store.place.entry(path).size if store.place else 0
    except OSError as error:
        return -1, no_file(error)
    return size, f"the file ends at byte {size}"
