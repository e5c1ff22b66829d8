"""Embeddings in the plane, for people to look at."""

import warnings

import numpy as np

from pipeline.evaluate.embed import Embeddings
from pipeline.evaluate.protocol import Map
from pipeline.evaluate.separation import spread_over

MAX_POINTS = 1_000
FEWEST = 10
PERPLEXITY = 30


def embedding_map(test: Embeddings) -> Map | None:
    """t-SNE (van der Maaten and Hinton 2008) of at most 1,000 test images by cosine, begun at their principal
    components so that far distances mean something (Kobak and Berens 2019, arXiv 1812.08108). None of a handful."""
    from sklearn.manifold import TSNE

    part = test.rows(spread_over(len(test.numbers), MAX_POINTS))
    if len(part.numbers) < FEWEST:
        return None
    rows = np.asarray(part.features["trained"], dtype=np.float32)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    perplexity = min(PERPLEXITY, (len(rows) - 1) / 3)
    if np.ptp(rows, axis=0).max() < 1e-6:
        return None  # collapsed: there is nothing to draw
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of components with next to no variance
        points = TSNE(2, perplexity=perplexity, init="pca", random_state=0, n_jobs=1).fit_transform(rows)
    points = (points - points.min(0)) / np.maximum(np.ptp(points, axis=0), 1e-12)
    return Map(
        method=f"t-SNE, perplexity {perplexity:.0f}",
        numbers=tuple(part.numbers.tolist()),
        points=tuple((round(float(x), 4), round(float(y), 4)) for x, y in points),
    )
