"""Tiles: where they are cut, and which cues are taken from them."""

import pytest
import torch

from ssl_models import tiles


def test_a_tile_is_cut_where_it_was_asked_for():
    images = torch.randn(2, 3, 8, 8)
    top, left = torch.tensor([[0, 3], [4, 1]]), torch.tensor([[5, 0], [2, 4]])
    found = tiles.cut(images, top[..., None], left[..., None], 3)
    for sample in range(2):
        for number in range(2):
            row, column = top[sample, number], left[sample, number]
            assert torch.equal(found[sample, number], images[sample, :, row : row + 3, column : column + 3])


def test_each_channel_may_have_its_own_place():
    images = torch.randn(1, 3, 8, 8)
    found = tiles.cut(images, torch.tensor([[[0, 1, 2]]]), torch.tensor([[[2, 2, 1]]]), 4)
    for channel, (row, column) in enumerate([(0, 2), (1, 2), (2, 1)]):
        assert torch.equal(found[0, 0, channel], images[0, channel, row : row + 4, column : column + 4])


def test_standardized_tiles_share_mean_and_variance():
    found = tiles.standardize(5 + 3 * torch.randn(6, 3, 8, 8, dtype=torch.float64))
    assert torch.allclose(found.mean((-2, -1)), torch.zeros(6, 3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(found.square().mean((-3, -2, -1)), torch.ones(6, dtype=torch.float64), atol=1e-4)
    assert not tiles.standardize(torch.full((1, 3, 4, 4), 2.0)).any()


def test_one_channel_is_kept_and_the_others_are_faint_noise():
    some, noise = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)
    kept = torch.tensor([0, 2, 1, -1])
    found = tiles.keep_one_channel(some, kept, noise)
    for number, channel in enumerate(kept[:3]):
        assert torch.equal(found[number, channel], some[number, channel])
        for other in {0, 1, 2} - {channel.item()}:
            assert torch.allclose(found[number, other], noise[number, other] * some[number, channel].std() / 100)
    assert torch.equal(found[3], some[3])


def test_projection_takes_the_green_magenta_axis_only():
    """Against the matrix I − aᵀa / (a aᵀ) of the paper; grey stays grey."""
    a = torch.tensor([[-1.0, 2.0, -1.0]])
    matrix = torch.eye(3) - a.T @ a / (a @ a.T)
    some = torch.rand(2, 3, 4, 4)
    assert torch.allclose(tiles.project_colours(some), torch.einsum("dc,nchw->ndhw", matrix, some), atol=1e-6)
    grey = torch.rand(2, 1, 4, 4).expand(-1, 3, -1, -1)
    assert torch.allclose(tiles.project_colours(grey), grey, atol=1e-6)


def test_resampling_is_shrinking_and_enlarging():
    matrices = tiles.blurring(8, 4)
    assert matrices.shape == (5, 8, 8)
    assert torch.equal(matrices[-1], torch.eye(8))
    some = torch.randn(3, 3, 8, 8)
    found = tiles.resample(some, matrices[torch.tensor([0, 2, 4])])
    for number, size in enumerate((4, 6, 8)):
        small = torch.nn.functional.adaptive_avg_pool2d(some[number], size)
        again = torch.nn.functional.interpolate(small[None], size=8, mode="bilinear")[0]
        assert torch.allclose(found[number], again, atol=1e-6)


def test_a_grid_is_every_square_in_its_place():
    images = torch.randn(2, 3, 8, 8)
    found = tiles.cut_grid(images, 4, 2)
    assert found.shape == (2, 3, 3, 3, 4, 4)
    assert torch.equal(found[1, 2, 1], images[1, :, 4:8, 2:6])


def test_refusing_leaves_an_encoder_as_it_was():
    from ssl_models.encoders import ImageEncoder
    from tests.ssl_models.cases.case import RESNET, VIT

    encoder = ImageEncoder(RESNET)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    tiles.refuse_unfit(encoder, 4)
    assert encoder.training
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    with pytest.raises(ValueError, match="does not take tiles of 8 pixels"):
        tiles.refuse_unfit(ImageEncoder(VIT), 8)
