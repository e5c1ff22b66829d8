"""Splits, duplicates and numbers are functions of the samples alone."""

import hashlib
import itertools

import pyarrow as pa
import pytest

from pipeline.ingest.merge import REPORT_SCHEMA, Merged, assign_splits, merged, survivors_of


def ids(count: int) -> list[str]:
    return [hashlib.sha256(str(number).encode()).hexdigest() for number in range(count)]


def report(unit: int, samples: list[tuple[str, str | None, str | None]]) -> pa.Table:
    """A unit's report; samples are (pixels, label, split)."""
    kept = [
        {
            "id": hashlib.sha256(f"{unit}/{row}".encode()).hexdigest(), "shard": f"{unit:05d}.tar", "offset": 512 * row,
            "length": 1, "width": 8, "height": 8, "captions": [], "label": label, "split": split, "pixels": pixels,
            "source": f"{unit}/{row}",
        }
        for row, (pixels, label, split) in enumerate(samples)
    ]  # fmt: skip
    refused = [{"source": f"{unit}/x", "reason": "blank", "detail": "x"}] * unit
    shards = [{"name": f"{unit:05d}.tar", "bytes": 10, "sha256": "x"}] if samples else []
    row = {"unit": unit, "seen": len(kept) + len(refused), "kept": kept, "refused": refused, "shards": shards,
           "damaged": [], "captions_dropped": 0}  # fmt: skip
    return pa.Table.from_pylist([row], schema=REPORT_SCHEMA)


def test_the_hashed_split_depends_on_the_id_alone() -> None:
    every = ids(4000)
    splits = dict(zip(every, assign_splits(every, [None] * 4000, 0.1), strict=True))
    backwards = assign_splits(every[::-1], [None] * 4000, 0.1)
    assert backwards == [splits[id_] for id_ in every[::-1]]
    assert assign_splits(every[:7], [None] * 7, 0.1) == [splits[id_] for id_ in every[:7]]
    assert 320 < backwards.count("test") < 480
    wider = assign_splits(every, [None] * 4000, 0.3)
    assert all(new == "test" for new, old in zip(wider, splits.values(), strict=True) if old == "test")
    assert "test" not in assign_splits(every, [None] * 4000, 0.0)


def test_where_the_source_names_splits_the_rest_is_for_training() -> None:
    assert assign_splits(ids(3), ["test", None, "train"], 0.5) == ["test", "train", "train"]


@pytest.mark.parametrize(
    ("pixels", "splits", "survivors"),
    [
        ("abc", "train train train", [0, 1, 2]),
        ("aba", "train train train", [0, 1, 0]),
        ("aab", "train test train", [1, 1, 2]),
        ("aaa", "train test test", [1, 1, 1]),
        ("aaa", "test train test", [0, 0, 0]),
    ],
)
def test_the_first_copy_survives_but_a_test_copy_before_any_other(
    pixels: str, splits: str, survivors: list[int]
) -> None:
    assert survivors_of(list(pixels), splits.split()).tolist() == survivors  # type: ignore[arg-type]


def test_the_result_does_not_depend_on_the_order_of_the_reports() -> None:
    reports = [
        report(0, [("a", "cat", "train"), ("b", "dog", "train")]),
        report(1, [("c", None, "test"), ("a", "cat", "test")]),
        report(2, []),
        report(3, [("b", "10", "train"), ("d", "9", "train")]),
    ]
    results: list[Merged] = [merged(order, 0.1) for order in itertools.permutations(reports)]
    first = results[0]
    assert all(result == first for result in results[1:])
    assert first.seen == 12 == first.index.num_rows + first.refused.num_rows
    assert first.index["number"].to_pylist() == [0, 1, 2, 3]
    assert first.index["source"].to_pylist() == ["0/1", "1/0", "1/1", "3/1"]
    assert first.classes == ["9", "cat", "dog"]
    assert first.index["label"].to_pylist() == [2, -1, 1, 0]
    assert [first.shards[shard].name for shard in first.index["shard"].to_pylist()] == [
        "00000.tar", "00001.tar", "00001.tar", "00003.tar",
    ]  # fmt: skip
    assert first.refused.to_pylist()[-2:] == [
        {"source": "0/0", "reason": "dup_exact", "detail": "same picture as 1/1"},
        {"source": "3/0", "reason": "dup_exact", "detail": "same picture as 0/1"},
    ]


def test_a_single_class_is_no_class() -> None:
    only = merged([report(0, [("a", "cat", None), ("b", "cat", None)])], 0.1)
    assert only.classes == []
    assert only.index["label"].to_pylist() == [-1, -1]


def test_nothing_kept_is_an_empty_index() -> None:
    assert merged([report(1, [])], 0.1).index.num_rows == 0
