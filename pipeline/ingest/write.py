"""The writing side of a store: shards and sidecars from the tasks, then index and manifest, which seals it."""

import io
import json
import os
import shutil
import tarfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.ingest.store import (
    CAPTIONS,
    DATA_CARD,
    DATA_CARD_JSON,
    FILES,
    FORMAT,
    INDEX,
    MANIFEST,
    PLACES,
    QUARANTINE,
    REFUSED,
    SELECTIONS,
    SHARDS,
    Manifest,
    SealedFile,
    file_sha256,
)

STARTED = "unsealed.json"  # marks a folder as ours, and names its plan, until it is sealed; then it is removed
UNITS = "units"  # what each task leaves: sidecars and a report; removed when the store is sealed
_SIDECAR_ROWS = 1000
MAX_SAMPLES_PER_UNIT = 10_000_000


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A file that appears at `path` whole or not at all: written beside it, flushed to disk, renamed."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class ShardWriter:
    """Writes the shards of one unit. Names and bytes depend on the unit's number and samples only, so that a second
    attempt at the unit overwrites the first with the same. A new shard begins every `samples_per_shard` samples."""

    def __init__(self, store: Path, unit: int, samples_per_shard: int) -> None:
        self._store, self._unit, self._limit = store, unit, samples_per_shard
        self._open: tuple[tarfile.TarFile, Path, Path] | None = None
        self._in_shard = 0
        self.shards: list[SealedFile] = []

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._finish(keep=kind is None)

    def close(self) -> None:
        """Ends the last shard."""
        self._finish(keep=True)

    def add(self, position: int, jpeg: bytes, captions: list[str], record: Mapping[str, object]) -> tuple[str, int]:
        """Appends the sample at `position` of the unit; returns the shard's name and the JPEG's byte offset in it."""
        assert position < MAX_SAMPLES_PER_UNIT, position
        if self._in_shard == self._limit:
            self._finish(keep=True)
        archive, path, _ = self._open = self._open or self._begin()
        key = f"{self._unit:05d}{position:07d}"  # unique in the store, and known before any sample is refused
        offset = archive.offset + tarfile.BLOCKSIZE
        _append(archive, f"{key}.jpg", jpeg)
        if captions:
            _append(archive, f"{key}.txt", captions[0].encode())
        _append(archive, f"{key}.json", json.dumps(record, ensure_ascii=False).encode())
        self._in_shard += 1
        return path.name, offset

    def _begin(self) -> tuple[tarfile.TarFile, Path, Path]:
        part = len(self.shards)
        path = self._store / SHARDS / (f"{self._unit:05d}.tar" if part == 0 else f"{self._unit:05d}_{part:03d}.tar")
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        # .tar of USTAR headers only, one block each: offsets are then known without reading back
        return tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT), path, temporary

    def _finish(self, keep: bool) -> None:
        if self._open is None:
            return
        archive, path, temporary = self._open
        self._open, self._in_shard = None, 0
        archive.close()
        if not keep:
            temporary.unlink()
            return
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        self.shards.append(sealed_file(temporary, path.name))
        temporary.replace(path)


def sealed_file(path: Path, name: str | None = None) -> SealedFile:
    """Size and digest of a finished file, under its own name or the one it is about to have."""
    return SealedFile(name=name or path.name, bytes=path.stat().st_size, sha256=file_sha256(path))


