"""Evaluators against slow loops and known answers."""

import numpy as np
import pytest

from pipeline.evaluate.image_text import PixelsToWords, chance_recalls, recalls, zero_shot_classifier
from pipeline.evaluate.probes import knn_predictions, linear_predictions, mean_predictions, nearest
from pipeline.evaluate.protocol import wilson
from pipeline.evaluate.scoring import bootstrap
from pipeline.evaluate.separation import _names

GENERATOR = np.random.default_rng(0)


def test_knn_equals_a_loop():
    bank, queries = GENERATOR.normal(size=(60, 5)), GENERATOR.normal(size=(20, 5))
    labels = GENERATOR.integers(0, 4, 60)
    expected = []
    for query in queries:
        cosines = bank @ query / np.linalg.norm(bank, axis=1) / np.linalg.norm(query)
        votes = np.zeros(4)
        for row in np.argsort(-cosines)[:7]:
            votes[labels[row]] += np.exp(cosines[row] / 0.07)
        expected.append(votes.argmax())
    assert knn_predictions(bank, labels, queries, 7, 0.07).tolist() == expected


def test_nearest_in_chunks_and_with_few_in_the_bank():
    bank, queries = GENERATOR.normal(size=(5, 3)), GENERATOR.normal(size=(11, 3))
    whole, parts = nearest(bank, queries, 20), nearest(bank, queries, 20, chunk=4)
    assert whole[1].shape == (11, 5)
    assert np.array_equal(whole[1], parts[1])


def test_nearest_reads_the_bank_in_blocks_and_finds_the_same():
    bank, queries = GENERATOR.normal(size=(50, 4)), GENERATOR.normal(size=(9, 4))
    cosines, rows = nearest(bank, queries, 12)
    expected = queries @ bank.T / np.linalg.norm(bank, axis=1) / np.linalg.norm(queries, axis=1)[:, None]
    assert np.array_equal(rows, np.argsort(-expected, axis=1)[:, :12])
    for block in (1, 7, 12, 50):
        found = nearest(bank, queries, 12, chunk=4, block=block)
        assert np.array_equal(found[1], rows)
        assert np.allclose(found[0], cosines)


def test_the_linear_probe_separates_what_is_linear():
    labels = np.arange(300) % 3
    bank = np.eye(3)[labels] + GENERATOR.normal(scale=0.1, size=(300, 3))
    predicted, chosen = linear_predictions(bank[:200], labels[:200], bank[200:], 100)
    assert (predicted == labels[200:]).mean() > 0.98
    assert chosen in (0.01, 0.1, 1.0)


def test_the_nearest_class_mean_equals_a_loop():
    bank, queries = GENERATOR.normal(1, 1, size=(30, 6)), GENERATOR.normal(1, 1, size=(15, 6))
    labels = GENERATOR.permutation(np.repeat([2, 5, 7], 10))
    center = bank.mean(0)
    expected = []
    for query in queries:
        cosines = {}
        for label in (2, 5, 7):
            rows = [(row - center) / np.linalg.norm(row - center) for row in bank[labels == label]]
            mean = sum(rows) / len(rows)
            cosines[label] = mean @ (query - center) / np.linalg.norm(mean)
        expected.append(max(cosines, key=lambda label: cosines[label]))
    assert mean_predictions(bank, labels, queries).tolist() == expected


def test_clusters_get_the_names_that_fit_most_samples():
    clusters, labels = np.array([0, 0, 0, 1, 1, 2, 2, 2]), np.array([4, 4, 9, 4, 4, 9, 7, 7])
    assert _names(clusters, labels, 3).tolist() == [9, 4, 7]  # 1 + 2 + 2; not 4, 9, 7: 2 + 0 + 2
    assert _names(np.append(clusters, 3), np.append(labels, 4), 4).tolist().count(-1) == 1


def test_the_bootstrap_interval_of_a_mean_is_the_normal_one():
    values = GENERATOR.normal(size=2000)
    low, high = bootstrap(lambda rows: float(values[rows].mean()), 2000)
    reach = 1.96 * values.std() / 2000**0.5
    assert (high - low) / 2 == pytest.approx(reach, rel=0.2)
    assert wilson(0.5, 400) == pytest.approx((0.4512, 0.5488), abs=1e-3)


def slow_recalls(similarities, owner, k):
    """Protocol 4.6 as two loops; the wrong answer wins a tie."""
    text_hits = 0
    for text, image in enumerate(owner):
        ahead = sum(
            similarities[other, text] >= similarities[image, text]
            for other in range(len(similarities))
            if other != image
        )
        text_hits += ahead < k
    image_hits = 0
    for image in range(len(similarities)):
        best = max(similarities[image, text] for text in range(len(owner)) if owner[text] == image)
        ahead = sum(similarities[image, text] >= best for text in range(len(owner)) if owner[text] != image)
        image_hits += ahead < k
    return text_hits / len(owner), image_hits / len(similarities)


def test_retrieval_equals_the_loops():
    owner = np.repeat(np.arange(12), [5, 1, 3, 2, 5, 5, 4, 1, 2, 3, 5, 5])
    similarities = GENERATOR.normal(size=(12, len(owner))).round(1)  # with ties
    found = recalls(similarities, owner)
    for k in (1, 5, 10):
        text, image = slow_recalls(similarities, owner, k)
        assert found[f"text_to_image_r{k}"].mean() == pytest.approx(text)
        assert found[f"image_to_text_r{k}"].mean() == pytest.approx(image)


def test_a_collapsed_model_retrieves_nothing():
    owner = np.repeat(np.arange(20), 5)
    assert not any(hits.any() for hits in recalls(np.ones((20, 100)), owner).values())


def test_chance_of_retrieval_is_what_random_scores_give():
    owner = np.repeat(np.arange(30), 5)
    drawn = [recalls(GENERATOR.normal(size=(30, 150)), owner) for _ in range(200)]
    for measure, chance in chance_recalls(owner, 30).items():
        assert np.mean([found[measure].mean() for found in drawn]) == pytest.approx(chance, abs=0.02)


def test_the_zero_shot_classifier_is_a_unit_mean():
    prompts = np.array([[1.0, 0], [0, 1.0], [0, -1.0], [0, -1.0]])
    assert np.allclose(zero_shot_classifier(prompts, 2), [[0.5**0.5, 0.5**0.5], [0, -1]])


@pytest.mark.parametrize("captions", [[], ["the of and"]])
def test_without_words_raw_pixels_know_none(captions):
    assert PixelsToWords.fit(np.zeros((len(captions), 2)), captions) is None


def test_raw_pixels_learn_the_words_that_pixels_tell():
    labels = np.arange(200) % 2
    pixels = np.stack([labels, 1 - labels], axis=1) + GENERATOR.normal(scale=0.05, size=(200, 2))
    words = PixelsToWords.fit(pixels, [("bright sky" if label else "dark cave") for label in labels])
    assert words is not None
    scores = words.images(pixels) @ words.texts(["dark", "bright"]).T
    assert (scores.argmax(1) == labels).mean() > 0.95
