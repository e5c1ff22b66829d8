"""Each operation on pixels against torchvision, Pillow or SciPy on single images.

References work on float images where they can: there, both do the same arithmetic and differ by float32's rounding, a
few times 2^-24. Pillow rounds to whole levels: one level, 1/255, is the least that can be asked.
"""

import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms.v2 import functional as reference

from ssl_models import pixels

IMAGES = torch.rand(6, 3, 20, 20, generator=torch.Generator().manual_seed(0))
LEVELS = (IMAGES * 255).round() / 255  # as an 8-bit image holds them
FACTORS = [0.2, 0.6, 1.0, 1.3, 1.8, 0.0]
ROUNDING = 1e-6


@pytest.mark.parametrize(
    ("ours", "theirs", "amounts"),
    [
        (pixels.adjust_brightness, reference.adjust_brightness, FACTORS),
        (pixels.adjust_contrast, reference.adjust_contrast, FACTORS),
        (pixels.adjust_saturation, reference.adjust_saturation, FACTORS),
        (pixels.adjust_hue, reference.adjust_hue, [-0.5, -0.2, 0.0, 0.1, 0.3, 0.5]),
    ],
)
def test_jitter_equals_torchvision(ours, theirs, amounts):
    expected = torch.stack([theirs(image, amount) for image, amount in zip(IMAGES, amounts, strict=True)])
    assert (ours(IMAGES, torch.tensor(amounts)) - expected).abs().max() < ROUNDING


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (pixels.adjust_brightness, ImageEnhance.Brightness),
        (pixels.adjust_contrast, ImageEnhance.Contrast),
        (pixels.adjust_saturation, ImageEnhance.Color),
    ],
)
def test_jitter_is_within_rounding_of_pillow(ours, theirs):
    found = ours(LEVELS, torch.tensor(FACTORS))
    expected = torch.stack([of_pil(theirs(to_pil(image)).enhance(f)) for image, f in zip(LEVELS, FACTORS, strict=True)])
    # Pillow rounds the gray level and then the blend: with a factor of 1.8 up to ½ · 0.8 + 1 levels.
    assert (found - expected).abs().max() < 1.5 / 255


def test_hue_meets_every_case_of_torchvision():
    """Highest and lowest channel in each order, ties, grays, black and white."""
    levels = torch.linspace(0, 1, 5)
    every = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 5, 25)
    for shift in (-0.5, -1 / 3, -0.1, 0.0, 1 / 6, 0.25, 0.5):
        found = pixels.adjust_hue(every, torch.tensor([shift]))
        assert (found - reference.adjust_hue(every, shift)).abs().max() < ROUNDING


@pytest.mark.parametrize("shape", [(40, 40), (224, 224), (33, 50), (8, 8), (2, 2)])  # whole tiles, broken ones, one
def test_blur_equals_torchvision_with_one_sigma_a_sample(shape):
    images = torch.rand(3, 3, *shape)
    sigmas = torch.tensor([0.1, 1.0, 2.0])
    kernel = [max(3, shape[1] // 10 // 2 * 2 + 1)] * 2
    # In float64, for torchvision's own sum of up to 23² terms in one go is off by more than 1e-6 in float32.
    for image, sigma, found in zip(images.double(), sigmas, pixels.gaussian_blur(images, sigmas), strict=True):
        assert (found - reference.gaussian_blur(image, kernel, [float(sigma)] * 2)).abs().max() < ROUNDING


def test_no_blur_computes_with_denormal_numbers():
    """On Intel's processors a product of them takes a hundred times as long: two SimCLR views took 7.6 ms, now 3.2."""
    point = torch.zeros(64, 3, 224, 224)
    point[:, :, 112, 112] = 1
    found = pixels.gaussian_blur(point, torch.linspace(0.1, 2, 64))
    assert ((found == 0) | (found > torch.finfo(torch.float32).tiny)).all()


def test_geometry_and_cutout_equal_torchvision_exactly():
    assert torch.equal(pixels.flip(IMAGES), reference.horizontal_flip(IMAGES))
    for quarters in (1, 2, 3):
        assert torch.equal(pixels.rotate(IMAGES, quarters), reference.rotate(IMAGES, 90.0 * quarters))
    top, left, fill = torch.tensor([0, 3, 5, 10, 13, 7]), torch.tensor([13, 0, 5, 1, 13, 2]), (0.1, 0.5, 0.9)
    found = pixels.cutout(IMAGES, top, left, 7, fill)
    value = torch.tensor(fill).view(3, 1, 1)
    for image, one, i, j in zip(IMAGES, found, top.tolist(), left.tolist(), strict=True):
        assert torch.equal(one, reference.erase(image, i, j, 7, 7, value))


def test_grayscale_and_solarize_equal_torchvision_and_pillow():
    assert (pixels.grayscale(IMAGES) - reference.rgb_to_grayscale(IMAGES, 3)).abs().max() < ROUNDING
    assert torch.equal(pixels.solarize(LEVELS), reference.solarize(LEVELS, 0.5))
    for image, gray, solar in zip(LEVELS, pixels.grayscale(LEVELS), pixels.solarize(LEVELS), strict=True):
        assert (gray - of_pil(to_pil(image).convert("L").convert("RGB"))).abs().max() < 1.01 / 255
        assert (solar - of_pil(ImageOps.solarize(to_pil(image), 128))).abs().max() < ROUNDING


def test_sobel_equals_scipy_on_the_luma():
    found = pixels.sobel(IMAGES)
    for image, one in zip(IMAGES, found, strict=True):
        luma = reference.rgb_to_grayscale(image)[0].numpy()
        expected = np.hypot(*(scipy.ndimage.sobel(luma, axis, mode="nearest") / 8 for axis in (0, 1)))
        assert np.abs(one.numpy() - expected).max() < ROUNDING
    ramp = (torch.arange(20) / 20).expand(1, 3, 20, 20)
    per_pixel = 0.05 * sum(pixels.LUMA)
    assert (pixels.sobel(ramp)[..., 1:-1] - per_pixel).abs().max() < ROUNDING


def test_noise_equals_torchvision():
    torch.manual_seed(3)
    expected = reference.gaussian_noise(IMAGES, sigma=0.3)
    torch.manual_seed(3)
    assert torch.equal(pixels.add_noise(IMAGES, torch.randn_like(IMAGES) * 0.3), expected)


def test_no_operation_writes_to_its_input():
    before, half, corner = IMAGES.clone(), torch.full((6,), 0.4), torch.full((6,), 2)
    for operation in (pixels.flip, pixels.grayscale, pixels.solarize, pixels.sobel):
        operation(IMAGES)
    for operation in (pixels.adjust_brightness, pixels.adjust_contrast, pixels.adjust_saturation, pixels.adjust_hue):
        operation(IMAGES, half)
    pixels.gaussian_blur(IMAGES, half)
    pixels.rotate(IMAGES, 1)
    pixels.add_noise(IMAGES, torch.ones_like(IMAGES))
    pixels.cutout(IMAGES, corner, corner, 5, (0, 0, 0))
    assert torch.equal(IMAGES, before)


def to_pil(image: torch.Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())


def of_pil(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
