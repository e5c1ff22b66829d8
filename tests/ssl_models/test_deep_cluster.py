"""DeepCluster-v2: k-means, its bank, and what becomes of samples without a pseudo-label."""

import math

import pytest
import torch
from torch.nn import functional as F

from ssl_models.batch import Batch, Step
from ssl_models.objectives.clustering import cosines, sinkhorn
from ssl_models.objectives.deep_cluster import (
    DeepClusterV2,
    nearest,
    normalized_mutual_information,
    spherical_kmeans,
    split_largest,
)
from tests.ssl_models.cases.case import RESNET
from tests.ssl_models.contract import batch, build, optimizers_of, step


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def slow_kmeans(rows, centroids, iterations):
    centroids = [centroid.clone() for centroid in centroids]
    for _ in range(iterations):
        labels = [max(range(len(centroids)), key=lambda k: float(row @ centroids[k])) for row in rows]
        for k in range(len(centroids)):
            total = sum(row for row, label in zip(rows, labels, strict=True) if label == k)
            centroids[k] = total / total.norm()
    return torch.stack(centroids)


def test_kmeans_equals_lloyds_algorithm():
    rows = unit(60, 3)
    counted = torch.arange(60) % 5 != 0  # a sample not met has a row, too, which must not count
    found = spherical_kmeans(rows, counted, rows[[1, 2, 3, 4]], 6)
    assert torch.allclose(found, slow_kmeans(rows[counted], rows[[1, 2, 3, 4]], 6), atol=1e-12)


def test_kmeans_of_many_rows_is_that_of_its_parts_together(monkeypatch):
    rows, counted = unit(60, 3), torch.ones(60, dtype=torch.bool)
    whole = spherical_kmeans(rows, counted, rows[:4], 3)
    monkeypatch.setattr("ssl_models.objectives.deep_cluster._ROWS_AT_A_TIME", 7)
    assert torch.allclose(spherical_kmeans(rows, counted, rows[:4], 3), whole, atol=1e-12)
    assert torch.equal(nearest(rows, whole), (rows @ whole.T).argmax(1))


def test_an_empty_cluster_takes_half_of_the_largest():
    centroids, counts = unit(4, 3), torch.tensor([5.0, 0, 9, 0])
    halves = split_largest(centroids, counts)
    assert torch.allclose(halves[1], centroids[2], atol=2e-3)  # of the largest
    assert torch.allclose(halves[3], centroids[0], atol=2e-3)  # of the next
    assert not torch.equal(halves[1], halves[2])
    rows = torch.cat([F.normalize(unit(1, 8) + 0.1 * unit(20, 8, seed=1), dim=1), unit(4, 8, seed=2)])
    start = torch.cat([rows[:1], -rows[:1], rows[20:22]])  # nothing lies at the opposite of the many
    found = spherical_kmeans(rows, torch.ones(24, dtype=torch.bool), start, 10)
    assert len(nearest(rows, found).unique()) == 4


def test_fewer_rows_than_clusters_leave_all_centroids_on_the_sphere():
    rows = unit(2, 3)
    found = spherical_kmeans(rows, torch.ones(2, dtype=torch.bool), unit(6, 3, seed=1), 5)
    assert torch.allclose(found.norm(dim=1), torch.ones(6, dtype=torch.float64))


def test_mutual_information_equals_scikit_learns():
    from sklearn.metrics import normalized_mutual_info_score

    generator = torch.Generator().manual_seed(0)
    first, second = torch.randint(0, 5, (2, 200), generator=generator)
    second = torch.where(torch.rand(200, generator=generator) < 0.5, first, second)
    expected = normalized_mutual_info_score(first.numpy(), second.numpy())
    assert normalized_mutual_information(first, second, 5).item() == pytest.approx(expected, abs=1e-12)
    assert normalized_mutual_information(first, 4 - first, 5).item() == pytest.approx(1)
    assert normalized_mutual_information(first[:0], first[:0], 5) == 0


def trained(steps, **changes):
    objective = build("deepcluster_v2").train()
    objective.config = objective.config.model_copy(update=changes)
    optimizers = optimizers_of(objective)
    for number in range(steps):
        step(objective, objective, optimizers, batch("deepcluster_v2", seed=number), number)
    return objective


