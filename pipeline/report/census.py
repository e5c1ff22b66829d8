"""Counts over the index of a store, for its data card: kept beside dropped. Reads only the columns it needs."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.ingest.store import Store
from pipeline.report.histograms import Quantity, histogram

ROWS = 30  # of a table of categories
CAPTIONS, ORIGINS, CLUSTERS, MEMBERS = 10, 20, 20, 8
WORDS = 200  # characters of a caption or a name
SIDE = Quantity("side", "Shorter side", "px", whole=True)
ASPECT = Quantity("aspect", "Aspect ratio (longer ÷ shorter)", low=1)
PIXELS = Quantity("megapixels", "Megapixels", "MP")
BYTES = Quantity("bytes", "Size of the source's file", "bytes", whole=True)
ENTROPY = Quantity("entropy", "Entropy of luminance", "bits", log=False, low=0, high=8)
SHARPNESS = Quantity("sharpness", "Sharpness (variance of the Laplacian)", low=0.1)
MEAN = Quantity("mean", "Mean luminance", log=False, low=0, high=255)
STD = Quantity("std", "Spread of luminance", log=False, low=0, high=128)
CAPTION_WORDS = Quantity("caption_words", "Words of a caption", "words", whole=True)


def histograms(store: Store, kept: np.ndarray, policy: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of sizes, measures and caption lengths, with the policy's thresholds; `kept` is (n,) bool."""
    sizes = store.columns("original_width", "original_height")
    sides = np.stack([column.to_numpy() for column in sizes.columns]).astype(np.float64)  # (2, n)
    short, long = sides.min(0), sides.max(0)

    def least(name: str) -> list[tuple[str, float]]:
        value = policy.get(name)
        return [(f"≥ {value:g}", value)] if value else []

    most = policy.get("max_aspect")
    plots = [
        histogram(SIDE, short, kept, least("min_side")),
        histogram(ASPECT, long / np.maximum(short, 1), kept, [(f"≤ {most:g}", most)] if most else []),
        histogram(PIXELS, short * long / 1e6, kept),
    ]
    for quantity, thresholds in (
        (BYTES, []), (STD, least("min_std")), (ENTROPY, least("min_entropy")), (SHARPNESS, least("min_sharpness")),
        (MEAN, []),
    ):  # fmt: skip
        plots.append(histogram(quantity, store.column(quantity.name).to_numpy(), kept, thresholds))
    captions = store.column("captions")
    spaces = pc.count_substring(pc.list_flatten(captions), " ").to_numpy()  # white space was collapsed
    if len(spaces):
        of_captions = np.repeat(kept, _lengths(captions))
        plots.append(histogram(CAPTION_WORDS, spaces + 1, of_captions, least("min_caption_words")))
    return plots


def categories(store: Store, kept: np.ndarray) -> list[dict[str, Any]]:
    """Kept and dropped by format, flag, number of captions, language and label, the largest first."""
    table = store.columns("format", "flags", "languages", "label")
    counts = pc.list_value_length(store.column("captions")).cast(pa.string())
    names = pa.array([*store.manifest.classes, "none"], pa.string())
    labels = table["label"].to_numpy()
    labels = names.take(pa.array(np.where(labels < 0, len(names) - 1, labels)))
    parts = [
        _category("formats", "Formats", "pictures", table["format"], kept),
        _category("flags", "Flags", "pictures; one can have several", *_each(table["flags"], kept)),
        _category("captions", "Captions of a picture", "pictures", counts, kept),
        _category("languages", "Languages", "captions; und: cannot be told", *_each(table["languages"], kept)),
    ]
    if store.manifest.classes:
        parts.append(_category("labels", "Labels", "pictures", labels, kept))
    return [part for part in parts if part["rows"]]


def origins(store: Store, kept: np.ndarray) -> dict[str, Any]:
    """The origins that most decoded samples come from."""
    table = _counted(store.column("origin"), kept)
    rows = table.slice(0, ORIGINS).to_pylist()
    largest = [{"origin": cut(row["value"]), "admitted": row["all"], "kept": row["kept"]} for row in rows]
    return {"count": table.num_rows, "most_kept": pc.max(table["kept"]).as_py() or 0, "largest": largest}


