"""Gradient caching gives the gradients of the plain step, with the encoder seeing a few images at a time."""

from contextlib import nullcontext

import pytest
import torch

from jobs.recipes import RECIPES
from pipeline.train import cached
from pipeline.train.cached import cached_backward
from pipeline.train.worker import fresh_state
from ssl_models.batch import Step
from ssl_models.objectives import build_objective
from ssl_models.objectives.contrastive import SimCLR
from ssl_models.objectives.image_text import CLIP, SigLIP
from tests.pipeline.test_loop import run
from tests.ranks import on_ranks
from tests.ssl_models.cases.case import TEXT, VIT
from tests.ssl_models.contract import batch, part

STEP = Step(3, 0.5, seed=5)
CONFIGS = {
    "simclr": SimCLR.Config(projector_dims=(16, 8), projector_norm="layer", chunk=5),
    "clip": CLIP.Config(text=TEXT, dim=8),
    "siglip": SigLIP.Config(text=TEXT, dim=8, chunk=3),
}
DROPS = VIT.model_copy(update={"arguments": VIT.arguments | {"drop_path_rate": 0.5, "proj_drop_rate": 0.3}})


def built(name, encoder=VIT, dtype=torch.float64):
    torch.manual_seed(0)
    return build_objective(CONFIGS[name], encoder).to(dtype).train()


def gradients(objective):
    return {name: parameter.grad for name, parameter in objective.named_parameters()}


def step_in_parts(objective, whole, size, precision=nullcontext):
    values = cached_backward(objective, whole, STEP, size, list(objective.parameters()), precision)
    return values["loss"], gradients(objective)


def same(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        assert gradient is not None, key
        assert torch.allclose(found[key], gradient, **tolerance), key


@pytest.mark.parametrize("size", [1, 5, 16, 100])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_gradients_are_those_of_the_plain_step(name, size):
    plain, parts, whole = built(name), built(name), batch(name, dtype=torch.float64)
    loss = plain(whole, STEP)["loss"]
    loss.backward()
    for parameter in parts.parameters():
        parameter.grad = torch.ones_like(parameter)  # of the step before; is to be forgotten
    found, theirs = step_in_parts(parts, whole, size)
    assert torch.allclose(found, loss, atol=1e-12)
    same(theirs, gradients(plain), atol=1e-12, rtol=0)


def test_the_encoder_sees_a_part_at_a_time():
    objective, seen = built("clip"), []
    objective.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    step_in_parts(objective, batch("clip", dtype=torch.float64), 6)
    assert seen == [6, 6, 4] * 2


def test_dropout_is_replayed(monkeypatch):
    """Against the parts encoded with gradient, one after the other, from the same random state."""
    plain, parts, whole = built("clip", DROPS), built("clip", DROPS), batch("clip", dtype=torch.float64)
    torch.manual_seed(1)
    encoded = [plain.encode(some, STEP) for some in whole.split(6)]
    after = torch.get_rng_state()
    joined = {name: torch.cat([some[name] for some in encoded]) for name in encoded[0]}
    plain.loss(joined, STEP)["loss"].backward()
    torch.manual_seed(1)
    same(step_in_parts(parts, whole, 6)[1], gradients(plain), atol=1e-12, rtol=0)
    assert torch.equal(torch.get_rng_state(), after)  # goes on as if there had been one pass
    monkeypatch.setattr(cached, "_set_random_state", lambda device, state: None)
    torch.manual_seed(1)
    forgot = step_in_parts(parts, whole, 6)[1]
    assert not torch.allclose(forgot["projection.weight"], plain.projection.weight.grad, atol=1e-4)


def test_half_precision_has_the_gradients_of_its_plain_step():
    """The weights that autocast has cast without gradient are not used again."""

    def half():
        return torch.autocast("cpu", torch.bfloat16)

    plain, parts, whole = built("clip", dtype=torch.float32), built("clip", dtype=torch.float32), batch("clip")
    with half():
        loss = plain(whole, STEP)["loss"]
    loss.backward()
    same(step_in_parts(parts, whole, 5, half)[1], gradients(plain), atol=2e-2, rtol=0.05)


def on_rank(rank, world_size):
    import torch.distributed as dist

    found = {}
    for name in CONFIGS:
        whole = part(batch(name, dtype=torch.float64), rank, world_size)
        loss, theirs = step_in_parts(built(name), whole, 3)
        dist.all_reduce(loss := loss.detach())
        found[name] = loss / world_size, theirs
    return found


@pytest.fixture(scope="module")
def ranks():
    return on_ranks(on_rank, 2)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_two_ranks_compute_what_one_plain_step_does(name, ranks):
    """All parameters: encoders, and the loss's scale and bias."""
    plain = built(name)
    loss = plain(batch(name, dtype=torch.float64), STEP)["loss"]
    loss.backward()
    for their_loss, theirs in (found[name] for found in ranks):
        assert torch.allclose(their_loss, loss, atol=1e-12)
        same(theirs, gradients(plain), atol=1e-12, rtol=0)


def test_the_loop_trains_alike_in_parts(small_experiment):
    changes = {"encoder." + key: value for key, value in VIT.model_dump(mode="json").items()}
    experiment = small_experiment.override(changes | {"objective.projector_norm": "layer"})
    losses = {}
    for size in (None, 5):
        rows: list[tuple[int, float]] = []
        chosen = experiment.override({"training.micro_batch": size})
        chosen.check_model()
        run(chosen, fresh_state(chosen, torch.device("cpu")), 6, rows)
        losses[size] = [loss for _, loss in rows]
    assert losses[5] == pytest.approx(losses[None], abs=1e-4)
    assert losses[None][-1] != losses[None][0]


def test_what_cannot_be_encoded_in_parts_is_refused():
    with pytest.raises(ValueError, match=r"'mae' cannot encode a batch in parts; those that can: simclr, .*=null"):
        RECIPES["mae_64px"]().override({"training.micro_batch": 32})


def test_batchnorm_is_refused():
    with pytest.raises(ValueError, match=r"encoder.model.bn1 \(\d+ in all\) is a BatchNorm.*projector_norm=layer"):
        RECIPES["simclr_32px"]().override({"training.micro_batch": 32}).check_model()
