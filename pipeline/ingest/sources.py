"""What a source holds: recognises folders of images, WebDataset tars and Parquet files, and lists units of work.

Only names, sizes, caption files and Parquet footers are read here; the samples are read by the tasks. The same source
gives the same units in the same order, everywhere.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from os.path import basename, splitext
from pathlib import Path
from typing import Literal, NamedTuple

from pipeline.ingest.decode import Reason, Refusal
from pipeline.ingest.notes import Notes, read_class_names, read_notes
from pipeline.ingest.parquet import Columns, Layout, layout, read_parquet
from pipeline.ingest.samples import MAX_CAPTION_BYTES, MAX_IMAGE_BYTES, Broken, Captions, Sample, captions_of
from pipeline.ingest.store import SPLITS, Damage, Split
from pipeline.ingest.tars import read_tar
from ssl_models.config import Config

NO_SAMPLES = (".json", ".jsonl", ".csv", ".md", "SOURCE.txt", ".tar", ".parquet")
HOLDERS = ("images", "image", "imgs", "img")  # folders that hold images of all kinds: no class
PACKED = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".rar")


class File(Config):
    """One file of a folder source that counts as a sample; `refusal` (reason, detail) if its name settles it."""

    path: str
    label: str | None = None
    split: Split | None = None
    captions: tuple[str, ...] = ()
    sidecar: str | None = None
    refusal: tuple[Reason, str] | None = None


class Unit(Config):
    """A bounded amount of work that one task does, writing its own shards: some files, a tar, or some row groups."""

    number: int = 0
    kind: Literal["files", "tar", "parquet"]
    path: str = ""
    split: Split | None = None
    files: tuple[File, ...] = ()
    row_groups: tuple[int, ...] = ()
    first_row: int = 0
    columns: Columns | None = None


@dataclass(frozen=True)
class Plan:
    """All units of a source, with what is known before any sample is read."""

    root: Path
    units: list[Unit]
    listing: str  # sha256 of paths and sizes
    class_names: dict[str, str]  # label as found → readable name
    damaged: list[Damage]  # of caption files
    samples: int | None  # None: only reading can tell


class Entry(NamedTuple):
    """One file of a source; `problem` says why it cannot be read, whatever it holds."""

    path: str
    size: int
    problem: str | None


def list_source(
    source: Path, samples_per_shard: int, image_column: str | None = None, caption_column: str | None = None
) -> Plan:
    """Recognises `source` (a folder, or one .tar or .parquet file) and lists its units.

    Raises:
        ValueError: nothing there, nothing in it that could be a sample, or Parquet without a column of images.
    """
    root, entries = _entries(source)
    names = {entry.path for entry in entries if entry.problem is None}
    tars = [entry.path for entry in entries if entry.path.endswith(".tar") and entry.problem is None]
    tables = [entry.path for entry in entries if entry.path.endswith(".parquet") and entry.problem is None]
    tables = [path for path in tables if splitext(path)[0] + ".tar" not in names]  # img2dataset's notes on a tar
    notes = read_notes(root, names)
    files = _files(entries, names, notes)
    units = [
        Unit(kind="files", files=tuple(files[start : start + samples_per_shard]))
        for start in range(0, len(files), samples_per_shard)
    ]
    units += [Unit(kind="tar", path=path, split=_split(path, packed=True)) for path in tars]
    rows = 0
    for path in tables:
        found = layout(root / path, path, image_column, caption_column)
        rows += sum(found.rows)
        units += _table_units(path, found, samples_per_shard)
    if not units:
        raise ValueError(f"{source} holds no image, .tar or .parquet file: give the folder that holds them")
    return Plan(
        root=root,
        units=[unit.model_copy(update={"number": number}) for number, unit in enumerate(units)],
        listing=hashlib.sha256("\0".join(f"{entry.path}\0{entry.size}" for entry in entries).encode()).hexdigest(),
        class_names=read_class_names(root),
        damaged=notes.damaged,
        samples=None if tars else len(files) + rows,
    )


def read(unit: Unit, root: Path) -> Iterator[Sample | Broken]:
    """The raw samples of a unit, in order."""
    if unit.kind == "tar":
        return read_tar(root / unit.path, unit.path, unit.split)
    if unit.kind == "parquet":
        return read_parquet(root / unit.path, unit.path, unit.columns, unit.row_groups, unit.first_row, unit.split)
    return (_read_file(file, root) for file in unit.files)


def _read_file(file: File, root: Path) -> Sample:
    captions = captions_of(list(file.captions))
    content: bytes | Refusal
    try:
        if file.refusal:
            raise Refusal(*file.refusal)
        content = _bytes(root / file.path, MAX_IMAGE_BYTES)
        if len(content) > MAX_IMAGE_BYTES:
            raise Refusal("bytes_over_cap", f"more than {MAX_IMAGE_BYTES} bytes")
    except Refusal as refusal:
        content = refusal
    except OSError as error:
        content = Refusal("header_bad", f"cannot be read: {error.strerror}")
    if file.sidecar:
        try:
            text = _bytes(root / file.sidecar, MAX_CAPTION_BYTES).decode("utf-8", "replace")
            captions = captions_of(text, list(file.captions))
        except OSError:
            captions = Captions(captions.texts, captions.dropped + 1)
    return Sample(file.path, content, captions, file.label, file.split)


def _bytes(path: Path, limit: int) -> bytes:
    """At most `limit` + 1 bytes of a file that is no symbolic link, even if it became one since it was listed."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as opened:
        return opened.read(limit + 1)


