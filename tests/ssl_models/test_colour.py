"""Lab, the bins of colour, and the losses of colour objectives against slow loops from the papers' formulas."""

import math

import pytest
import torch

from ssl_models.batch import Batch, Step
from ssl_models.encoders import EncoderConfig
from ssl_models.objectives import Captioning, ContextEncoder, SimMIM
from ssl_models.objectives.colour import (
    Colorization,
    SplitBrain,
    ab_bins,
    ab_image,
    lightness_image,
    rebalancing,
    soft_bins,
    soft_cross_entropy,
)
from ssl_models.pixels import grayscale, rgb_to_lab
from tests.ssl_models.cases.case import RESNET
from tests.ssl_models.contract import batch, build

BINS = ab_bins()


def colours(count, seed=0):
    """(count, 2): a and b of random sRGB colours."""
    rgb = torch.rand(count, 3, 1, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rgb_to_lab(rgb)[:, 1:, 0, 0]


def slow_lab(rgb):
    """IEC 61966-2-1, then CIE 15, on one colour."""
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in rgb]
    matrix = [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
    roots = []
    for row, white in zip(matrix, (0.95047, 1.0, 1.08883), strict=True):
        ratio = sum(weight * value for weight, value in zip(row, linear, strict=True)) / white
        roots.append(ratio ** (1 / 3) if ratio > (6 / 29) ** 3 else ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = roots
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def test_lab_equals_the_formula_and_known_values():
    rgb = torch.rand(50, 3, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rgb[:10] *= 0.05  # the straight parts
    for found, colour in zip(rgb_to_lab(rgb)[..., 0, 0].tolist(), rgb[..., 0, 0].tolist(), strict=True):
        assert found == pytest.approx(slow_lab(colour), abs=1e-9)
    known = {(1, 1, 1): (100, 0, 0), (0, 0, 0): (0, 0, 0), (1, 0, 0): (53.24, 80.09, 67.20)}  # of D65, published
    known |= {(0, 1, 0): (87.73, -86.18, 83.18), (0, 0, 1): (32.30, 79.19, -107.86)}
    for colour, lab in known.items():
        found = rgb_to_lab(torch.tensor(colour, dtype=torch.float64).view(1, 3, 1, 1)).flatten()
        assert found.tolist() == pytest.approx(lab, abs=0.02)


def test_lab_stays_exact_under_autocast():
    rgb = torch.rand(2, 3, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rgb_to_lab(rgb), rgb_to_lab(rgb.clone()))
        assert rgb_to_lab(rgb).dtype == torch.float32


def test_there_are_261_bins_and_every_colour_is_in_one():
    assert len(BINS) == 261  # of 8-bit sRGB under D65; the 313 of the paper are of a list of its authors
    assert torch.equal(BINS, (BINS / 10).round() * 10)
    assert len(BINS.unique(dim=0)) == 261
    levels = torch.randint(0, 256, (200_000, 3, 1, 1), generator=torch.Generator().manual_seed(0)).double() / 255
    nearest = (rgb_to_lab(levels)[:, 1:, 0, 0] / 10).round() * 10
    known = {tuple(row) for row in BINS.tolist()}
    assert {tuple(row) for row in nearest.unique(dim=0).tolist()} <= known


def test_soft_bins_equal_the_formula():
    ab = colours(20)
    shares, places = soft_bins(ab, BINS)
    for colour, found_shares, found_places in zip(ab, shares, places, strict=True):
        distances = [math.dist(colour.tolist(), centre) for centre in BINS.tolist()]
        nearest = sorted(range(len(distances)), key=distances.__getitem__)[:5]
        assert found_places.tolist() == nearest
        raw = [math.exp(-(distances[place] ** 2) / (2 * 5**2)) for place in nearest]
        assert found_shares.tolist() == pytest.approx([value / sum(raw) for value in raw], abs=1e-12)


def test_soft_cross_entropy_equals_the_formula():
    logits = torch.randn(4, len(BINS), generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    shares, places = soft_bins(colours(4), BINS)
    slow = torch.zeros((), dtype=torch.float64)
    for i in range(4):
        dense = torch.zeros(len(BINS), dtype=torch.float64)
        dense[places[i]] = shares[i]
        predicted = torch.exp(logits[i]) / torch.exp(logits[i]).sum()
        slow = slow - sum(dense[q] * torch.log(predicted[q]) for q in range(len(BINS)))
    fast = soft_cross_entropy(logits, shares, places).sum()
    assert torch.allclose(fast, slow, atol=1e-12)
    for a, b in zip(torch.autograd.grad(fast, logits), torch.autograd.grad(slow, logits), strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    assert soft_cross_entropy(torch.zeros(4, 261), shares, places).tolist() == pytest.approx([math.log(261)] * 4)


def test_rebalancing_equals_the_formula():
    frequency = torch.rand(261, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 4
    frequency /= frequency.sum()
    centres, smoothed = BINS.tolist(), [0.0] * 261
    for source in range(261):  # each bin's mass is spread, and none is lost
        spread = [math.exp(-(math.dist(centres[source], centre) ** 2) / (2 * 5**2)) for centre in centres]
        for place in range(261):
            smoothed[place] += frequency[source].item() * spread[place] / sum(spread)
    assert sum(smoothed) == pytest.approx(1)
    raw = [1 / (0.5 * value + 0.5 / 261) for value in smoothed]
    expectation = sum(p * w for p, w in zip(smoothed, raw, strict=True))
    found = rebalancing(frequency, BINS, 0.5)
    assert found.tolist() == pytest.approx([value / expectation for value in raw], rel=1e-12)
    assert torch.allclose(rebalancing(frequency, BINS, 1.0), torch.ones(261, dtype=torch.float64))
    assert found[frequency.argmax()] < found[frequency.argmin()]


def with_grey(count=8):
    """Noise, whose first half has no colour."""
    whole = batch("colorization")
    objective = build("colorization").train()
    images = whole.views[0].clone()
    pixels = objective.encoder.pixels(images[:count]).clamp(0, 1)
    images[:count] = objective.encoder.normalized(grayscale(pixels))
    return objective, Batch((images,), whole.ids)


def test_grey_images_count_nowhere():
    objective, mixed = with_grey()
    values = objective(mixed, Step(0, 0.0, 0))
    assert values["coloured"].item() == pytest.approx(0.5)
    assert objective.counted.sum() == 8 * objective.side**2
    objective.eval()  # other images' statistics aside
    mixed_loss = objective(mixed, Step(0, 0.0, 0))["loss"]
    coloured = Batch((mixed.views[0][8:],), mixed.ids[8:])
    assert torch.allclose(objective(coloured, Step(0, 0.0, 0))["loss"], mixed_loss, atol=1e-5)


def test_a_batch_without_colour_teaches_nothing():
    objective, grey = with_grey(16)
    before = objective.frequency.clone()
    objective(grey, Step(0, 0.0, 0))["loss"].backward()
    objective.after_step(Step(0, 0.0, 0))
    assert all(not value.grad.any() for value in objective.parameters())
    assert torch.equal(objective.frequency, before)


def test_frequency_follows_what_is_seen():
    objective, whole = build("colorization").train(), batch("colorization")
    counts = None
    for number in range(30):  # a momentum of ½: after 30 steps nothing of the start is left
        objective(whole, Step(number, 0.0, 0))
        counts = objective.counted
        objective.after_step(Step(number, 0.0, 0))
    assert objective.frequency.sum().item() == pytest.approx(1, abs=1e-5)
    assert torch.allclose(objective.frequency, counts / counts.sum(), atol=1e-6)


def test_the_encoder_of_colorization_sees_no_colour():
    objective, images = build("colorization").eval(), batch("colorization").views[0]
    seen = objective.encoder.pixels(lightness_image(objective.encoder, images))
    assert torch.allclose(seen[:, 0], seen[:, 1], atol=1e-6)
    lab = rgb_to_lab(objective.encoder.pixels(images))
    assert torch.allclose(seen[:, 0] * 100, lab[:, 0], atol=1e-4)
    assert torch.equal(objective.embed(images), objective.encoder(lightness_image(objective.encoder, images)))


def test_halves_of_a_split_brain_share_nothing():
    objective, whole = build("split_brain").train(), batch("split_brain")
    halves = {"colour": ("encoder.", "to_colour."), "lightness": ("other.", "to_lightness.")}
    for loss, own in halves.items():
        objective.zero_grad()
        objective(whole, Step(0, 0.0, 0))[loss].backward()
        touched = {name for name, value in objective.named_parameters() if value.grad is not None}
        assert touched == {name for name, _ in objective.named_parameters() if name.startswith(own)}


def test_halves_of_a_split_brain_see_what_the_other_predicts():
    """A change of colours at the same lightness leaves one half as it was, and the other way round."""
    objective, images = build("split_brain").eval(), batch("split_brain").views[0]
    grey = lightness_image(objective.encoder, images)  # keeps L (as a level of grey), loses a and b
    assert ab_image(objective.encoder, images)[:, :2].abs().amax() > 0.1
    level = grey_of_lightness(objective.encoder, images)
    assert torch.allclose(lightness_image(objective.encoder, level), grey, atol=1e-3)
    assert ab_image(objective.encoder, level).abs().amax() < 1e-3
    both, left = objective.embed(images), objective.embed(level)
    dim = objective.encoder.dim
    assert both.shape[1] == 2 * dim
    assert torch.allclose(both[:, :dim], left[:, :dim], atol=1e-3)
    assert not torch.allclose(both[:, dim:], left[:, dim:], atol=1e-3)


def grey_of_lightness(encoder, images):
    """The grey image of the same L: the inverse of Lab's lightness and of sRGB's curve."""
    lightness = rgb_to_lab(encoder.pixels(images))[:, :1]
    root = (lightness + 16) / 116
    linear = torch.where(root > 6 / 29, root**3, (root - 4 / 29) * 3 * (6 / 29) ** 2)
    level = torch.where(linear > 0.0031308, 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055, 12.92 * linear)
    return encoder.normalized(level.expand(-1, 3, -1, -1))


@pytest.mark.parametrize("kind", [Captioning, Colorization, ContextEncoder, SimMIM, SplitBrain])
def test_a_class_token_that_nothing_trains_is_refused(kind):
    arguments = {"embed_dim": 24, "depth": 1, "num_heads": 2}
    vit = EncoderConfig(name="vit_tiny_patch16_224", image_size=16, patch_size=4, arguments=arguments)
    with pytest.raises(ValueError, match=r"use encoder\.pool=mean"):
        kind(kind.Config(), vit)
    kind(kind.Config(), vit.model_copy(update={"pool": "mean"}))


def test_split_brain_lightness_is_a_plain_cross_entropy_of_its_cells():
    objective, whole = SplitBrain(SplitBrain.Config(lightness_bins=10), RESNET).train(), batch("split_brain")
    torch.nn.init.zeros_(objective.to_lightness.layers[-1].weight)
    torch.nn.init.zeros_(objective.to_lightness.layers[-1].bias)
    assert objective(whole, Step(0, 0.0, 0))["lightness"].item() == pytest.approx(math.log(10), abs=1e-5)
