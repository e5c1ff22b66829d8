"""Duplicates are those that comparing all pairs would find, and each that goes has a twin that stays."""

import numpy as np
import pytest

from pipeline.select import duplicates
from pipeline.select.duplicates import exact_survivors, near_duplicates, near_pairs


def looks(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random hashes, of which half lie within a few bits of another, and thumbnails that agree unless they differ."""
    generator = np.random.default_rng(seed)
    hashes = generator.integers(0, 2**64, count, dtype=np.uint64)
    for row in range(count // 2, count):
        twin = hashes[generator.integers(0, count // 2)]
        for bit in generator.choice(64, generator.integers(0, 9), replace=False):
            twin ^= np.uint64(1) << np.uint64(bit)
        hashes[row] = twin
    thumbs = np.full((count, 48), 100, np.uint8)
    thumbs[generator.random(count) < 0.1] = 160  # another colour
    return hashes, thumbs


def brute_force(hashes: np.ndarray, thumbs: np.ndarray, distance: int) -> set[tuple[int, int]]:
    return {
        (i, j)
        for j in range(len(hashes))
        for i in range(j)
        if int(hashes[i] ^ hashes[j]).bit_count() <= distance and abs(int(thumbs[i, 0]) - int(thumbs[j, 0])) <= 12
    }


@pytest.mark.parametrize("full", [0, 1e-6, 64], ids=["the finest keys", "finer keys", "the coarsest keys"])
@pytest.mark.parametrize("distance", [0, 1, 2, 3, 4, 6])
def test_the_banded_look_up_misses_no_pair(monkeypatch: pytest.MonkeyPatch, full: float, distance: int) -> None:
    monkeypatch.setattr(duplicates, "FULL", full)
    hashes, thumbs = looks(400)
    found = near_pairs(hashes, thumbs, distance)
    expected = brute_force(hashes, thumbs, distance)
    assert {tuple(pair) for pair in found.rows.tolist()} == expected
    assert len(found.rows) == len(expected) > 0
    assert found.skipped == 0


@pytest.mark.parametrize("seed", range(5))
def test_who_goes_has_a_twin_who_stays_and_nobody_else_goes(seed: int) -> None:
    hashes, thumbs = looks(300, seed)
    priority = np.random.default_rng(seed).integers(0, 2, 300)
    survivors, _ = near_duplicates(hashes, thumbs, 3, priority)
    near = brute_force(hashes, thumbs, 3)
    kept = set(np.flatnonzero(survivors == np.arange(300)).tolist())
    for row, twin in enumerate(survivors.tolist()):
        if row == twin:
            better = [a if b == row else b for a, b in near if row in (a, b)]
            assert not [b for b in better if b in kept and (priority[b], b) < (priority[row], row)]
        else:
            assert (min(row, twin), max(row, twin)) in near
            assert twin in kept
            assert (priority[twin], twin) < (priority[row], row)


def test_a_chain_does_not_collapse() -> None:
    hashes = np.array([0b0, 0b111, 0b111111, 0b111111111], np.uint64)  # each 3 bits from the next
    survivors, _ = near_duplicates(hashes, np.zeros((4, 48), np.uint8), 3, np.zeros(4, np.int64))
    assert survivors.tolist() == [0, 0, 2, 2]


def test_the_same_hash_in_another_colour_is_another_picture() -> None:
    thumbs = np.stack([np.full(48, 0, np.uint8), np.full(48, 80, np.uint8)])
    survivors, _ = near_duplicates(np.zeros(2, np.uint64), thumbs, 3, np.zeros(2, np.int64))
    assert survivors.tolist() == [0, 1]


def test_a_million_equal_pictures_make_no_million_squared_pairs() -> None:
    survivors, skipped = near_duplicates(
        np.zeros(10**6, np.uint64), np.zeros((10**6, 48), np.uint8), 3, np.zeros(10**6, np.int64)
    )
    assert not survivors.any()
    assert skipped == 0


def test_overfull_buckets_are_cut_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MAX_BUCKET", 10)
    hashes = np.arange(100, dtype=np.uint64) << np.uint64(48)  # three of four bands are the same
    assert near_pairs(hashes, np.zeros((100, 48), np.uint8), 1).skipped > 0


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
    keys = np.array([ord(letter) for letter in pixels])
    priority = np.array([split != "test" for split in splits.split()], np.int64)
    assert exact_survivors(keys, priority).tolist() == survivors


def test_nothing_has_no_duplicates() -> None:
    empty = np.empty(0, np.int64)
    assert len(exact_survivors(empty, empty)) == 0
    assert len(near_duplicates(np.empty(0, np.uint64), np.empty((0, 48), np.uint8), 3, empty)[0]) == 0
