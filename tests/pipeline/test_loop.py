"""The loop: resume equals never having stopped, from the stream's first byte to the last checkpoint; no Ray."""

import time

import pytest
import torch

from pipeline.ingest.store import Store
from pipeline.stream.batches import to_batch
from pipeline.train.checkpoints import newest_checkpoint, save_checkpoint
from pipeline.train.loop import TrainState, _seed, train
from pipeline.train.meter import NotFinite
from pipeline.train.record import fingerprint
from pipeline.train.worker import fresh_state, open_batches, open_stream
from ssl_models.batch import Step

CPU = torch.device("cpu")


def run(experiment, state: TrainState, stop: int, rows=None, ids=None, **hooks):
    """Trains to `stop`, noting losses and sample ids by step."""
    stream = open_batches(experiment)
    views = experiment.device_views()

    def prepare(columns):
        if ids is not None:
            ids.append(columns["number"].tolist())
        return to_batch(columns, views, CPU)

    train(
        state,
        stream.local(state.step, stop),
        training=experiment.training,
        optimizer=experiment.optimizer,
        batch_size=experiment.data.batch_size,
        total_steps=experiment.total_steps,
        prepare=prepare,
        **{
            "account": lambda columns: (fingerprint(columns["number"], columns["visit"]), 0),
            "on_log": lambda row: rows.append((row.step, row.metrics["loss"])) if rows is not None else None,
            **hooks,
        },
    )


@pytest.mark.parametrize("stop", [4, 7])  # 7 batches are an epoch
def test_resume_equals_never_having_stopped(small_experiment, tmp_path, stop):
    expected_rows, expected_ids, rows, ids = [], [], [], []
    straight = fresh_state(small_experiment, CPU)
    run(small_experiment, straight, small_experiment.total_steps, expected_rows, expected_ids)

    state = fresh_state(small_experiment, CPU)
    run(small_experiment, state, stop, rows, ids)
    save_checkpoint(tmp_path, state, keep=2)
    resumed = fresh_state(
        small_experiment.override({"training.seed": 7}), CPU
    )  # another start: all is in the checkpoint
    newest_checkpoint(tmp_path).restore(resumed)
    assert resumed.step == stop
    run(small_experiment, resumed, small_experiment.total_steps, rows, ids)

    assert ids == expected_ids
    assert rows == expected_rows  # bit for bit
    for key, value in straight.objective.state_dict().items():
        assert torch.equal(resumed.objective.state_dict()[key], value), key


def test_resume_is_exact_where_an_encoder_drops_paths(small_experiment, tmp_path):
    """Stochastic depth draws from torch's generator, whose state is in no checkpoint: it is a function of the step."""
    arguments = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16], "drop_path_rate": 0.5}
    dropping = small_experiment.override({"encoder.arguments": arguments})
    expected, rows, plain = [], [], []
    run(dropping, fresh_state(dropping, CPU), 6, expected)
    run(small_experiment, fresh_state(small_experiment, CPU), 6, plain)
    assert [loss for _, loss in plain] != [loss for _, loss in expected]
    state = fresh_state(dropping, CPU)
    run(dropping, state, 3, rows)
    save_checkpoint(tmp_path, state, keep=2)
    torch.rand(17)  # another process has drawn something else
    resumed = fresh_state(dropping, CPU)
    newest_checkpoint(tmp_path).restore(resumed)
    run(dropping, resumed, 6, rows)
    assert rows == expected  # bit for bit


def test_ranks_drop_different_paths(monkeypatch):
    def drawn(rank, step):
        monkeypatch.setattr("pipeline.train.loop.rank", lambda: rank)
        _seed(0, step)
        return torch.rand(4).tolist()

    assert drawn(0, 3) == drawn(0, 3)
    assert len({tuple(drawn(rank, step)) for rank in (0, 1) for step in (3, 4)}) == 4


def test_layer_decay_reaches_the_encoder_of_a_run_and_leaves_heads_alone(small_experiment):
    decayed = small_experiment.override({"optimizer.layer_decay": 0.5})
    decayed.check_model()
    state = fresh_state(decayed, CPU)
    names = {id(parameter): name for name, parameter in state.objective.named_parameters()}
    scales = {
        names[id(parameter)]: group["rate_scale"]
        for group in state.optimizers["main"].param_groups
        for parameter in group["params"]
    }
    assert scales.keys() == set(names.values())
    assert scales["encoder.model.conv1.weight"] == 0.5**5  # before four blocks, before the head
    assert scales["encoder.model.layer4.0.bn1.weight"] == 0.5
    assert {scale for name, scale in scales.items() if not name.startswith("encoder.")} == {1.0}


