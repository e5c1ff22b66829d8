"""How far embeddings fall apart by class without being told: k-means clusters, and the silhouette of the classes."""

import warnings
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from threadpoolctl import threadpool_limits

from pipeline.evaluate.encoders import ENCODERS
from pipeline.evaluate.protocol import Score
from pipeline.evaluate.scoring import Answered, Case, answered, bootstrap, score

MAX_IMAGES = 10_000  # of training, that clusters are found in
MAX_SILHOUETTE = 2_000  # of test: the cost is quadratic


def separation(case: Case) -> Iterator[Score | Answered | str]:
    """Clusters of the training images, as many as there are classes: each stands for the class that an assignment of
    clusters to classes, one to one, gives it on *training* labels (Hungarian method); then test images are asked for.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_samples

    labelled = case.labelled()
    if isinstance(labelled, str):
        yield f"cluster_top1, nmi, ari, silhouette: {labelled}"
        return
    bank, asked = labelled.train, labelled.test
    chosen = spread_over(len(bank.labels), MAX_IMAGES)
    some = spread_over(len(asked.labels), MAX_SILHOUETTE)
    truth = asked.labels
    hits, answers, silhouettes = {}, {}, {}
    told_apart = 1 < len(np.unique(truth[some])) < len(some)  # else a silhouette means nothing
    for one in ENCODERS:
        known, queries = (_unit(part.features[one]) for part in (bank.rows(chosen), asked))
        clusters, answers[one] = _clusters(known, queries, labelled.num_classes)
        hits[one] = _names(clusters, bank.labels[chosen], labelled.num_classes)[answers[one]] == truth
        if told_apart:
            silhouettes[one] = silhouette_samples(queries[some], truth[some], metric="cosine")
    how = f"k-means, k = {labelled.num_classes} on normalised embeddings of {len(chosen)} training images"
    protocol = f"{how}; clusters are named by the best one-to-one assignment on training labels"
    yield answered("cluster_top1", protocol, hits, 1 / labelled.num_classes, asked.numbers)
    for name, measure in (("nmi", normalized_mutual_info_score), ("ari", adjusted_rand_score)):
        found = {one: float(measure(truth, answer)) for one, answer in answers.items()}
        interval = bootstrap(partial(_resampled, measure, truth, answers["trained"]), len(truth))
        yield score(name, f"{how}, against the classes of test images", len(truth), found, 0.0, interval, index=True)
    if not told_apart:
        yield "silhouette: needs labelled test images of two classes, and several of one"
        return
    found = {one: float(values.mean()) for one, values in silhouettes.items()}
    interval = bootstrap(lambda rows: float(silhouettes["trained"][rows].mean()), len(some))
    protocol = "of the classes, cosine distance; 1: far apart, 0: touching, below: mixed"
    yield score("silhouette", protocol, len(some), found, 0.0, interval, index=True)


def _resampled(measure: Callable, truth: np.ndarray, answers: np.ndarray, rows: np.ndarray) -> float:
    return float(measure(truth[rows], answers[rows]))


def spread_over(count: int, at_most: int) -> np.ndarray:
    """Rows, evenly spread: neighbours in a store may be of one class."""
    return np.unique(np.linspace(0, count - 1, min(count, at_most)).astype(int))


def _clusters(known: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(), threadpool_limits(1, user_api="blas"):  # k centres are too few to share out
        warnings.simplefilter("ignore", ConvergenceWarning)  # a collapsed encoder has fewer distinct embeddings than k
        found = KMeans(k, n_init=3, random_state=0).fit(known)
    return found.labels_, found.predict(queries)


def _names(clusters: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """(k,): the class of each cluster, so that as many samples as possible are in the cluster of their class; −1 where
    the samples are of fewer classes than there are clusters, and none is left for it."""
    from scipy.optimize import linear_sum_assignment

    classes, of = np.unique(labels, return_inverse=True)
    common = np.zeros((k, len(classes)), int)
    np.add.at(common, (clusters, of), 1)
    rows, columns = linear_sum_assignment(common, maximize=True)
    names = np.full(k, -1)
    names[rows] = classes[columns]
    return names


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
