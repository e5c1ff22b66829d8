"""What a folder source says about its images in files beside them: captions, labels, readable class names."""

import csv
import json
from collections import Counter
from dataclasses import dataclass
from os.path import basename
from pathlib import Path

from pipeline.ingest.samples import captions_of, named
from pipeline.ingest.store import Damage

CAPTION_FILES = ("captions.jsonl", "metadata.jsonl")
CLASS_NAMES = "classes.csv"


@dataclass
class Notes:
    """What caption files say, by image path."""

    captions: dict[str, list[str]]
    labels: dict[str, str]
    damaged: list[Damage]


def read_notes(root: Path, names: set[str]) -> Notes:
    """What all `captions.jsonl` and `metadata.jsonl` say; several lines of an image are several captions."""
    notes = Notes({}, {}, [])
    for name in sorted(name for name in names if basename(name) in CAPTION_FILES):
        folder = name.removesuffix(basename(name))  # image paths are relative to it
        used, bad = 0, []
        with (root / name).open("rb") as lines:
            for number, line in enumerate(lines, 1):
                image, record = _parsed(line)
                if folder + image not in names:
                    bad.append(number)
                    continue
                texts = captions_of(*(record.get(key) for key in ("caption", "captions", "text"))).texts
                notes.captions.setdefault(folder + image, []).extend(texts)
                if label := named(record.get("label")):
                    notes.labels[folder + image] = label
                used += 1
        if bad:
            why = f"{len(bad)} lines (the first is line {bad[0]}) name no image that is there"
            notes.damaged.append(Damage(shard=name, saved=used, why=why))
    return notes


def _parsed(line: bytes) -> tuple[str, dict[str, object]]:
    """The image path and the record of one line; ("", {}) if it is no record of an image."""
    try:
        record = json.loads(line)
        image = next(record[key] for key in ("image", "file_name", "file") if isinstance(record.get(key), str))
    except (ValueError, RecursionError, AttributeError, StopIteration):
        return "", {}
    return image.removeprefix("./"), record


def read_class_names(root: Path) -> dict[str, str]:
    """Readable names from `classes.csv` (wnid, name); the first synonym, made unique where two classes share it."""
    path = root / CLASS_NAMES
    if not path.is_file() or path.is_symlink():
        return {}
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("wnid") and row.get("name")]
    names = {row["wnid"]: row["name"].split(",")[0].strip() for row in rows}
    shared = Counter(names.values())
    return {wnid: name if shared[name] == 1 else f"{name} ({wnid})" for wnid, name in names.items()}
