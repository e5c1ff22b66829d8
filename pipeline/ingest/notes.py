"""What text files say about images: captions, labels, origins and hashes, in lines of JSON; readable class names."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from os.path import basename
from typing import BinaryIO

from pipeline.ingest.places import Place
from pipeline.ingest.samples import captions_of, host_of, named
from pipeline.ingest.store import SPLITS, Damage, Split

CAPTION_FILES = ("captions.jsonl", "metadata.jsonl")
CLASS_NAMES = "classes.csv"
MAX_LINE_BYTES = 2**20
PATH_KEYS = ("path", "file", "file_name", "image")
_MAX_CLASS_NAMES_BYTES = 16 * 2**20
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass
class Note:
    """What is said about one image, in one line or in several."""

    captions: list[str] = field(default_factory=list)
    label: str | None = None
    split: Split | None = None
    sha256: str | None = None
    origin: str | None = None

    def add(self, record: Mapping[str, object]) -> None:
        """One more line about the image: its captions come after those known; of all else the first holds."""
        self.captions += captions_of(*(record.get(key) for key in ("caption", "captions", "text"))).texts
        labels = [named(record.get(key)) for key in ("label", "class")]
        self.label = self.label or labels[0] or labels[1]
        split = record.get("split")
        self.split = self.split or (SPLITS.get(split.lower()) if isinstance(split, str) else None)
        self.sha256 = self.sha256 or sha256_of(record.get("sha256"))
        self.origin = self.origin or host_of(record.get("url"))


@dataclass
class Notes:
    """What caption files say, by image path."""

    images: dict[str, Note]
    damaged: list[Damage]


def sha256_of(value: object) -> str | None:
    """A sha256 in hexadecimal, lower case; None for anything else."""
    return value.lower() if isinstance(value, str) and _SHA256.fullmatch(value.lower()) else None


def lines_of(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines, from 1; None for a line of more than `MAX_LINE_BYTES`, which is never held whole."""
    number, whole = 0, True
    while piece := file.readline(MAX_LINE_BYTES + 1):
        number += whole  # else the rest of a long line, told already
        ended = piece.endswith(b"\n")
        if whole:
            yield number, piece if ended or len(piece) <= MAX_LINE_BYTES else None
        whole = ended


def record_of(line: bytes | None) -> dict[str, object]:
    """The JSON object in one line; {} if it holds none."""
    try:
        record = json.loads(line or b"")
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def path_in(record: Mapping[str, object]) -> str:
    """The image path that a record gives; "" for none."""
    return next((path for key in PATH_KEYS if isinstance(path := record.get(key), str) and path), "")


def read_notes(place: Place, names: set[str]) -> Notes:
    """What all `captions.jsonl` and `metadata.jsonl` say; several lines of an image are several captions."""
    notes = Notes({}, [])
    for name in sorted(name for name in names if basename(name) in CAPTION_FILES):
        folder = name.removesuffix(basename(name))  # image paths are relative to it
        used, bad, why = 0, [], ""
        try:
            with place.open(name) as file:
                for number, line in lines_of(file):
                    record = record_of(line)
                    image = folder + path_in(record).removeprefix("./")
                    if image not in names:
                        bad.append(number)
                        continue
                    notes.images.setdefault(image, Note()).add(record)
                    used += 1
        except ConnectionError:
            raise
        except OSError as error:
            why = f"cannot be read: {error.strerror or error}"
        if bad:
            why = f"{len(bad)} lines (the first is line {bad[0]}) name no image that is there"
        if why:
            notes.damaged.append(Damage(shard=name, reason="list_bad", saved=used, lost=0, why=why))
    return notes


def read_class_names(place: Place, names: set[str]) -> dict[str, str]:
    """Readable names from `classes.csv` (wnid, name); the first synonym, made unique where two classes share it."""
    if CLASS_NAMES not in names:
        return {}
    text = place.read(CLASS_NAMES, _MAX_CLASS_NAMES_BYTES).decode("utf-8", "replace")
    try:
        rows = [row for row in csv.DictReader(io.StringIO(text, newline="")) if row.get("wnid") and row.get("name")]
    except csv.Error:
        return {}
    found = {row["wnid"]: row["name"].split(",")[0].strip() for row in rows}
    shared = Counter(found.values())
    return {wnid: name if shared[name] == 1 else f"{name} ({wnid})" for wnid, name in found.items()}
