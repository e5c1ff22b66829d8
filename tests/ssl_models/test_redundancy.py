"""Barlow Twins and VICReg: the papers' formulas in slow loops, their values when nothing is learned, and lightly's."""

import math

import pytest
import torch

from ssl_models.batch import Step
from ssl_models.objectives.redundancy import barlow_twins_loss, vicreg_loss
from tests.ssl_models.contract import batch, build


def projections(rows=7, dim=5):
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    noise = torch.randn(2, rows, dim, generator=generator, dtype=torch.float64)
    return [(0.5 * shared + 0.3 * part + 2).requires_grad_() for part in noise]


def assert_equal(ours, theirs, views, atol=1e-12):
    """Value and gradients."""
    assert torch.allclose(ours, theirs, atol=atol, rtol=0)
    for a, b in zip(torch.autograd.grad(ours, views), torch.autograd.grad(theirs, views), strict=True):
        assert torch.allclose(a, b, atol=atol, rtol=0)


def slow_barlow_twins(first, second, redundancy_weight):
    """Equations 1 and 2 of arXiv 2103.03230; BatchNorm's 1e-5 under the root."""
    rows, dim = first.shape

    def standardized(view):
        columns = []
        for j in range(dim):
            mean = sum(view[b, j] for b in range(rows)) / rows
            variance = sum((view[b, j] - mean) ** 2 for b in range(rows)) / rows
            columns.append([(view[b, j] - mean) / torch.sqrt(variance + 1e-5) for b in range(rows)])
        return columns

    one, other = standardized(first), standardized(second)
    loss = first.new_zeros(())
    for i in range(dim):
        for j in range(dim):
            entry = sum(one[i][b] * other[j][b] for b in range(rows)) / rows
            loss = loss + ((1 - entry) ** 2 if i == j else redundancy_weight * entry**2)
    return loss


def test_barlow_twins_equals_the_formula():
    views = projections()
    assert_equal(barlow_twins_loss(*views, 0.02)[0], slow_barlow_twins(*views, 0.02), views)


def test_barlow_twins_equals_lightly():
    from lightly.loss import BarlowTwinsLoss

    views = projections(16, 6)
    assert_equal(barlow_twins_loss(*views, 0.005)[0], BarlowTwinsLoss(lambda_param=0.005)(*views), views)


def test_barlow_twins_of_a_collapsed_model_is_the_width():
    rows = torch.ones(8, 6)
    loss, correlation = barlow_twins_loss(rows, rows, 0.005)
    assert loss.item() == 6
    assert correlation == 0


def test_barlow_twins_is_zero_when_dimensions_agree_and_do_not_correlate():
    rows = 1000 * torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    loss, correlation = barlow_twins_loss(rows, 3 * rows + 2, 0.005)  # the scale and the place of a view do not count
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert correlation.item() == pytest.approx(1)


def slow_vicreg(first, second):
    """Equations 1 to 6 of arXiv 2105.04906 with the conventions of the authors' program: the squared distance is
    divided by D, and the two variance terms are averaged."""
    rows, dim = first.shape
    loss = 25 * sum((first[b, j] - second[b, j]) ** 2 for b in range(rows) for j in range(dim)) / (rows * dim)
    for view in (first, second):
        mean = [sum(view[b, j] for b in range(rows)) / rows for j in range(dim)]
        for i in range(dim):
            for j in range(dim):
                covariance = sum((view[b, i] - mean[i]) * (view[b, j] - mean[j]) for b in range(rows)) / (rows - 1)
                if i == j:
                    loss = loss + 25 / 2 * torch.relu(1 - torch.sqrt(covariance + 1e-4)) / dim
                else:
                    loss = loss + covariance**2 / dim
    return loss


def test_vicreg_equals_the_formula():
    views = projections()
    assert_equal(vicreg_loss(*views, 25, 25, 1)[0], slow_vicreg(*views), views)


def test_vicreg_equals_lightly():
    from lightly.loss import VICRegLoss

    views = projections(16, 6)
    assert_equal(vicreg_loss(*views, 20, 15, 2)[0], VICRegLoss(20, 15, 2)(*views), views)


def test_vicreg_differs_from_the_papers_equations_by_known_factors():
    """Eq. 5 does not divide by D, eq. 6 sums both variances: the same as ours with λ · D and 2 μ."""
    first, second = projections(16, 6)
    distance = (first - second).square().sum(1).mean()
    hinges = sum(torch.relu(1 - (view.var(0) + 1e-4).sqrt()).mean() for view in (first, second))
    covariances = sum((view.T.cov().square().sum() - view.var(0).square().sum()) / 6 for view in (first, second))
    paper = 25 * distance + 25 * hinges + covariances
    assert torch.allclose(vicreg_loss(first, second, 25 * 6, 2 * 25, 1)[0], paper, atol=1e-12)


def test_vicreg_of_a_collapsed_model():
    rows = torch.ones(8, 6)
    loss, std = vicreg_loss(rows, rows, 25, 25, 1)
    assert loss.item() == pytest.approx(24.75, abs=1e-5)
    assert std.item() == pytest.approx(math.sqrt(1e-4))


@pytest.mark.parametrize(("loss", "weights"), [(barlow_twins_loss, (0.005,)), (vicreg_loss, (25, 25, 1))])
def test_statistics_stay_in_single_precision_under_autocast(loss, weights):
    views = [view.detach().float() for view in projections(64, 16)]
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(*views, *weights)[0]
        assert loss(*(view.bfloat16() for view in views), *weights)[0].dtype == torch.float32
    assert torch.equal(inside, loss(*views, *weights)[0])


@pytest.mark.parametrize("name", ["barlow_twins", "vicreg"])
def test_the_scale_of_the_loss_is_that_of_its_gradient(name):
    gradients = []
    for scale in (0.1, 0.2):
        objective = build(name, torch.float64)
        objective.config = objective.config.model_copy(update={"loss_scale": scale})
        objective(batch(name, dtype=torch.float64), Step(0, 0.0, 0))["loss"].backward()
        gradients.append(objective.projector[-1].weight.grad)
    assert torch.allclose(2 * gradients[0], gradients[1], atol=1e-12)
