"""A list of image files as a source: lines of JSON, CSV or TSV that name files beside the list, and what they are.

    {"path": "photos/1.jpg", "caption": "a dog", "label": "dog", "split": "train", "sha256": …, "url": …}

What a list names is only ever looked for below the list's own folder; a list that names anything else is refused
whole, before a file is opened. A URL tells where a picture came from and is never opened.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.ingest.notes import MAX_LINE_BYTES, PATH_KEYS, Note, lines_of, path_in, record_of
from pipeline.ingest.places import Place, declared_path
from pipeline.ingest.store import Damage

LISTS = (".jsonl", ".ndjson", ".csv", ".tsv")


@dataclass
class Listed:
    """What a list names: `images` by path, in the order of their first lines; `damage`: lines that name none."""

    images: dict[str, Note]
    damage: Damage | None


def read_list(place: Place, name: str) -> Listed:
    """Reads a list; the same path again adds captions to what is known.

    Raises:
        ValueError: a path that leaves the list's folder, a header without a column of paths, or no list at all.
    """
    images: dict[str, Note] = {}
    bad: list[int] = []
    records = _table(place, name) if name.endswith((".csv", ".tsv")) else _json_lines(place, name)
    for number, record in records:
        path = path_in(record)
        if not path:
            bad.append(number)
            continue
        try:
            path = declared_path(path)
        except ValueError as error:
            raise ValueError(
                f"{place.shown}, line {number}: {error}: a list may only name files below its own folder, as "
                "photos/1.jpg, so nothing of it was read"
            ) from None
        images.setdefault(path, Note()).add(record)
    if not images:
        raise ValueError(f"{place.shown} names no image file: each line needs one of {', '.join(PATH_KEYS)}")
    if not bad:
        return Listed(images, None)
    why = f"{len(bad)} lines (the first is line {bad[0]}) name no file, or have more than {MAX_LINE_BYTES} bytes"
    return Listed(images, Damage(shard=name, reason="list_bad", saved=len(images), lost=len(bad), why=why))


def _json_lines(place: Place, name: str) -> Iterator[tuple[int, dict[str, object]]]:
    with place.open(name) as file:
        for number, line in lines_of(file):
            if line is None or line.strip():
                yield number, record_of(line)


def _table(place: Place, name: str) -> Iterator[tuple[int, dict[str, object]]]:
    """Numbered records of a CSV or TSV file, with its header's names; {} for one that cannot be read."""
    with place.open(name) as file:
        unread = b'""\n'  # stands for a line that is too long: a row, but without a path
        texts = ((unread if line is None else line).decode("utf-8-sig", "replace") for _, line in lines_of(file))
        rows = csv.reader(texts, delimiter="\t" if name.endswith(".tsv") else ",")
        header: list[str] = []
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error:  # a field over csv's limit of 128 KB, most often an unclosed quote
                yield rows.line_num, {}
                continue
            if header and row:
                yield rows.line_num, dict(zip(header, row, strict=False))
            elif row:
                header = [column.strip().lower() for column in row]
                if not set(header) & set(PATH_KEYS):
                    columns = ", ".join(column[:40] for column in header[:20])
                    raise ValueError(
                        f"{place.shown} has no column of paths among {columns}: its first line must name one of "
                        f"{', '.join(PATH_KEYS)}"
                    )
