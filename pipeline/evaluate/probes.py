"""Probes of a frozen encoder: weighted nearest neighbours and a linear classifier."""

from math import cos, pi

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.evaluate.logistic import fit_logistic


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
RATES = (0.01, 0.1, 1.0)  # per 256 images, of the probe by SGD, chosen in the same way
SGD_EPOCHS, SGD_WARMUP, SGD_BATCH = 90, 10, 256  # MAE's, but for its batch of 16,384


def linear_predictions(
    bank: np.ndarray, labels: np.ndarray, queries: np.ndarray, iterations: int
) -> tuple[np.ndarray, float]:
    """Multinomial logistic regression on standardised embeddings (L-BFGS): see `linear_ranking`.

    Returns:
        Predicted classes (Q,) and the chosen C.
    """
    ranking, best = linear_ranking(bank, labels, queries, iterations, 1)
    return ranking[:, 0], best


def linear_ranking(
    bank: np.ndarray, labels: np.ndarray, queries: np.ndarray, iterations: int, k: int
) -> tuple[np.ndarray, float]:
    """The k likeliest classes of each query, (Q, k), the likeliest first, and the chosen C.

    The regularisation is chosen on a tenth of the training data (of at most 10,000 images of it, for speed), never on
    the queries, and the probe refitted on all. Of the bank, which may lie in a file, a block is in memory at a time.
    """
    fit_x, held_x, fit_y, held_y = _held_out(bank, labels)
    held = {}
    if len(np.unique(fit_y)) > 1:  # of one image a class, nothing can be held out
        for c in REGULARISATIONS:
            answers = fit_logistic(fit_x, fit_y, c, iterations).ranked(held_x)[:, 0]
            held[c] = float((answers == held_y).mean())
    best = max(REGULARISATIONS, key=lambda c: held.get(c, 0.0))
    return fit_logistic(bank, labels, best, iterations).ranked(queries, k), best


def _held_out(bank: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of at most 10,000 training images: nine tenths to fit, a tenth to choose by, and the labels of both."""
    from sklearn.model_selection import train_test_split

    chosen = np.random.default_rng(0).permutation(len(bank))[:SELECTION_IMAGES]
    few, few_labels = bank[chosen], labels[chosen]
    smallest = np.unique(few_labels, return_counts=True)[1].min()
    stratify = few_labels if smallest >= 10 else None
    return tuple(train_test_split(few, few_labels, test_size=0.1, random_state=0, stratify=stratify))  # type: ignore[return-value]


def sgd_predictions(bank: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, float]:
    """MAE's linear probe on embeddings that are computed once (He et al. 2021, arXiv 2111.06377, appendix A.1): a
    BatchNorm without affine parameters, then a linear layer; 90 epochs, momentum 0.9, no decay, warm-up over 10 epochs,
    then a cosine to 0.

    Other than there: no random crops, for the embeddings are fixed; SGD with batches of 256 instead of LARS with
    16,384, and so the rate is chosen on a tenth of the training data (of at most 10,000 images of it), never on the
    queries, and the probe fitted anew to all.

    Returns:
        Predicted classes (Q,) and the chosen rate per 256.
    """
    fit_x, held_x, fit_y, held_y = _held_out(bank, labels)
    held = {rate: float((_sgd_probe(fit_x, fit_y, held_x, rate) == held_y).mean()) for rate in RATES}
    best = max(RATES, key=held.__getitem__)
    return _sgd_probe(bank, labels, queries, best), best


def _sgd_probe(bank: np.ndarray, labels: np.ndarray, queries: np.ndarray, rate: float) -> np.ndarray:
    classes, of = np.unique(labels, return_inverse=True)
    targets = torch.from_numpy(of)
    generator = torch.Generator().manual_seed(0)
    norm = torch.nn.BatchNorm1d(bank.shape[1], affine=False, eps=1e-6)
    linear = torch.nn.Linear(bank.shape[1], len(classes))
    with torch.no_grad():
        linear.weight.normal_(std=0.01, generator=generator)
        linear.bias.zero_()
    size = min(SGD_BATCH, len(bank))
    peak, steps = rate * size / 256, len(bank) // size  # the rest of an epoch is dropped, as there
    optimizer = torch.optim.SGD(linear.parameters(), lr=peak, momentum=0.9)
    if len(bank) > 1:  # BatchNorm knows nothing of a single image
        for step in range(SGD_EPOCHS * steps):
            if step % steps == 0:
                order = torch.randperm(len(bank), generator=generator)
            optimizer.param_groups[0]["lr"] = peak * _warm_cosine(step / steps)
            some = order[(step % steps) * size :][:size]
            optimizer.zero_grad()
            rows = torch.from_numpy(bank[some.numpy()]).float()  # read from the file, where it is one
            F.cross_entropy(linear(norm(rows)), targets[some]).backward()
            optimizer.step()
    norm.eval()
    with torch.no_grad():
        return classes[linear(norm(torch.tensor(queries).float())).argmax(1).numpy()]


def _warm_cosine(epoch: float) -> float:
    """The share of the peak rate: linear up to epoch 10, then half a cosine down to 0 at epoch 90."""
    if epoch < SGD_WARMUP:
        return epoch / SGD_WARMUP
    return 0.5 * (1 + cos(pi * (epoch - SGD_WARMUP) / (SGD_EPOCHS - SGD_WARMUP)))
