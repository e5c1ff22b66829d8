"""Views: each operation against torchvision on single images; the same on any machine."""

import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from pipeline.stream.views import (
    CenterCrop,
    DeviceViews,
    RandomCrops,
    ViewsConfig,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    crop,
    gaussian_blur,
)

IMAGES = torch.rand(6, 3, 20, 20, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([4, 9, 1000, 3, 12, 77])


@pytest.mark.parametrize(
    ("ours", "theirs", "amounts"),
    [
        (adjust_brightness, reference.adjust_brightness, [0.2, 0.6, 1.0, 1.3, 1.8, 0.0]),
        (adjust_contrast, reference.adjust_contrast, [0.2, 0.6, 1.0, 1.3, 1.8, 0.0]),
        (adjust_saturation, reference.adjust_saturation, [0.2, 0.6, 1.0, 1.3, 1.8, 0.0]),
        (adjust_hue, reference.adjust_hue, [-0.5, -0.2, 0.0, 0.1, 0.3, 0.5]),
    ],
)
def test_colour_operations_equal_torchvision(ours, theirs, amounts):
    expected = torch.stack([theirs(image, amount) for image, amount in zip(IMAGES, amounts, strict=True)])
    assert torch.allclose(ours(IMAGES, torch.tensor(amounts)), expected, atol=1e-5)


def test_hue_of_gray_and_of_black_stays():
    flat = torch.stack([torch.zeros(3, 4, 4), torch.full((3, 4, 4), 0.3)])
    assert torch.allclose(adjust_hue(flat, torch.tensor([0.3, -0.4])), flat, atol=1e-6)


def test_blur_equals_torchvision_with_one_sigma_a_sample():
    images = torch.rand(3, 3, 40, 40)
    sigmas = torch.tensor([0.2, 1.0, 2.0])
    expected = torch.stack(
        [
            reference.gaussian_blur(image, [5, 5], [float(sigma)] * 2)
            for image, sigma in zip(images, sigmas, strict=True)
        ]
    )
    assert torch.allclose(gaussian_blur(images, sigmas), expected, atol=1e-5)


def test_resized_crop_equals_torchvision():
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    box = torch.tensor([[3, 7, 20, 31]])
    expected = reference.resized_crop(image, 3, 7, 20, 31, [16, 16], antialias=True)
    assert (crop(image, box, 16)[0].permute(2, 0, 1).int() - expected.int()).abs().max() <= 1


def test_crops_lie_inside_and_have_the_asked_area_and_shape():
    config = ViewsConfig(crop_scale=(0.2, 0.5))
    ids = torch.arange(2000)
    heights, widths = torch.full((2000,), 200), torch.full((2000,), 300)
    boxes = RandomCrops(config, 32, 2, seed=0).boxes(0, ids, heights, widths)
    top, left, height, width = boxes.unbind(-1)
    assert boxes.shape == (2000, 2, 4)
    assert (top >= 0).all()
    assert (top + height <= 200).all()
    assert (left >= 0).all()
    assert (left + width <= 300).all()
    area = height * width / 60000
    assert area.min() > 0.19
    assert area.max() < 0.51
    assert 0.33 < area.mean() < 0.37  # uniform in area
    assert not torch.equal(boxes[:, 0], boxes[:, 1])


def test_center_crop_is_the_largest_central_square():
    box = CenterCrop(8).boxes(0, torch.tensor([0]), torch.tensor([20]), torch.tensor([31]))
    assert box.tolist() == [[[0, 5, 20, 20]]]


def test_views_of_a_sample_do_not_depend_on_its_batch():
    views = DeviceViews(ViewsConfig(blur=0.5, solarize=0.3), seed=1)
    crops = torch.randint(0, 256, (6, 2, 24, 24, 3), dtype=torch.uint8)
    together = views(crops, IDS, epoch=2)
    alone = views(crops[2:4], IDS[2:4], epoch=2)
    for whole, part in zip(together, alone, strict=True):
        assert torch.allclose(whole[2:4], part, atol=1e-5)
        assert whole.is_contiguous(memory_format=torch.channels_last)


def test_views_change_with_epoch_seed_and_view():
    crops = torch.randint(0, 256, (6, 1, 24, 24, 3), dtype=torch.uint8).expand(-1, 2, -1, -1, -1)
    first, second = DeviceViews(ViewsConfig(), seed=0)(crops, IDS, 0)
    assert not torch.allclose(first, second)
    assert not torch.allclose(first, DeviceViews(ViewsConfig(), seed=0)(crops, IDS, 1)[0])
    assert not torch.allclose(first, DeviceViews(ViewsConfig(), seed=1)(crops, IDS, 0)[0])


def test_plain_views_only_normalise():
    crops = torch.randint(0, 256, (6, 1, 8, 8, 3), dtype=torch.uint8)
    views = DeviceViews(ViewsConfig(), seed=0, plain=True)
    (images,) = views(crops, IDS, 0)
    assert torch.allclose(views.denormalize(images), crops[:, 0].permute(0, 3, 1, 2) / 255, atol=1e-6)


def test_probabilities_are_what_they_say():
    config = ViewsConfig(flip=0.3, jitter_probability=0, grayscale=0.2)
    ids = torch.arange(4000)
    crops = torch.zeros(4000, 1, 2, 2, 3, dtype=torch.uint8)
    crops[:, :, :, 0, 0] = 255  # the left column is red
    views = DeviceViews(config, seed=0)
    images = views.denormalize(views(crops, ids, 0)[0])
    flipped = images[:, :, 0, 1].sum(1) > images[:, :, 0, 0].sum(1)
    gray = (images[:, 0] - images[:, 1]).abs().amax((1, 2)) < 1e-4
    assert flipped.float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert gray.float().mean().item() == pytest.approx(0.2, abs=0.03)
