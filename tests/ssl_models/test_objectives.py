"""The contract, over the whole table."""

import copy

import pytest
import torch
import torch.multiprocessing

from ssl_models.batch import Step
from ssl_models.collectives import synchronize_batchnorm
from ssl_models.objectives import OBJECTIVES
from ssl_models.optimizers import OptimizerConfig, build_optimizer
from tests.ssl_models.contract import CASES, batch, build, part

NAMES = sorted(OBJECTIVES)


def steps(objective, optimizer, name, first, count, size=16):
    """Losses of `count` training steps on batches that are a function of the step."""
    losses = []
    for number in range(first, first + count):
        step = Step(number, 0.5, seed=0)
        loss = objective(batch(name, size, seed=number), step)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objective.after_step(step)
        losses.append(loss.item())
    return losses


def optimizer_of(objective, rate=3e-3):
    config = OptimizerConfig(name="adamw", learning_rate=rate * 16, weight_decay=0.0)  # × batch 16 / 256
    return build_optimizer(objective.trainable("main"), config, batch_size=16)


@pytest.mark.parametrize("name", NAMES)
def test_loss_at_the_start_is_near_chance(name):
    low, high = CASES[name].at_start
    loss = build(name)(batch(name), Step(0, 0.0, seed=0))["loss"]
    assert loss.ndim == 0
    assert low < loss.item() < high


@pytest.mark.parametrize("name", NAMES)
def test_one_batch_is_overfitted(name):
    objective = build(name).train()
    optimizer = optimizer_of(objective, 1e-2)
    fixed, step = batch(name), Step(0, 0.5, seed=0)
    losses = []
    for _ in range(150):
        loss = objective(fixed, step)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objective.after_step(step)
        losses.append(loss.item())
    # SimCLR at τ = ½ cannot fall below ln(1 + 30 · exp(−2 − 2/15)) = 1.52; MAE meets noise, which only memory predicts.
    floor = {"simclr": 1.75, "mae": 0.7, "clip": 0.3}[name]
    assert losses[-1] < floor < losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_resuming_equals_never_having_stopped(name):
    straight = build(name).train()
    straight_optimizer = optimizer_of(straight)
    expected = steps(straight, straight_optimizer, name, 0, 6)
    stopped = build(name).train()
    stopped_optimizer = optimizer_of(stopped)
    before = steps(stopped, stopped_optimizer, name, 0, 3)
    resumed = build(name, seed=99).train()  # another initialisation: all must come from the state
    resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))
    resumed_optimizer = optimizer_of(resumed)
    resumed_optimizer.load_state_dict(copy.deepcopy(stopped_optimizer.state_dict()))
    assert before + steps(resumed, resumed_optimizer, name, 3, 3) == expected  # bit for bit


@pytest.mark.parametrize("name", NAMES)
def test_only_the_parameters_of_a_phase_move(name):
    objective = build(name).train()
    trainable = {key for phase in objective.phases for key, _ in objective.trainable(phase)}
    before = {key: value.clone() for key, value in objective.named_parameters()}
    steps(objective, optimizer_of(objective), name, 0, 2)
    moved = {key for key, value in objective.named_parameters() if not torch.equal(value, before[key])}
    assert moved <= trainable
    # ReLU before normalisation may leave a bias without gradient; everything else that is trainable must move.
    assert len(moved) > 0.9 * len(trainable), sorted(trainable - moved)


@pytest.mark.parametrize("name", NAMES)
def test_embedding_is_deterministic_and_leaves_no_trace(name):
    objective = build(name).eval()
    images = batch(name).views[0]
    before = copy.deepcopy(objective.state_dict())
    first, second = objective.embed(images), objective.embed(images.flip(0)).flip(0)
    assert first.shape == (16, objective.encoder.dim)
    assert torch.allclose(first, second, atol=1e-6)  # no statistics shared between images
    assert all(torch.equal(value, before[key]) for key, value in objective.state_dict().items())


def on_rank(rank, world_size, port, folder):
    """Loss, averaged gradients and buffers of every objective through real DDP on one rank of gloo."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    results = {}
    for name in NAMES:
        objective = synchronize_batchnorm(build(name, torch.float64), torch.device("cpu"))
        model = DistributedDataParallel(objective).train()
        values = model(part(batch(name, dtype=torch.float64), rank, world_size), Step(3, 0.5, seed=5))
        values["loss"].backward()
        loss = values["loss"].detach().clone()
        dist.all_reduce(loss)
        results[name] = (
            loss / world_size,
            {key: p.grad for key, p in objective.named_parameters() if p.grad is not None},
            dict(objective.named_buffers()),
        )
    if rank == world_size - 1:
        torch.save(results, folder / f"{world_size}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request, tmp_path_factory):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(on_rank, (request.param, port, folder), nprocs=request.param)
    return torch.load(folder / f"{request.param}.pt", weights_only=True)


@pytest.mark.parametrize("name", NAMES)
def test_k_ranks_compute_what_one_does(name, ranks):
    """2 and 4 ranks, double precision: the tolerance is that of rounding."""
    objective = build(name, torch.float64).train()
    loss = objective(batch(name, dtype=torch.float64), Step(3, 0.5, seed=5))["loss"]
    loss.backward()
    their_loss, gradients, buffers = ranks[name]
    assert torch.allclose(their_loss, loss.detach(), atol=1e-10, rtol=0)
    own = {key: p.grad for key, p in objective.named_parameters() if p.grad is not None}
    assert gradients.keys() == own.keys()
    for key, gradient in own.items():
        assert torch.allclose(gradients[key], gradient, atol=1e-10, rtol=1e-8), key
    for key, buffer in objective.named_buffers():
        assert torch.allclose(buffers[key].double(), buffer.double(), atol=1e-10, rtol=1e-8), key
