"""Hierarchical k-means and balanced sampling."""

import numpy as np
import pytest

from pipeline.select.blocks import EmbeddingBlocks
from pipeline.select.draws import drawn_rows, keys_of
from pipeline.select.hierarchical import even_shares, first_of_each, hierarchical_kmeans, hierarchical_sample


def long_tail(counts, dim=16, spread=0.25, seed=0):
    """Rows and their concepts: counts[i] rows around direction i, shuffled."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(len(counts), dim))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    concepts = generator.permutation(np.repeat(np.arange(len(counts)), counts))
    rows = centres[concepts] + spread / np.sqrt(dim) * generator.normal(size=(len(concepts), dim))
    return rows.astype(np.float32), concepts


def keys(count):
    return keys_of(str(number) for number in range(count))


def entropy(concepts):
    """In bits."""
    share = np.bincount(concepts) / len(concepts)
    return float(-(share[share > 0] * np.log2(share[share > 0])).sum())


def random_tree(generator):
    sizes = sorted(generator.choice(np.arange(2, 60), 3, replace=False).tolist(), reverse=True)
    count = int(generator.integers(60, 800))
    labels = []
    for below, k in zip([count, *sizes], sizes, strict=False):
        labels.append((generator.random(below) ** 3 * k).astype(np.int32))  # uneven; some clusters are empty
    return labels, count


def test_water_is_spread_evenly():
    ties = np.arange(5)
    np.testing.assert_array_equal(even_shares(10, np.array([1, 9, 9, 0, 2]), ties), [1, 4, 3, 0, 2])
    np.testing.assert_array_equal(even_shares(10, np.array([1, 9, 9, 0, 2]), -ties), [1, 3, 4, 0, 2])
    np.testing.assert_array_equal(even_shares(99, np.array([1, 9, 9, 0, 2]), ties), [1, 9, 9, 0, 2])
    np.testing.assert_array_equal(even_shares(2, np.array([5, 5, 5, 5, 5]), ties), [1, 1, 0, 0, 0])
    generator = np.random.default_rng(0)
    for _ in range(300):
        sizes = generator.integers(0, 30, generator.integers(1, 20))
        target = int(generator.integers(0, 200))
        shares = even_shares(target, sizes, generator.random(len(sizes)))
        assert shares.sum() == min(target, sizes.sum())
        assert (shares <= sizes).all()
        partial = shares[shares < sizes]
        if len(partial):  # who holds back gives as much as anyone, up to one row
            assert partial.min() >= shares.max() - 1


def test_gives_exactly_the_target_and_no_cluster_more_than_its_share():
    generator = np.random.default_rng(1)
    for trial in range(40):
        labels, count = random_tree(generator)
        target = int(generator.integers(1, 900))
        rows = hierarchical_sample(labels, target, trial, keys(count))
        assert len(rows) == min(target, count)
        assert (np.diff(rows) > 0).all()
        top = labels[2][labels[1][labels[0]]]
        taken, sizes = (np.bincount(top[some], minlength=60) for some in (rows, np.arange(count)))
        partial = taken[taken < sizes]
        assert not len(partial) or partial.min() >= taken.max() - 1
        for parent in np.flatnonzero(sizes):  # and so among the children of each
            middle = labels[1][labels[0]]
            inside = top == parent
            taken_in, sizes_in = (
                np.bincount(middle[some], minlength=60) for some in (rows[inside[rows]], np.flatnonzero(inside))
            )
            partial = taken_in[taken_in < sizes_in]
            assert not len(partial) or partial.min() >= taken_in.max() - 1


def test_a_sample_depends_on_ids_and_seed_not_on_the_order_of_rows():
    labels, count = random_tree(np.random.default_rng(2))
    names = keys(count)
    rows = hierarchical_sample(labels, count // 3, 0, names)
    np.testing.assert_array_equal(hierarchical_sample(labels, count // 3, 0, names), rows)
    assert not np.array_equal(hierarchical_sample(labels, count // 3, 1, names), rows)
    turned = hierarchical_sample([labels[0][::-1], *labels[1:]], count // 3, 0, names[::-1])
    np.testing.assert_array_equal(np.sort(names[::-1][turned]), np.sort(names[rows]))


def test_the_first_of_each_cluster_are_those_of_the_lowest_preference():
    labels = np.array([0, 0, 0, 1, 1, 1], dtype=np.int32)
    preference = np.array([3.0, 1.0, 2.0, 0.5, 0.1, 0.7])
    np.testing.assert_array_equal(first_of_each(labels, preference, np.array([1, 2])), [1, 4, 3])


def test_balances_a_mixture_of_ninety_to_ten(tmp_path):
    rows, concepts = long_tail([4500, 500])
    blocks = EmbeddingBlocks.write(tmp_path / "blocks", [rows], rows=1000)
    levels = hierarchical_kmeans(blocks, (60, 12, 2), tmp_path / "not" / "there", iterations=10, resamplings=3)
    sample = hierarchical_sample([level.labels for level in levels], 600, 0, keys(5000))
    plain = drawn_rows(0, 5000, 600, "plain")
    assert (concepts[plain] == 1).mean() == pytest.approx(0.1, abs=0.03)
    assert (concepts[sample] == 1).mean() == pytest.approx(0.5, abs=0.01)


def test_raises_the_entropy_over_a_long_tail_of_concepts(tmp_path):
    counts = (3000 / np.arange(1, 21) ** 1.3).astype(int) + 30  # a Zipf curve over 20 concepts
    rows, concepts = long_tail(counts)
    blocks = EmbeddingBlocks.write(tmp_path / "blocks", [rows], rows=2000)
    flat = hierarchical_kmeans(blocks, (200,), tmp_path, iterations=8, resamplings=0)
    deep = hierarchical_kmeans(blocks, (200, 20), tmp_path, iterations=8, resamplings=5)
    one, two = (
        hierarchical_sample([level.labels for level in levels], 500, 0, keys(len(rows))) for levels in (flat, deep)
    )
    plain = drawn_rows(0, len(rows), 500, "plain")
    assert entropy(concepts[plain]) + 0.2 < entropy(concepts[one])
    assert entropy(concepts[one]) + 0.2 < entropy(concepts[two])
    assert entropy(concepts[two]) > 0.97 * np.log2(20)


def test_levels_fit_together(tmp_path):
    rows, _ = long_tail([300, 200, 100])
    blocks = EmbeddingBlocks.write(tmp_path / "blocks", [rows], rows=250)
    levels = hierarchical_kmeans(blocks, (30, 6), tmp_path, iterations=5, resamplings=2, resampled=5)
    assert [level.centroids.shape for level in levels] == [(30, 16), (6, 16)]
    assert [level.labels.shape for level in levels] == [(600,), (30,)]
    assert [path.name for path in tmp_path.iterdir()] == ["blocks"]  # nothing is left behind
    squared = ((blocks.take(np.arange(600))[:, None] - levels[0].centroids) ** 2).sum(2)
    np.testing.assert_array_equal(levels[0].labels, squared.argmin(1))
    np.testing.assert_allclose(levels[0].distances, squared.min(1), atol=1e-5)


@pytest.mark.parametrize("sizes", [(), (6, 30), (6, 6), (700,), (5, 0)])
def test_sizes_that_make_no_tree_are_refused(tmp_path, sizes):
    blocks = EmbeddingBlocks.write(tmp_path, [long_tail([600])[0]])
    with pytest.raises(ValueError, match="must fall from level to level within 600"):
        hierarchical_kmeans(blocks, sizes, tmp_path)


@pytest.mark.cluster
def test_ray_and_this_process_grow_the_same_tree(tmp_path, ray_local, monkeypatch):
    rows, _ = long_tail([900, 300, 100])
    blocks = EmbeddingBlocks.write(tmp_path / "blocks", [rows], rows=200)
    with_ray = hierarchical_kmeans(blocks, (30, 5), tmp_path, iterations=5, resamplings=2)
    monkeypatch.setattr(ray_local, "is_initialized", lambda: False)
    alone = hierarchical_kmeans(blocks, (30, 5), tmp_path, iterations=5, resamplings=2)
    for ours, theirs in zip(with_ray, alone, strict=True):
        assert all(a.tobytes() == b.tobytes() for a, b in zip(ours, theirs, strict=True))
