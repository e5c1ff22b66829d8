"""Semantic duplicates, against the paper's algorithm written as a loop and against brute force."""

import numpy as np
import pytest

import pipeline.select.semantic as semantic
from pipeline.select.blocks import EmbeddingBlocks
from pipeline.select.kmeans import assign, kmeans
from pipeline.select.semantic import closest_earlier, epsilon_for, removed_shares, survivors


def with_near_pairs(count, near, dim=24, cosine=0.95, seed=0):
    """Unit rows (count, dim); `near` of them have a cosine of at least `cosine` to another one."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(20, dim))
    rows = centres[generator.integers(0, 20, count - near)] + 1.5 * generator.normal(size=(count - near, dim))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    base = rows[generator.choice(count - near, near, replace=False)]
    aside = generator.normal(size=base.shape)
    aside -= (aside * base).sum(1, keepdims=True) * base
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    share = generator.uniform(cosine, 1, (near, 1))
    copies = share * base + np.sqrt(1 - share**2) * aside
    return np.concatenate([rows, copies])[generator.permutation(count)].astype(np.float32)


def in_clusters(tmp_path, rows, k, block=400):
    blocks = EmbeddingBlocks.write(tmp_path / "blocks", [rows], rows=block)
    return blocks, kmeans(blocks, k, 10)


@pytest.mark.parametrize("epsilon", [0.02, 0.05, 0.3])
def test_removes_what_the_paper_removes(tmp_path, epsilon):
    rows = with_near_pairs(1500, 400)
    blocks, centroids = in_clusters(tmp_path, rows, 12)
    labels, _ = assign(blocks, centroids)
    kept = np.ones(len(rows), dtype=bool)
    for cluster in range(12):
        members = np.flatnonzero(labels == cluster)
        similarity = np.triu(rows[members] @ rows[members].T, k=1)
        kept[members] = similarity.max(axis=0, initial=0) <= 1 - epsilon
    standing = survivors(closest_earlier(blocks, centroids), epsilon)
    np.testing.assert_array_equal(standing == np.arange(len(rows)), kept)
    assert 0 < (~kept).sum() < len(rows)
    assert kept[standing].all()  # what stands for others stays itself
    np.testing.assert_array_equal(labels[standing], labels)


def test_the_first_row_survives_unless_priority_says_otherwise(tmp_path):
    rows = np.repeat(np.eye(4, dtype=np.float32), 3, axis=0)  # rows 0-2 equal, 3-5 equal ...
    blocks, centroids = in_clusters(tmp_path, rows, 4)
    first = survivors(closest_earlier(blocks, centroids), 0.05)
    np.testing.assert_array_equal(first, np.repeat([0, 3, 6, 9], 3))
    priority = np.array([1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 1, 1])
    standing = survivors(closest_earlier(blocks, centroids, priority=priority), 0.05)
    np.testing.assert_array_equal(standing, np.repeat([2, 4, 6, 9], 3))


def test_a_chain_leads_to_a_row_that_stays(tmp_path):
    angles = np.array([0.0, 0.2, 0.4, 0.6])  # neighbours have a cosine of 0.98, the next but one 0.92
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    blocks, centroids = in_clusters(tmp_path, rows, 1)
    np.testing.assert_array_equal(survivors(closest_earlier(blocks, centroids), 0.05), [0, 0, 0, 0])


def test_more_probes_find_what_straddles_clusters(tmp_path):
    rows = with_near_pairs(4000, 1000)
    blocks, centroids = in_clusters(tmp_path, rows, 40)
    brute = (np.tril(rows @ rows.T, k=-1).max(axis=1) > 0.95).nonzero()[0]
    recall = []
    for probes in (1, 2, 3, 40):
        found = closest_earlier(blocks, centroids, probes=probes)
        removed = found.similarity > 0.95
        assert not np.setdiff1d(removed.nonzero()[0], brute).size  # never more than brute force
        recall.append(removed[brute].mean())
    assert 0.7 < recall[0] < recall[1] <= recall[2]
    assert recall[1] > 0.97
    assert recall[3] == 1


def test_a_cluster_too_large_to_hold_is_compared_in_tiles(tmp_path, monkeypatch):
    rows = with_near_pairs(900, 300)
    blocks, centroids = in_clusters(tmp_path, rows, 3)
    whole = closest_earlier(blocks, centroids)
    monkeypatch.setattr(semantic, "_TILE", 64)
    monkeypatch.setattr(semantic, "_RESIDENT", 100)
    monkeypatch.setattr(semantic, "_PAIRS", 10_000)
    most = 0
    take = EmbeddingBlocks.take

    def watched(self, asked):
        nonlocal most
        most = max(most, len(asked))
        return take(self, asked)

    monkeypatch.setattr(EmbeddingBlocks, "take", watched)
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # a task in another process would not be watched
    tiled = closest_earlier(blocks, centroids)
    assert most <= 100
    np.testing.assert_array_equal(tiled.rows, whole.rows)
    np.testing.assert_allclose(tiled.similarity, whole.similarity, atol=1e-6)


def test_shares_agree_with_what_is_removed(tmp_path):
    rows = with_near_pairs(1500, 500)
    blocks, centroids = in_clusters(tmp_path, rows, 10)
    closest = closest_earlier(blocks, centroids)
    epsilons = np.array([0.001, 0.01, 0.03, 0.05, 0.2])
    shares = removed_shares(closest, epsilons)
    removed = [(survivors(closest, epsilon) != np.arange(1500)).mean() for epsilon in epsilons]
    np.testing.assert_allclose(shares, removed)
    assert (np.diff(shares) > 0).all()
    for share in (0.05, 0.2, 0.4):
        epsilon = epsilon_for(closest, share)
        assert removed_shares(closest, np.array([epsilon]))[0] == pytest.approx(share, abs=1 / 1500)
        assert removed_shares(closest, np.array([epsilon]))[0] <= share


def test_bounds_are_checked(tmp_path):
    blocks, centroids = in_clusters(tmp_path, np.eye(6, dtype=np.float32), 2)
    closest = closest_earlier(blocks, centroids)
    with pytest.raises(ValueError, match="epsilon is 0, but must lie between 0 and 1"):
        survivors(closest, 0)
    with pytest.raises(ValueError, match="no epsilon between 0 and 1"):
        epsilon_for(closest, 0.9)


@pytest.mark.cluster
def test_ray_and_this_process_find_the_same(tmp_path, ray_local, monkeypatch):
    monkeypatch.setattr(semantic, "_PAIRS", 10_000)
    rows = with_near_pairs(3000, 800)
    blocks, centroids = in_clusters(tmp_path, rows, 25)
    with_ray = closest_earlier(blocks, centroids, probes=2)
    monkeypatch.setattr(ray_local, "is_initialized", lambda: False)
    alone = closest_earlier(blocks, centroids, probes=2)
    assert with_ray.rows.tobytes() == alone.rows.tobytes()
    assert with_ray.similarity.tobytes() == alone.similarity.tobytes()
