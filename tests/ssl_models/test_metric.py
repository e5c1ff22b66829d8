"""The losses of metric learning against slow loops and torch's own functions, and over two ranks."""

import math

import pytest
import torch
from torch.nn import functional as F

from ssl_models.objectives.metric import LOSSES, Siamese
from ssl_models.objectives.metric_losses import nearest_is_positive, pair_up
from tests.ranks import on_ranks
from tests.ssl_models.cases.case import RESNET

N = 5
VARIANTS = {
    "margin": {},
    "margin, not normalised": {"normalize": False, "margin": 4.0},
    "triplet": {},
    "triplet, mean of all": {"average": "all"},
    "triplet, all negatives": {"mining": "all"},
    "triplet, all negatives, mean of all": {"mining": "all", "average": "all"},
    "triplet, hard, not normalised": {"mining": "hard", "normalize": False, "margin": 3.0},
    "n_pair": {"norm_weight": 0.3},
    "lifted": {},
    "lifted, not normalised": {"normalize": False, "margin": 2.0},
    "nt_logistic": {},
    "nt_logistic, all negatives": {"mining": "all", "temperature": 0.5},
    "nt_logistic, not normalised": {"mining": "all", "normalize": False},
}


def settings_of(name):
    kind = name.split(",")[0]
    return kind, LOSSES[kind][1] | VARIANTS[name]


def loss_of(name, first, second):
    kind, settings = settings_of(name)
    settings = dict(settings)
    return LOSSES[kind][0](pair_up(first, second, settings.pop("normalize", False)), **settings)


def rows(seed=0, count=N):
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    second = first + 0.8 * torch.randn(count, 4, generator=generator, dtype=torch.float64)
    second[0] = -first[0]  # no negative is farther than this positive
    return first.requires_grad_(), second.requires_grad_()


def slow_loss(name, first, second):
    """Anchor by anchor, from the papers' formulas."""
    kind, settings = settings_of(name)
    if settings.get("normalize"):
        first, second = (part / part.norm(dim=1, keepdim=True) for part in (first, second))
    every, count = [*first, *second], len(first)
    anchors = range(2 * count)

    def other(i):
        return (i + count) % (2 * count)

    def strangers(i):
        return [k for k in anchors if k % count != i % count]

    def distance(i, k):
        return (every[i] - every[k]).square().sum().sqrt()

    margin, terms = settings.get("margin"), []
    if kind == "margin":
        similar = [distance(i, other(i)) ** 2 / 2 for i in anchors]
        different = [torch.relu(margin - distance(i, k)) ** 2 / 2 for i in anchors for k in strangers(i)]
        return torch.stack(similar).mean() + torch.stack(different).mean()
    if kind == "triplet":
        for i in anchors:
            positive = distance(i, other(i)) ** 2
            for k in mined(i, strangers(i), lambda i, k: distance(i, k) ** 2, positive, settings["mining"]):
                terms.append(torch.relu(positive - distance(i, k) ** 2 + margin))
        active = [term for term in terms if term > 0]
        return torch.stack(active if settings["average"] == "active" else terms).mean()
    if kind == "n_pair":
        for i in range(count):
            inside = [torch.exp(first[i] @ second[j] - first[i] @ second[i]) for j in range(count) if j != i]
            terms.append(torch.log(1 + sum(inside)))
        return torch.stack(terms).mean() + settings["norm_weight"] * sum(row @ row for row in every) / (2 * count)
    if kind == "lifted":
        for i in range(count):
            j = other(i)
            inside = [torch.exp(margin - distance(end, k)) for end in (i, j) for k in strangers(end)]
            terms.append(torch.relu(torch.log(sum(inside)) + distance(i, j)) ** 2)
        return torch.stack(terms).mean() / 2
    scale = settings["temperature"]
    attract = [-torch.log(torch.sigmoid(every[i] @ every[other(i)] / scale)) for i in anchors]
    for i in anchors:
        chosen = mined(
            i, strangers(i), lambda i, k: -every[i] @ every[k], -every[i] @ every[other(i)], settings["mining"]
        )
        terms += [-torch.log(torch.sigmoid(-every[i] @ every[k] / scale)) for k in chosen]
    return torch.stack(attract).mean() + torch.stack(terms).mean()


