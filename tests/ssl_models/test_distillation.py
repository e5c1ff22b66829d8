"""Self-distillation: losses against loops and lightly, heads, collapse, DINO's centre and crops."""

import math

import pytest
import torch
from torch import nn

from jobs.recipes import find_recipe
from ssl_models.batch import Batch, Step
from ssl_models.encoders import EncoderConfig
from ssl_models.heads import DINOHead, NormalizedProjector
from ssl_models.momentum import MomentumTeacher
from ssl_models.objectives.distillation import BYOL, DINO, cosine, dino_loss, spread
from tests.ssl_models.cases.case import RESNET, VIT
from tests.ssl_models.contract import batch, build


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def equal(fast: torch.Tensor, slow: torch.Tensor, *leaves: torch.Tensor) -> None:
    """Values and gradients."""
    torch.testing.assert_close(fast, slow, atol=1e-12, rtol=0)
    for a, b in zip(torch.autograd.grad(fast, leaves), torch.autograd.grad(slow, leaves), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_the_cosine_equals_the_formula_and_lightlys():
    from lightly.loss import NegativeCosineSimilarity

    prediction, target = rows(6, 5), rows(6, 5, seed=1)
    slow = sum(p @ t / (p.norm() * t.norm()) for p, t in zip(prediction, target.detach(), strict=True)) / 6
    equal(cosine(prediction, target), slow, prediction)
    equal(-cosine(prediction, target), NegativeCosineSimilarity()(prediction, target.detach()), prediction)
    assert torch.autograd.grad(cosine(prediction, target), target, allow_unused=True) == (None,)


def test_byol_sums_both_directions():
    """Equation 2 of arXiv 2006.07733, with heads and teacher that do nothing: 4 at cosine 0, 0 at cosine 1."""
    objective = BYOL(BYOL.Config(), RESNET)
    objective.encoder = objective.projector = objective.predictor = objective.teacher = nn.Flatten()
    first = torch.nn.functional.one_hot(torch.arange(8), 12).float().view(8, 3, 2, 2)
    loss = objective(Batch((first, first.roll(1, 0)), torch.arange(8)), Step(0, 0.0, 0))["loss"]
    assert loss.item() == pytest.approx(4)
    assert objective(Batch((first, first), torch.arange(8)), Step(0, 0.0, 0))["loss"].item() == pytest.approx(0)


def test_spread_tells_collapse():
    assert spread(torch.randn(4096, 64, generator=torch.Generator().manual_seed(0))).item() == pytest.approx(
        1, abs=0.02
    )
    assert spread(torch.ones(16, 64)) == 0


@pytest.mark.parametrize("name", ["byol", "simsiam"])
def test_without_a_predictor_of_its_own_the_target_gets_no_gradient(name):
    """The second view's gradient comes through the second prediction alone."""
    objective = build(name)
    views = tuple(view.requires_grad_() for view in batch(name).views)
    with torch.no_grad():
        objective.predictor[-1].weight.zero_()
    objective(Batch(views, batch(name).ids), Step(0, 0.0, 0))["loss"].backward()
    assert all(view.grad.abs().max() == 0 for view in views)  # constant predictions; targets are detached


def test_simsiams_rate_is_constant_for_the_predictor_alone():
    objective = build("simsiam")
    constant = [name for name, _ in objective.named_parameters() if name.startswith(objective.constant_rate)]
    assert constant == [f"predictor.{name}" for name, _ in objective.predictor.named_parameters()]
    output = objective.projector(torch.randn(64, 16))
    torch.testing.assert_close(output.mean(0), torch.zeros(16), atol=1e-5, rtol=0)  # BatchNorm on the projector only
    torch.testing.assert_close(output.var(0, correction=0), torch.ones(16), atol=1e-2, rtol=0)
    assert not isinstance(objective.predictor[-1], nn.BatchNorm1d)


def test_a_normalised_projector_has_nothing_to_undo_it():
    head = NormalizedProjector(6, (5, 4))
    assert [tuple(parameter.shape) for parameter in head.parameters()] == [(5, 6), (5,), (5,), (4, 5)]


def slow_dino(student, teacher, temperature):
    """Equation 3 of arXiv 2104.14294, averaged over pairs of different views and samples."""
    terms = []
    for t, targets in enumerate(teacher):
        for s, logits in enumerate(student):
            if s != t:
                for target, row in zip(targets, logits, strict=True):
                    exponentials = torch.exp(row / temperature)
                    terms.append(-(target * torch.log(exponentials / exponentials.sum())).sum())
    return sum(terms) / len(terms)


@pytest.mark.parametrize("num_views", [2, 5])
def test_dino_equals_the_formula_and_lightlys(num_views):
    from lightly.loss import DINOLoss

    student = [rows(6, 7, seed=seed) for seed in range(num_views)]
    logits = [rows(6, 7, seed=seed).detach() for seed in (8, 9)]
    centre = rows(7, seed=10).detach()
    teacher = [((view - centre) / 0.0625).softmax(1) for view in logits]
    equal(dino_loss(student, teacher, 0.1), slow_dino(student, teacher, 0.1), *student)
    theirs = DINOLoss(7, student_temp=0.1).double()
    theirs.center.copy_(centre)
    equal(dino_loss(student, teacher, 0.1), theirs(logits, student, teacher_temp=0.0625), *student)  # theirs is float32


def test_dino_of_a_uniform_student_is_the_logarithm_of_its_outputs():
    target = torch.randn(4, 1024).softmax(1)
    assert dino_loss([torch.ones(4, 1024)] * 3, [target] * 2, 0.1).item() == pytest.approx(math.log(1024), abs=1e-5)


def test_the_centre_is_used_then_moved():
    objective = build("dino")
    step = Step(0, 0.0, 0)
    logits = objective.teacher(torch.cat(batch("dino").views[:2]))
    losses = []
    for _ in range(2):
        losses.append(objective(batch("dino"), step)["loss"].item())
    assert losses[0] == losses[1]  # not moved by forward
    objective.after_step(step)
    torch.testing.assert_close(objective.centre, 0.1 * logits.mean(0), atol=1e-5, rtol=1e-4)
    assert objective(batch("dino"), step)["loss"].item() != losses[0]


def test_prototypes_wait_for_their_share_of_the_run():
    objective = build("dino")
    for progress, moves in ((0.0, False), (0.04, False), (0.05, True), (None, True)):
        objective.zero_grad()
        objective(batch("dino"), Step(0, progress, 0))["loss"].backward()
        assert bool(objective.head.prototypes.grad.abs().sum() > 0) == moves
        assert objective.head.mlp[0].weight.grad.abs().sum() > 0


def test_the_gain_of_the_last_layer_is_one():
    head = DINOHead(6, (5, 4), 9, batchnorm=False)
    logits = head(torch.randn(32, 6))
    assert logits.abs().max() <= 1
    with torch.no_grad():
        head.prototypes.mul_(7)
    assert torch.allclose(head(torch.zeros(2, 6)), head(torch.zeros(2, 6)))
    weight_normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 9, bias=False))
    with torch.no_grad():
        weight_normed.parametrizations.weight.original0.fill_(1)
        weight_normed.parametrizations.weight.original1.copy_(head.prototypes)
    bottleneck = torch.nn.functional.normalize(head.mlp(torch.ones(2, 6)))
    torch.testing.assert_close(head(torch.ones(2, 6)), weight_normed(bottleneck))