def captions(store: Store, kept: np.ndarray, hidden: np.ndarray) -> dict[str, Any]:
    """The captions that most samples share; none of a sample that is `hidden` (n,) bool."""
    texts, of = _each(store.column("captions"), np.stack([kept, hidden], 1))
    table = _counted(texts, of[:, 0])
    secret = pc.unique(texts.filter(pa.array(of[:, 1])))
    repeated = table.filter(pc.greater(table["all"], 1))
    repeated = repeated.filter(pc.invert(pc.is_in(repeated["value"], secret))).slice(0, CAPTIONS)
    return {
        "count": len(texts),
        "distinct": table.num_rows,
        "repeated": [
            {"caption": cut(row["value"]), "samples": row["all"], "kept": row["kept"]} for row in repeated.to_pylist()
        ],
    }


def clusters(decisions: pa.Table) -> dict[str, Any]:
    """The largest groups of samples that one sample stands for, whatever became of that one afterwards."""
    because = decisions["because"].fill_null(-1).to_numpy()
    root = np.where(because >= 0, because, np.arange(len(because)))
    for _ in range(64):  # an exact copy of a near copy: halves the way to the root each time
        root = root[root]
    copies = np.flatnonzero(because >= 0)
    survivors, counts = np.unique(root[copies], return_counts=True)
    order = np.lexsort((survivors, -counts))[:CLUSTERS]
    largest = []
    for survivor, count in zip(survivors[order].tolist(), counts[order].tolist(), strict=True):
        members = copies[root[copies] == survivor]
        reasons = Counter(decisions["reason"].take(pa.array(members)).to_pylist())
        largest.append(
            {
                "survivor": survivor,
                "dropped_too": decisions["reason"][survivor].as_py(),
                "size": count + 1,
                "reasons": dict(sorted(reasons.items())),
                "members": members[:MEMBERS].tolist(),
            }
        )
    return {"count": len(survivors), "copies": len(copies), "largest": largest}


def samples(store: Store, numbers: list[int], wordless: set[int]) -> list[dict[str, Any]]:
    """Who the samples of these numbers are; no caption of one that is `wordless`."""
    rows = pa.array(numbers, pa.int64())
    table = store.columns("id", "source", "captions", "original_width", "original_height").take(rows)
    return [
        {
            "number": number,
            "id": row["id"],
            "source": cut(row["source"]),
            "width": row["original_width"],
            "height": row["original_height"],
            "caption": None if number in wordless or not row["captions"] else cut(row["captions"][0]),
        }
        for number, row in zip(numbers, table.to_pylist(), strict=True)
    ]


def cut(text: str) -> str:
    """`text`, shortened for a page."""
    return text if len(text) <= WORDS else text[: WORDS - 1] + "…"


def _lengths(lists: pa.ChunkedArray) -> np.ndarray:
    return pc.list_value_length(lists).fill_null(0).to_numpy()


def _each(lists: pa.ChunkedArray, of_sample: np.ndarray) -> tuple[pa.ChunkedArray, np.ndarray]:
    """All elements of the lists, and what is known of the sample that each belongs to."""
    return pc.list_flatten(lists), np.repeat(of_sample, _lengths(lists), axis=0)


def _counted(values: pa.ChunkedArray | pa.Array, kept: np.ndarray) -> pa.Table:
    """`value`, `all`, `kept` of every distinct value, the most frequent first."""
    grouped = pa.table({"value": values, "in": pa.array(kept.astype(np.int64))}).group_by("value")
    counts = grouped.aggregate([("in", "count"), ("in", "sum")]).select(["value", "in_count", "in_sum"])
    return counts.rename_columns(["value", "all", "kept"]).sort_by([("all", "descending"), ("value", "ascending")])


def _category(name: str, title: str, unit: str, values: pa.ChunkedArray | pa.Array, kept: np.ndarray) -> dict[str, Any]:
    table = _counted(values, kept)
    rows = [
        {"value": cut(row["value"] or ""), "kept": row["kept"], "dropped": row["all"] - row["kept"]}
        for row in table.slice(0, ROWS).to_pylist()
    ]
    return {"name": name, "title": title, "unit": unit, "distinct": table.num_rows, "rows": rows}
