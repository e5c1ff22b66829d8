"""Joins what the tasks report into one index: drops exact duplicates, assigns splits, numbers samples and classes.

A function of the reports alone: neither the number of workers nor the order in which they finished matters.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.ingest.store import INDEX_SCHEMA, REFUSED_SCHEMA, Damage, ShardEntry, Split

KEPT = pa.struct(
    [
        ("id", pa.string()), ("shard", pa.string()), ("offset", pa.int64()), ("length", pa.int32()),
        ("width", pa.int32()), ("height", pa.int32()), ("captions", pa.list_(pa.string())), ("label", pa.string()),
        ("split", pa.string()), ("pixels", pa.string()), ("source", pa.string()),
    ]
)  # fmt: skip
REFUSED = pa.struct(list(REFUSED_SCHEMA))
SHARD = pa.struct([("name", pa.string()), ("bytes", pa.int64()), ("sha256", pa.string())])
DAMAGE = pa.struct([("shard", pa.string()), ("saved", pa.int64()), ("why", pa.string())])
# One row a unit: all that a task returns.
REPORT_SCHEMA = pa.schema(
    [
        ("unit", pa.int64()),
        ("seen", pa.int64()),
        ("kept", pa.list_(KEPT)),
        ("refused", pa.list_(REFUSED)),
        ("shards", pa.list_(SHARD)),
        ("damaged", pa.list_(DAMAGE)),
        ("captions_dropped", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Merged:
    """The content of a store, before it is written."""

    index: pa.Table
    refused: pa.Table
    classes: list[str]
    shards: list[ShardEntry]
    damaged: list[Damage]
    seen: int
    captions_dropped: int
    content: str  # sha256 over the sorted (id, split, class name, captions) of the kept samples


def merged(reports: Iterable[pa.Table], holdout: float) -> Merged:
    """Merges reports (`REPORT_SCHEMA`, any order, each unit once)."""
    table = pa.concat_tables(sorted(reports, key=lambda report: report["unit"][0].as_py()))
    found, refused = _rows(table["kept"], KEPT), _rows(table["refused"], REFUSED)
    shards = [ShardEntry(**entry) for entry in _rows(table["shards"], SHARD).to_pylist()]
    splits = assign_splits(found["id"].to_pylist(), found["split"].to_pylist(), holdout)
    survivors = survivors_of(found["pixels"].to_pylist(), splits)
    rows = np.arange(len(survivors))
    # The bytes of a duplicate stay in its shard, dead: shards are written before duplicates can be known.
    doubles = rows[survivors != rows]
    sources = found["source"]
    refused = pa.concat_tables(
        [
            refused,
            pa.table(
                [
                    sources.take(doubles),
                    pa.array(["dup_exact"] * len(doubles), pa.string()),
                    pa.array([f"same picture as {source}" for source in sources.take(survivors[doubles]).to_pylist()],
                             pa.string()),
                ],
                schema=REFUSED_SCHEMA,
            ),
        ]
    )  # fmt: skip
    kept = found.set_column(found.schema.get_field_index("split"), "split", pa.array(splits, pa.string()))
    kept = kept.take(rows[survivors == rows])
    names = kept["label"].to_pylist()
    classes = sorted({name for name in names if name is not None}, key=_by_number_then_name)
    if len(classes) < 2:  # one class tells nothing apart
        classes, names = [], [None] * len(names)
    return Merged(
        index=_index(kept, names, classes, [shard.name for shard in shards]),
        refused=refused,
        classes=classes,
        shards=shards,
        damaged=[Damage(**entry) for entry in _rows(table["damaged"], DAMAGE).to_pylist()],
        seen=sum(table["seen"].to_pylist()),
        captions_dropped=sum(table["captions_dropped"].to_pylist()),
        content=_content(kept, names),
    )


def assign_splits(ids: list[str], told: list[Split | None], holdout: float) -> list[Split]:
    """The split of each sample. Where the source names splits, samples outside of them are for training; where it names
    none, a share of `holdout` becomes test, by each sample's id alone."""
    if any(told):
        return [split or "train" for split in told]
    return ["test" if int(id_[:13], 16) < holdout * 16**13 else "train" for id_ in ids]


def survivors_of(pixels: list[str], splits: list[Split]) -> np.ndarray:
    """Row (n,) int64 that stands for each row: of all rows with the same pixels the first, but a test row before any
    train row, so that training never sees a test picture. Same bytes have the same pixels, so this covers both."""
    chosen: dict[str, int] = {}
    for row, (digest, split) in enumerate(zip(pixels, splits, strict=True)):
        first = chosen.setdefault(digest, row)
        if split == "test" and splits[first] != "test":
            chosen[digest] = row
    return np.array([chosen[digest] for digest in pixels], np.int64)


def _rows(lists: pa.ChunkedArray, struct: pa.StructType) -> pa.Table:
    """A column of lists of structs as one table, all lists joined."""
    tables = [pa.Table.from_struct_array(chunk.flatten()) for chunk in lists.chunks]
    return pa.concat_tables(tables).cast(pa.schema(list(struct)))


def _by_number_then_name(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdecimal() and len(name) < 10 else (10**10, name)


def _index(kept: pa.Table, names: list[str | None], classes: list[str], shards: list[str]) -> pa.Table:
    class_numbers = {name: number for number, name in enumerate(classes)}
    shard_numbers = {name: number for number, name in enumerate(shards)}
    own: dict[str, pa.Array] = {
        "number": pa.array(np.arange(kept.num_rows), pa.int64()),
        "shard": pa.array([shard_numbers[name] for name in kept["shard"].to_pylist()], pa.int32()),
        "label": pa.array([-1 if name is None else class_numbers[name] for name in names], pa.int32()),
    }
    return pa.table([own.get(name, kept[name] if name in kept.column_names else None) for name in INDEX_SCHEMA.names],
                    schema=INDEX_SCHEMA)  # fmt: skip


def _content(kept: pa.Table, names: list[str | None]) -> str:
    digest = hashlib.sha256()
    columns = (kept["id"].to_pylist(), kept["split"].to_pylist(), names, kept["captions"].to_pylist())
    for row in sorted(zip(*columns, strict=True), key=lambda row: row[0]):  # each id once
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()