def test_training_learns(small_experiment):
    """From 12 steps to 60: the loss falls well below its start."""
    experiment = small_experiment.override({"training.images_seen": 32 * 60})
    rows = []
    run(experiment, fresh_state(experiment, CPU), experiment.total_steps, rows)
    losses = [loss for _, loss in rows]
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 0.3


def test_checkpoints_come_when_due_and_at_the_end(small_experiment, tmp_path):
    state = fresh_state(small_experiment, CPU)
    run(small_experiment, state, 12, on_checkpoint=lambda state, row: save_checkpoint(tmp_path, state, keep=2))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step_000000008", "step_000000012"]


def poisoned(at: int, experiment):
    """Batches of which one brings a loss that is not finite."""
    for number, columns in enumerate(open_stream(experiment, Store(experiment.data.store)).local(0, 12)):
        batch = to_batch(columns, experiment.device_views(), CPU)
        if number == at:
            batch.views[0][3] = float("nan")
        yield batch


def train_on(batches, experiment, state, **more):
    train(
        state, batches, training=experiment.training, optimizer=experiment.optimizer, batch_size=32, total_steps=12,
        **more,
    )  # fmt: skip


def test_a_value_that_is_not_finite_names_its_step_and_samples(small_experiment):
    """Also where rows are rarer than steps: the step is the first bad one, not the one of the row."""
    experiment = small_experiment.override({"training.log_every": 10, "training.checkpoint_every": 10})
    ids = open_stream(experiment, Store(experiment.data.store)).local(6, 7).__next__()["number"]
    saved = []
    with pytest.raises(NotFinite, match=r"step 7: loss is nan.* at learning rate .*; samples \d+.*32 in all") as caught:
        train_on(poisoned(6, experiment), experiment, fresh_state(experiment, CPU), on_checkpoint=saved.append)
    assert caught.value.step == 7
    assert caught.value.ids == ids.tolist()
    assert not saved


def test_weights_that_a_finite_loss_has_poisoned_are_not_saved(small_experiment):
    state, saved = fresh_state(small_experiment, CPU), []

    def poison(step):
        if step == 4:  # after its step, before its checkpoint
            with torch.no_grad():
                next(state.objective.projector.parameters())[0, 0] = float("inf")

    with pytest.raises(NotFinite, match="step 4: the weights is nan"):
        run(small_experiment, state, 12, on_step=poison, on_checkpoint=lambda state, row: saved.append(state.step))
    assert saved == []


def test_a_request_to_leave_is_met_with_a_checkpoint_at_once(small_experiment):
    state, saved, asked = fresh_state(small_experiment, CPU), [], []

    def must_leave():
        asked.append(state.step)
        return state.step == 3

    run(small_experiment, state, 12, must_leave=must_leave, on_checkpoint=lambda state, row: saved.append(row.step))
    assert asked == [1, 2, 3]
    assert saved == [3]
    assert state.step == 3


def test_rows_carry_what_goodput_and_comparisons_need(small_experiment):
    rows = []
    begun = time.time()
    run(small_experiment, fresh_state(small_experiment, CPU), 12, on_log=rows.append)
    assert [row.step for row in rows] == list(range(1, 13))
    for before, row in zip([None, *rows], rows, strict=False):
        assert (before.ended if before else begun) - 1e-3 <= row.began <= row.ended
        assert 0 <= row.data_wait_seconds <= row.ended - row.began + 1e-3
    stream = open_stream(small_experiment, Store(small_experiment.data.store))
    expected = [fingerprint(columns["number"], columns["visit"]) for columns in stream.local(0, 12)]
    assert [row.samples for row in rows] == expected


def test_mask_and_views_of_a_step_survive_a_restart(small_experiment):
    """What is drawn in step 5 depends on nothing that a restart could lose."""
    from tests.ssl_models.contract import batch, build

    objective = build("mae")
    whole = batch("mae")
    first = objective.predict(whole.views[0], whole.ids, Step(5, 0.1, seed=3))[1]
    torch.rand(100)  # the global generator has moved
    assert torch.equal(first, objective.predict(whole.views[0], whole.ids, Step(5, 0.1, seed=3))[1])
    assert not torch.equal(first, objective.predict(whole.views[0], whole.ids, Step(6, 0.1, seed=3))[1])
