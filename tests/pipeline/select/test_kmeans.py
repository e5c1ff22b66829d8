"""Blocks of embeddings, draws, and k-means on them."""

import numpy as np
import pytest
from sklearn.cluster import KMeans

from pipeline.select.blocks import EmbeddingBlocks
from pipeline.select.draws import draw, drawn_rows, keys_of
from pipeline.select.kmeans import _means, assign, kmeans, nearest


def mixture(count, dim=16, centres=12, spread=0.35, seed=0):
    """Rows (count, dim) float32 around a few directions."""
    generator = np.random.default_rng(seed)
    middle = generator.normal(size=(centres, dim))
    rows = middle[generator.integers(0, centres, count)] + spread * generator.normal(size=(count, dim))
    return rows.astype(np.float32)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def inertia(blocks, centroids):
    return float(assign(blocks, centroids, spherical=False)[1].sum(dtype=np.float64))


def test_blocks_hold_the_same_rows_wherever_the_parts_end(tmp_path):
    rows = mixture(1000)
    whole = EmbeddingBlocks.write(tmp_path / "whole", [rows], rows=300)
    parts = EmbeddingBlocks.write(tmp_path / "parts", np.array_split(rows, 37), rows=300)
    assert whole.counts == parts.counts == (300, 300, 300, 100)
    assert len(whole) == 1000
    for number in range(4):
        np.testing.assert_array_equal(whole.load(number), parts.load(number))
    np.testing.assert_allclose(np.concatenate([whole.load(number) for number in range(4)]), unit(rows), atol=1e-6)


def test_rows_come_in_the_order_asked_for_with_length_one(tmp_path):
    rows = mixture(1000).astype(np.float16)
    blocks = EmbeddingBlocks.write(tmp_path, [rows], rows=128)
    asked = np.array([999, 0, 500, 127, 128, 0])
    np.testing.assert_allclose(blocks.take(asked), unit(rows.astype(np.float32))[asked], atol=1e-6)
    plain = EmbeddingBlocks.open(tmp_path, unit=False)
    np.testing.assert_array_equal(plain.take(asked), rows[asked].astype(np.float32))
    np.testing.assert_array_equal(
        plain.subset(tmp_path / "some", asked).take(np.arange(6)), rows[asked].astype(np.float32)
    )


def test_embeddings_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no \.npy file"):
        EmbeddingBlocks.open(tmp_path)
    EmbeddingBlocks.write(tmp_path, [np.full((4, 3), np.nan, dtype=np.float32)])
    with pytest.raises(ValueError, match="use an empty folder"):
        EmbeddingBlocks.write(tmp_path, [np.zeros((4, 3), dtype=np.float32)])
    with pytest.raises(ValueError, match="not finite"):
        EmbeddingBlocks.open(tmp_path).load(0)
    np.save(tmp_path / "other.npy", np.zeros((4, 5), dtype=np.float32))
    with pytest.raises(ValueError, match=r"other\.npy holds float32 \(4, 5\)"):
        EmbeddingBlocks.open(tmp_path)


def test_a_draw_belongs_to_its_key(monkeypatch):
    keys = keys_of([f"{number:064x}" for number in range(5000)])
    draws = draw(3, keys, "leaves")
    assert len(set(keys.tolist())) == 5000
    np.testing.assert_array_equal(draw(3, keys[::-1], "leaves")[::-1], draws)
    assert abs(draws.mean() - 0.5) < 0.02
    for other in (draw(4, keys, "leaves"), draw(3, keys, "concepts")):
        assert abs(np.corrcoef(draws, other)[0, 1]) < 0.05
    rows = drawn_rows(0, 5000, 100, "rows")
    monkeypatch.setattr("pipeline.select.draws._CHUNK", 64)
    np.testing.assert_array_equal(draw(3, keys, "leaves"), draws)
    np.testing.assert_array_equal(drawn_rows(0, 5000, 100, "rows"), rows)
    assert len(set(rows.tolist())) == 100


