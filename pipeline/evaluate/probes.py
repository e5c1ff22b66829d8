"""Probes of a frozen encoder: weighted nearest neighbours and a linear classifier."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def nearest(
    bank: np.ndarray, queries: np.ndarray, k: int, chunk: int = 1024, block: int = 32_768
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and bank rows of the k nearest: (Q, k) each, nearest first. k is at most the bank's size.

    Of the bank, which may lie in a file, `block` rows are in memory at a time, and (chunk, block) cosines.
    """
    k, asked = min(k, len(bank)), F.normalize(torch.from_numpy(queries).float(), dim=1)
    cosines, rows = torch.full((len(asked), k), -torch.inf), torch.zeros((len(asked), k), dtype=torch.int64)
    for start in range(0, len(bank), block):
        keys = F.normalize(torch.from_numpy(bank[start : start + block]).float(), dim=1)
        for first in range(0, len(asked), chunk):
            some = slice(first, first + chunk)
            top = (asked[some] @ keys.T).topk(min(k, len(keys)), dim=1)
            candidates = torch.cat([cosines[some], top.values], dim=1)  # those of earlier blocks first
            cosines[some], places = candidates.topk(k, dim=1)
            rows[some] = torch.cat([rows[some], top.indices + start], dim=1).gather(1, places)
    return cosines.numpy(), rows.numpy()


def knn_predictions(
    bank: np.ndarray, labels: np.ndarray, queries: np.ndarray, k: int, temperature: float
) -> np.ndarray:
    """The class (Q,) with the greatest sum of exp(cosine / temperature) among the k nearest of a clean bank
    (Wu et al. 2018, arXiv 1805.01978, section 3.4)."""
    cosines, rows = nearest(bank, queries, k)
    weights = torch.from_numpy(np.exp((cosines - 1) / temperature))  # exp(-1/t) is a common factor
    votes: Tensor = torch.zeros(len(queries), int(labels.max()) + 1, dtype=weights.dtype)
    votes.scatter_add_(1, torch.from_numpy(labels[rows].astype(np.int64)), weights)
    return votes.argmax(1).numpy()


def mean_predictions(bank: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """The class (Q,) whose mean is nearest by cosine, all centred on the bank and normalised before (Wang et al. 2019,
    "SimpleShot", arXiv 1911.04623, CL2N): for a few images a class."""
    center = bank.mean(0)
    known, asked = (F.normalize(torch.from_numpy(rows - center), dim=1) for rows in (bank, queries))
    classes, of = np.unique(labels, return_inverse=True)
    sums = torch.zeros(len(classes), known.shape[1], dtype=known.dtype).index_add_(0, torch.from_numpy(of), known)
    return classes[(asked @ F.normalize(sums, dim=1).T).argmax(1).numpy()]


SELECTION_IMAGES = 10_000
REGULARISATIONS = (0.01, 0.1, 1.0)  # inverse strength C of the linear probe, chosen on held-out training data


def linear_predictions(
    bank: np.ndarray, labels: np.ndarray, queries: np.ndarray, iterations: int
) -> tuple[np.ndarray, float]:
    """Multinomial logistic regression on standardised embeddings (L-BFGS).

    The regularisation is chosen on a tenth of the training data (of at most 10,000 images of it, for speed), never on
    the queries, and the probe refitted on all.

    Returns:
        Predicted classes (Q,) and the chosen C.
    """
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def probe(c: float):
        return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=iterations))

    chosen = np.random.default_rng(0).permutation(len(bank))[:SELECTION_IMAGES]
    few, few_labels = bank[chosen], labels[chosen]
    smallest = np.unique(few_labels, return_counts=True)[1].min()
    fit_x, held_x, fit_y, held_y = train_test_split(
        few, few_labels, test_size=0.1, random_state=0, stratify=few_labels if smallest >= 10 else None
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a probe with a fixed budget of iterations
        held = {}
        if len(np.unique(fit_y)) > 1:  # of one image a class, nothing can be held out
            held = {c: probe(c).fit(fit_x, fit_y).score(held_x, held_y) for c in REGULARISATIONS}
        best = max(REGULARISATIONS, key=lambda c: held.get(c, 0.0))
        return probe(best).fit(bank, labels).predict(queries), best