def mined(i, candidates, distance, positive, mining):
    if mining == "all":
        return candidates
    if mining == "hard":
        return [min(candidates, key=lambda k: distance(i, k))]
    farther = [k for k in candidates if distance(i, k) > positive]
    if farther:
        return [min(farther, key=lambda k: distance(i, k))]
    return [max(candidates, key=lambda k: distance(i, k))]


@pytest.mark.parametrize("name", VARIANTS)
def test_losses_equal_their_formulas(name):
    first, second = rows()
    fast, slow = loss_of(name, first, second), slow_loss(name, first, second)
    assert slow > 0
    torch.testing.assert_close(fast, slow, atol=1e-12, rtol=1e-12)
    gradients = [torch.autograd.grad(loss, (first, second)) for loss in (fast, slow)]
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=1e-11)


def test_both_kinds_of_semi_hard_negatives_were_tested():
    """The rows above have anchors with a negative farther than the positive, and anchors without."""
    pairs = pair_up(*rows(), True)
    squared = pairs.squared_distances()
    farther = pairs.negatives(squared, -torch.inf) > squared.gather(1, pairs.positive)
    assert len({*farther.any(1).tolist()}) == 2


COLLAPSED = {
    "margin": 0.5,
    "triplet": 0.2,
    "triplet, all negatives, mean of all": 0.2,
    "n_pair": math.log(N) + 0.3,
    "lifted": (1 + math.log(4 * N - 4)) ** 2 / 2,
    "nt_logistic": 5 + 2 * math.log(1 + math.exp(-5)),
    "nt_logistic, all negatives": 2 + 2 * math.log(1 + math.exp(-2)),
}


@pytest.mark.parametrize("name", COLLAPSED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_collapsed_model(name, dtype):
    """All rows equal: the loss is known, no gradient is infinite, and nobody scores."""
    row = F.normalize(torch.tensor([[0.3, -0.7, 0.5, 0.1]], dtype=dtype))
    first, second = (row.repeat(N, 1).requires_grad_() for _ in range(2))
    loss = loss_of(name, first, second)
    assert loss.item() == pytest.approx(COLLAPSED[name], abs=1e-5)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, (first, second)))
    assert nearest_is_positive(pair_up(first, second, True)) == 0


def test_orthogonal_rows_of_nt_logistic():
    first, second = torch.eye(8).chunk(2)
    assert loss_of("nt_logistic, all negatives", first, second).item() == pytest.approx(2 * math.log(2), abs=1e-6)


def test_margin_contrastive_is_torchs_where_that_has_it():
    """`hinge_embedding_loss` is max(0, m − D) without a square: its squares are ours; D² is that of a pair."""
    first, second = rows()
    a, b = F.normalize(first), F.normalize(second)
    every = torch.cat([a, b])
    stranger = ~torch.eye(N, dtype=torch.bool).repeat(2, 2)
    distances = torch.stack([F.pairwise_distance(every, row.expand(2 * N, -1), eps=0) for row in every])
    hinge = F.hinge_embedding_loss(distances[stranger], distances.new_full((1,), -1), margin=1.0, reduction="none")
    expected = (F.pairwise_distance(a, b, eps=0).square().mean() + hinge.square().mean()) / 2
    torch.testing.assert_close(loss_of("margin", first, second), expected, atol=1e-12, rtol=1e-12)


