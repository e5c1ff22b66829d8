"""BatchNorm over ranks is torch's own where there is one rank; `test_objectives.py` has more of them."""

import copy

import pytest
import torch
from torch import nn

from ssl_models.collectives import synchronize_batchnorm

CPU = torch.device("cpu")


def norms(dtype: torch.dtype, affine: bool, sides: int) -> tuple[nn.Module, nn.Module]:
    """torch's, and ours with the same weights."""
    torch.manual_seed(0)
    plain = (nn.BatchNorm2d if sides else nn.BatchNorm1d)(5, affine=affine)
    if affine:
        nn.init.normal_(plain.weight)
        nn.init.normal_(plain.bias)
    plain = nn.Sequential(plain).to(dtype).train()
    ours = synchronize_batchnorm(copy.deepcopy(plain), CPU)
    assert type(ours[0]) is not type(plain[0])
    return plain, ours


@pytest.mark.parametrize("sides", [0, 2])
@pytest.mark.parametrize("affine", [True, False])
def test_batchnorm_over_one_rank_is_torchs(affine: bool, sides: int) -> None:
    """Output, gradients and running statistics, in double precision."""
    plain, ours = norms(torch.float64, affine, sides)
    shape = (6, 5, *[3] * sides)
    rows, gradient = torch.randn(shape, dtype=torch.float64) * 2 + 3, torch.randn(shape, dtype=torch.float64)
    outputs, gradients = [], []
    for norm in (plain, ours):
        leaf = rows.clone().requires_grad_()
        outputs.append(norm(leaf))
        outputs[-1].backward(gradient)
        gradients.append([leaf.grad, *(parameter.grad for parameter in norm.parameters())])
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(dict(ours.named_buffers()), dict(plain.named_buffers()), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(ours.eval()(rows), plain.eval()(rows))


def test_a_frozen_batchnorm_stays_frozen() -> None:
    """As a momentum teacher's is: DDP would wait for its gradient."""
    frozen = synchronize_batchnorm(nn.Sequential(nn.BatchNorm1d(4)).requires_grad_(False), CPU)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_statistics_of_half_precision_are_single() -> None:
    """bf16 in, bf16 out; but a mean far from zero keeps its digits, and the gradient is that of single precision."""
    plain, ours = norms(torch.float32, True, 2)
    rows = (torch.randn(64, 5, 8, 8) + 100).bfloat16().contiguous(memory_format=torch.channels_last)
    gradient = torch.randn(rows.shape).bfloat16()
    half, single = rows.clone().requires_grad_(), rows.float().requires_grad_()
    output, expected = ours(half), plain(single)
    assert output.dtype == torch.bfloat16
    assert output.is_contiguous(memory_format=torch.channels_last)
    output.backward(gradient)
    expected.backward(gradient.float())
    torch.testing.assert_close(output.float(), expected, atol=0.02, rtol=2**-8)  # one rounding
    torch.testing.assert_close(half.grad.float(), single.grad, atol=0.02, rtol=2**-6)
    torch.testing.assert_close(dict(ours.named_buffers()), dict(plain.named_buffers()), atol=1e-5, rtol=1e-5)
