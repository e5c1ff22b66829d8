"""What a source declares about its own files: which there are, how large, their sha256, and how many samples they hold.

Understood are `_MANIFEST.json` ({"files": [{"path", "size", "sha256", "samples"}]}) and webdataset's `sizes.json` and
index ({"shardlist": [{"url", "nsamples"}]}) at the root, and img2dataset's NAME_stats.json beside NAME.tar.
"""

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from os.path import basename

from pipeline.ingest.compressed import COMPRESSED
from pipeline.ingest.notes import sha256_of
from pipeline.ingest.places import Entry, Place, declared_path
from pipeline.ingest.store import Damage

MANIFEST, SIZES = "_MANIFEST.json", "sizes.json"
TARS = (".tar", *COMPRESSED)
CONTAINERS = (*TARS, ".parquet")
NO_SAMPLES = (".json", ".jsonl", ".csv", ".md", "SOURCE.txt", ".tar", ".parquet")
_MAX_JSON_BYTES = 64 * 2**20
_MAX_INDEXES = 16  # more JSON files than this at the root are no indexes


@dataclass
class Declared:
    """By path: `samples` of a container, `sha256`, and `faults` of loose files whose size is not the declared one."""

    samples: dict[str, int] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    damaged: list[Damage] = field(default_factory=list)


def read_declared(place: Place, entries: Iterable[Entry]) -> Declared:
    """What the source declares, held against what is there.

    Raises:
        ValueError: a manifest that names a file outside of the source.
    """
    there = {entry.path: entry for entry in entries}
    found = Declared()
    if MANIFEST in there:
        _read_manifest(place, there, found)
    tars = [path for path, entry in there.items() if path.endswith(TARS) and entry.problem is None]
    if tars:
        _read_indexes(place, there, tars, found)
        _read_stats(place, there, [tar for tar in tars if tar not in found.samples], found)
    return found


def _read_manifest(place: Place, there: dict[str, Entry], found: Declared) -> None:
    document = _json(place, MANIFEST)
    files = document.get("files") if isinstance(document, dict) else None
    if not isinstance(files, list):
        why = f"it has no list of files, or more than {_MAX_JSON_BYTES} bytes"
        found.damaged.append(Damage(shard=MANIFEST, reason="list_bad", saved=0, lost=0, why=why))
        return
    absent: list[str] = []
    for record in files:
        if not isinstance(record, dict) or not isinstance(record.get("path"), str):
            continue
        try:
            path = declared_path(record["path"])
        except ValueError as error:
            raise ValueError(f"{MANIFEST} of {place.shown}: {error}, so nothing of the source was read") from None
        size, samples, sha256 = count_of(record.get("size")), count_of(record.get("samples")), record.get("sha256")
        if path.endswith(CONTAINERS) and samples is not None:
            found.samples[path] = samples
        if digest := sha256_of(sha256):
            found.sha256[path] = digest
        if path not in there:
            if path.endswith(CONTAINERS):
                found.damaged.append(_missing(path, samples, MANIFEST))
            elif not path.endswith(NO_SAMPLES) and "/." not in f"/{path}":
                absent.append(path)
        elif size is not None and size != there[path].size and there[path].problem is None:
            why = f"it has {there[path].size} bytes, but {MANIFEST} declares {size}"
            if path.endswith(CONTAINERS):
                found.damaged.append(Damage(shard=path, reason="count_mismatch", saved=0, lost=0, why=why))
            else:
                found.faults[path] = why
    if absent:
        found.damaged.append(missing_files(MANIFEST, absent, len(files) - len(absent)))


def _read_indexes(place: Place, there: dict[str, Entry], tars: list[str], found: Declared) -> None:
    """`sizes.json` and what looks like webdataset's index, whose URLs are only compared by their last part."""
    by_name: dict[str, list[str]] = {}
    for tar in tars:
        by_name.setdefault(basename(tar), []).append(tar)
    notes = [path for path in there if path.endswith(".json") and "/" not in path and path != MANIFEST]
    notes = [path for path in notes if not path.endswith("_stats.json")]
    for index in sorted(notes) if len(notes) <= _MAX_INDEXES else [path for path in notes if path == SIZES]:
        for name, samples in _index(_json(place, index), index == SIZES):
            paths = by_name.get(name, [])
            if len(paths) == 1:
                found.samples.setdefault(paths[0], samples)
            elif not paths and not any(damage.shard == name for damage in found.damaged):
                found.damaged.append(_missing(name, samples, index))


def _index(document: object, is_sizes: bool) -> Iterator[tuple[str, int]]:
    """File names of tars and how many samples they hold."""
    pairs: Iterable[tuple[object, object]] = ()
    if isinstance(document, dict) and isinstance(shards := document.get("shardlist"), list):
        pairs = ((shard.get("url"), shard.get("nsamples")) for shard in shards if isinstance(shard, dict))
    elif isinstance(document, dict) and is_sizes:
        pairs = document.items()
    for url, samples in pairs:
        if isinstance(url, str) and url.endswith(TARS) and (number := count_of(samples)) is not None:
            yield basename(url), number


def _read_stats(place: Place, there: dict[str, Entry], tars: list[str], found: Declared) -> None:
    stems = {tar: tar.removesuffix(next(suffix for suffix in TARS if tar.endswith(suffix))) for tar in tars}
    noted = [tar for tar, stem in stems.items() if f"{stem}_stats.json" in there]
    with ThreadPoolExecutor(16) as pool:
        documents = pool.map(lambda tar: _json(place, f"{stems[tar]}_stats.json"), noted)
        for tar, document in zip(noted, documents, strict=True):
            samples = count_of(document.get("successes")) if isinstance(document, dict) else None
            if samples is not None:
                found.samples[tar] = samples


def _json(place: Place, path: str) -> object:
    """The content of a JSON file; None if it is none, too large, or cannot be read."""
    try:
        text = place.read(path, _MAX_JSON_BYTES)
        return json.loads(text) if len(text) <= _MAX_JSON_BYTES else None
    except ConnectionError:
        raise
    except (OSError, ValueError, RecursionError):
        return None


def count_of(value: object) -> int | None:
    """A number of things; None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else None


def missing_files(declared_in: str, paths: list[str], there: int) -> Damage:
    """Files that a list or a manifest names and that are not there."""
    first = ", ".join(path[:100] for path in paths[:5])
    why = f"{len(paths)} files that it names are not there: {first}{' …' if len(paths) > 5 else ''}"
    return Damage(shard=declared_in, reason="missing", saved=there, lost=len(paths), why=why)


def _missing(path: str, samples: int | None, declared_in: str) -> Damage:
    return Damage(shard=path, reason="missing", saved=0, lost=samples, why=f"{declared_in} declares it")