def test_triplet_is_torchs_on_squared_distances():
    first, second = rows()
    every = F.normalize(torch.cat([first, second]))
    numbers = torch.arange(2 * N)
    anchors, strangers = (~torch.eye(N, dtype=torch.bool).repeat(2, 2)).nonzero(as_tuple=True)
    expected = F.triplet_margin_with_distance_loss(
        every[anchors],
        every[(numbers + N) % (2 * N)][anchors],
        every[strangers],
        distance_function=lambda x, y: (x - y).square().sum(1),
        margin=0.2,
    )
    found = loss_of("triplet, all negatives, mean of all", first, second)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def test_a_squared_margin_is_twice_that_of_cosines():
    """α = 0.2 on d² is m = 0.1 on cosines, SimCLR's "margin" row, with half the loss."""
    pairs = pair_up(*rows(), True)
    cosine = pairs.similarities()
    losses = (cosine - cosine.gather(1, pairs.positive) + 0.1).relu()
    expected = 2 * pairs.mean_of_negatives(losses)
    torch.testing.assert_close(
        loss_of("triplet, all negatives, mean of all", *rows()), expected, atol=1e-12, rtol=1e-12
    )


def test_semi_hard_negatives_within_the_margin_are_facenets():
    """d(a, p) < d(a, n) < d(a, p) + α: where one is in there, ours is the nearest of them; where none is and ours is
    farther still, the loss is zero."""
    pairs = pair_up(*rows(seed=3, count=12), True)
    squared = pairs.squared_distances()
    positive = squared.gather(1, pairs.positive)
    negative = pairs.negatives(squared, torch.inf)
    inside = negative.where((negative > positive) & (negative < positive + 0.2), torch.inf).amin(1)
    farther = (negative.where(negative.isfinite(), 0) > positive).any(1)
    expected = (positive[:, 0] - inside + 0.2).relu()[farther].sum()
    fallback = (positive[:, 0] - negative.where(negative.isfinite(), 0).amax(1) + 0.2)[~farther].relu().sum()
    assert inside.isfinite().any()
    found = loss_of("triplet, mean of all", *rows(seed=3, count=12)) * 24
    torch.testing.assert_close(found, expected + fallback, atol=1e-12, rtol=1e-12)


def test_settings_of_another_loss_are_refused():
    for wrong in (
        {"loss": "margin", "mining": "hard"},
        {"loss": "n_pair", "normalize": True},
        {"loss": "triplet", "temperature": 0.1},
        {"loss": "lifted", "average": "all"},
    ):
        name = next(key for key in wrong if key != "loss")
        with pytest.raises(ValueError, match=rf"objective\.{name}=.* means nothing to objective\.loss={wrong['loss']}"):
            Siamese.Config(**wrong)
    with pytest.raises(ValueError, match="use semi_hard or all"):
        Siamese.Config(loss="nt_logistic", mining="hard")


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_has_its_own_settings(loss):
    own = Siamese(Siamese.Config(loss=loss), RESNET)
    assert {**own.settings} == {key: value for key, value in LOSSES[loss][1].items() if key != "normalize"}
    assert own.normalize == (loss != "n_pair")


def on_rank(rank, world_size):
    import torch.distributed as dist

    results = {}
    for name in VARIANTS:
        first, second = (part.detach().chunk(world_size)[rank].clone().requires_grad_() for part in rows(count=8))
        loss = loss_of(name, first, second)
        gradients = torch.autograd.grad(loss, (first, second))  # of the sum of all ranks' losses, through the gather
        loss = loss.detach()
        dist.all_reduce(loss)
        results[name] = loss / world_size, [gradient / world_size for gradient in gradients]
    return results


@pytest.fixture(scope="module")
def two_ranks():
    return on_ranks(on_rank, 2)


@pytest.mark.parametrize("name", VARIANTS)
def test_two_ranks_compute_the_loss_of_one(name, two_ranks):
    first, second = rows(count=8)
    loss = loss_of(name, first, second)
    gradients = torch.autograd.grad(loss, (first, second))
    for found, _ in (results[name] for results in two_ranks):
        torch.testing.assert_close(found, loss.detach(), atol=1e-12, rtol=1e-12)
    for view in range(2):
        together = torch.cat([results[name][1][view] for results in two_ranks])
        torch.testing.assert_close(together, gradients[view], atol=1e-12, rtol=1e-11)
