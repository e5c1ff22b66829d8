"""The contract, over the whole table."""

import copy

import pytest
import torch

from ssl_models.batch import Step
from ssl_models.collectives import synchronize_batchnorm
from ssl_models.objectives import OBJECTIVES
from tests.ranks import on_ranks
from tests.ssl_models.contract import CASES, batch, build, optimizers_of, part, step

NAMES = sorted(OBJECTIVES)


def steps(objective, optimizers, name, first, count):
    """Losses by phase of `count` training steps on batches that are a function of the step."""
    return [step(objective, objective, optimizers, batch(name, seed=n), n) for n in range(first, first + count)]


@pytest.mark.parametrize("name", NAMES)
def test_loss_at_the_start_is_near_chance(name):
    low, high = CASES[name].start
    objective = build(name)
    losses = [objective(batch(name), Step(0, 0.0, 0, phase))["loss"] for phase in objective.phases]
    assert all(loss.ndim == 0 for loss in losses)
    assert low < sum(losses).item() < high


@pytest.mark.parametrize("name", NAMES)
def test_one_batch_is_overfitted(name):
    case, objective = CASES[name], build(name).train()
    optimizers, fixed = optimizers_of(objective, case.rate), batch(name)
    if case.alone:
        optimizers = {case.alone: optimizers[case.alone]}
    losses = [sum(step(objective, objective, optimizers, fixed, 0).values()).item() for _ in range(150)]
    assert losses[-1] < case.floor < losses[case.after]


@pytest.mark.parametrize("name", NAMES)
def test_resuming_equals_never_having_stopped(name):
    straight = build(name).train()
    straight_optimizers = optimizers_of(straight)
    expected = steps(straight, straight_optimizers, name, 0, 6)
    stopped = build(name).train()
    stopped_optimizers = optimizers_of(stopped)
    before = steps(stopped, stopped_optimizers, name, 0, 3)
    resumed = build(name, seed=99).train()  # another initialisation: all must come from the state
    resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))
    resumed_optimizers = optimizers_of(resumed)
    for phase, optimizer in resumed_optimizers.items():
        optimizer.load_state_dict(copy.deepcopy(stopped_optimizers[phase].state_dict()))
    assert before + steps(resumed, resumed_optimizers, name, 3, 3) == expected  # bit for bit
    for key, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


@pytest.mark.parametrize("name", NAMES)
def test_only_the_parameters_of_a_phase_move(name):
    objective = build(name).train()
    parameters = dict(objective.named_parameters())
    for phase, optimizer in optimizers_of(objective).items():
        trainable = {key for key, _ in objective.trainable(phase)}
        before = {key: value.detach().clone() for key, value in parameters.items()}
        for number in range(2):
            loss = objective(batch(name, seed=number), Step(number, 0.5, 0, phase))["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        moved = {key for key, value in parameters.items() if not torch.equal(value, before[key])}
        assert moved <= trainable, sorted(moved - trainable)
        still = {key for key in trainable - moved if not key.startswith(CASES[name].unmoved or ("-",))}
        # ReLU before normalisation may leave a bias without gradient; everything else that is trainable must move.
        assert len(still) < 0.1 * len(trainable), sorted(still)


@pytest.mark.parametrize("name", NAMES)
def test_embedding_is_deterministic_and_leaves_no_trace(name):
    objective = build(name).eval()
    images = batch(name).views[0]
    before = copy.deepcopy(objective.state_dict())
    first, second = objective.embed(images), objective.embed(images.flip(0)).flip(0)
    assert first.ndim == 2
    assert len(first) == 16
    assert torch.allclose(first, second, atol=1e-6)  # no statistics shared between images
    assert not torch.allclose(first[0], first[1], atol=1e-3)
    assert all(torch.equal(value, before[key]) for key, value in objective.state_dict().items())


def on_rank(rank, world_size):
    """Two whole steps of every objective through real DDP on one rank of gloo, in double precision."""
    import torch.distributed as dist

    from pipeline.train.loop import parallel

    results = {}
    for name in NAMES:
        objective = synchronize_batchnorm(build(name, torch.float64), torch.device("cpu"))
        results[name] = two_steps(name, parallel(objective).train(), objective, rank, world_size)
        for losses in results[name][0]:
            for loss in losses.values():
                dist.all_reduce(loss)
                loss /= world_size
    return results


def two_steps(name, model, objective, rank=0, world_size=1):
    """Losses, gradients of the last step, and state. SGD: it shows a wrong scale of a gradient, which Adam hides."""
    optimizers = {
        phase: torch.optim.SGD([parameter for _, parameter in objective.trainable(phase)], lr=0.05)
        for phase in objective.phases
    }
    losses = [
        step(model, objective, optimizers, part(batch(name, dtype=torch.float64, seed=n), rank, world_size), n, seed=5)
        for n in (3, 4)
    ]
    gradients = {key: p.grad for key, p in objective.named_parameters() if p.grad is not None}
    return losses, gradients, objective.state_dict()


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request):
    return on_ranks(on_rank, request.param)


@pytest.mark.parametrize("name", NAMES)
def test_k_ranks_compute_what_one_does(name, ranks):
    """2 and 4 ranks, double precision: the tolerance is that of rounding. All ranks hold the same state."""
    objective = build(name, torch.float64).train()
    losses, gradients, state = two_steps(name, objective, objective)
    for their_losses, their_gradients, their_state in (results[name] for results in ranks):
        for mine, theirs in zip(losses, their_losses, strict=True):
            for phase, loss in mine.items():
                assert torch.allclose(theirs[phase], loss, atol=1e-10, rtol=0), phase
        assert their_gradients.keys() == gradients.keys()
        for key, gradient in gradients.items():
            assert torch.allclose(their_gradients[key], gradient, atol=1e-10, rtol=1e-8), key
        for key, value in state.items():
            assert torch.allclose(their_state[key].double(), value.double(), atol=1e-10, rtol=1e-8), key
