"""Balanced sampling without labels: hierarchical k-means and sampling down its tree (arXiv 2405.15613, section 3).

k-means gives many clusters to a dense concept and few to a rare one. k-means on its centroids evens that out, for there
a dense concept counts by the region its centroids cover; so does k-means on a resampled set, the few rows nearest to
each centroid. Sampling then asks every top cluster for the same number of rows, each of these its children, and so on.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from pipeline.select.blocks import EmbeddingBlocks
from pipeline.select.draws import draw
from pipeline.select.kmeans import assign, kmeans


class Level(NamedTuple):
    """One level: clusters of what is below, which is rows at the lowest level and centroids above it."""

    centroids: np.ndarray  # (k, D) float32
    labels: np.ndarray  # (n below,) int32
    distances: np.ndarray  # (n below,) float32, squared, to the own centroid


def hierarchical_kmeans(
    blocks: EmbeddingBlocks,
    sizes: Sequence[int],
    scratch: str | Path,
    *,
    iterations: int = 20,
    resamplings: int = 5,
    resampled: int = 10,
    seed: int = 0,
) -> list[Level]:
    """Levels from the lowest up (section 3.2 of the paper), Euclidean k-means on each.

    Args:
        sizes: clusters by level, k1 > k2 > ...
        scratch: folder that all nodes see, for centroids and resampled rows, which are removed at the end.
        resamplings: at each level, how often k-means is repeated on the rows nearest to the centroids; 0: never.
        resampled: rows that each cluster gives to such a repetition, at most.

    Raises:
        ValueError: sizes that do not fall, or are more than there are embeddings.
    """
    falls = all(above < below for below, above in pairwise(sizes))
    if not sizes or not falls or sizes[-1] < 1 or sizes[0] > len(blocks):
        raise ValueError(
            f"cluster sizes are {tuple(sizes)}, but must fall from level to level within {len(blocks)}..1, as "
            "--clusters 10000,1000,100"
        )
    if resampled < 1 or resamplings < 0:
        raise ValueError(f"resampled is {resampled} (at least 1) and resamplings {resamplings} (at least 0)")
    levels: list[Level] = []
    below = blocks
    Path(scratch).mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=scratch) as folder:
        for number, k in enumerate(sizes):
            first_seed = seed + number * (resamplings + 1)
            centroids = kmeans(below, k, iterations, first_seed, spherical=False)
            labels, distances = assign(below, centroids, spherical=False)
            for step in range(1, resamplings + 1):
                rows = np.sort(first_of_each(labels, distances, np.full(k, resampled)))
                if len(rows) == len(below) or len(rows) <= k:  # nothing would change
                    break
                subset = below.subset(Path(folder, f"{number}_{step}"), rows)
                centroids = kmeans(subset, k, iterations, first_seed + step, spherical=False)
                labels, distances = assign(below, centroids, spherical=False)
            levels.append(Level(centroids, labels, distances))
            below = EmbeddingBlocks.write(Path(folder, f"{number}"), [centroids], unit=False)
    return levels


def hierarchical_sample(labels: Sequence[np.ndarray], target: int, seed: int, keys: np.ndarray) -> np.ndarray:
    """Exactly min(target, N) rows (n,) int64, ascending, spread evenly down the tree; drawn within a lowest cluster.

    Args:
        labels: of each level, from the lowest up: (N,), (k1,), (k2,) ... as in `Level.labels`.
        keys: (N,) int64 from `keys_of` the samples' ids: what a sample's draw depends on, beside the seed.

    Raises:
        ValueError: target below 1.
    """
    if target < 1:
        raise ValueError(f"target is {target}, but must be at least 1 sample")
    sizes = [np.bincount(labels[0], minlength=len(labels[1]) if len(labels) > 1 else 0)]  # rows below each cluster
    for level, parents in enumerate(labels[1:], start=1):
        width = len(labels[level + 1]) if level + 1 < len(labels) else 0
        sizes.append(np.bincount(parents, weights=sizes[-1], minlength=width).astype(np.int64))
    shares = even_shares(target, sizes[-1], _tie_breaks(seed, len(labels), len(sizes[-1])))
    for level in range(len(labels) - 1, 0, -1):
        parents, ties = labels[level], _tie_breaks(seed, level, len(labels[level]))
        children = np.argsort(parents, kind="stable")
        ends = np.cumsum(np.bincount(parents, minlength=len(shares)))
        below = np.zeros(len(parents), dtype=np.int64)
        for parent in np.flatnonzero(shares).tolist():
            own = children[ends[parent - 1] if parent else 0 : ends[parent]]
            below[own] = even_shares(int(shares[parent]), sizes[level - 1][own], ties[own])
        shares = below
    return np.sort(first_of_each(labels[0], draw(seed, keys, "leaves"), shares))


def even_shares(target: int, sizes: np.ndarray, ties: np.ndarray) -> np.ndarray:
    """Splits `target` among clusters as water fills vessels: (k,) int64 that sums to min(target, all).

    Every cluster gives n rows or all it has, with the largest n such that Σ min(n, size) ≤ target; what is left over is
    one more row from each of the clusters with the lowest `ties` (k,), among those that have more.
    """
    if target >= sizes.sum():
        return sizes.astype(np.int64)
    ascending = np.sort(sizes)
    emptied = np.concatenate([[0], np.cumsum(ascending)[:-1]])  # given by the clusters below this one
    left = len(sizes) - np.arange(len(sizes))  # clusters from this one on
    full = int(np.searchsorted(emptied + ascending * left, target, side="right"))  # clusters that give all they have
    level, over = divmod(int(target - emptied[full]), int(left[full]))
    shares = np.minimum(sizes, level).astype(np.int64)
    more = np.flatnonzero(sizes > level)
    shares[more[np.argsort(ties[more], kind="stable")[:over]]] += 1
    return shares


def first_of_each(labels: np.ndarray, preference: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Of each cluster c the counts[c] rows with the lowest preference (ties: the lower row), by cluster: int64."""
    order = np.lexsort((preference, labels))
    sizes = np.bincount(labels, minlength=len(counts))
    place = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # within its cluster
    return order[place < counts[labels[order]]].astype(np.int64)


def _tie_breaks(seed: int, level: int, count: int) -> np.ndarray:
    return draw(seed, np.arange(count, dtype=np.int64), f"level {level}")
