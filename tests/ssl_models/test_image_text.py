"""SigLIP's and captioning's losses against slow loops, and against open_clip's; what a caption decoder may see."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ssl_models.encoders import EncoderConfig
from ssl_models.objectives.captioning import Captioning, next_token_loss, num_words, reversed_captions
from ssl_models.objectives.image_text import clip_loss, siglip_loss
from tests.ssl_models.cases.case import RESNET, TEXT, VIT
from tests.ssl_models.contract import batch, build

START, END = 49406, 49407


def pairs(count=6, width=5):
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(count, width, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]
    scale, bias = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (7.0, -4.0))
    return *made, scale, bias


def equal(ours, theirs, inputs):
    assert torch.allclose(ours, theirs, atol=1e-12, rtol=0)
    for a, b in zip(*(torch.autograd.grad(loss, inputs) for loss in (ours, theirs)), strict=True):
        assert torch.allclose(a, b, atol=1e-12, rtol=0)


def slow_siglip(image, text, scale, bias):
    """Equation 1 of arXiv 2303.15343."""
    total = 0
    for i in range(len(image)):
        for j in range(len(text)):
            cosine = image[i] @ text[j] / (image[i].norm() * text[j].norm())
            z = 1 if i == j else -1
            total = total + torch.log(1 / (1 + torch.exp(z * (-scale * cosine - bias))))
    return -total / len(image)


def test_siglip_loss_equals_the_formula():
    inputs = pairs()
    equal(siglip_loss(*inputs)[0], slow_siglip(*inputs), inputs)


def test_siglip_loss_equals_open_clips():
    from open_clip.loss import SigLipLoss

    image, text, scale, bias = pairs()
    theirs = SigLipLoss()(F.normalize(image, dim=1), F.normalize(text, dim=1), scale, bias)
    equal(siglip_loss(image, text, scale, bias)[0], theirs, (image, text, scale, bias))


def test_clip_loss_equals_open_clips():
    from open_clip.loss import ClipLoss

    image, text, scale, _ = pairs()
    theirs = ClipLoss()(F.normalize(image, dim=1), F.normalize(text, dim=1), scale)
    equal(clip_loss(image, text, scale)[0], theirs, (image, text, scale))


def test_siglip_loss_at_the_papers_start():
    """Scale 10, bias −10, all images at right angles to all texts."""
    rows = torch.eye(64)
    loss, accuracy = siglip_loss(rows[:32], rows[32:], torch.tensor(10.0), torch.tensor(-10.0))
    assert loss.item() == pytest.approx(10.0 + 31 * 4.54e-5 + 4.54e-5, abs=1e-4)
    assert accuracy == 0  # ties do not count


def test_siglip_is_right_where_exponentials_would_overflow():
    rows = torch.eye(4).requires_grad_()
    loss, _ = siglip_loss(rows, rows, torch.tensor(1e3), torch.tensor(-500.0))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert rows.grad.isfinite().all()
    assert siglip_loss(rows, rows.roll(1, 0), torch.tensor(1e3), torch.tensor(-500.0))[0].item() == pytest.approx(1000)


# ---- captions -------------------------------------------------------------------------------------------------------

# "!" (0) within a caption is a word; after the end token it is padding
TOKENS = torch.tensor([[START, 5, 0, 9, END, 0, 0, 0], [START, 7, END, 0, 0, 0, 0, 0], [START, 1, 2, 3, 4, 5, 6, END]])


def test_a_caption_ends_at_its_end_token():
    assert num_words(TOKENS).tolist() == [4, 2, 7]
    assert reversed_captions(TOKENS)[0, :5].tolist() == [END, 9, 0, 5, START]
    assert reversed_captions(TOKENS)[1, :3].tolist() == [END, 7, START]
    assert reversed_captions(TOKENS)[2].tolist() == [END, 6, 5, 4, 3, 2, 1, START]


def slow_next_token(states, tokens, words):
    losses = []
    for row, caption in enumerate(tokens):
        length = 1 + caption.tolist().index(END)
        for place in range(length - 1):
            logits = words.weight @ states[row, place] + words.bias
            losses.append(-torch.log(torch.exp(logits)[caption[place + 1]] / torch.exp(logits).sum()))
    return torch.stack(losses).mean()


def test_next_token_loss_equals_the_formula():
    torch.manual_seed(0)
    states = torch.randn(3, 8, 5, dtype=torch.float64, requires_grad=True)
    words = nn.Linear(5, END + 1, dtype=torch.float64)
    ours = next_token_loss(states, TOKENS, num_words(TOKENS), words)[0]
    equal(ours, slow_next_token(states, TOKENS, words), (states, *words.parameters()))


def test_next_token_loss_of_a_decoder_that_knows_nothing():
    words = nn.Linear(5, END + 1)
    nn.init.zeros_(words.weight)
    nn.init.zeros_(words.bias)
    loss, accuracy = next_token_loss(torch.randn(3, 8, 5), TOKENS, num_words(TOKENS), words)
    assert loss.item() == pytest.approx(math.log(END + 1), abs=1e-4)
    assert accuracy == 0


def decoded(objective, decoder, tokens, picture):
    embedded = objective.norm(F.embedding(tokens, objective.words.weight) + objective.positional_embedding)
    return decoder(embedded, picture)


@pytest.mark.parametrize("direction", ["forwards", "backwards"])
def test_a_place_sees_the_picture_and_no_later_token(direction):
    objective = build("captioning", torch.float64).eval()
    decoder, picture = getattr(objective, direction), torch.randn(3, 4, TEXT.width, dtype=torch.float64)
    before = decoded(objective, decoder, TOKENS, picture)
    changed = TOKENS.clone()
    changed[:, 4:] = 77
    after = decoded(objective, decoder, changed, picture)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])
    assert not torch.allclose(before[:, 0], decoded(objective, decoder, TOKENS, picture + 1)[:, 0])


def test_the_two_directions_share_words_and_nothing_else():
    objective = build("captioning", torch.float64)
    step = None
    losses = objective(batch("captioning", dtype=torch.float64), step)
    of = {
        name: {key for key, parameter in objective.named_parameters() if _grad(loss, parameter) is not None}
        for name, loss in losses.items()
        if name in ("forward_loss", "backward_loss")
    }
    assert not any(key.startswith("backwards.") for key in of["forward_loss"])
    assert not any(key.startswith("forwards.") for key in of["backward_loss"])
    assert {"words.weight", "words.bias", "positional_embedding"} <= of["forward_loss"] & of["backward_loss"]
    assert losses["loss"] == losses["forward_loss"] + losses["backward_loss"]


def _grad(loss, parameter):
    return torch.autograd.grad(loss, parameter, retain_graph=True, allow_unused=True)[0]


@pytest.mark.parametrize("encoder", [RESNET, VIT])
def test_captioning_takes_resnets_and_vits(encoder):
    objective = Captioning(Captioning.Config(text=TEXT), encoder)
    assert objective.training
    assert objective.encoder.training
    assert objective(batch("captioning"), None)["loss"].isfinite()


def test_an_encoder_without_a_map_is_refused():
    with pytest.raises(ValueError, match=r"captioning looks at the map before pooling.*encoder.name=resnet18"):
        Captioning(Captioning.Config(text=TEXT), EncoderConfig(name="levit_128s", image_size=224))