def test_cosines_are_in_single_precision_under_autocast():
    head = DINOHead(6, (5, 4), 9, batchnorm=False)
    with torch.autocast("cpu", torch.bfloat16):
        bottleneck, logits = head.mlp(torch.ones(2, 6)), head(torch.ones(2, 6))
    assert bottleneck.dtype == torch.bfloat16
    normed = nn.functional.normalize
    torch.testing.assert_close(logits, normed(bottleneck.float()) @ normed(head.prototypes).T)


def test_dino_works_without_local_crops():
    whole = batch("dino")
    values = build("dino")(Batch(whole.views[:2], whole.ids), Step(0, 0.5, 0))
    assert 3.0 < values["loss"] < 7.0  # ln 32 = 3.47
    assert 0 < values["teacher_entropy"] < values["prototype_entropy"] <= math.log(32) + 1e-5


def test_a_vit_must_be_told_of_local_crops():
    flexible = EncoderConfig(**{**VIT.model_dump(), "arguments": {**VIT.arguments, "dynamic_img_size": True}})
    config = DINO.Config(head_dims=(16, 8), num_prototypes=32)
    DINO(config, flexible)(batch("dino"), Step(0, 0.5, 0))["loss"].backward()
    experiment = find_recipe("dino_32px")()
    experiment.check_model()
    vit = experiment.override(
        {
            "encoder.name": "vit_tiny_patch16_224",
            "encoder.patch_size": 4,
            "encoder.stem": "auto",
            "encoder.arguments": {},
        }
    )
    with pytest.raises(ValueError, match=r"no images of 16 pixels.*set encoder.arguments.dynamic_img_size=true"):
        vit.check_model()
    vit.override({"encoder.arguments.dynamic_img_size": True}).check_model()


def test_the_teacher_drops_nothing():
    encoder = EncoderConfig(**{**VIT.model_dump(), "arguments": {**VIT.arguments, "drop_path_rate": 0.5}})
    objective = DINO(DINO.Config(head_dims=(16, 8), num_prototypes=32), encoder).train()
    views = torch.cat(batch("dino").views[:2])
    assert torch.equal(objective.teacher(views), objective.teacher(views))
    assert not torch.equal(objective.encoder(views), objective.encoder(views))
    student = nn.Sequential(nn.Dropout(0.5))
    assert torch.equal(MomentumTeacher(student)(views), views)
    assert student[0].p == 0.5
