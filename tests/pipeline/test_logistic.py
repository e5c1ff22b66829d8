"""Logistic regression in blocks: scikit-learn's solution, and memory that does not grow with the rows."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.evaluate import logistic
from pipeline.evaluate.logistic import fit_logistic
from tests.benchmarks.processes import anonymous


def rows(count: int, classes: int, dim: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Correlated, not centred, none below a floor, as after a ReLU; the last dimension does not vary."""
    generator = np.random.default_rng(0)
    labels = np.arange(count) % classes
    plain = generator.normal(size=(classes, dim))[labels] + generator.normal(0, 1.5, size=(count, dim))
    found = np.maximum(plain @ generator.normal(size=(dim, dim)), 0) + 5
    found[:, -1] = 0.1
    return found, labels + 3


@pytest.mark.parametrize("classes", [2, 7])
@pytest.mark.parametrize("strength", [0.01, 1.0])
@pytest.mark.parametrize("iterations", [8, 300])  # stopped by them, as many probes are; and converged
def test_blocks_give_scikit_learns_classifier(classes, strength, iterations, monkeypatch):
    bank, labels = rows(500, classes)
    monkeypatch.setattr(logistic, "BLOCK", 24 * 64)  # 64 rows, the last block shorter
    ours = fit_logistic(bank, labels, strength, iterations)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=iterations))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.fit(bank, labels)
    margins = theirs.decision_function(bank)
    found = bank @ ours.weight.numpy() + ours.bias.numpy()
    assert np.allclose(found if classes > 2 else found[:, 1] - found[:, 0], margins, rtol=0, atol=1e-6)
    assert np.array_equal(ours.ranked(bank)[:, 0], theirs.predict(bank))


def test_the_likeliest_classes_come_first():
    bank, labels = rows(300, 7)
    fitted = fit_logistic(bank, labels, 1.0, 50)
    logits = bank @ fitted.weight.numpy() + fitted.bias.numpy()
    assert np.array_equal(fitted.ranked(bank, 5), np.argsort(-logits, axis=1)[:, :5] + 3)


def test_embeddings_that_are_not_finite_are_named():
    bank, labels = rows(50, 2)
    bank[7, 3] = np.nan
    with pytest.raises(ValueError, match="some of 50 embeddings are not finite"):
        fit_logistic(bank, labels, 1.0, 10)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_bank_in_a_file_is_never_in_memory_as_a_whole(tmp_path, monkeypatch):
    """200 MB in double precision, which a solver of a whole matrix holds at least once; blocks of 4 MB, and labels."""
    count, dim = 400_000, 64
    written = np.lib.format.open_memmap(tmp_path / "bank.npy", "w+", np.float32, (count, dim))
    generator, labels = np.random.default_rng(0), np.arange(count) % 10
    for first in range(0, count, 50_000):
        some = slice(first, first + 50_000)
        written[some] = generator.normal(size=(50_000, dim)) + labels[some, None] % 3
    written.flush()
    bank = np.load(tmp_path / "bank.npy", mmap_mode="c")
    monkeypatch.setattr(logistic, "BLOCK", 2**19)
    fit_logistic(bank[:20_000], labels[:20_000], 1.0, 2)  # threads and their arenas
    with anonymous(seconds=0.002) as memory:
        answers = fit_logistic(bank, labels, 1.0, 3).ranked(bank)[:, 0]
    assert (answers == labels).mean() > 0.2  # three groups of classes can be told
    assert memory.grown < 100e6