def test_loss_is_the_cross_entropy_of_pseudo_labels_over_all_views_and_sets():
    objective = trained(2).eval()
    whole = batch("deepcluster_v2", seed=7)
    assert (objective.labels[:, whole.ids] >= 0).all()
    terms = []
    for view in whole.views:
        rows = F.normalize(objective.projector(objective.encoder(view)), dim=1)
        for prototypes, labels in zip(objective.prototypes, objective.labels, strict=True):
            for row, i in zip(rows, whole.ids, strict=True):
                logits = prototypes @ row / 0.1
                terms.append(logits.exp().sum().log() - logits[labels[i]])
    loss = objective(whole, Step(5, 0.5, 0))["loss"]
    assert torch.allclose(loss, torch.stack(terms).mean(), atol=1e-4)


def test_a_sample_without_a_label_takes_the_balanced_one_of_its_batch():
    objective = build("deepcluster_v2").eval()
    whole = batch("deepcluster_v2")
    assert (objective.labels == -1).all()
    views = [objective.projector(objective.encoder(view)) for view in whole.views]
    codes = sinkhorn(cosines(views[0], objective.prototypes), 0.05, 3).argmax(2)
    losses = [
        F.cross_entropy(cosines(view, prototypes) / 0.1, code)
        for view in views
        for prototypes, code in zip(objective.prototypes, codes, strict=True)
    ]
    loss = objective(whole, Step(0, 0.0, 0))["loss"]
    assert torch.allclose(loss, torch.stack(losses).mean(), atol=1e-5)
    collapsed = torch.ones(16, 8) + 0.01 * torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    scores = cosines(collapsed, objective.prototypes[0])
    assert len(scores.argmax(1).unique()) == 1  # the nearest is the same for all,
    assert len(sinkhorn(scores, 0.05, 50).argmax(1).unique()) > 1  # the balanced one is not


def test_all_prototypes_alike_cost_ln_k():
    objective = build("deepcluster_v2")
    objective.prototypes.copy_(objective.prototypes[:, :1].expand(-1, 4, -1))
    loss = objective(batch("deepcluster_v2"), Step(0, 0.0, 0))["loss"]
    assert loss.item() == pytest.approx(math.log(4), abs=1e-5)


def test_the_bank_holds_the_last_projection_of_first_views():
    objective = trained(1, assign_every=100)
    whole = batch("deepcluster_v2", seed=3)
    objective(whole, Step(1, 0.5, 0))
    objective.eval()  # a forward of its own would use the statistics of another batch: compare those of the same
    expected = F.normalize(objective.projector(objective.encoder(whole.views[0])), dim=1)
    objective(whole, Step(1, 0.5, 0))
    objective.after_step(Step(1, 0.5, 0))
    assert torch.allclose(objective.bank[whole.ids], expected, atol=1e-5)
    others = torch.ones(len(objective.bank), dtype=torch.bool)
    others[whole.ids] = False
    assert not objective.bank[others].any()
    assert (objective.labels == -1).all()  # no clustering before its step


def test_a_sample_twice_in_a_batch_writes_its_last_row():
    objective = build("deepcluster_v2").eval()
    whole = batch("deepcluster_v2")
    ids = whole.ids.clone()
    ids[[2, 9, 15]] = ids[9].item()
    objective(Batch(whole.views, ids), Step(0, 0.5, 0))
    rows = objective.met[1]
    objective.after_step(Step(0, 0.5, 0))
    assert torch.equal(objective.bank[ids[9]], rows[15])
    assert torch.equal(objective.bank[ids[0]], rows[0])


def test_labels_are_the_nearest_prototypes_and_only_of_samples_that_were_met():
    objective = trained(2)
    met = objective.bank.any(1)
    assert met.sum() == 16
    for prototypes, labels in zip(objective.prototypes, objective.labels, strict=True):
        assert (labels[~met] == -1).all()
        assert torch.equal(labels[met], nearest(objective.bank[met], prototypes))
        assert torch.allclose(prototypes.norm(dim=1), torch.ones(4), atol=1e-6)
        assert len(labels[met].unique()) > 1
    assert not torch.equal(objective.prototypes[0], objective.prototypes[1])  # sets begin at other samples


def test_agreement_of_two_clusterings_is_reported():
    objective = trained(2)
    assert objective.agreement == 0  # nothing to compare the first with
    objective = trained(4, assign_every=2)
    values = objective(batch("deepcluster_v2"), Step(4, 0.5, 0))
    assert 0 < values["assignment_nmi"] <= 1


def test_prototypes_are_no_parameters():
    objective = build("deepcluster_v2")
    assert not [name for name, _ in objective.named_parameters() if name.startswith(("prototypes", "bank"))]


def test_more_prototypes_than_samples_are_refused():
    with pytest.raises(ValueError, match=r"num_prototypes=128 exceeds the 50 samples"):
        DeepClusterV2(DeepClusterV2.Config(num_prototypes=128, num_samples=50), RESNET)
