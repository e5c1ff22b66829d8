"""The index of a store, joined from what its units left, in the order of units: neither the number of workers nor the
order in which they finished matters. Streams: memory does not grow with the number of samples."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.ingest.mapped import MappedWriter
from pipeline.ingest.store import (
    CAPTIONS,
    CAPTIONS_SCHEMA,
    FILES,
    FILES_SCHEMA,
    INDEX,
    INDEX_SCHEMA,
    PLACED,
    PLACES,
    REFUSED,
    REFUSED_SCHEMA,
    Damage,
    SealedFile,
    Split,
    places_schema,
)
from pipeline.ingest.task import UnitReport, report_file
from pipeline.ingest.write import UNITS, replaced, sealed_file

HOLDOUT = "holdout-v1"  # salt of the hash that holds samples out; older stores have none, and keep their splits
_ROWS = 50_000  # of a row group of the index
_PLAIN = {"gray", "icc"}  # flags of a JPEG that torchvision decodes to the pixels that curation measured


@dataclass(frozen=True)
class Indexed:
    """What the units add up to. Always `seen == admitted + sum(refused.values())`."""

    seen: int
    admitted: int
    refused: Counter[str]
    declared: int | None  # None: not every unit declares how many it holds
    lost: int  # known to have been there, and not seen
    damaged: tuple[Damage, ...]
    shards: tuple[SealedFile, ...]
    files: tuple[SealedFile, ...]  # index, places, captions, refusals and, in place, the list of files
    classes: tuple[str, ...]
    captions_dropped: int
    content: str  # sha256 over what was admitted: id, split as told, label, captions
    held_out_by: str | None  # the salt; None: the source names splits, or nothing is held out
    task_seconds: dict[str, float]  # summed over units

    @property
    def index_sha256(self) -> str:
        """The digest of the index."""
        return self.files[0].sha256


def build_index(store: Path, units: int, *, holdout: float, in_place: bool) -> Indexed:
    """Writes index, places, captions, refusals and, in place, the list of files, from the sidecars of all units."""
    reports = [UnitReport.model_validate_json(report_file(store, unit).read_bytes()) for unit in range(units)]
    names = sorted({name for report in reports for name in report.labels}, key=_by_number_then_name)
    classes = names if len(names) > 1 else []  # one class tells nothing apart
    shards = tuple(shard for report in reports for shard in report.shards)
    files = {shard.name: number for number, shard in enumerate(shards)}
    told = any(report.splits_told for report in reports)
    with (
        replaced(store / INDEX) as file,
        pq.ParquetWriter(file, INDEX_SCHEMA, compression="zstd") as index,
        mapped_columns(store, store / UNITS, in_place=in_place) as mapped,
    ):
        number = 0
        for report in reports:
            with pq.ParquetFile(store / UNITS / f"{report.unit:05d}.parquet") as sidecar:
                for batch in sidecar.iter_batches(_ROWS):
                    rows = _indexed(batch, number, files, classes, told, holdout)
                    index.write_batch(rows)
                    mapped(rows)
                    number += batch.num_rows
    _join_refused(store, reports)
    if in_place:
        with MappedWriter(store / FILES, FILES_SCHEMA, store / UNITS) as paths:
            paths.add(pa.record_batch({"path": pa.array(list(files), pa.large_string())}))
    content = hashlib.sha256("".join(report.content for report in reports).encode()).hexdigest()
    damaged = [damage for report in reports for damage in _damage(report)]
    every = all(report.declared is not None for report in reports)
    return Indexed(
        seen=sum(report.seen for report in reports),
        admitted=number,
        refused=sum((Counter(report.refused) for report in reports), Counter()),
        declared=sum(max(report.declared or 0, report.seen) for report in reports) if every else None,
        lost=sum(_lost(report) for report in reports),
        damaged=tuple(damaged),
        shards=shards,
        files=tuple(sealed_file(store / name) for name in (INDEX, PLACES, CAPTIONS, REFUSED, *[FILES] * in_place)),
        classes=tuple(classes),
        captions_dropped=sum(report.captions_dropped for report in reports),
        content=content,
        held_out_by=HOLDOUT if holdout and not told else None,
        task_seconds=dict(sum((Counter(report.seconds) for report in reports), Counter())),
    )


@contextmanager
def mapped_columns(store: Path, scratch: Path, *, in_place: bool) -> Iterator[Callable[[pa.RecordBatch], None]]:
    """Writes those columns of the index that are mapped; what it gives takes the index's rows, in their order."""
    with (
        MappedWriter(store / PLACES, places_schema(in_place), scratch) as places,
        MappedWriter(store / CAPTIONS, CAPTIONS_SCHEMA, scratch) as captions,
    ):

        def add(rows: pa.RecordBatch) -> None:
            placed = {name: rows[name] for name in PLACED}
            if in_place:
                placed["digest"] = pa.array([bytes.fromhex(id_) for id_ in rows["id"].to_pylist()], pa.binary(32))
                looks = zip(rows["format"].to_pylist(), rows["flags"].to_pylist(), strict=True)
                placed["plain"] = pa.array([kind == "JPEG" and _PLAIN.issuperset(flags) for kind, flags in looks])
            places.add(pa.record_batch(placed))
            captions.add(pa.record_batch({"captions": rows["captions"]}))

        yield add


