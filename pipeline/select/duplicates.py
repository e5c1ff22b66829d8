"""Exact and near duplicates among perceptual hashes, found without comparing all pairs.

Two 64-bit hashes that differ in at most d bits agree exactly in at least b - d of b bands (pigeonhole). So every pair
meets in a bucket of some combination of b - d bands (Manku et al., WWW 2007). More bands make more keys of more bits:
as many are taken as keep the buckets small. Distances of perceptual hashes are even: each has 32 bits set.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np

MAX_DISTANCE = 6  # bits; at 32 pixels, pictures of plain skies come within 6 of one another
FULL = 64  # hashes that share a bucket by chance, on average; above it, finer keys pay
MAX_BUCKET = 4096  # comparisons of a hash within one bucket; more are counted, not made
THUMB_DISTANCE = 12.0  # mean absolute difference of two 4×4 RGB thumbnails, 0..255, that still is one picture


@dataclass(frozen=True)
class Pairs:
    """Near pairs (m, 2) int64 of rows, first < second, each once, sorted by (second, first); `skipped` comparisons."""

    rows: np.ndarray
    skipped: int


def near_pairs(hashes: np.ndarray, thumbs: np.ndarray, distance: int) -> Pairs:
    """All pairs within `distance` bits whose thumbnails also agree.

    Args:
        hashes: (n,) uint64. thumbs: (n, 48) uint8; a hash sees no colour, the thumbnail does.
    """
    assert 0 <= distance <= MAX_DISTANCE, distance
    found, skipped = [np.empty((0, 2), np.int64)], 0
    for key in _keys(hashes, distance):
        order = np.argsort(key, kind="stable")
        ends = np.searchsorted(key[order], key[order], side="right")
        place = np.arange(len(order))
        for lag in range(1, MAX_BUCKET + 1):
            place = place[place + lag < ends[place]]
            if not len(place):
                break
            first, second = order[place], order[place + lag]  # stable: first < second
            close = np.bitwise_count(hashes[first] ^ hashes[second]) <= distance
            first, second = first[close], second[close]
            found.append(np.stack([first, second], 1)[thumb_distance(thumbs, first, second) <= THUMB_DISTANCE])
        skipped += int(np.maximum(ends - np.arange(len(order)) - 1 - MAX_BUCKET, 0).sum())
    pairs = np.unique(np.concatenate(found)[:, ::-1], axis=0)[:, ::-1]
    return Pairs(pairs, skipped)


def _keys(hashes: np.ndarray, distance: int) -> Iterator[np.ndarray]:
    """The bits of each combination of bands that a pair within `distance` must share in at least one combination."""
    bands = distance + 1
    while bands < 2 * distance and len(hashes) > FULL * 2 ** (64 * (bands - distance) / bands):
        bands += 1
    edges = [round(64 * band / bands) for band in range(bands + 1)]
    masks = [(1 << end) - (1 << start) for start, end in pairwise(edges)]
    for chosen in combinations(masks, bands - distance):
        yield hashes & np.uint64(sum(chosen))


def thumb_distance(thumbs: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Mean absolute difference of the thumbnails of pairs of rows, 0..255: (m,) float32."""
    distance = np.empty(len(first), np.float32)
    for start in range(0, len(first), 2**16):  # bounds the memory of the difference
        part = slice(start, start + 2**16)
        distance[part] = np.abs(thumbs[first[part]].astype(np.int16) - thumbs[second[part]]).mean(axis=1)
    return distance


def exact_survivors(keys: np.ndarray, priority: np.ndarray) -> np.ndarray:
    """Row (n,) int64 that stands for each row: of all rows with an equal key, the one of lowest (priority, row)."""
    order = np.lexsort((priority, keys))  # stable: then by row
    new = np.r_[True, keys[order][1:] != keys[order][:-1]] if len(keys) else np.empty(0, bool)
    firsts = order[np.flatnonzero(new)[np.cumsum(new) - 1]] if len(keys) else np.empty(0, np.int64)
    survivors = np.empty(len(keys), np.int64)
    survivors[order] = firsts
    return survivors


def near_duplicates(
    hashes: np.ndarray, thumbs: np.ndarray, distance: int, priority: np.ndarray
) -> tuple[np.ndarray, int]:
    """Row (n,) int64 that stands for each row, and the comparisons that were skipped in overfull buckets.

    In the order of (priority, row), a row is dropped if, and only if, it is near to one that is kept. So whatever is
    dropped has a near twin that stays, and chains of near pairs do not collapse into one picture, as connected
    components would.
    """
    survivors = exact_survivors(_looks(hashes, thumbs), priority)  # a million equal copies make no million² pairs
    rows = np.flatnonzero(survivors == np.arange(len(survivors)))
    pairs = near_pairs(hashes[rows], thumbs[rows], distance)
    return rows[_kept_twin(pairs.rows, priority[rows])][np.searchsorted(rows, survivors)], pairs.skipped


def _looks(hashes: np.ndarray, thumbs: np.ndarray) -> np.ndarray:
    """A number (n,) int64 for each row, the same where hash and thumbnail are the same."""
    columns = [hashes, *np.ascontiguousarray(thumbs).view("<u8").T]  # seven of 64 bits
    order = np.lexsort(columns)
    new = np.zeros(len(order), bool)
    for column in columns:
        new[1:] |= np.diff(column[order]) != 0  # wraps, but never to 0
    looks = np.empty(len(order), np.int64)
    looks[order] = np.cumsum(new)
    return looks


def _kept_twin(pairs: np.ndarray, priority: np.ndarray) -> np.ndarray:
    order = np.argsort(priority, kind="stable")  # rank → row
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    edges = np.sort(rank[pairs], axis=1)
    edges = edges[np.lexsort((edges[:, 0], edges[:, 1]))]
    twin = np.arange(len(order))
    for low, high in edges.tolist():  # all edges of `low` to better rows came before: its fate is known
        if twin[low] == low and twin[high] == high:
            twin[high] = low
    twins = np.empty_like(twin)
    twins[order] = order[twin]
    return twins
