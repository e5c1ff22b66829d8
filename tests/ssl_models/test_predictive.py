"""CPC: its loss against the formula, and what a patch may not see."""

import math

import pytest
import torch

from ssl_models.batch import Step
from ssl_models.encoders import EncoderConfig
from ssl_models.objectives.predictive import CPC, RowContext, patch_nce
from ssl_models.tiles import cut_grid
from tests.ssl_models.cases.case import RESNET, VIT
from tests.ssl_models.contract import CASES, batch, build

PATCHWISE = CASES["cpc"].encoder


def slow_patch_nce(predictions, targets, offset):
    """Equation 4 of arXiv 1807.03748, for the patch `offset` rows below."""
    images, rows, columns, _ = predictions.shape
    every = [targets[i, r, c] for i in range(images) for r in range(rows) for c in range(columns)]
    losses = []
    for i in range(images):
        for r in range(rows - offset):
            for c in range(columns):
                prediction = predictions[i, r, c]
                scores = torch.stack([prediction @ other for other in every])
                losses.append(-torch.log((prediction @ targets[i, r + offset, c]).exp() / scores.exp().sum()))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("offset", [1, 2])
def test_patch_nce_equals_the_formula(offset):
    generator = torch.Generator().manual_seed(0)
    shape = (3, 4, 2, 5)
    predictions, targets = (
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)
    )
    fast, slow = patch_nce(predictions, targets, offset)[0], slow_patch_nce(predictions, targets, offset)
    assert torch.allclose(fast, slow, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad(loss, (predictions, targets)) for loss in (fast, slow)), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_patch_nce_of_a_collapsed_model():
    loss, accuracy = patch_nce(torch.ones(2, 3, 3, 4), torch.ones(2, 3, 3, 4), 1)
    assert loss.item() == pytest.approx(math.log(18), abs=1e-5)
    assert accuracy == 0  # ties do not count


def test_a_row_of_the_context_depends_on_no_later_row():
    torch.manual_seed(0)
    context = RowContext(4, 8, depth=3)
    grid = torch.randn(2, 4, 6, 5, requires_grad=True)
    for row in range(6):
        (gradient,) = torch.autograd.grad(context(grid)[:, :, row].sum(), grid)
        assert not gradient[:, :, row + 1 :].any()
        assert gradient[:, :, row].any()


@pytest.mark.parametrize("direction", ["down", "left", "up", "right"])
def test_predictions_share_no_pixel_with_what_they_predict(direction):
    """The prediction for the last row in reading direction, on a copy that is changed there only, stays as it was."""
    config = CASES["cpc"].config.model_copy(update={"directions": (direction,)})
    torch.manual_seed(0)
    objective = CPC(config, PATCHWISE).eval()
    side, patch = PATCHWISE.image_size, config.patch_size
    images = torch.randn(2, 3, side, side)
    changed = images.clone()
    last = {"down": (2, side - patch), "up": (2, 0), "right": (3, side - patch), "left": (3, 0)}[direction]
    changed.narrow(*last, patch).normal_()
    before, after = (_contexts(objective, some, direction) for some in (images, changed))
    nearest = objective.offsets[0]
    same = slice(0, before.shape[2] - nearest)
    assert torch.equal(before[:, :, same], after[:, :, same])
    assert not torch.equal(before[:, :, -1], after[:, :, -1])


def _contexts(objective, images, direction):
    grid = objective.encode(cut_grid(images, objective.config.patch_size, objective.config.stride))
    turns = {"down": 0, "left": 1, "up": 2, "right": 3}[direction]
    return objective.contexts[0](grid.rot90(turns, (2, 3)))


def test_patches_that_share_pixels_with_the_context_are_skipped():
    half, third = (CPC(CPC.Config(patch_size=6, stride=stride, furthest=5), PATCHWISE) for stride in (3, 2))
    assert list(half.offsets) == [2, 3]  # 4 rows
    assert list(third.offsets) == [3, 4, 5]  # 6 rows


def test_a_patch_is_encoded_alone():
    objective = build("cpc").train()
    images = batch("cpc").views[0]
    patches = cut_grid(images, 4, 2)
    alone = objective.encode(patches[3:4, 2:3, 1:2])
    assert torch.allclose(objective.encode(patches)[3, :, 2, 1], alone[0, :, 0, 0], atol=1e-5)
    assert torch.equal(patches[3, 2, 1], images[3, :, 4:8, 2:6])


def test_dropped_colours_are_drawn_for_each_patch():
    config = CASES["cpc"].config.model_copy(update={"colour_dropping": 0.5})
    torch.manual_seed(0)
    objective = CPC(config, PATCHWISE)
    noise = batch("cpc")
    patches = cut_grid(noise.views[0], 4, 2)
    dropped = objective._drop_colours(patches, noise.ids, Step(0, 0.0, 0))
    empty = (dropped == 0).all(-1).all(-1).sum(-1)  # (B, h, w) channels
    assert set(empty.unique().tolist()) == {0, 2}
    assert (empty == 2).float().mean().item() == pytest.approx(0.5, abs=0.06)  # 784 patches: three deviations


@pytest.mark.parametrize(
    ("config", "encoder", "says"),
    [
        ({}, RESNET, "BatchNorm.*groupnorm1"),
        ({}, VIT, "dynamic_img_size"),
        ({"furthest": 1}, PATCHWISE, "furthest of at least 2"),
        ({"patch_size": 16}, PATCHWISE, "none is left to predict"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(config, encoder, says):
    with pytest.raises(ValueError, match=says):
        CPC(CPC.Config(**({"patch_size": 8, "stride": 4} | config)), encoder)


def test_a_vit_takes_patches_when_its_size_may_vary():
    encoder = EncoderConfig(**(VIT.model_dump() | {"arguments": VIT.arguments | {"dynamic_img_size": True}}))
    objective = CPC(CPC.Config(patch_size=8, stride=4, furthest=2), encoder)
    noise = batch("cpc")
    assert objective(noise, Step(0, 0.0, 0))["loss"].isfinite()
    assert objective.embed(noise.views[0]).shape == (16, 24)
