"""Momentum contrast: losses against loops, the queue, and the shuffled key encoder."""

import math

import pytest
import torch

from ssl_models.batch import Batch, Step
from ssl_models.objectives.moco import MoCo, MoCoV3, batch_loss, queue_loss
from tests.ssl_models.cases.case import RESNET, VIT
from tests.ssl_models.contract import batch, build

SMALL = MoCo.Config(projector_dims=(8,), queue_size=20, momentum=0.5, split_batchnorm=4)


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def slow_queue_loss(query, key, queue, temperature):
    """Equation 1 of arXiv 1911.05722."""
    losses = []
    for q, k in zip(query, key, strict=True):
        q, k = q / q.norm(), k / k.norm()
        scores = [torch.exp(q @ k / temperature), *(torch.exp(q @ other / temperature) for other in queue)]
        losses.append(-torch.log(scores[0] / sum(scores)))
    return sum(losses) / len(losses)


def slow_batch_loss(query, key, temperature):
    """Algorithm 1 of arXiv 2104.02057."""
    losses = []
    for i, q in enumerate(query):
        scores = [torch.exp(q @ k / (q.norm() * k.norm()) / temperature) for k in key]
        losses.append(-2 * temperature * torch.log(scores[i] / sum(scores)))
    return sum(losses) / len(losses)


def equal(fast: torch.Tensor, slow: torch.Tensor, *leaves: torch.Tensor) -> None:
    """Values and gradients."""
    torch.testing.assert_close(fast, slow, atol=1e-12, rtol=0)
    for a, b in zip(torch.autograd.grad(fast, leaves), torch.autograd.grad(slow, leaves), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_losses_equal_the_formulas(temperature):
    query, key = rows(6, 5), rows(6, 5, seed=1)
    queue = torch.nn.functional.normalize(rows(9, 5, seed=2).detach())
    equal(queue_loss(query, key, queue, temperature)[0], slow_queue_loss(query, key, queue, temperature), query)
    equal(batch_loss(query, key, temperature)[0], slow_batch_loss(query, key, temperature), query)
    assert torch.autograd.grad(batch_loss(query, key, temperature)[0], key, allow_unused=True) == (None,)


def test_the_queue_loss_is_that_of_lightly():
    from lightly.loss import NTXentLoss

    query, key = rows(6, 5), rows(6, 5, seed=1)
    theirs = NTXentLoss(temperature=0.2, memory_bank_size=(9, 5)).double()
    queue = theirs.memory_bank.bank.clone().double()  # (9, 5), normalised; replaced by what is fed after its use
    equal(queue_loss(query, key, queue, 0.2)[0], theirs(query, key), query)


def test_a_collapsed_model():
    same = torch.ones(8, 4)
    loss, accuracy = queue_loss(same, same, same / 2, 0.07)
    assert loss.item() == pytest.approx(math.log(8 + 1), abs=1e-5)
    assert accuracy == 0  # argmax would give 100 %: ties go to the positive's column
    loss, accuracy = batch_loss(same, same, 0.2)
    assert loss.item() == pytest.approx(0.4 * math.log(8), abs=1e-5)
    assert accuracy == 0


def test_losses_stay_in_single_precision_under_autocast():
    query, key = rows(16, 32).float(), rows(16, 32, seed=1).float()
    queue = torch.nn.functional.normalize(rows(64, 32, seed=2).float())
    with torch.autocast("cpu", torch.bfloat16):
        half = queue_loss(query, key, queue, 0.07)[0], batch_loss(query, key, 0.07)[0]
    single = queue_loss(query, key, queue, 0.07)[0], batch_loss(query, key, 0.07)[0]
    assert half == single


@pytest.mark.parametrize("count", [6, 20, 23, 50])
def test_the_queue_is_a_ring(count):
    """Whatever the batch, it holds the newest keys, and nothing is lost at its end."""
    torch.manual_seed(0)
    objective = MoCo(SMALL, RESNET)
    everything = objective.queue.clone()
    for number in range(5):
        keys = torch.full((count, 8), float(number)) + torch.arange(count)[:, None] / 1000
        everything = torch.cat([everything, keys])
        objective._enqueue(keys)
        assert objective.pointer == (number + 1) * count % 20
        newest = {tuple(row) for row in everything[-20:].tolist()}
        assert {tuple(row) for row in objective.queue.tolist()} == newest
        following = everything[-20]  # the oldest one, which the pointer names
        assert torch.equal(objective.queue[objective.pointer], following)


def test_keys_are_used_before_they_are_queued_and_the_teacher_moves_after_the_step():
    objective = build("moco")
    before = {key: value.clone() for key, value in objective.state_dict().items()}
    objective(batch("moco"), Step(0, 0.0, 0))
    assert torch.equal(objective.queue, before["queue"])
    with torch.no_grad():
        objective.projector[0].weight.add_(1.0)
    objective.after_step(Step(0, 0.0, 0))
    assert torch.equal(objective.queue[:32], torch.cat(objective.new_keys))  # those of both directions
    moved = objective.teacher.layers[1][0].weight - before["teacher.layers.1.0.weight"]
    torch.testing.assert_close(moved, torch.full_like(moved, 0.1))


def test_the_key_encoder_sees_another_order_and_its_keys_come_back():
    """A key depends on the images of its group, which are others than its query's."""
    torch.manual_seed(0)
    objective = MoCo(SMALL, RESNET).double().train()
    whole = batch("moco", dtype=torch.float64)
    order = objective._order(whole.ids, Step(7, 0.0, 3))
    assert torch.equal(order.sort().values, torch.arange(16))
    assert not torch.equal(order, objective._order(whole.ids, Step(8, 0.0, 3)))
    assert torch.equal(order, objective._order(whole.ids, Step(7, 0.5, 3)))
    keys = objective._keys(whole.views[1], order)
    group = order[4:8]
    alone = objective.teacher(whole.views[1][group].repeat(4, 1, 1, 1))[:4]  # the same four images in every group
    torch.testing.assert_close(keys[group], torch.nn.functional.normalize(alone), atol=1e-10, rtol=0)
    assert {*group.tolist()} != {4, 5, 6, 7}


@pytest.mark.parametrize(
    ("changes", "encoder", "says"),
    [
        ({"queue_size": 500, "num_samples": 400}, RESNET, "exceeds the 400 samples of the store.*at most 200"),
        ({}, VIT, "has no BatchNorm to split; use objective.split_batchnorm=1"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(changes, encoder, says):
    with pytest.raises(ValueError, match=says):
        MoCo(SMALL.model_copy(update=changes), encoder)


def test_without_groups_a_vit_is_trained_and_batchnorm_is_over_the_batch():
    torch.manual_seed(0)
    objective = MoCo(SMALL.model_copy(update={"split_batchnorm": 1}), VIT)
    whole = batch("moco")
    loss = objective(Batch(whole.views, whole.ids), Step(0, 0.0, 0))["loss"]
    loss.backward()
    objective.after_step(Step(0, 0.0, 0))
    assert objective.pointer == 16


def test_a_frozen_patch_embedding_is_the_teachers_too():
    objective = build("moco_v3")
    weight = objective.encoder.model.patch_embed.proj.weight
    assert not weight.requires_grad
    assert torch.equal(objective.teacher.layers[0].model.patch_embed.proj.weight, weight)
    assert weight.abs().max() <= math.sqrt(6 / (48 + 24))  # Xavier: 48 pixels of a patch, width 24
    with pytest.raises(ValueError, match="has no patch embedding"):
        MoCoV3(MoCoV3.Config(freeze_patch_embedding=True), RESNET)
