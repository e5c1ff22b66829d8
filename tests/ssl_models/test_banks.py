"""The bank's losses against slow loops and lightly, its rows, and what k ranks make of both."""

import math

import pytest
import torch
from torch.nn import functional as F

from ssl_models.batch import Batch, Step
from ssl_models.collectives import synchronize_batchnorm
from ssl_models.encoders import EncoderConfig
from ssl_models.objectives import build_objective
from ssl_models.objectives.banks import (
    MAX_CLASSES,
    PIRL,
    Bank,
    BankConfig,
    Exemplar,
    InstDisc,
    cut_tiles,
    nce_loss,
    softmax_loss,
    without_tracking,
)
from tests.ranks import on_ranks
from tests.ssl_models.cases.case import RESNET, VIT
from tests.ssl_models.contract import optimizers_of, part, step

COUNT, DIM = 40, 6
STEP = Step(3, 0.5, 7)


def bank(**settings) -> Bank:
    torch.manual_seed(0)
    memory = Bank(BankConfig(num_samples=COUNT, temperature=0.3, **settings), DIM).double()
    memory.rows = F.normalize(memory.rows)  # to double precision
    return memory


def features(*ids: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.randn(len(ids), DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return F.normalize(rows).requires_grad_(), torch.tensor(ids)


def same(fast, slow, leaf):
    torch.testing.assert_close(fast, slow, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(*(torch.autograd.grad(loss, leaf)[0] for loss in (fast, slow)), atol=1e-12, rtol=1e-11)


def test_the_softmax_is_the_papers():
    """Equation 2 of arXiv 1805.01978: P(i|v) = exp(v_i·f/τ) / Σ_j exp(v_j·f/τ)."""
    memory, (rows, ids) = bank(), features(3, 8, 3, 39)
    losses = []
    for row, own in zip(rows, ids, strict=True):
        every = [torch.exp(row @ other / 0.3) for other in memory.rows]
        losses.append(-torch.log(every[own] / sum(every)))
    same(memory(rows, ids, STEP)[0].sum(), torch.stack(losses).sum(), rows)


def test_the_sampled_softmax_is_lightlys_with_the_drawn_rows_as_its_memory():
    from lightly.loss import NTXentLoss

    memory, (rows, ids) = bank(loss="sampled_softmax", negatives=9), features(3, 8, 11)
    drawn = memory._drawn(STEP, ids)
    assert len(drawn) == 9
    assert not set(drawn.tolist()) & set(ids.tolist())  # else theirs has a false negative, which ours leaves out
    theirs = NTXentLoss(temperature=0.3, memory_bank_size=(9, DIM))
    theirs.memory_bank.bank = memory.rows[drawn].clone()
    theirs.memory_bank.bank_ptr = torch.zeros(1, dtype=torch.long)
    ours = memory(F.normalize(rows), ids, STEP)[0].mean()  # they normalise, too: the gradient is along the sphere
    same(ours, theirs(rows, memory.rows[ids]), rows)


def test_an_own_row_among_the_drawn_ones_is_no_negative():
    memory, (rows, _) = bank(loss="sampled_softmax", negatives=9), features(0, 0)
    drawn = memory._drawn(STEP, torch.tensor([0]))
    ids = drawn[:2]
    others = [[other for other in drawn.tolist() if other != own] for own in ids.tolist()]
    assert any(len(some) < 9 for some in others)
    slow = [
        softmax_loss((row @ memory.rows[own] / 0.3)[None], (row @ memory.rows[some].T / 0.3)[None])
        for row, own, some in zip(rows, ids, others, strict=True)
    ]
    same(memory(rows, ids, STEP)[0].sum(), torch.cat(slow).sum(), rows)


def test_nce_is_the_papers():
    """Equations 5 to 8 of arXiv 1805.01978, M uniform noise rows out of n: Z from the first batch, then a constant."""
    memory, (rows, ids) = bank(loss="nce", negatives=9), features(3, 8, 11)

    def slow(z):
        terms = []
        for row, own in zip(rows, ids, strict=True):

            def h(j, row=row):
                p = torch.exp(row @ memory.rows[j] / 0.3) / z
                return p / (p + 9 / COUNT)

            terms.append(-torch.log(h(own)) - sum(torch.log(1 - h(j)) for j in memory._drawn(STEP, ids)))
        return torch.stack(terms).sum()

    drawn = memory.rows[memory._drawn(STEP, ids)]
    z = (COUNT * torch.exp(rows @ drawn.T / 0.3).mean()).detach()
    same(memory(rows, ids, STEP)[0].sum(), slow(z), rows)
    memory.update(rows.detach(), ids)
    assert memory.log_z.item() == pytest.approx(z.log().item())
    state = memory.state_dict()
    resumed = bank(loss="nce", negatives=9)
    resumed.load_state_dict(state)
    later = resumed(rows, ids, STEP)[0].sum()
    same(later, slow(z), rows)  # though another Z would be estimated of the new rows


def test_losses_when_nothing_is_learned():
    """All rows alike: ln(M + 1); of NCE at the right Z, where P = 1/n: −log(1/(1 + M)) − M log(M/(M + 1))."""
    own, others = torch.full((3,), 2.0), torch.full((3, 9), 2.0)
    assert torch.allclose(softmax_loss(own, others), torch.tensor(math.log(10)))
    at_chance = nce_loss(own, others, torch.tensor(2.0 + math.log(COUNT)), COUNT)
    assert torch.allclose(at_chance, torch.tensor(math.log(10) + 9 * math.log(10 / 9)))


def test_a_row_moves_halfway_and_other_rows_stay():
    memory, (rows, ids) = bank(momentum=0.5), features(3, 8)
    before = memory.rows.clone()
    memory.update(rows.detach(), ids)
    for row, own in zip(rows, ids, strict=True):
        moved = 0.5 * before[own] + 0.5 * row
        torch.testing.assert_close(memory.rows[own], (moved / moved.norm()).detach(), atol=1e-15, rtol=1e-12)
    others = [number for number in range(COUNT) if number not in (3, 8)]
    assert torch.equal(memory.rows[others], before[others])


def test_an_image_twice_in_the_batch_gives_its_mean():
    ids = (3, 8, 3, 3)
    rows = features(*ids)[0].detach()
    states = []
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        memory = bank(momentum=0.5)
        before = memory.rows[3].clone()
        memory.update(rows[order], torch.tensor(ids)[order])
        states.append(memory.rows)
    torch.testing.assert_close(*states, atol=1e-15, rtol=1e-14)
    expected = F.normalize(0.5 * before + 0.5 * rows[[0, 2, 3]].mean(0), dim=0)
    torch.testing.assert_close(states[0][3], expected, atol=1e-15, rtol=1e-12)


def test_negatives_are_a_function_of_seed_and_step_alone():
    memory = bank(loss="sampled_softmax", negatives=30)
    drawn = memory._drawn(STEP, torch.tensor([1, 2]))
    assert torch.equal(drawn, memory._drawn(STEP, torch.tensor([9])))
    assert not torch.equal(drawn, memory._drawn(Step(4, 0.5, 7), torch.tensor([1, 2])))
    assert not torch.equal(drawn, memory._drawn(Step(3, 0.5, 8), torch.tensor([1, 2])))
    assert 0 <= drawn.min() <= drawn.max() < COUNT


def test_more_negatives_than_images_are_refused():
    with pytest.raises(ValueError, match=r"negatives=4096 of 40 images: use objective\.loss=softmax"):
        InstDisc(InstDisc.Config(loss="nce", num_samples=40), RESNET)


def test_tiles_are_cut_where_their_offsets_say():
    images = torch.arange(6 * 3 * 14 * 17, dtype=torch.float32).view(6, 3, 14, 17)  # cells of 4 × 5, margins of 1
    offsets = torch.rand(6, 9, 2, generator=torch.Generator().manual_seed(0))
    tiles = cut_tiles(images, 3, offsets)
    assert tiles.shape == (6, 9, 3, 3, 3)
    seen = set()
    for sample in range(6):
        for cell in range(9):
            down, right = int(offsets[sample, cell, 0] * 2), int(offsets[sample, cell, 1] * 3)
            top, left = 1 + cell // 3 * 4 + down, 1 + cell % 3 * 5 + right
            assert torch.equal(tiles[sample, cell], images[sample, :, top : top + 3, left : left + 3])
            seen.add((down, right))
    assert seen == {(down, right) for down in range(2) for right in range(3)}  # tiles reach both ends of their cells


def pirl_step(jigsaw_weight: float):
    torch.manual_seed(0)
    objective = PIRL(PIRL.Config(num_samples=COUNT, dim=DIM, jigsaw_weight=jigsaw_weight), RESNET).train()
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return objective, Batch((images, images.flip(3)), torch.tensor([1, 5, 9, 30]))


def test_pirl_weighs_its_two_branches_and_only_the_image_moves_the_row():
    for weight in (0.0, 0.3, 1.0):
        objective, batch = pirl_step(weight)
        before = objective.bank.rows.clone()
        image = F.normalize(objective.project_image(objective.encoder(batch.views[0]))).detach()
        values = objective(batch, STEP)
        expected = weight * values["loss_jigsaw"] + (1 - weight) * values["loss_image"]
        torch.testing.assert_close(values["loss"].detach(), expected)
        objective.after_step(STEP)
        torch.testing.assert_close(objective.bank.rows[batch.ids], F.normalize(0.5 * before[batch.ids] + 0.5 * image))


def test_the_jigsaw_has_no_order():
    """Each of the nine places of the concatenation is taken by each tile, equally often."""
    objective, _ = pirl_step(0.5)
    objective.encoder = torch.nn.Flatten()  # a tile is its own embedding
    side = objective.tile
    objective.project_tile = torch.nn.Identity()
    objective.project_jigsaw = torch.nn.Identity()
    cells = torch.arange(9.0).view(3, 3).repeat_interleave(5, 0).repeat_interleave(5, 1)  # each pixel names its cell
    images = cells.expand(900, 3, 15, 15)
    places = objective._jigsaw(images, torch.arange(900), STEP).view(900, 9, 3 * side**2)[:, :, 0].long()
    assert torch.equal(places.sort(1).values, torch.arange(9).expand(900, 9))
    counts = torch.stack([(places == tile).sum(0) for tile in range(9)])  # (tile, place), 100 expected, σ = 9.4
    assert (counts - 100).abs().max() < 40


def test_tiles_leave_the_running_statistics():
    objective, batch = pirl_step(0.5)
    momenta = [module.momentum for module in objective.encoder.modules() if hasattr(module, "running_mean")]
    before = objective.encoder.model.bn1.running_mean.clone()
    with without_tracking(objective.encoder):
        tiles = objective.encoder(batch.views[1][:, :, :8, :8])
    assert torch.equal(objective.encoder.model.bn1.running_mean, before)
    assert momenta == [module.momentum for module in objective.encoder.modules() if hasattr(module, "running_mean")]
    torch.testing.assert_close(objective.encoder(batch.views[1][:, :, :8, :8]), tiles)  # the same output
    assert not torch.equal(objective.encoder.model.bn1.running_mean, before)


def test_pirl_takes_a_vit_of_any_size_and_refuses_others():
    config = PIRL.Config(num_samples=COUNT)
    with pytest.raises(ValueError, match=r"cannot see tiles of 4 pixels.*dynamic_img_size"):
        PIRL(config, VIT.model_copy(update={"image_size": 20}))
    dynamic = VIT.model_copy(update={"image_size": 20, "arguments": VIT.arguments | {"dynamic_img_size": True}})
    assert PIRL(config, dynamic).tile == 4
    with pytest.raises(ValueError, match="cannot see tiles of 0 pixels"):
        PIRL(config, dynamic.model_copy(update={"image_size": 8}))
    with pytest.raises(ValueError, match="cannot see tiles of 8 pixels"):
        PIRL(config, EncoderConfig(name="convnext_atto", image_size=32))


def test_exemplar_is_a_softmax_over_images_and_refuses_too_many():
    torch.manual_seed(0)
    objective = Exemplar(Exemplar.Config(num_samples=COUNT), RESNET).double().eval()
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    ids = torch.tensor([4, 0, 39])
    logits = objective.encoder(images) @ objective.classify.weight.T + objective.classify.bias
    expected = -torch.stack([torch.log_softmax(row, 0)[own] for row, own in zip(logits, ids, strict=True)]).mean()
    torch.testing.assert_close(objective(Batch((images,), ids), STEP)["loss"], expected, atol=1e-12, rtol=1e-12)
    with pytest.raises(ValueError, match=r"too many classes; use objective\.name=siamese"):
        Exemplar(Exemplar.Config(num_samples=MAX_CLASSES + 1), RESNET)


RANK_CASES = {
    "instdisc, softmax": InstDisc.Config(num_samples=COUNT, projector_dims=(8,)),
    "instdisc, sampled": InstDisc.Config(
        num_samples=COUNT, projector_dims=(8, 8), loss="sampled_softmax", negatives=20
    ),
    "instdisc, nce": InstDisc.Config(num_samples=COUNT, projector_dims=(8,), loss="nce", negatives=20),
    "pirl, nce": PIRL.Config(num_samples=COUNT, dim=8, loss="nce", negatives=20),
}


def two_steps(name, rank=0, world_size=1):
    """Losses, gradients and state, in double precision, of batches in which three images are there several times."""
    from pipeline.train.loop import parallel

    torch.manual_seed(0)
    objective = build_objective(RANK_CASES[name], RESNET).double().train()
    model = objective
    if world_size > 1:
        synchronize_batchnorm(objective, torch.device("cpu"))
        model = parallel(objective)
    optimizers = {
        phase: torch.optim.SGD(optimizer.param_groups[0]["params"], lr=0.05)
        for phase, optimizer in optimizers_of(objective).items()
    }
    losses = []
    for number in (3, 4):
        generator = torch.Generator().manual_seed(number)
        views = tuple(torch.randn(8, 3, 16, 16, generator=generator, dtype=torch.float64) for _ in range(2))
        whole = Batch(views, torch.tensor([5, 1, 5, 9, 30, 5, 1, 9]))
        losses.append(step(model, objective, optimizers, part(whole, rank, world_size), number, seed=5)["main"])
    gradients = {key: p.grad for key, p in objective.named_parameters() if p.grad is not None}
    return torch.stack(losses), gradients, objective.state_dict()


def on_rank(rank, world_size):
    import torch.distributed as dist

    results = {}
    for name in RANK_CASES:
        results[name] = two_steps(name, rank, world_size)
        dist.all_reduce(results[name][0])
    return results


@pytest.fixture(scope="module")
def two_ranks():
    return on_ranks(on_rank, 2)


@pytest.mark.parametrize("name", RANK_CASES)
def test_two_ranks_keep_the_bank_of_one(name, two_ranks):
    losses, gradients, state = two_steps(name)
    for found, found_gradients, found_state in (results[name] for results in two_ranks):
        torch.testing.assert_close(found / 2, losses, atol=1e-10, rtol=0)
        torch.testing.assert_close(found_gradients, gradients, atol=1e-10, rtol=1e-8)
        torch.testing.assert_close(found_state, state, atol=1e-10, rtol=1e-8)
    assert torch.equal(two_ranks[0][name][2]["bank.rows"], two_ranks[1][name][2]["bank.rows"])
