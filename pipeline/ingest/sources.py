"""What a source holds: recognises folders of images, WebDataset tars, Parquet files and lists; lists units of work.

Only names, sizes, text files and Parquet footers are read here; the samples are read by the tasks. The same source
gives the same units in the same order, everywhere.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os.path import basename, splitext
from pathlib import Path

from pipeline.ingest.compressed import COMPRESSED
from pipeline.ingest.declared import NO_SAMPLES, TARS, Declared, missing_files, read_declared
from pipeline.ingest.lists import LISTS, read_list
from pipeline.ingest.notes import Note, Notes, read_class_names, read_notes
from pipeline.ingest.parquet import Layout, layout
from pipeline.ingest.places import Entry, Place, place_of
from pipeline.ingest.refusals import Reason
from pipeline.ingest.store import SPLITS, Damage, Split
from pipeline.ingest.units import File, Unit, read

__all__ = ["File", "Plan", "Unit", "list_source", "read"]
HOLDERS = ("images", "image", "imgs", "img")  # folders that hold images of all kinds: no class
PACKED = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".rar")


class NoSamples(ValueError):
    """Nothing in a source could be a sample."""


@dataclass(frozen=True)
class Plan:
    """All units of a source, with what is known before any sample is read."""

    root: Place
    units: list[Unit]
    listing: str  # sha256 of paths, sizes and times of change
    class_names: dict[str, str]  # label as found → readable name
    damaged: list[Damage]  # what is declared and not there, and lines that say nothing
    declared: int | None  # of all units and all known damage; None: only reading can tell


def list_source(
    source: str | Path,
    samples_per_shard: int,
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
    compressed: bool = False,
    in_place: bool = False,
    only: Collection[str] | None = None,
) -> Plan:
    """Recognises `source` (a folder, one .tar or .parquet file, or a list; a path or a URI) and lists its units.

    Args:
        only: paths in the folder; all others are as if they were not there.

    Raises:
        NoSamples: see below.
        ValueError: nothing there, nothing in it that could be a sample, storage that cannot be used, Parquet without
            a column of images, a list or manifest that leads out of the source, or `in_place` for what has no bytes
            that an index could refer to.
    """
    place, name = place_of(source)
    try:
        if name.endswith(LISTS):
            return _plan_of_list(place, name, samples_per_shard)
        entries = _single(place, name, compressed) if name else sorted(place.entries(), key=lambda entry: entry.path)
        if only is not None:
            entries = [entry for entry in entries if entry.path in only]
        names = {entry.path for entry in entries if entry.problem is None}
        tars = [path for path in sorted(names) if path.endswith(TARS if compressed else ".tar")]
        tables = _tables(place, names, image_column, caption_column)
        if in_place and (without := [*tables, *(tar for tar in tars if tar.endswith(COMPRESSED))]):
            raise ValueError(
                f"{without[0]} holds no image as bytes that an index in place could refer to (Parquet and compressed "
                "tars do not): curate into a store instead"
            )
        declared, notes = read_declared(place, entries), read_notes(place, names)
        units = _file_units(_files(entries, names, notes, declared, set(tars)), samples_per_shard)
        units += [
            Unit(kind="tar", path=path, split=_split(path, packed=True), compressed=path.endswith(COMPRESSED),
                 declared=declared.samples.get(path), sha256=declared.sha256.get(path))
            for path in tars
        ]  # fmt: skip
        for path, found in tables.items():
            units += _table_units(path, found, samples_per_shard, declared)
        class_names = read_class_names(place, names)
    except ConnectionError as error:
        raise ValueError(f"{place.shown} cannot be listed: {error}. Try again, or check the network") from None
    if not units:
        raise NoSamples(f"{place.shown} holds no image, .tar or .parquet file: give the folder that holds them")
    damaged = [*declared.damaged, *_miscounted(tables, declared), *notes.damaged]
    return _plan(place, units, entries, class_names, damaged)


def _plan(
    place: Place, units: list[Unit], entries: Iterable[Entry], class_names: dict[str, str], damaged: list[Damage]
) -> Plan:
    counts = [unit.declared for unit in units] + [damage.lost for damage in damaged]
    known = [count for count in counts if count is not None]
    return Plan(
        root=place,
        units=[unit.model_copy(update={"number": number}) for number, unit in enumerate(units)],
        listing=listing_digest(entries),
        class_names=class_names,
        damaged=damaged,
        declared=sum(known) if len(known) == len(counts) else None,
    )


def listing_digest(entries: Iterable[Entry]) -> str:
    """sha256 of paths, sizes and times of change, in their order."""
    listing = hashlib.sha256()
    for entry in entries:
        listing.update(f"{entry.path}\0{entry.size}\0{entry.modified}\0".encode())
    return listing.hexdigest()


def _plan_of_list(place: Place, name: str, samples_per_shard: int) -> Plan:
    """The files that a list names, as far as they are there, in its order."""
    listed = read_list(place, name)
    folders = sorted({path.rpartition("/")[0] for path in listed.images})
    there: dict[str, Entry] = {}
    for folder in folders:
        for entry in place.entries(folder, recursive=False):
            if entry.path in listed.images or entry.path == f"{folder}/":  # the latter: it cannot be listed
                there[entry.path] = entry
    files: list[File] = []
    absent: list[str] = []
    entries = [place.entry(name)]
    for path, note in listed.images.items():
        found = there.get(path) or there.get(path.rpartition("/")[0] + "/")
        if found is None:
            absent.append(path)
            continue
        entry = found if found.path == path else found._replace(path=path)
        entries.append(entry)
        files.append(_file(entry, note, note.label, None, None))
    if not files:
        raise ValueError(
            f"none of the {len(absent)} files that {place.shown} names is there, as {absent[0][:200]}: paths are "
            "relative to the list's own folder"
        )
    damaged = [listed.damage] if listed.damage else []
    damaged += [missing_files(name, absent, len(files))] if absent else []
    return _plan(place, _file_units(files, samples_per_shard), entries, {}, damaged)


def _single(place: Place, name: str, compressed: bool) -> list[Entry]:
    """The file that is the source, and what img2dataset notes beside it."""
    if name.endswith(COMPRESSED) and not compressed:
        raise ValueError(f"{place.shown} is a compressed tar: read it with --compressed if you trust it, or unpack it")
    if not name.endswith((*TARS, ".parquet")):
        raise ValueError(
            f"{place.shown} is neither a folder nor a .tar, .parquet, or list ({', '.join(LISTS)}): unpack it, or "
            "give its folder"
        )
    entries = [place.entry(name)]
    stats = name[: -len(next(suffix for suffix in (*TARS, ".parquet") if name.endswith(suffix)))] + "_stats.json"
    try:
        return [*entries, place.entry(stats)]
    except FileNotFoundError:
        return entries


def _file_units(files: list[File], samples_per_shard: int) -> list[Unit]:
    starts = range(0, len(files), samples_per_shard)
    parts = [tuple(files[start : start + samples_per_shard]) for start in starts]
    return [Unit(kind="files", files=part, declared=len(part)) for part in parts]


def _files(entries: list[Entry], names: set[str], notes: Notes, declared: Declared, tars: set[str]) -> list[File]:
    """The files that count as samples: all but metadata, caption sidecars, tars and Parquet files."""
    found = [entry for entry in entries if entry.problem or not (entry.path.endswith(NO_SAMPLES) or entry.path in tars)]
    stems = {splitext(entry.path)[0] for entry in found if not entry.path.endswith(".txt")}
    folders = {}
    for entry in found:
        if not entry.path.endswith(".txt") or entry.problem or splitext(entry.path)[0] not in stems:
            folders[entry] = _class_folder(entry.path)
    # One folder tells no classes apart, and where a caption file lists the images, folders only hold them.
    captioned = any(note.captions for note in notes.images.values())
    labelled = not captioned and len({folder for folder in folders.values() if folder}) >= 2
    silent = Note()
    files = []
    for entry, folder in folders.items():
        note = notes.images.get(entry.path, silent)
        label = note.label or (folder if labelled else None)
        file = _file(entry, note, label, _sidecar(entry.path, names), declared.sha256.get(entry.path))
        if fault := declared.faults.get(entry.path):
            file = file._replace(refusal=file.refusal or ("hash_mismatch", fault))
        files.append(file)
    return files


def _file(entry: Entry, note: Note, label: str | None, sidecar: str | None, sha256: str | None) -> File:
    return File(
        path=entry.path,
        label=label,
        split=note.split or _split(entry.path),
        captions=tuple(note.captions),
        sidecar=sidecar,
        origin=note.origin,
        sha256=note.sha256 or sha256,
        refusal=_hopeless(entry),
    )


def _sidecar(path: str, names: set[str]) -> str | None:
    text = splitext(path)[0] + ".txt"
    return text if text != path and text in names else None


def _hopeless(entry: Entry) -> tuple[Reason, str] | None:
    if entry.problem:
        return "key_invalid", entry.problem
    if entry.path.endswith(COMPRESSED):
        return "ext_forbidden", "a compressed tar: read it with --compressed if you trust it, or unpack it"
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


def _tables(place: Place, names: set[str], image: str | None, caption: str | None) -> dict[str, Layout]:
    """The Parquet files of pictures with their footers, read a few at a time: in a bucket each costs round trips.

    A file without pictures beside a tar of its name is what img2dataset notes on the tar, and no source.
    """

    def footer(path: str) -> Layout | None:
        try:
            with place.open(path) as file:
                return layout(file, path, image, caption)
        except ConnectionError:
            raise
        except OSError:  # reading will say why
            return Layout(None, ())
        except ValueError:
            if splitext(path)[0] + ".tar" in names:
                return None
            raise

    tables = sorted(path for path in names if path.endswith(".parquet"))
    with ThreadPoolExecutor(8) as pool:
        return {path: found for path, found in zip(tables, pool.map(footer, tables), strict=True) if found is not None}


def _miscounted(tables: dict[str, Layout], declared: Declared) -> Iterator[Damage]:
    """Sound Parquet files with other numbers of rows than are declared; of the others, reading will tell."""
    for path, found in tables.items():
        rows, told = sum(found.rows), declared.samples.get(path)
        if found.columns is not None and told is not None and told != rows:
            why = f"it declares {told} samples and has {rows} rows"
            yield Damage(shard=path, reason="count_mismatch", saved=rows, lost=max(0, told - rows), why=why)


def _table_units(path: str, found: Layout, samples_per_shard: int, declared: Declared) -> Iterator[Unit]:
    """Runs of row groups of about `samples_per_shard` rows; one unit for a file that cannot be read, to say why."""
    unit = Unit(kind="parquet", path=path, split=_split(path, packed=True), columns=found.columns)
    sha256 = declared.sha256.get(path)
    groups: list[int] = []
    first = rows = 0
    for group, count in enumerate(found.rows):
        groups.append(group)
        rows += count
        if rows >= samples_per_shard or group == len(found.rows) - 1:
            yield unit.model_copy(
                update={"row_groups": tuple(groups), "first_row": first, "declared": rows, "sha256": sha256}
            )
            groups, first, rows, sha256 = [], first + rows, 0, None
    if not found.rows:
        rows_told = declared.samples.get(path) if found.columns is None else 0
        yield unit.model_copy(update={"declared": rows_told, "sha256": sha256})
