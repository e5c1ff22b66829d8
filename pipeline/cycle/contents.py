"""What a dump consists of: its files, each with size and sha256. Their digest names the dump, wherever it lies.

ROOT/dumps/DUMP.parquet   path, size, modified, sha256 of every file when it was sealed; where that was
"""

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.ingest.declared import MANIFEST
from pipeline.ingest.places import Entry, Place
from pipeline.ingest.write import write_table

SUCCESS = "_SUCCESS"
MARKERS = (SUCCESS, MANIFEST)  # say that a delivery is whole; they hold no samples
_URI, _READERS, _BYTES = b"uri", 8, 2**20
_SCHEMA = pa.schema(
    [("path", pa.string()), ("size", pa.int64()), ("modified", pa.int64()), ("sha256", pa.string())]
)  # modified: ns since 1970


@dataclass(frozen=True)
class Contents:
    """The files of a dump where it was sealed."""

    uri: str  # of the delivery, without credentials
    files: Mapping[str, tuple[int, int, str]]  # path → size, modified, sha256 ("": it could not be read)

    @property
    def dump_id(self) -> str:
        """The same for the same bytes under the same names, anywhere and at any time."""
        lines = (f"{path}\0{size}\0{sha256}\n" for path, (size, _, sha256) in sorted(self.files.items()))
        digest = hashlib.sha256()
        for line in lines:
            digest.update(line.encode())
        return digest.hexdigest()

    @property
    def name(self) -> str:
        """Of the delivery, in its source's root."""
        return delivery_name(self.uri)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for size, _, _ in self.files.values())

    def write(self, folder: Path) -> None:
        """Writes it below a cycle's root."""
        file = contents_file(folder, self.dump_id)
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"path": path, "size": size, "modified": modified, "sha256": sha256}
                for path, (size, modified, sha256) in sorted(self.files.items())]  # fmt: skip
        table = pa.Table.from_pylist(rows, _SCHEMA)
        write_table(table.replace_schema_metadata({_URI: self.uri.encode()}), file)


def delivery_name(uri: str) -> str:
    """Of a delivery, in its source's root."""
    return uri.partition("?")[0].rpartition("/")[2]


def contents_file(folder: Path, dump_id: str) -> Path:
    return folder / "dumps" / f"{dump_id}.parquet"


def read_contents(folder: Path, dump_id: str) -> Contents:
    """What `Contents.write` wrote.

    Raises:
        ValueError: it is gone.
    """
    file = contents_file(folder, dump_id)
    try:
        table = pq.read_table(file)
    except FileNotFoundError:
        raise ValueError(
            f"{file} is gone, which says what dump {dump_id[:12]} consists of: restore it, or `feral ledger skip "
            f"{dump_id[:12]} --reason …`"
        ) from None
    columns = [table[name].to_pylist() for name in _SCHEMA.names]
    return Contents(table.schema.metadata[_URI].decode(), {path: rest for path, *rest in zip(*columns, strict=True)})  # type: ignore[misc]


def read_files(place: Place, uri: str, entries: Iterable[Entry]) -> Contents:
    """Reads every byte of some files, but for those that are known to be no files to read, as links.

    Raises:
        ConnectionError, OSError: one cannot be read.
    """
    entries = list(entries)
    with ThreadPoolExecutor(_READERS) as pool:
        digests = pool.map(lambda entry: file_digest(place, entry), entries)
        files = {
            entry.path: (entry.size, entry.modified, sha256) for entry, sha256 in zip(entries, digests, strict=True)
        }
    return Contents(uri, files)


def file_digest(place: Place, entry: Entry) -> str:
    """sha256 of a file's bytes; "": it is no file to read."""
    if entry.problem:
        return ""
    digest = hashlib.sha256()
    with place.open(entry.path) as file:
        while block := file.read(_BYTES):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class Drift:
    """How a delivery differs from what was sealed of it."""

    changed: tuple[str, ...]
    missing: tuple[str, ...]
    added: tuple[str, ...]

    def said(self) -> str:
        """The first changed and missing files, for people."""
        parts = [
            f"{len(paths):,} file(s) {what}: {', '.join(paths[:3])}{' …' if len(paths) > 3 else ''}"
            for what, paths in (("changed", self.changed), ("missing", self.missing))
            if paths
        ]
        return "; ".join(parts)


def drift(sealed: Mapping[str, tuple[int, int, str]], place: Place, entries: Iterable[Entry]) -> Drift:
    """Compares sizes and times; of a file whose time alone is other, the bytes: it may only have been touched."""
    there = {entry.path: entry for entry in entries}
    changed = [
        path
        for path, (size, modified, sha256) in sealed.items()
        if path in there
        and (
            there[path].size != size
            or (there[path].modified != modified and file_digest(place, there[path]) != sha256)
        )
    ]  # fmt: skip
    return Drift(tuple(changed), tuple(sorted(set(sealed) - set(there))), tuple(sorted(set(there) - set(sealed))))
