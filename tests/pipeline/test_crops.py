"""Geometry: boxes have the asked area and shape, and lie inside; the crop is the antialiased one."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as reference

from pipeline.stream.crops import CenterCrop, RandomCrops, crop, reduced, reductions
from pipeline.stream.views import ViewsConfig

BOXES = torch.tensor([[3, 7, 20, 31], [0, 0, 40, 50], [30, 40, 5, 4], [2, 2, 16, 16], [0, 49, 40, 1]])


@pytest.mark.parametrize("size", [16, 33])
def test_crops_are_within_a_level_of_torchvision_and_pillow(size):
    """Both directions of the resize, and none; of an image in planes and of one as the decoder leaves it."""
    pixels = torch.randint(0, 256, (40, 50, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image = pixels.permute(2, 0, 1)
    found = crop(image, BOXES, size)
    assert found.shape == (len(BOXES), size, size, 3)
    assert found.is_contiguous()
    assert torch.equal(found, crop(image.contiguous(), BOXES, size))
    for view, (top, left, height, width) in zip(found, BOXES.tolist(), strict=True):
        exact = reference.resized_crop(image.float(), top, left, height, width, [size] * 2, antialias=True)
        assert (view.permute(2, 0, 1) - exact).abs().max() <= 1
        box = image[:, top : top + height, left : left + width].permute(1, 2, 0).contiguous().numpy()
        pil = np.asarray(Image.fromarray(box).resize((size, size), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(view.numpy() - pil).max() <= 1


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


def test_local_crops_have_their_own_areas_and_draws():
    config = ViewsConfig(crop_scale=(0.05, 0.25), local_scale=(0.05, 0.25), local_crops=2, local_size=16)
    ids = torch.arange(1000)
    sides = torch.full((1000,), 300)
    whole = RandomCrops(config, 32, 2, seed=0).boxes(0, ids, sides, sides)
    local = RandomCrops(config, config.local_size, config.local_crops, seed=0, local=True).boxes(0, ids, sides, sides)
    assert (whole[..., 2:] == local[..., 2:]).all(-1).float().mean() < 0.01
    small = RandomCrops(ViewsConfig(local_scale=(0.01, 0.04)), 16, 6, seed=0, local=True).boxes(0, ids, sides, sides)
    area = small[..., 2] * small[..., 3] / 90000
    assert small.shape == (1000, 6, 4)
    assert 0.009 < area.min() < area.max() < 0.041


def test_boxes_of_a_sample_do_not_depend_on_its_batch():
    ids, sides = torch.tensor([4, 9, 1000, 3]), torch.tensor([90, 100, 80, 120])
    crops = RandomCrops(ViewsConfig(), 16, 2, seed=3)
    assert torch.equal(crops.boxes(1, ids, sides, sides)[2:3], crops.boxes(1, ids[2:3], sides[2:3], sides[2:3]))


def test_center_crop_is_the_largest_central_square():
    box = CenterCrop(8).boxes(0, torch.tensor([0]), torch.tensor([20]), torch.tensor([31]))
    assert box.tolist() == [[[0, 5, 20, 20]]]


@pytest.mark.parametrize(("side", "by"), [(1, 1), (39, 1), (79, 1), (80, 2), (159, 2), (160, 4), (320, 8), (5000, 8)])
def test_a_picture_may_be_as_small_as_its_smallest_box_allows(side, by):
    """1.25 pixels of the picture for each of a view of 32."""
    boxes = torch.tensor([[[0, 0, 9000, 9000], [7, 7, 9000, side]], [[0, 0, side, 9000], [7, 7, 9000, 9000]]])
    assert reductions(boxes, 32).tolist() == [by, by]


def test_boxes_of_a_smaller_picture_lie_inside_it():
    sides = torch.arange(100, 2100)
    boxes = RandomCrops(ViewsConfig(), 32, 2, seed=0).boxes(0, torch.arange(2000), sides, sides)
    by = torch.tensor([1, 2, 4, 8]).repeat(500)
    found = reduced(boxes, by)
    assert torch.equal(found[by == 1], boxes[by == 1])
    assert (found >= 0).all()
    assert ((found[..., :2] + found[..., 2:]) <= (sides / by).ceil()[:, None, None]).all()
    assert (found - boxes / by[:, None, None]).abs().max() <= 1