def _append(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # time, owner and group stay 0, for the same bytes on every machine
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


class Sidecar:
    """A Parquet file that grows by rows, in bounded memory, and appears whole or not at all."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path, self._schema, self._rows = path, schema, list[dict[str, object]]()
        self._temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        self._parquet: pq.ParquetWriter | None = pq.ParquetWriter(self._temporary, schema, compression="zstd")

    def __enter__(self) -> "Sidecar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._parquet is not None:
            self._parquet.close()
            self._temporary.unlink()

    def add(self, row: dict[str, object]) -> None:
        """Appends a row."""
        self._rows.append(row)
        if len(self._rows) >= _SIDECAR_ROWS:
            self._flush()

    def close(self) -> None:
        """Ends the file and gives it its name; without this, leaving the block removes it."""
        assert self._parquet is not None
        self._flush()
        self._parquet.close()
        self._parquet = None
        with self._temporary.open("rb") as file:
            os.fsync(file.fileno())
        self._temporary.replace(self._path)

    def _flush(self) -> None:
        assert self._parquet is not None
        if self._rows:
            self._parquet.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows = []


def begin(store: Path, plan_digest: str, overwrite: bool) -> None:
    """Makes `store` an unsealed store of this plan. What an interrupted curation of the same plan finished stays; what
    another plan (or, to overwrite, a sealed store) left is cleared; of the block-list, what was damaged in it.

    Raises:
        ValueError: the folder holds something that is no store of ours.
    """
    from pipeline.ingest.blocklist import forget_damaged  # it writes files as this module does

    if store.exists() and not store.is_dir():
        raise ValueError(f"{store} is a file: choose another --to")
    if overwrite and (store / MANIFEST).exists():
        _check_ours(store)
    elif not (store / STARTED).exists() and store.exists() and any(store.iterdir()):
        raise ValueError(f"{store} is neither empty nor an interrupted store: choose another --to")
    store.mkdir(parents=True, exist_ok=True)
    if (store / MANIFEST).exists() or not _same_plan(store, plan_digest):
        with replaced(store / STARTED) as file:
            file.write(json.dumps({"plan": ""}).encode())  # ours, but nothing in it is to be kept
        forget_damaged(store)
        for name in (MANIFEST, INDEX, PLACES, CAPTIONS, REFUSED, FILES, QUARANTINE, DATA_CARD, DATA_CARD_JSON):
            (store / name).unlink(missing_ok=True)
        for name in (SHARDS, UNITS, SELECTIONS):
            shutil.rmtree(store / name, ignore_errors=True)
    (store / SHARDS).mkdir(exist_ok=True)
    (store / UNITS).mkdir(exist_ok=True)
    clear_temporary(store)
    with replaced(store / STARTED) as file:
        file.write(json.dumps(_mark(plan_digest)).encode())


def _check_ours(store: Path) -> None:
    """Raises ValueError for a manifest.json that no version of feral has written."""
    try:
        manifest = json.loads((store / MANIFEST).read_bytes())
        ours = {"format", "listing", "digest", "index_sha256"} <= manifest.keys()
    except (ValueError, AttributeError):
        ours = False
    if not ours:
        raise ValueError(
            f"{store / MANIFEST} is not a store's: --overwrite would delete foreign files; choose another --to"
        )


def _same_plan(store: Path, plan_digest: str) -> bool:
    try:
        return json.loads((store / STARTED).read_text()) == _mark(plan_digest)
    except (OSError, ValueError):
        return False


def _mark(plan_digest: str) -> dict[str, object]:
    return {"plan": plan_digest, "format": FORMAT}  # what another version left cannot be continued


def clear_temporary(store: Path) -> None:
    """Removes what tasks that were killed in the middle of a file left behind."""
    for path in [*(store / SHARDS).glob(".*.tmp"), *(store / UNITS).glob(".*.tmp")]:
        path.unlink(missing_ok=True)


def write_table(table: pa.Table, path: Path) -> str:
    """Writes a Parquet file whole or not at all; returns its sha256."""
    with replaced(path) as file:
        pq.write_table(table, file, compression="zstd")
    return file_sha256(path)


def seal(store: Path, manifest: Manifest) -> None:
    """Writes the manifest: from here on the store never changes."""
    clear_temporary(store)
    with replaced(store / MANIFEST) as file:
        file.write(manifest.model_dump_json(indent=1).encode())
    (store / STARTED).unlink()
    shutil.rmtree(store / UNITS)  # all of it is in the index now