def _lost(report: UnitReport) -> int:
    if report.declared is not None:
        return max(0, report.declared - report.seen)
    return sum(damage.lost or 0 for damage in report.damaged)


def _damage(report: UnitReport) -> Iterable[Damage]:
    """What the unit reports, and a difference from what its container declares that nothing else explains."""
    yield from report.damaged
    if report.declared is not None and report.declared != report.seen and not report.damaged:
        yield Damage(
            shard=report.name, reason="count_mismatch", saved=report.seen, lost=_lost(report),
            why=f"it declares {report.declared} samples and holds {report.seen}",
        )  # fmt: skip


def _indexed(
    batch: pa.RecordBatch, first: int, files: dict[str, int], classes: list[str], told: bool, holdout: float
) -> pa.RecordBatch:
    """Rows of a sidecar as rows of the index, the first with number `first`; new files are added to `files`."""
    numbers = {name: number for number, name in enumerate(classes)}
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    columns["number"] = pa.array(np.arange(first, first + batch.num_rows))
    columns["shard"] = pa.array(
        [files.setdefault(name, len(files)) for name in columns["file"].to_pylist()], pa.int32()
    )
    columns["label"] = pa.array([numbers.get(name, -1) for name in columns["label"].to_pylist()], pa.int32())
    columns["split"] = pa.array(assign_splits(columns["id"].to_pylist(), columns["split"].to_pylist(), told, holdout))
    return pa.record_batch([columns[name] for name in INDEX_SCHEMA.names], schema=INDEX_SCHEMA)


def assign_splits(ids: list[str], named: list[Split | None], told: bool, holdout: float) -> list[Split]:
    """The split of each sample. Where the source names splits, samples outside of them are for training; where it names
    none, a share of `holdout` becomes test, by each sample's id alone: the same ones in every dump. The hash is salted,
    so that it is independent of whatever else goes by the digits of ids. Selections keep near copies apart."""
    if told:
        return [split or "train" for split in named]
    below = holdout * 16**13
    return [
        "test" if int(hashlib.sha256(f"{HOLDOUT}{id_}".encode()).hexdigest()[:13], 16) < below else "train"
        for id_ in ids
    ]


def _join_refused(store: Path, reports: list[UnitReport]) -> None:
    with replaced(store / REFUSED) as file, pq.ParquetWriter(file, REFUSED_SCHEMA, compression="zstd") as refused:
        for report in reports:
            refused.write_table(pq.read_table(store / UNITS / f"{report.unit:05d}.refused.parquet"))


def _by_number_then_name(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdecimal() and len(name) < 10 else (10**10, name)