@pytest.mark.parametrize(("k", "spread"), [(12, 0.35), (40, 0.35), (25, 3.0)])
def test_clusters_as_tightly_as_scikit_learn(tmp_path, k, spread):
    rows = mixture(6000, spread=spread)
    blocks = EmbeddingBlocks.write(tmp_path, [rows], rows=1000, unit=False)
    ours = inertia(blocks, kmeans(blocks, k, 100, seed=1, spherical=False))
    theirs = KMeans(k, n_init=3, max_iter=100, random_state=0).fit(rows).inertia_
    assert ours < 1.02 * theirs


def test_labels_are_the_nearest_centroids(tmp_path):
    rows = mixture(500)
    blocks = EmbeddingBlocks.write(tmp_path, [rows], rows=200)
    centroids = kmeans(blocks, 9, 5)
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-6)
    cosines = unit(rows) @ centroids.T
    labels, cosine = assign(blocks, centroids)
    np.testing.assert_array_equal(labels, cosines.argmax(1))
    np.testing.assert_allclose(cosine, cosines.max(1), atol=1e-5)
    ranked, _ = nearest(blocks, centroids, 3)
    np.testing.assert_array_equal(ranked, np.argsort(-cosines, axis=1)[:, :3])
    distances = ((unit(rows)[:, None] - centroids) ** 2).sum(2)
    np.testing.assert_allclose(assign(blocks, centroids, spherical=False)[1], distances.min(1), atol=1e-5)


def test_an_empty_cluster_takes_half_of_the_largest():
    sums = np.array([[10.0, 0.0], [0.0, 0.0], [0.0, 3.0], [0.0, 0.0]])
    counts = np.array([10, 0, 3, 0])
    means = _means(sums, counts, np.zeros((4, 2), dtype=np.float32), spherical=False)
    np.testing.assert_allclose(means[[0, 1, 3]], [[1, 0]] * 3, atol=0.01)  # halved, then a half halved again
    np.testing.assert_allclose(means[2], [0, 1])
    assert len(np.unique(means, axis=0)) == 4


def test_more_clusters_than_different_rows_is_no_error(tmp_path):
    rows = np.repeat(np.eye(3, dtype=np.float32), 50, axis=0)
    blocks = EmbeddingBlocks.write(tmp_path, [rows])
    for spherical in (True, False):
        centroids = kmeans(blocks, 8, 10, spherical=spherical)
        assert np.isfinite(centroids).all()
        assert inertia(blocks, centroids) < 1e-3


def test_every_cluster_of_distinct_data_has_rows(tmp_path):
    rows = mixture(3000, spread=0.05, centres=4)
    blocks = EmbeddingBlocks.write(tmp_path, [rows], rows=1000)
    labels, _ = assign(blocks, kmeans(blocks, 200, 20))
    assert len(np.unique(labels)) == 200


@pytest.mark.parametrize("k", [0, 11])
def test_a_number_of_clusters_out_of_range_is_refused(tmp_path, k):
    blocks = EmbeddingBlocks.write(tmp_path, [mixture(10)])
    with pytest.raises(ValueError, match=rf"k is {k}, but must lie in 1\.\.10"):
        kmeans(blocks, k)


@pytest.mark.cluster
def test_ray_and_this_process_give_the_same_bits(tmp_path, ray_local, monkeypatch):
    blocks = EmbeddingBlocks.write(tmp_path, [mixture(4000, dim=33)], rows=500)
    centroids = kmeans(blocks, 20, 6)
    labels, scores = nearest(blocks, centroids, 2)
    monkeypatch.setattr(ray_local, "is_initialized", lambda: False)
    assert kmeans(blocks, 20, 6).tobytes() == centroids.tobytes()
    alone = nearest(blocks, centroids, 2)
    assert (alone[0].tobytes(), alone[1].tobytes()) == (labels.tobytes(), scores.tobytes())


@pytest.mark.cluster
def test_what_a_task_complains_of_reaches_the_person(tmp_path, ray_local):
    rows = mixture(100)
    rows[77] = np.inf
    blocks = EmbeddingBlocks.write(tmp_path, [rows], rows=20)
    with pytest.raises(ValueError, match=r"000003\.npy holds embeddings that are not finite"):
        assign(blocks, np.eye(16, dtype=np.float32))
