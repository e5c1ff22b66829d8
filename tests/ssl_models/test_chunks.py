"""Losses in chunks equal the plain ones, and never hold more than a chunk's logits."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ssl_models.chunks import num_nearest, similarities
from ssl_models.objectives.captioning import next_token_loss
from ssl_models.objectives.contrastive import nt_xent
from ssl_models.objectives.image_text import clip_loss, siglip_loss

ROWS, WIDTH = 24, 5
SCALE, BIAS = torch.tensor(7.0, dtype=torch.float64), torch.tensor(-3.0, dtype=torch.float64)


def captions(states, weight, chunk):
    """24 rows as 3 captions of 8 tokens; a vocabulary of 24 words."""
    words = torch.nn.Linear(WIDTH, ROWS, dtype=weight.dtype)
    torch.nn.init.zeros_(words.bias)
    del words.weight
    words.weight = weight
    tokens = (torch.arange(ROWS) - 1).clamp(min=0).view(3, 8)  # the word of a row comes after it
    return next_token_loss(states.view(3, 8, WIDTH), tokens, torch.tensor([7, 2, 4]), words, chunk)


LOSSES = {
    "nt_xent": lambda a, b, chunk: nt_xent(a, b, 0.2, chunk),
    "clip": lambda a, b, chunk: clip_loss(a, b, SCALE.requires_grad_(), chunk),
    "siglip": lambda a, b, chunk: siglip_loss(a, b, SCALE.requires_grad_(), BIAS.requires_grad_(), chunk),
    "next token": captions,
}


def inputs():
    """Rows, and others that are near them."""
    generator = torch.Generator().manual_seed(0)
    rows, noise = torch.randn(2, ROWS, WIDTH, generator=generator, dtype=torch.float64)
    return [rows.requires_grad_(), (rows.detach() + 0.4 * noise).requires_grad_()]


@pytest.mark.parametrize("chunk", [1, 5, 12, 1000])
@pytest.mark.parametrize("name", list(LOSSES))
def test_chunked_equals_plain(name, chunk):
    """Loss, accuracy, and gradients of rows and of what the loss has learned."""
    found = []
    for size in (None, chunk):
        rows = inputs()
        loss, accuracy = LOSSES[name](*rows, size)
        learned = {"clip": [SCALE], "siglip": [SCALE, BIAS]}.get(name, [])
        found.append([loss, accuracy, *torch.autograd.grad(loss, [*rows, *learned])])
    for plain, chunked in zip(*found, strict=True):
        assert torch.allclose(chunked, plain, atol=1e-12, rtol=0)
    assert 0 < found[0][1] < 1


class Largest(TorchDispatchMode):
    """The most elements of any tensor that is made, in forward and backward."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return made


@pytest.mark.parametrize("name", list(LOSSES))
def test_nothing_is_larger_than_the_logits_of_a_chunk(name):
    largest = {}
    for chunk in (None, 6):
        with Largest() as seen:
            LOSSES[name](*inputs(), chunk)[0].backward()
        largest[chunk] = seen.elements
    keys = 2 * ROWS if name == "nt_xent" else ROWS
    assert largest[6] <= max(6, 2 * WIDTH) * keys  # logits of six rows; or rows themselves
    assert largest[None] >= ROWS * keys / 2  # of captions about half is padding


def test_neither_logits_nor_gradients_are_rounded_to_half_precision():
    rows = torch.randn(8, 16, requires_grad=True)

    def found(chunk=None):
        loss, accuracy = clip_loss(rows, rows.roll(1, 0), torch.tensor(9.0), chunk)
        return loss, accuracy, torch.autograd.grad(loss, rows)[0]

    with torch.autocast("cpu", torch.bfloat16):
        assert (rows @ rows.T).dtype == torch.bfloat16  # what autocast does to a product
        assert similarities(rows, rows).dtype == torch.float32
        chunked = found(chunk=3)
        plain = clip_loss(rows, rows.roll(1, 0), torch.tensor(9.0))
    plain = *plain, torch.autograd.grad(plain[0], rows)[0]  # outside, as the loop has it
    torch.testing.assert_close([chunked, plain], [found(), found()], atol=1e-5, rtol=0)


def test_ties_are_not_nearest():
    logits = torch.tensor([[1.0, 1.0], [2.0, 1.0], [0.0, 1.0]])
    assert num_nearest(logits, torch.tensor([[0], [0], [0]])) == 1