def _entries(source: Path) -> tuple[Path, list[Entry]]:
    """The source's root, and its files that are not hidden, sorted by path."""
    if not source.exists():
        raise ValueError(
            f"no source at {source}: give a folder of images, or of .tar or .parquet files, on this machine"
        )
    if source.is_dir():
        return source, sorted(_walk(source))
    if source.suffix not in (".tar", ".parquet"):
        raise ValueError(f"{source} is neither a folder nor a .tar or .parquet file: unpack it, or give its folder")
    return source.parent, [Entry(source.name, source.stat().st_size, None)]


def _walk(root: Path) -> Iterator[Entry]:
    folders = [""]
    while folders:
        prefix = folders.pop()
        try:
            with os.scandir(root / prefix) as listed:
                items = list(listed)
        except OSError as error:
            yield Entry(prefix, 0, f"a folder that cannot be listed: {error.strerror}")
            continue
        for item in items:
            name = prefix + item.name
            readable = os.fsencode(name).decode("utf-8", "backslashreplace")
            if item.name.startswith("."):
                continue
            if readable != name:
                yield Entry(readable, 0, "its name is not valid UTF-8")
            elif item.is_symlink():
                yield Entry(name, 0, "a symbolic link, which is never followed")
            elif item.is_dir():
                folders.append(name + "/")
            elif not stat.S_ISREG((status := item.stat()).st_mode):
                yield Entry(name, 0, "not a regular file")
            else:
                yield Entry(name, status.st_size, None)


def _files(entries: list[Entry], names: set[str], notes: Notes) -> list[File]:
    """The files that count as samples: all but metadata, caption sidecars, tars and Parquet files."""
    found = [entry for entry in entries if entry.problem or not entry.path.endswith(NO_SAMPLES)]
    stems = {splitext(entry.path)[0] for entry in found if not entry.path.endswith(".txt")}
    folders = {}
    for entry in found:
        if not entry.path.endswith(".txt") or entry.problem or splitext(entry.path)[0] not in stems:
            folders[entry] = _class_folder(entry.path)
    # One folder tells no classes apart, and where a caption file lists the images, folders only hold them.
    labelled = not any(notes.captions.values()) and len({folder for folder in folders.values() if folder}) >= 2
    return [
        File(
            path=entry.path,
            label=notes.labels.get(entry.path) or (folder if labelled else None),
            split=_split(entry.path),
            captions=tuple(notes.captions.get(entry.path, ())),
            sidecar=_sidecar(entry.path, names),
            refusal=_hopeless(entry),
        )
        for entry, folder in folders.items()
    ]


def _sidecar(path: str, names: set[str]) -> str | None:
    text = splitext(path)[0] + ".txt"
    return text if text != path and text in names else None


def _hopeless(entry: Entry) -> tuple[Reason, str] | None:
    if entry.problem:
        return "key_invalid", entry.problem
    if entry.path.endswith(PACKED):
        return "ext_forbidden", "an archive: unpack it, or give its tars"
    return None


def _split(path: str, packed: bool = False) -> Split | None:
    """The split that the top folder names, or the file name of a container: `train-00000-of-00002.parquet`."""
    top, slash, _ = path.partition("/")
    told = SPLITS.get(top.lower()) if slash else None
    if told is None and packed:
        return SPLITS.get(basename(path).lower().split(".")[0].split("-")[0])
    return told


def _class_folder(path: str) -> str | None:
    """The folder that names the class: the nearest that neither names a split at the top nor merely holds images."""
    folders = path.split("/")[:-1]
    if folders and folders[0].lower() in SPLITS:
        del folders[0]
    return next((folder for folder in reversed(folders) if folder.lower() not in HOLDERS), None)


def _table_units(path: str, found: Layout, samples_per_shard: int) -> Iterator[Unit]:
    """Runs of row groups of about `samples_per_shard` rows; one unit for a file that cannot be read, to say why."""
    split = _split(path, packed=True)
    groups: list[int] = []
    first = rows = 0
    for group, count in enumerate(found.rows):
        groups.append(group)
        rows += count
        if rows >= samples_per_shard or group == len(found.rows) - 1:
            yield Unit(kind="parquet", path=path, split=split, row_groups=tuple(groups), first_row=first,
                       columns=found.columns)  # fmt: skip
            groups, first, rows = [], first + rows, 0
    if not found.rows:
        yield Unit(kind="parquet", path=path, split=split, columns=found.columns)
