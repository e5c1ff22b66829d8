"""The labelled baseline's loss against a slow loop, and its mixing of images."""

import math

import pytest
import torch

from ssl_models.batch import Step
from ssl_models.collectives import mean_over_ranks
from ssl_models.mixing import beta, box, mixed
from ssl_models.objectives.supervised import Supervised, labelled_cross_entropy
from tests.ranks import on_ranks
from tests.ssl_models.cases.case import CLASSES, VIT
from tests.ssl_models.contract import batch, part


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_the_formula_over_labelled_samples(smoothing):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.tensor([2, -1, 0, 3, -1, 2])
    terms = []
    for row, label in zip(logits, labels.tolist(), strict=True):
        if label >= 0:
            total = sum(torch.exp(value) for value in row)
            target = [(1 - smoothing) * (k == label) + smoothing / 4 for k in range(4)]
            terms.append(-sum(target[k] * torch.log(torch.exp(row[k]) / total) for k in range(4)))
    slow = torch.stack(terms).mean()
    fast, accuracy = labelled_cross_entropy(logits, labels, smoothing)
    assert torch.allclose(fast, slow, atol=1e-12)
    for a, b in zip(torch.autograd.grad(fast, logits), torch.autograd.grad(slow, logits), strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    assert accuracy == sum(int(logits[i].argmax() == labels[i]) for i in (0, 2, 3, 5)) / 4


def test_chance_and_a_batch_without_labels():
    logits = torch.zeros(4, 10, requires_grad=True)
    assert labelled_cross_entropy(logits, torch.arange(4), 0.1)[0].item() == pytest.approx(math.log(10))
    loss, accuracy = labelled_cross_entropy(logits, torch.full((4,), -1), 0.1)
    loss.backward()
    assert loss == 0
    assert accuracy == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_mixed_images_equals_the_formula_for_soft_labels(smoothing):
    """−Σ p log softmax, where p has λ of one class's smoothed target and 1 − λ of the other's."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, generator=generator, dtype=torch.float64).requires_grad_()
    labels, others = torch.tensor([2, -1, 0, 1]), torch.tensor([1, 0, 0, -1])
    shares = torch.tensor([0.3, 1.0, 0.8, 1.0], dtype=torch.float64)
    terms, right = [], 0
    for row, label, other, share in zip(logits, labels.tolist(), others.tolist(), shares.tolist(), strict=True):
        if label >= 0:
            total = sum(torch.exp(value) for value in row)
            hard = [share * (k == label) + (1 - share) * (k == other) for k in range(3)]
            target = [(1 - smoothing) * p + smoothing / 3 for p in hard]
            terms.append(-sum(target[k] * torch.log(torch.exp(row[k]) / total) for k in range(3)))
            right += int(row.argmax()) == max(range(3), key=lambda k: hard[k])
    slow = torch.stack(terms).mean()
    fast, accuracy = labelled_cross_entropy(logits, labels, smoothing, (others, shares))
    assert torch.allclose(fast, slow, atol=1e-12)
    for a, b in zip(torch.autograd.grad(fast, logits), torch.autograd.grad(slow, logits), strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    assert accuracy == right / 3


def pictures(count=64, side=12):
    """Each of one value, its own number; with labels and ids."""
    numbers = torch.arange(count)
    images = numbers.double()[:, None, None, None].expand(-1, 3, side, side).clone()
    return images, numbers % 5, numbers * 3 + 1


def test_mixup_adds_a_pair_by_shares_that_are_drawn_for_each_sample():
    images, labels, ids = pictures()
    mixture, others, own = mixed(images, labels, ids, Step(3, 0.1, 0), mixup=0.8, cutmix=0)
    for i in range(64):
        j = i + 1 if i % 2 == 0 else i - 1
        expected = own[i] * i + (1 - own[i]) * j
        assert torch.allclose(mixture[i], expected.expand(3, 12, 12), atol=1e-9)
        assert others[i] == labels[j]
    assert len(set(own.tolist())) == 64
    again = mixed(images, labels, ids, Step(4, 0.1, 0), mixup=0.8, cutmix=0)[2]
    assert not torch.allclose(own, again)  # other shares in another step


def test_cutmix_pastes_a_box_and_counts_its_pixels():
    images, labels, ids = pictures()
    mixture, _, own = mixed(images, labels, ids, Step(3, 0.1, 0), mixup=0, cutmix=1.0)
    pasted = 0
    for i in range(64):
        j = i + 1 if i % 2 == 0 else i - 1
        theirs = mixture[i, 0] == j
        assert torch.equal(theirs, mixture[i, 0] != i)  # nothing but the two
        assert own[i].item() == pytest.approx(1 - theirs.double().mean().item())
        rows, columns = theirs.any(1), theirs.any(0)
        assert torch.equal(theirs, rows[:, None] & columns[None])  # a box
        pasted += theirs.any().item()
    assert pasted > 40


def test_boxes_have_the_wanted_area_until_they_are_cut_off():
    inside = box(torch.tensor([0.25, 0.25]), torch.tensor([[0.5, 0.5], [0.0, 0.5]]).double(), 16, 8)
    assert inside[0].sum() == 8 * 4
    assert inside[1].sum() == 4 * 4  # half of it is above the image


def test_with_both_half_of_the_images_are_cut():
    images, labels, ids = pictures(2000, side=4)
    mixture, _, own = mixed(images, labels, ids, Step(0, 0.0, 0), mixup=1.0, cutmix=1.0)
    whole = (mixture[:, 0] == mixture[:, 0, :1, :1]).all((1, 2)) & (own < 1)
    assert 0.4 < whole.double().mean() < 0.7  # mixup, and boxes that cover nothing or all


def test_an_unlabelled_image_is_left_alone_and_its_neighbour_too():
    images, labels, ids = pictures(8)
    labels = labels.clone()
    labels[3] = -1
    for alphas in ((0.8, 0.0), (0.0, 1.0)):
        mixture, _, own = mixed(images, labels, ids, Step(0, 0.0, 0), *alphas)
        assert torch.equal(mixture[2:4], images[2:4])
        assert own[2:4].tolist() == [1, 1]


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 3.0])
def test_shares_are_beta_distributed(alpha):
    from scipy.stats import beta as exact
    from scipy.stats import kstest

    found = beta(torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64), alpha)
    assert kstest(found.numpy(), exact(alpha, alpha).cdf).pvalue > 0.01
    assert found.min() >= 0
    assert found.max() <= 1


def soft_supervised():
    torch.manual_seed(0)
    config = Supervised.Config(num_classes=CLASSES, label_smoothing=0.1, mixup=0.8, cutmix=1.0)
    return Supervised(config, VIT).double()


def on_rank(rank, world_size):
    from pipeline.train.loop import parallel

    objective = soft_supervised().train()
    share = part(batch("supervised", dtype=torch.float64), rank, world_size)
    model = parallel(objective)  # kept: it averages while it lives
    values = model(share, Step(3, 0.5, 5))
    values["loss"].backward()
    means = {name: mean_over_ranks(value.detach()) for name, value in values.items()}
    return means, {name: p.grad for name, p in objective.named_parameters()}


@pytest.mark.parametrize("world_size", [2, 4])
def test_k_ranks_mix_what_one_does(world_size):
    """Losses, accuracy and gradients in double precision, through real DDP."""
    ranks = on_ranks(on_rank, world_size)
    objective = soft_supervised().train()
    whole = batch("supervised", dtype=torch.float64)
    plain = Supervised(Supervised.Config(num_classes=CLASSES, label_smoothing=0.1), VIT).double()
    plain.load_state_dict(objective.state_dict())
    values = objective(whole, Step(3, 0.5, 5))
    values["loss"].backward()
    assert abs(values["loss"] - plain(whole, Step(3, 0.5, 5))["loss"]) > 1e-3  # it does mix
    for theirs, gradients in ranks:
        for name, value in values.items():
            assert torch.allclose(theirs[name], value, atol=1e-10, rtol=0), name
        for name, parameter in objective.named_parameters():
            assert torch.allclose(gradients[name], parameter.grad, atol=1e-10, rtol=1e-8), name


def test_mixed_images_are_learned():
    """The soft loss cannot fall below its targets' entropy; the classes of clean images are learned all the same."""
    objective = soft_supervised().float().train()
    whole, optimizer = batch("supervised"), torch.optim.AdamW(objective.parameters(), lr=3e-3)
    for number in range(150):
        optimizer.zero_grad()
        objective(whole, Step(number, 0.5, 0))["loss"].backward()
        optimizer.step()
    objective.eval()
    predicted = objective.classify(objective.embed(whole.views[0])).argmax(1)
    assert (predicted == whole.labels).float().mean() > 0.9
