"""IIC and SwAV: the papers' formulas in slow loops, their values when nothing is learned, and lightly's."""

import math

import pytest
import torch

from ssl_models.batch import Step
from ssl_models.encoders import EncoderConfig
from ssl_models.objectives.clustering import IIC, SwAV, cosines, iic_loss, sinkhorn, swapped_prediction
from ssl_models.pixels import grayscale
from tests.ssl_models.contract import batch, build, optimizers_of, part, step


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_equal(ours, theirs, inputs):
    """Value and gradients."""
    assert torch.allclose(ours, theirs, atol=1e-12, rtol=0)
    for a, b in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        assert torch.allclose(a, b, atol=1e-12, rtol=0)


def slow_iic(first, second, marginal_weight):
    """Equation 3 of arXiv 1807.06653, of one head."""
    rows, k = first.shape
    joint = [[sum(first[b, c] * second[b, d] for b in range(rows)) / rows for d in range(k)] for c in range(k)]
    joint = [[(joint[c][d] + joint[d][c]) / 2 for d in range(k)] for c in range(k)]
    loss = first.new_zeros(())
    for c in range(k):
        for d in range(k):
            row, column = sum(joint[c]), sum(joint[e][d] for e in range(k))
            ratio = joint[c][d].log() - marginal_weight * row.log() - marginal_weight * column.log()
            loss = loss - joint[c][d] * ratio
    return loss


@pytest.mark.parametrize("marginal_weight", [1.0, 1.5])
def test_iic_equals_the_formula(marginal_weight):
    logits = [random(6, 2, 4, seed=seed).requires_grad_() for seed in range(2)]
    ours = iic_loss(*(rows.softmax(-1) for rows in logits), marginal_weight)
    slow = [slow_iic(*(rows[:, head].softmax(-1) for rows in logits), marginal_weight) for head in range(2)]
    assert_equal(ours.sum(), sum(slow), logits)


def test_iic_is_zero_when_collapsed_and_best_at_minus_ln_k():
    collapsed = torch.eye(10)[[3] * 20][:, None]
    uniform = torch.full((20, 1, 10), 0.1)
    perfect = torch.eye(10).repeat(2, 1)[:, None]
    assert iic_loss(collapsed, collapsed).item() == pytest.approx(0, abs=1e-3)
    assert iic_loss(uniform, uniform).item() == pytest.approx(0, abs=1e-5)
    assert iic_loss(perfect, perfect).item() == pytest.approx(-math.log(10), abs=1e-3)


def test_the_joint_is_of_the_whole_batch():
    """Rows of one cluster each tell nothing alone, and all together: no mean of the shares' losses is the loss."""
    rows = torch.eye(4).repeat_interleave(2, 0)[:, None]
    alone = torch.stack([iic_loss(share, share) for share in rows.chunk(4)]).mean()
    assert alone.item() == pytest.approx(0, abs=1e-3)
    assert iic_loss(rows, rows).item() == pytest.approx(-math.log(4), abs=1e-3)


def test_iic_sees_edges_and_no_colours_in_training_and_in_probes():
    objective = build("iic").eval()
    images = batch("iic").views[0]
    encoder = objective.encoder
    gray = encoder.normalized(grayscale(encoder.pixels(images)))
    edges = objective.edges(images)
    assert edges.shape == images.shape
    assert torch.allclose(edges, objective.edges(gray), atol=1e-3)
    brighter = encoder.normalized(encoder.pixels(images) + 0.2)
    assert torch.allclose(objective.embed(images), objective.embed(brighter), atol=1e-3)
    ramp = encoder.normalized(torch.linspace(0, 1, 16).expand(1, 3, 16, 16))  # brighter to the right
    across, down, length = objective.edges(ramp)[0, :, 4:-4, 4:-4]
    assert torch.allclose(across, torch.full_like(across, 8 / 15), atol=1e-3)
    assert torch.allclose(down, torch.zeros_like(down), atol=1e-5)
    assert torch.allclose(length, across, atol=1e-5)


def test_iic_is_the_mean_of_main_and_over_clustering_heads():
    objective = build("iic", torch.float64)
    whole = batch("iic", dtype=torch.float64)
    values = objective(whole, Step(0, 0.0, 0))
    losses = []
    for head, (copies, k) in zip(objective.heads, objective.shapes, strict=True):
        first, second = head(objective.embed(torch.cat(whole.views))).unflatten(1, (copies, k)).softmax(-1).chunk(2)
        losses.append(sum(slow_iic(first[:, copy], second[:, copy], 1.0) for copy in range(copies)) / copies)
    assert torch.allclose(values["main_loss"], losses[0])
    assert torch.allclose(values["loss"], (losses[0] + losses[1]) / 2)


def test_a_head_of_one_cluster_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        IIC.Config(over_clusters=(70, 1))


def slow_sinkhorn(scores, epsilon, iterations):
    """Section 3.1 and appendix of arXiv 2006.09882: Q is (K, B), its rows sum to 1/K, then its columns to 1/B."""
    code = (scores / epsilon).exp().T
    code = code / code.sum()
    k, rows = code.shape
    for _ in range(iterations):
        for i in range(k):
            code[i] = code[i] / code[i].sum() / k
        for b in range(rows):
            code[:, b] = code[:, b] / code[:, b].sum() / rows
    return (code * rows).T


