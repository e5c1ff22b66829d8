"""Context encoders and SimMIM: losses against the formulas, holes, and which network learns from what."""

import math

import pytest
import torch

from ssl_models.batch import Batch, Step
from ssl_models.encoders import EncoderConfig, ImageEncoder
from ssl_models.objectives.inpainting import (
    AdversarialContextEncoder,
    ContextEncoder,
    Decoder,
    band,
    field,
    weighted_mse,
)
from ssl_models.objectives.masked import SimMIM, block_mask, masked_l1
from tests.ssl_models.cases.case import RESNET, VIT
from tests.ssl_models.contract import batch, build


def test_squared_error_equals_the_formula():
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.randn(3, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    prediction.requires_grad_()
    weight = torch.randint(0, 3, (3, 1, 4, 4), generator=generator).double()
    terms, weights = 0.0, 0.0
    for b in range(3):
        for y in range(4):
            for x in range(4):
                w = weight[b, 0, y, x]
                terms = terms + w * ((prediction[b, :, y, x] - target[b, :, y, x]) ** 2).sum() / 3
                weights = weights + w
    slow, fast = terms / weights, weighted_mse(prediction, target, weight)
    assert torch.allclose(fast, slow, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad(loss, prediction) for loss in (fast, slow)), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_images_without_a_hole_cost_nothing():
    some = torch.randn(2, 3, 4, 4)
    assert weighted_mse(some, some + 1, torch.zeros(2, 1, 4, 4)) == 0


def test_the_band_lies_around_the_hole():
    hole = torch.zeros(1, 1, 8, 8)
    hole[..., 3:5, 3:5] = 1
    expected = torch.zeros(8, 8)
    expected[2:6, 2:6] = 1
    expected[3:5, 3:5] = 0
    assert torch.equal(band(hole, 1)[0, 0], expected)


def test_every_pixel_of_the_field_is_standard_normal():
    bumps = field(32, 4)
    assert torch.allclose(bumps.square().sum(1), torch.ones(32, dtype=torch.float64))
    assert (bumps[:-1] * bumps[1:]).sum(1).min() > 0.9  # neighbours are alike: a low frequency


@pytest.mark.parametrize("area", [0.1, 0.25, 0.5])
def test_random_holes_have_their_area_on_average(area):
    objective = ContextEncoder(ContextEncoder.Config(hole_area=area, decoder_dim=16), RESNET)
    images = torch.zeros(2000, 3, 16, 16)
    holes = objective.holes(images, torch.arange(2000), Step(0, 0.0, 0))
    assert set(holes.unique().tolist()) == {0.0, 1.0}
    assert holes.mean().item() == pytest.approx(area, abs=0.02)
    areas = holes.mean((1, 2, 3))
    assert areas.std() > 0.05  # so the loss must count pixels over the global batch


def test_the_encoder_does_not_see_the_hole_and_the_target_keeps_it():
    objective = build("context_encoder").eval()
    first = batch("context_encoder")
    before = first.views[0].clone()
    hole = objective.holes(before, first.ids, Step(0, 0.0, 0))
    other = before + hole * torch.randn_like(before)
    assert torch.equal(objective.fill(before, hole), objective.fill(other, hole))
    losses = [objective(Batch((some,), first.ids), Step(0, 0.0, 0))["loss"] for some in (before, other)]
    assert abs(losses[0] - losses[1]) > 1e-3
    assert torch.equal(first.views[0], before)


def test_a_central_hole_is_a_square_in_the_middle():
    config = ContextEncoder.Config(hole="central", decoder_dim=16)
    hole = ContextEncoder(config, RESNET).holes(torch.zeros(2, 3, 16, 16), torch.arange(2), Step(0, 0.0, 0))
    assert hole.sum((1, 2, 3)).tolist() == [64, 64]
    assert hole[:, :, 4:12, 4:12].all()


def test_channels_meet_in_the_decoder_only_after_they_were_spread():
    """Channel-wise: a place of one channel reaches all places of that channel, and no other channel."""
    torch.manual_seed(0)
    decoder = Decoder(dim=4, grid=2, side=8, width=16).eval()
    spread = []
    decoder.layers = torch.nn.Identity()
    features = torch.zeros(1, 4, 2, 2)
    features[0, 1, 0, 0] = 1
    spread = decoder(features)[0]
    assert spread[1].ne(0).all()
    assert not spread[[0, 2, 3]].any()


def test_chance_of_the_discriminator():
    objective = build("context_encoder_adversarial")
    for parameter in objective.discriminator.parameters():
        torch.nn.init.zeros_(parameter)
    judged = objective(batch("context_encoder_adversarial"), Step(0, 0.0, 0, "discriminator"))
    assert judged["loss"].item() == pytest.approx(2 * math.log(2), abs=1e-6)
    filled = objective(batch("context_encoder_adversarial"), Step(0, 0.0, 0, "main"))
    assert filled["adversarial"].item() == pytest.approx(math.log(2), abs=1e-6)
    expected = 0.999 * filled["reconstruction"] + 0.001 * math.log(2)
    assert filled["loss"].item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("phase", ["discriminator", "main"])
def test_a_phase_gives_gradients_to_its_own_network(phase):
    objective = build("context_encoder_adversarial")
    objective(batch("context_encoder_adversarial"), Step(0, 0.0, 0, phase))["loss"].backward()
    own = {name for name, _ in objective.trainable(phase)}
    assert {name for name, p in objective.named_parameters() if p.grad is not None} == own


def test_the_discriminator_sees_the_hole_alone():
    """Given the surroundings it would look at the border."""
    objective = build("context_encoder_adversarial").eval()
    some = batch("context_encoder_adversarial").views[0]
    hole = objective.holes(some, torch.arange(16), Step(0, 0.0, 0))
    assert torch.equal(objective.patch(some), objective.patch(some * hole))
    assert objective.patch(hole).all()


def test_absolute_error_equals_the_formula():
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.randn(2, 4, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    prediction.requires_grad_()
    masked = torch.tensor([[True, False, True, True], [False, True, True, True]])
    terms = [(prediction[b, p] - target[b, p]).abs().sum() / 6 for b in range(2) for p in range(4) if masked[b, p]]
    slow, fast = torch.stack(terms).mean(), masked_l1(prediction, target, masked)
    assert torch.allclose(fast, slow, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad(loss, prediction) for loss in (fast, slow)), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_blocks_are_hidden_whole():
    mask = block_mask(torch.rand(20, 16), 0.6, rows=4, times=2).view(20, 8, 8)
    blocks = mask.view(20, 4, 2, 4, 2)
    assert torch.equal(blocks.all(4).all(2), blocks.any(4).any(2))
    assert mask.sum((1, 2)).tolist() == [10 * 4] * 20  # ⌈0.6 · 16⌉ blocks of four patches
    assert len({tuple(row.flatten().tolist()) for row in mask}) > 10


def test_masked_tokens_are_the_plain_encoder_where_nothing_is_hidden():
    torch.manual_seed(0)
    encoder = ImageEncoder(VIT).eval()
    images = torch.randn(2, 3, 16, 16)
    tokens = encoder.masked_tokens(images, torch.zeros(2, 16, dtype=torch.bool), torch.ones(24))
    assert torch.allclose(tokens, encoder.model.forward_features(images)[:, 1:], atol=1e-6)


@pytest.mark.parametrize("dynamic", [False, True])
def test_hidden_patches_are_not_seen_and_their_places_are(dynamic):
    torch.manual_seed(0)
    arguments = VIT.arguments | {"dynamic_img_size": dynamic}
    encoder = ImageEncoder(EncoderConfig(**(VIT.model_dump() | {"arguments": arguments}))).eval()
    images = torch.randn(1, 3, 16, 16)
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[0, 1] = mask[0, 6] = True
    other = images.clone()
    other[:, :, :4, 4:8] = 7  # patch 1
    found, same = (encoder.masked_tokens(some, mask, torch.ones(24)) for some in (images, other))
    assert torch.equal(found, same)
    assert not torch.allclose(found[0, 1], found[0, 6], atol=1e-3)  # the same token in two places
    other[:, :, :4, :4] = 7  # patch 0, which is seen
    assert not torch.allclose(found, encoder.masked_tokens(other, mask, torch.ones(24)), atol=1e-3)


@pytest.mark.parametrize(
    ("build_it", "says"),
    [
        (lambda: SimMIM(SimMIM.Config(), RESNET), "plain ViT"),
        (lambda: SimMIM(SimMIM.Config(mask_size=6), VIT), "mask_size=6 must be a multiple"),
        (lambda: SimMIM(SimMIM.Config(mask_ratio=0.9), VIT), "hides all 4 blocks"),
        (lambda: ContextEncoder(ContextEncoder.Config(), RESNET.model_copy(update={"image_size": 20})), "power of two"),
        (
            lambda: AdversarialContextEncoder(AdversarialContextEncoder.Config(hole_area=0.03), RESNET),
            "too small for a discriminator",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_words(build_it, says):
    with pytest.raises(ValueError, match=says):
        build_it()
