"""Multinomial logistic regression that reads its rows in blocks: they may lie in a mapped file larger than memory."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional as F

BLOCK = 2**21  # numbers of a block in memory, of its rows or of their logits: 16 MB
TOLERANCE = 1e-4  # of the gradient, scikit-learn's


@dataclass(frozen=True)
class Logistic:
    """A linear classifier of rows as they are, (N, dim): the standardisation is folded into it."""

    classes: np.ndarray  # (K,)
    weight: Tensor  # (dim, K) double
    bias: Tensor  # (K,)

    def ranked(self, rows: np.ndarray, k: int = 1) -> np.ndarray:
        """The k likeliest classes of each row, (N, k), the likeliest first."""
        blocks = _blocks(rows, len(self.classes))
        found = [(block @ self.weight + self.bias).topk(k).indices for _, block in blocks]
        return self.classes[torch.cat(found).numpy()]


def fit_logistic(rows: np.ndarray, labels: np.ndarray, strength: float, iterations: int) -> Logistic:
    """The classifier that scikit-learn's `LogisticRegression(C=strength)` behind a `StandardScaler` is, in double
    precision: the same loss, the mean cross-entropy plus ‖W‖² / (2 C N), by the same solver, SciPy's L-BFGS-B, with
    the same bounds. Of two classes the first has the logit 0, as there.

    Args:
        rows: (N, dim), in memory or mapped; a block of them is read at a time. labels: (N,).
        iterations: at most; many probes end by them.

    Raises:
        ValueError: a row is not finite.
    """
    from scipy.optimize import minimize

    classes, of = np.unique(labels, return_inverse=True)
    targets, penalty = torch.from_numpy(of), 1 / (strength * len(rows))
    mean, scale = _moments(rows)
    dim, free = rows.shape[1], len(classes) if len(classes) > 2 else len(classes) - 1

    def folded(values: np.ndarray) -> tuple[Tensor, Logistic]:
        """Weights of standardised rows (dim, free), and the classifier of rows as they are."""
        both = torch.from_numpy(values).view(dim + 1, free)
        scaled = both[:dim] / scale[:, None]
        fixed = (len(classes) - free, 0)  # columns of zeros before
        return both[:dim], Logistic(classes, F.pad(scaled, fixed), F.pad(both[dim] - mean @ scaled, fixed))

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        weight, classifier = folded(values)
        total, slope, slope_of_bias = 0.0, torch.zeros_like(weight), torch.zeros(free).double()
        for first, block in _blocks(rows, len(classes)):
            of_block = targets[first : first + len(block)]
            logits = (block @ classifier.weight + classifier.bias).log_softmax(1)
            total -= float(logits.gather(1, of_block[:, None]).sum())
            error = logits.exp_()
            error[torch.arange(len(block)), of_block] -= 1
            error = error[:, -free:]
            slope += block.T @ error
            slope_of_bias += error.sum(0)
        slope = (slope - mean[:, None] * slope_of_bias) / scale[:, None] / len(rows) + penalty * weight
        gradient = torch.cat([slope, slope_of_bias[None] / len(rows)])
        return total / len(rows) + penalty / 2 * float(weight.square().sum()), gradient.flatten().numpy()

    bounds = {"maxiter": iterations, "maxls": 50, "gtol": TOLERANCE, "ftol": 64 * np.finfo(float).eps}
    with threadpool_limits(1, user_api="blas"):  # on vectors so short, threads of the solver wait for each other only
        solved = minimize(loss, np.zeros((dim + 1) * free), method="L-BFGS-B", jac=True, options=bounds)
    return folded(solved.x)[1]


def _blocks(rows: np.ndarray, classes: int = 1) -> Iterator[tuple[int, Tensor]]:
    """Each block's first row, and its rows in double precision."""
    size = max(1, BLOCK // max(rows.shape[1], classes))
    for first in range(0, len(rows), size):
        yield first, torch.from_numpy(rows[first : first + size]).double()


def _moments(rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each dimension; of one that does not vary, 1, as scikit-learn has it."""
    count, epsilon = len(rows), torch.finfo(torch.float64).eps
    mean, variance = torch.zeros(2, rows.shape[1]).double()
    for _, block in _blocks(rows):
        mean += block.sum(0) / count
    for _, block in _blocks(rows):
        variance += (block - mean).square().sum(0) / count
    if not variance.isfinite().all():
        raise ValueError(f"some of {count:,} embeddings are not finite: no probe can be fitted to them")
    constant = variance <= count * epsilon * variance + (count * mean * epsilon).square()
    return mean, torch.where(constant, 1.0, variance.sqrt())
