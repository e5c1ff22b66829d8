"""Losses against slow loops written from the papers' formulas, and their values when nothing is learned."""

import math

import pytest
import torch

from ssl_models.objectives.contrastive import nt_xent
from ssl_models.objectives.image_text import clip_loss
from ssl_models.objectives.masked import masked_loss, normalize_patches, patchify, unpatchify
from ssl_models.precision import normalize

torch.set_default_dtype(torch.float32)


def slow_nt_xent(first, second, temperature, unit_length=True):
    """Equation 1 of arXiv 2002.05709, averaged over both orders of every pair."""
    rows = [*first, *second]
    count = len(first)

    def similarity(a, b):
        return (a @ b / (a.norm() * b.norm() if unit_length else 1)) / temperature

    losses = []
    for i, anchor in enumerate(rows):
        positive = rows[(i + count) % (2 * count)]
        denominator = sum(torch.exp(similarity(anchor, other)) for k, other in enumerate(rows) if k != i)
        losses.append(-torch.log(torch.exp(similarity(anchor, positive)) / denominator))
    return torch.stack(losses).mean()


@pytest.mark.parametrize(("temperature", "unit_length"), [(0.1, True), (0.5, True), (1.0, True), (10.0, False)])
def test_nt_xent_equals_the_formula(temperature, unit_length):
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(6, 5, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    fast = nt_xent(first, second, temperature, unit_length=unit_length)[0]
    slow = slow_nt_xent(first, second, temperature, unit_length)
    assert torch.allclose(fast, slow, atol=1e-12)
    fast_gradients, slow_gradients = (torch.autograd.grad(loss, (first, second)) for loss in (fast, slow))
    for a, b in zip(fast_gradients, slow_gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_nt_xent_of_rows_in_bf16_is_computed_in_single_precision():
    first, second = torch.randn(4, 8), torch.randn(4, 8)
    for unit_length in (True, False):
        half = nt_xent(first.bfloat16(), second.bfloat16(), 10.0, unit_length=unit_length)[0]
        assert half.dtype == torch.float32


def test_nt_xent_of_a_collapsed_model():
    rows = torch.ones(8, 4)
    loss, accuracy = nt_xent(rows, rows, 0.2)
    assert loss.item() == pytest.approx(math.log(2 * 8 - 1), abs=1e-5)
    assert accuracy == 0  # ties do not count


def slow_clip(image, text, scale):
    """Figure 3 of arXiv 2103.00020."""
    count = len(image)
    logits = torch.empty(count, count, dtype=image.dtype)
    for i in range(count):
        for j in range(count):
            logits[i, j] = scale * (image[i] @ text[j]) / (image[i].norm() * text[j].norm())
    by_row = sum(-torch.log_softmax(logits[i], 0)[i] for i in range(count)) / count
    by_column = sum(-torch.log_softmax(logits[:, i], 0)[i] for i in range(count)) / count
    return (by_row + by_column) / 2


def test_clip_loss_equals_the_formula():
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(6, 5, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    scale = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
    fast, slow = clip_loss(image, text, scale)[0], slow_clip(image, text, scale)
    assert torch.allclose(fast, slow, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad(loss, (image, text, scale)) for loss in (fast, slow)), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_clip_loss_when_all_pairs_look_alike():
    rows = torch.ones(16, 4)
    assert clip_loss(rows, rows, torch.tensor(14.3))[0].item() == pytest.approx(math.log(16), abs=1e-5)


def test_masked_loss_reads_hidden_patches_only():
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.randn(3, 4, 6, generator=generator) for _ in range(2))
    masked = torch.tensor([[1.0, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 0]])
    terms = [
        ((prediction[b, p] - target[b, p]) ** 2).sum() / 6 for b in range(3) for p in range(4) if masked[b, p] == 1
    ]
    assert torch.allclose(masked_loss(prediction, target, masked), torch.stack(terms).mean())


def test_masked_loss_of_predicting_zero_is_the_patch_variance():
    """0.9987 for 16×16×3 patches: the unbiased variance over n − 1 is averaged over n."""
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    target = normalize_patches(patchify(images, 16))
    loss = masked_loss(torch.zeros_like(target), target, torch.ones(4, 4))
    assert loss.item() == pytest.approx(1 - 1 / 768, abs=1e-4)


def test_patches_go_there_and_back():
    images = torch.randn(2, 3, 8, 12)
    patches = patchify(images, 4)
    assert patches.shape == (2, 6, 48)
    assert torch.equal(patches[0, 1].reshape(4, 4, 3), images[0, :, :4, 4:8].permute(1, 2, 0))  # row-major
    assert torch.equal(unpatchify(patches, 4, rows=2), images)


def test_normalize_stays_in_single_precision():
    assert normalize(torch.ones(2, 3, dtype=torch.bfloat16)).dtype == torch.float32
    assert normalize(torch.ones(2, 3, dtype=torch.float64)).dtype == torch.float64


def test_nt_xent_equals_lightlys():
    from lightly.loss import NTXentLoss

    generator = torch.Generator().manual_seed(1)
    first, second = (torch.randn(6, 5, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    ours, theirs = nt_xent(first, second, 0.3)[0], NTXentLoss(temperature=0.3)(first, second)
    assert torch.allclose(ours, theirs, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad(loss, (first, second)) for loss in (ours, theirs)), strict=True):
        assert torch.allclose(a, b, atol=1e-12)
