"""MAE's linear probe: as a slow loop has it, the same every time, and better for its BatchNorm."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.evaluate import probes
from pipeline.evaluate.classification import sgd_probe
from pipeline.evaluate.embed import Embeddings
from pipeline.evaluate.probes import _sgd_probe, _warm_cosine, sgd_predictions
from pipeline.evaluate.scoring import Answered, Case
from tests.pipeline.embedding import HERE


def rows(count: int, seed: int = 0, dim: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Three classes, of which small dimensions tell; a great one tells nothing."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    centers = np.random.default_rng(1).normal(size=(3, dim))
    found = centers[labels] + generator.normal(0, 0.7, (count, dim))
    found[:, 0] = generator.normal(500, 300, count)
    return found.astype(np.float32) / 100, labels + 4


def test_the_probe_tells_classes_and_says_the_same_every_time():
    bank, labels = rows(300)
    queries, truth = rows(200, seed=2)
    torch.manual_seed(5)
    answers, rate = sgd_predictions(bank, labels, queries)
    torch.manual_seed(6)
    again, _ = sgd_predictions(bank, labels, queries)
    assert np.array_equal(answers, again)
    assert rate in probes.RATES
    assert (answers == truth).mean() > 0.85
    assert {*answers} <= {4, 5, 6}


def test_the_rate_is_chosen_on_training_images_alone(monkeypatch):
    bank, labels = rows(300)
    asked: list[int] = []
    original = probes._sgd_probe
    monkeypatch.setattr(probes, "_sgd_probe", lambda *given: asked.append(len(given[2])) or original(*given))
    sgd_predictions(bank, labels, bank[:77])
    assert asked == [30, 30, 30, 77]  # a tenth of the training images, then the queries once


def test_the_rate_warms_up_and_falls_to_nothing():
    found = [_warm_cosine(epoch) for epoch in (0, 5, 10, 50, 90)]
    assert found == pytest.approx([0, 0.5, 1, 0.5, 0])


@pytest.mark.parametrize("count", [6, 300])
def test_training_equals_a_slow_loop_from_the_papers_words(count, monkeypatch):
    """Numpy in double precision: normalise by the batch, cross-entropy, momentum; running statistics at the end."""
    monkeypatch.setattr(probes, "SGD_EPOCHS", 12)
    bank, labels = rows(count)
    queries, _ = rows(50, seed=2)
    generator = torch.Generator().manual_seed(0)
    weight = torch.empty(3, 8).normal_(std=0.01, generator=generator).double().numpy()
    bias, velocity = np.zeros(3), [0.0, 0.0]
    mean, variance = np.zeros(8), np.ones(8)
    size = min(256, count)
    for epoch in range(12):
        some = torch.randperm(count, generator=generator)[:size].numpy()
        x = bank[some].astype(float)
        mean = 0.9 * mean + 0.1 * x.mean(0)
        variance = 0.9 * variance + 0.1 * x.var(0, ddof=1)
        x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-6)
        logits = x @ weight.T + bias
        chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        error = (chances - np.eye(3)[labels[some] - 4]) / size
        velocity = [0.9 * v + g for v, g in zip(velocity, (error.T @ x, error.sum(0)), strict=True)]
        rate = size / 256 * (epoch / 10 if epoch < 10 else 0.5 * (1 + np.cos(np.pi * (epoch - 10) / 2)))
        weight, bias = weight - rate * velocity[0], bias - rate * velocity[1]
    expected = ((queries - mean) / np.sqrt(variance + 1e-6) @ weight.T + bias).argmax(1) + 4
    assert np.array_equal(_sgd_probe(bank, labels, queries, 1.0), expected)


def test_the_score_stands_with_its_baselines(small_store):
    bank, labels = rows(120)
    queries, truth = rows(60, seed=2)
    noise = np.random.default_rng(0).normal(size=(120, 4)).astype(np.float32)
    train = Embeddings(np.arange(120), labels, {"trained": bank, "random": noise, "pixels": noise})
    test = Embeddings(np.arange(60), truth, {"trained": queries, "random": noise[:60], "pixels": noise[:60]})
    case = Case(None, small_store, None, train, test, HERE)  # type: ignore[arg-type]
    (found,) = sgd_probe(case)
    assert isinstance(found, Answered)
    score = found.score
    assert (score.name, score.chance, score.num_queries) == ("linear_sgd_bn_top1", pytest.approx(1 / 3), 60)
    assert score.trained > 0.8 > 0.6 > score.random_encoder
    assert score.interval is not None
    unlabelled = replace(test, labels=np.full(60, -1))
    (reason,) = sgd_probe(replace(case, test=unlabelled))
    assert "no labels" in str(reason)