def test_sinkhorn_equals_the_formula():
    scores = cosines(random(10, 4), torch.nn.functional.normalize(random(6, 4, seed=1), dim=1))
    assert torch.allclose(sinkhorn(scores, 0.05, 3), slow_sinkhorn(scores, 0.05, 3), atol=1e-12)
    sets = torch.stack([scores, scores.flip(0)])
    assert torch.allclose(sinkhorn(sets, 0.05, 3)[1], slow_sinkhorn(scores.flip(0), 0.05, 3), atol=1e-12)


def test_sinkhorn_gives_all_prototypes_equal_shares():
    code = sinkhorn(cosines(random(64, 4) + 1, random(6, 4, seed=1)), 0.1, 200)
    assert torch.allclose(code.sum(1), torch.ones(64, dtype=torch.float64))
    assert torch.allclose(code.sum(0), torch.full((6,), 64 / 6, dtype=torch.float64), rtol=1e-3)


def test_sinkhorn_neither_overflows_nor_vanishes_in_single_precision():
    scores = torch.tensor([[1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
    code = sinkhorn(scores, 0.025, 3)  # exp(±40): 1e17 and 1e-17, whose ratio is within reach, and exp(80) is not
    assert code.isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        assert sinkhorn(scores.bfloat16(), 0.025, 3).dtype == torch.float32


def test_rows_of_the_queue_take_part_in_sinkhorn_only():
    prototypes = torch.nn.functional.normalize(random(6, 4, seed=1), dim=1)
    own, queue = cosines(random(5, 4), prototypes), cosines(random(9, 4, seed=2), prototypes)
    together = sinkhorn(torch.cat([own, queue]), 0.05, 3)
    assert torch.allclose(sinkhorn(own, 0.05, 3, queue), together[:5], atol=1e-12)


@pytest.mark.parametrize("queue_length", [0, 9])
def test_swav_equals_lightly(queue_length):
    from lightly.loss import SwaVLoss

    scores = [torch.tanh(random(5, 6, seed=seed)).requires_grad_() for seed in range(4)]  # two global, two local
    queue = [torch.tanh(random(queue_length, 6, seed=9 + seed)) for seed in range(2)] if queue_length else None
    codes = [sinkhorn(scores[view], 0.05, 3, queue[view] if queue else None) for view in range(2)]
    ours, theirs = swapped_prediction(scores, codes, 0.1), SwaVLoss()(scores[:2], scores[2:], queue)[0]
    assert_equal(ours, theirs, scores)


def test_swav_when_all_scores_are_equal_is_ln_k():
    scores = [torch.zeros(8, 3000) for _ in range(3)]
    loss = swapped_prediction(scores, [sinkhorn(view, 0.05, 3) for view in scores[:2]], 0.1)
    assert loss.item() == pytest.approx(math.log(3000), abs=1e-4)


def test_local_crops_are_predicted_and_never_assigned():
    objective = build("swav").eval()
    whole = batch("swav")
    values = objective(whole, Step(0, 0.5, 0))
    fewer = objective(batch("swav").__class__(whole.views[:2], whole.ids), Step(0, 0.5, 0))
    assert torch.equal(values["prototype_entropy"], fewer["prototype_entropy"])
    assert not torch.equal(values["loss"], fewer["loss"])


def test_prototypes_stay_on_the_sphere_and_are_frozen_at_first():
    objective = build("swav").train()
    optimizers = {"main": torch.optim.SGD(objective.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)}
    start = objective.prototypes.detach().clone()
    assert torch.allclose(start.norm(dim=1), torch.ones(8))
    for progress, still in ((0.0, True), (0.19, True), (0.2, False), (None, False)):
        before = objective.prototypes.detach().clone()
        loss = objective(batch("swav"), Step(0, progress, 0))["loss"]
        optimizers["main"].zero_grad()
        loss.backward()
        optimizers["main"].step()
        objective.after_step(Step(0, progress, 0))
        assert torch.allclose(objective.prototypes, before, atol=1e-6) == still
        assert torch.allclose(objective.prototypes.norm(dim=1), torch.ones(8), atol=1e-6)


def test_the_queue_holds_the_newest_global_projections_and_waits_until_it_is_full():
    objective = build("swav").train()
    optimizers = optimizers_of(objective)
    kept = []
    for number in range(3):
        assert objective._uses_queue(Step(number, 0.5, 0), 16) == (number >= 2)  # 24 rows, 16 a step
        step(objective, objective, optimizers, batch("swav", seed=number), number)
        kept.append(objective.queue.clone())
    assert not kept[0][:, 16:].any()
    assert torch.equal(kept[1][:, 16:], kept[0][:, :8])
    assert torch.allclose(kept[2].norm(dim=2), torch.ones(2, 24), atol=1e-6)
    assert not torch.equal(kept[2][0], kept[2][1])  # one a view
    assert not objective._uses_queue(Step(100, 0.1, 0), 16)  # before its share of the run


def test_a_vit_learns_by_clustering_too():
    encoder = EncoderConfig(
        name="vit_tiny_patch16_224",
        image_size=16,
        patch_size=4,
        arguments={"embed_dim": 24, "depth": 1, "num_heads": 2},
    )
    for objective in (SwAV(SwAV.Config(num_prototypes=8), encoder), IIC(IIC.Config(), encoder)):
        share = part(batch("iic"), 0, 2)
        objective(share, Step(0, 0.5, 0))["loss"].backward()
        assert all(parameter.grad is not None for parameter in objective.parameters())
