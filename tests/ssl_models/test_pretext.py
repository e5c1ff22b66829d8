"""Pretext tasks: labels against the geometry they stand for, chance values, and the cues that are taken away."""

import math
from itertools import pairwise

import pytest
import torch

from ssl_models.batch import Batch, Step, uniform
from ssl_models.objectives.pretext import (
    NEIGHBOURS,
    Jigsaw,
    RelativePatch,
    Rotation,
    classify,
    far_permutations,
    pair_places,
)
from ssl_models.pixels import flip, rotate
from ssl_models.tiles import standardize
from tests.ssl_models.cases.case import RESNET, VIT
from tests.ssl_models.contract import batch, build


@pytest.mark.parametrize("classes", [4, 8, 100])
def test_a_model_that_knows_nothing_scores_chance(classes):
    found = classify(torch.zeros(5, classes), torch.arange(5) % classes)
    assert found["loss"].item() == pytest.approx(math.log(classes), abs=1e-6)
    assert found["pretext_accuracy"] == 0  # ties do not count


def test_classification_equals_the_formula():
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 3, 0, 2])
    slow = torch.stack(
        [-torch.log(row[label].exp() / row.exp().sum()) for row, label in zip(logits, labels, strict=True)]
    ).mean()
    fast = classify(logits, labels)
    assert torch.allclose(fast["loss"], slow, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad(loss, logits) for loss in (fast["loss"], slow)), strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    assert fast["pretext_accuracy"] == (logits.argmax(1) == labels).float().mean()


def test_all_four_rotations_of_an_image_are_told_apart():
    """An encoder that shows where the bright corner is gets every label right."""
    corners = torch.zeros(2, 3, 4, 4)
    corners[:, :, 0, 0] = 1  # upright: top left; counter-clockwise: bottom left, bottom right, top right
    objective = Rotation(Rotation.Config(), RESNET)
    objective.encoder.forward = lambda images: images[:, 0, (0, -1, -1, 0), (0, 0, -1, -1)]
    objective.head = torch.nn.Identity()
    found = objective(Batch((corners,), torch.arange(2)), Step(0, 0.0, 0))
    assert found["pretext_accuracy"] == 1


def test_a_flip_after_rotation_would_exchange_labels():
    """Why views are flipped before: flip ∘ rotate 90 = rotate 270 ∘ flip."""
    images = torch.randn(1, 3, 6, 6)
    assert torch.equal(flip(rotate(images, 1)), rotate(flip(images), 3))


@pytest.mark.parametrize("jitter", [0, 1])
def test_the_second_patch_stands_where_its_label_says(jitter):
    config = RelativePatch.Config(patch_size=4, gap=2, jitter=jitter)
    draws = uniform(0, 0, torch.arange(400), 5 * 3, "pairs").unflatten(1, (5, 3))
    top, left, label = pair_places(draws, config, room=16)
    assert min(top.min(), left.min()) == 0
    assert max(top.max(), left.max()) == 16 - 4  # the whole image is used, and nothing outside
    off = []
    for corner, axis in ((top, 0), (left, 1)):
        expected = torch.tensor(NEIGHBOURS)[label][..., axis] * (4 + 2)
        off.append(corner[..., 1] - corner[..., 0] - expected)
    for found in off:
        assert set(found.unique().tolist()) == set(range(-jitter, jitter + 1))
    counts = label.flatten().bincount(minlength=8)
    assert counts.min() > 100  # of 1,200 in eight directions, 150 each


def test_the_other_order_has_the_opposite_label():
    for label, (down, right) in enumerate(NEIGHBOURS):
        assert NEIGHBOURS[7 - label] == (-down, -right)


def test_disguised_patches_keep_one_channel():
    objective = build("relative_patch")
    patches = torch.randn(16, 4, 3, 4, 4)
    found = objective.disguise(patches, batch("relative_patch").ids, Step(0, 0.0, 0))
    deviations = found.std((-2, -1)).sort(-1).values  # (B, T, 3)
    assert (deviations[..., 1] < 0.05 * deviations[..., 2]).all()


def test_relative_patch_sees_no_brightness():
    objective = build("relative_patch").eval()
    first = batch("relative_patch")
    brighter = Batch((first.views[0] + 3,), first.ids)
    losses = [objective(some, Step(0, 0.0, 0))["loss"] for some in (first, brighter)]
    assert torch.allclose(*losses, atol=1e-4)


