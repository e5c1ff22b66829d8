"""BatchNorm in groups is torch's own on each part of the batch; `test_objectives.py` has several ranks (MoCo)."""

import copy

import pytest
import torch
from torch import nn

from ssl_models.collectives import synchronize_batchnorm
from ssl_models.encoders import EncoderConfig, ImageEncoder
from ssl_models.split_batchnorm import SplitBatchNorm, split_batchnorm


def layers() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.BatchNorm2d(5)).double()
    nn.init.normal_(plain[0].weight)
    nn.init.normal_(plain[0].bias)
    split = copy.deepcopy(plain)
    assert split_batchnorm(split, 4) == 1
    return plain.train(), split.train()


def test_each_group_is_normalised_alone():
    plain, split = layers()
    rows = torch.randn(12, 5, 3, 3, dtype=torch.float64) + torch.arange(12)[:, None, None, None]
    leaf, expected = rows.clone().requires_grad_(), rows.clone().requires_grad_()
    output = split(leaf)
    parts = [copy.deepcopy(plain) for _ in range(4)]
    for part in parts:
        part[0].weight, part[0].bias = plain[0].weight, plain[0].bias
    wanted = torch.cat([part(rows) for part, rows in zip(parts, expected.chunk(4), strict=True)])
    torch.testing.assert_close(output, wanted, atol=1e-12, rtol=0)
    assert not torch.allclose(output, plain(rows), atol=0.1)
    gradient = torch.randn(rows.shape, dtype=torch.float64)
    output.backward(gradient)
    plain.zero_grad()
    wanted.backward(gradient)
    torch.testing.assert_close(leaf.grad, expected.grad, atol=1e-12, rtol=0)
    torch.testing.assert_close(split[0].weight.grad, plain[0].weight.grad, atol=1e-12, rtol=0)
    for name in ("running_mean", "running_var"):  # the mean of what the groups alone would have kept
        kept = torch.stack([getattr(part[0], name) for part in parts]).mean(0)
        torch.testing.assert_close(getattr(split[0], name), kept, atol=1e-12, rtol=0)


def test_evaluation_is_that_of_batchnorm_and_the_state_has_its_names():
    plain, split = layers()
    split(torch.randn(8, 5, 2, 2, dtype=torch.float64))
    plain.load_state_dict(split.state_dict())
    rows = torch.randn(3, 5, 2, 2, dtype=torch.float64)
    assert torch.equal(split.eval()(rows), plain.eval()(rows))


def test_it_stays_in_groups_where_others_are_synchronised():
    for device in ("cpu", "cuda"):  # the conversion alone needs no GPU
        _, split = layers()
        assert isinstance(synchronize_batchnorm(split, torch.device(device))[0], SplitBatchNorm)


def test_what_cannot_be_split_is_refused_in_words():
    _, split = layers()
    for count in (6, 4):
        with pytest.raises(ValueError, match=f"a batch of {count} does not make objective.split_batchnorm=4"):
            split(torch.randn(count, 5, 2, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match="BatchNormAct2d cannot be split"):
        split_batchnorm(ImageEncoder(EncoderConfig(name="efficientnet_b0", image_size=64)), 4)
