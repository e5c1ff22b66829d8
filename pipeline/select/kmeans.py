"""k-means over blocks of embeddings: the same centroids, to the bit, on any number of workers.

Each iteration sends the centroids to every block; a block returns the sums of its rows by cluster, and these are added
in the order of the blocks, in float64. For N rows an iteration costs N·k·D multiplications; where that is too much,
cluster a drawn subset (`EmbeddingBlocks.subset` of `drawn_rows`) and `assign` all rows once.
"""

import heapq

import faiss
import numpy as np
from threadpoolctl import threadpool_limits

from pipeline.select.blocks import EmbeddingBlocks, in_order
from pipeline.select.draws import draw, drawn_rows

_SEEDING_DISTANCES = 2**26  # (rows of the seeding sample) × k: minutes of one core
_SPLIT = 1 / 1024  # relative distance between the halves of a split cluster, as in faiss


def kmeans(
    blocks: EmbeddingBlocks,
    k: int,
    iterations: int = 20,
    seed: int = 0,
    *,
    spherical: bool = True,
) -> np.ndarray:
    """Lloyd's algorithm from a greedy k-means++ start (Arthur and Vassilvitskii 2007) on a drawn sample of rows.

    The sample shrinks as k grows (16·k rows up to k = 2,048, 2^26 / k above); from k = 8,192 on it is no larger than k,
    so that the start is k drawn rows. A cluster that loses all rows takes half of the largest one. Stops early when no
    centroid moves.

    Args:
        spherical: assign by cosine and keep centroids at length 1; otherwise by Euclidean distance.

    Returns:
        Centroids (k, D) float32.

    Raises:
        ValueError: k below 1 or above the number of rows.
    """
    if not 1 <= k <= len(blocks):
        raise ValueError(f"k is {k}, but must lie in 1..{len(blocks)}, the number of embeddings: choose fewer clusters")
    centroids = _start(blocks, k, seed)
    for _ in range(iterations):
        sums, counts = np.zeros((k, blocks.dim)), np.zeros(k, dtype=np.int64)
        numbers = range(len(blocks.paths))
        for present, part, count in in_order(_sums, numbers, blocks, centroids, spherical):
            sums[present] += part
            counts[present] += count
        moved = _means(sums, counts, centroids, spherical)
        if np.array_equal(moved, centroids):
            break
        centroids = moved
    return centroids


def assign(blocks: EmbeddingBlocks, centroids: np.ndarray, *, spherical: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """The nearest centroid of each row: labels (N,) int32, and cosine (spherical) or squared distance (N,) float32."""
    labels, scores = nearest(blocks, centroids, 1, spherical=spherical)
    return labels[:, 0], scores[:, 0]


def nearest(
    blocks: EmbeddingBlocks, centroids: np.ndarray, count: int, *, spherical: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` nearest centroids of each row, nearest first: labels (N, count) int32, scores (N, count) float32.

    The cosine is that of rows and centroids of length 1: `spherical` wants both so.
    """
    if not 1 <= count <= len(centroids):
        raise ValueError(f"{count} nearest centroids were asked for, but there are {len(centroids)}")
    parts = list(in_order(_nearest, range(len(blocks.paths)), blocks, centroids, count, spherical))
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _nearest(
    number: int, blocks: EmbeddingBlocks, centroids: np.ndarray, count: int, spherical: bool
) -> tuple[np.ndarray, np.ndarray]:
    return _search(blocks.load(number), centroids, count, spherical)


def _search(rows: np.ndarray, centroids: np.ndarray, count: int, spherical: bool) -> tuple[np.ndarray, np.ndarray]:
    metric = faiss.METRIC_INNER_PRODUCT if spherical else faiss.METRIC_L2
    scores, labels = faiss.knn(rows, centroids, count, metric=metric)
    return labels.astype(np.int32), scores


def _sums(
    number: int, blocks: EmbeddingBlocks, centroids: np.ndarray, spherical: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of one block: the clusters it has rows of, ascending, and the sum (float64) and the number of these rows."""
    rows = blocks.load(number)
    labels = _search(rows, centroids, 1, spherical)[0][:, 0]
    order = np.argsort(labels, kind="stable")
    present, first, count = np.unique(labels[order], return_index=True, return_counts=True)
    return present, np.add.reduceat(rows[order], first, axis=0, dtype=np.float64), count


def _means(sums: np.ndarray, counts: np.ndarray, before: np.ndarray, spherical: bool) -> np.ndarray:
    """Sums (k, D) and counts (k,) to centroids (k, D) float32; an empty cluster gets half of the largest."""
    means = sums / np.maximum(counts, 1)[:, None]
    empty = np.flatnonzero(counts == 0)
    largest = [(-count, cluster) for cluster, count in enumerate(counts.tolist()) if count] if len(empty) else []
    heapq.heapify(largest)  # by size, then by number
    signs = np.where(np.arange(means.shape[1]) % 2, -_SPLIT, _SPLIT)
    for cluster in empty.tolist():
        count, split = heapq.heappop(largest)
        means[cluster], means[split] = means[split] * (1 + signs), means[split] * (1 - signs)
        for half in (split, cluster):
            heapq.heappush(largest, (count / 2, half))
    if spherical:
        lengths = np.linalg.norm(means, axis=1, keepdims=True)
        means = np.where(lengths > 0, means / np.where(lengths > 0, lengths, 1), before)
    return means.astype(np.float32)


def _start(blocks: EmbeddingBlocks, k: int, seed: int) -> np.ndarray:
    """Well-spread rows (k, D): each the best of a few candidates drawn with probability ∝ squared distance."""
    size = max(k, min(max(16 * k, 4096), _SEEDING_DISTANCES // k))
    sample = blocks.take(drawn_rows(seed, len(blocks), size, "k-means sample"))
    if len(sample) == k:
        return sample
    trials = 2 + int(np.log(k))
    draws = draw(seed, np.arange(k * trials), "k-means++").reshape(k, trials)
    with threadpool_limits(1):
        squares = np.einsum("nd,nd->n", sample, sample)
        chosen = [0]
        closest = _distances(sample, squares, [0])[:, 0]
        for number in range(1, k):
            total = np.cumsum(closest, dtype=np.float64)
            candidates = np.minimum(np.searchsorted(total, draws[number] * total[-1], side="right"), len(sample) - 1)
            remaining = np.minimum(closest[:, None], _distances(sample, squares, candidates))  # (n, trials)
            best = int(remaining.sum(axis=0, dtype=np.float64).argmin())
            chosen.append(int(candidates[best]))
            closest = remaining[:, best]
    return sample[chosen]


def _distances(sample: np.ndarray, squares: np.ndarray, chosen: np.ndarray | list[int]) -> np.ndarray:
    """Squared distances (n, len(chosen)) between all rows and some."""
    return np.maximum(squares[:, None] + squares[chosen] - 2 * sample @ sample[chosen].T, 0)