@pytest.mark.parametrize(("count", "least"), [(24, 7), (100, 6)])
def test_permutations_are_far_from_each_other(count, least):
    chosen = far_permutations(count)
    assert torch.equal(chosen.sort(1).values, torch.arange(9).expand(count, 9))
    distance = (chosen[:, None] != chosen[None]).sum(-1)
    off = distance[~torch.eye(count, dtype=torch.bool)]
    assert off.min() >= least
    assert off.float().mean() == pytest.approx(8.0, abs=0.4)


def test_all_permutations_of_few_things():
    assert len({tuple(row) for row in far_permutations(24, 4).tolist()}) == 24


def test_the_permutations_are_part_of_the_state():
    objective = build("jigsaw")
    assert torch.equal(objective.state_dict()["permutations"], far_permutations(24))


def test_tiles_stand_anywhere_in_their_cells():
    """Of an image whose pixels say their place; each tile is centred, so its place is read from a plain cut."""
    objective = Jigsaw(Jigsaw.Config(tile_size=4, num_permutations=2), RESNET)
    place = torch.arange(16.0)
    images = (place[:, None] * 16 + place).expand(300, 3, 16, 16) ** 2  # differences between pixels tell the place
    found = objective.tiles(images, torch.arange(300), Step(0, 0.0, 0))
    assert found.shape == (300, 9, 3, 4, 4)
    candidates = {
        (row, column): standardize(images[0, :, row : row + 4, column : column + 4])
        for row in range(13)
        for column in range(13)
    }
    seen = set()
    for sample in range(20):
        for number in range(9):
            where = [key for key, tile in candidates.items() if torch.allclose(tile, found[sample, number], atol=1e-5)]
            assert len(where) == 1
            offset = (where[0][0] - number // 3 * 5, where[0][1] - number % 3 * 5)
            seen.add(offset)
    assert seen == {(0, 0), (0, 1), (1, 0), (1, 1)}  # a cell of 5 leaves one pixel


def test_shifted_channels_reach_both_ends():
    """−1, 0 and +1, inside the image."""
    objective = Jigsaw(Jigsaw.Config(tile_size=4, num_permutations=2, channel_shift=1), RESNET)
    plain = Jigsaw(Jigsaw.Config(tile_size=4, num_permutations=2), RESNET)
    rows = torch.arange(16.0)[:, None].expand(16, 16) ** 2
    images = rows.expand(50, 3, 16, 16)
    ids, step = torch.arange(50), Step(0, 0.0, 0)
    slopes = [some.tiles(images, ids, step)[:, 4] for some in (objective, plain)]
    # the middle tile: a channel's curve is steeper further down; compared without the tile's common scale
    ratios = [(tile[:, :, 3, 0] - tile[:, :, 0, 0]) / (tile[:, :1, 3, 0] - tile[:, :1, 0, 0]) for tile in slopes]
    assert torch.allclose(ratios[1], torch.ones(50, 3), atol=1e-4)  # without a shift all channels are alike
    assert ratios[0].min() < 0.9
    assert ratios[0].max() > 1.1


def test_the_order_that_is_shown_is_the_label():
    """A trunk that passes on which tile it sees: the head's input is the permutation of the label."""
    objective = Jigsaw(Jigsaw.Config(tile_size=4, num_permutations=24), RESNET)
    objective.tiles = lambda images, ids, step: torch.arange(9.0).view(1, 9, 1, 1, 1).expand(len(images), 9, 3, 4, 4)
    objective.encoder.forward = lambda tiles: tiles[:, 0, 0, :1]
    objective.trunk = torch.nn.Identity()
    objective.head.forward = lambda shown: -(shown[:, None] - objective.permutations).abs().sum(-1)
    found = objective(batch("jigsaw"), Step(0, 0.0, 0))
    assert found["pretext_accuracy"] == 1


@pytest.mark.parametrize(
    ("build_it", "says"),
    [
        (lambda: RelativePatch(RelativePatch.Config(), RESNET), "need 21 pixels"),
        (lambda: RelativePatch(RelativePatch.Config(patch_size=4, gap=2), VIT), "dynamic_img_size"),
        (lambda: Jigsaw(Jigsaw.Config(), RESNET), "more than a cell of 5 pixels"),
        (lambda: Jigsaw(Jigsaw.Config(tile_size=4), VIT), "dynamic_img_size"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(build_it, says):
    with pytest.raises(ValueError, match=says):
        build_it()


def test_draws_differ_between_steps_and_samples():
    objective = build("jigsaw")
    images = batch("jigsaw").views[0][:1].expand(16, -1, -1, -1)
    one, other = (objective.tiles(images, torch.arange(16), Step(number, 0.0, 0)) for number in (0, 1))
    assert not torch.equal(one, other)
    assert any(not torch.equal(a, b) for a, b in pairwise(one))
