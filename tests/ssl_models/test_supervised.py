"""The labelled baseline's loss against a slow loop."""

import math

import pytest
import torch

from ssl_models.objectives.supervised import labelled_cross_entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_the_formula_over_labelled_samples(smoothing):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.tensor([2, -1, 0, 3, -1, 2])
    terms = []
    for row, label in zip(logits, labels.tolist(), strict=True):
        if label >= 0:
            total = sum(torch.exp(value) for value in row)
            target = [(1 - smoothing) * (k == label) + smoothing / 4 for k in range(4)]
            terms.append(-sum(target[k] * torch.log(torch.exp(row[k]) / total) for k in range(4)))
    slow = torch.stack(terms).mean()
    fast, accuracy = labelled_cross_entropy(logits, labels, smoothing)
    assert torch.allclose(fast, slow, atol=1e-12)
    for a, b in zip(torch.autograd.grad(fast, logits), torch.autograd.grad(slow, logits), strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    assert accuracy == sum(int(logits[i].argmax() == labels[i]) for i in (0, 2, 3, 5)) / 4


def test_chance_and_a_batch_without_labels():
    logits = torch.zeros(4, 10, requires_grad=True)
    assert labelled_cross_entropy(logits, torch.arange(4), 0.1)[0].item() == pytest.approx(math.log(10))
    loss, accuracy = labelled_cross_entropy(logits, torch.full((4,), -1), 0.1)
    loss.backward()
    assert loss == 0
    assert accuracy == 0
    assert not logits.grad.any()
