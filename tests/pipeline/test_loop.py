"""The loop: resume equals never having stopped, from the stream's first byte to the last checkpoint; no Ray."""

import json

import pytest
import torch

from pipeline.ingest.store import Store
from pipeline.stream.batches import to_batch
from pipeline.stream.views import DeviceViews
from pipeline.train.checkpoints import MARKER, newest_checkpoint, save_checkpoint
from pipeline.train.loop import TrainState, train
from pipeline.train.metrics import MetricsWriter, follow_metrics, read_metrics
from pipeline.train.worker import fresh_state, open_stream
from ssl_models.batch import Step

CPU = torch.device("cpu")


def run(experiment, state: TrainState, stop: int, rows=None, ids=None, on_checkpoint=lambda state: None):
    """Trains to `stop`, noting losses and sample ids by step."""
    stream = open_stream(experiment, Store(experiment.data.store))
    views = DeviceViews(experiment.views, experiment.training.seed)

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
        on_log=lambda row: rows.append((row.step, row.metrics["loss"])) if rows is not None else None,
        on_checkpoint=on_checkpoint,
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


def test_training_learns(small_experiment):
    """From 12 steps to 60: the loss falls well below its start."""
    experiment = small_experiment.override({"training.images_seen": 32 * 60})
    rows = []
    run(experiment, fresh_state(experiment, CPU), experiment.total_steps, rows)
    losses = [loss for _, loss in rows]
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 0.3


def test_checkpoints_come_when_due_and_at_the_end(small_experiment, tmp_path):
    state = fresh_state(small_experiment, CPU)
    run(small_experiment, state, 12, on_checkpoint=lambda state: save_checkpoint(tmp_path, state, keep=2))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step_000000008", "step_000000012"]


@pytest.mark.parametrize("damage", ["truncate", "empty", "flip", "delete", "no marker"])
def test_a_damaged_checkpoint_is_passed_over(small_experiment, tmp_path, damage, capsys):
    state = fresh_state(small_experiment, CPU)
    for state.step in (4, 8):
        save_checkpoint(tmp_path, state, keep=2)
    victim = tmp_path / "step_000000008" / "objective.safetensors"
    whole = victim.read_bytes()
    match damage:
        case "truncate":
            victim.write_bytes(whole[:-10])
        case "empty":
            victim.write_bytes(b"")
        case "flip":
            victim.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        case "delete":
            victim.unlink()
        case "no marker":
            (victim.parent / MARKER).unlink()
    assert newest_checkpoint(tmp_path).step == 4
    assert "step_000000008 is damaged" in capsys.readouterr().out


def test_a_half_written_checkpoint_is_never_seen(small_experiment, tmp_path, monkeypatch):
    state = fresh_state(small_experiment, CPU)

    def crash(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr("pipeline.train.checkpoints.torch.save", crash)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(tmp_path, state, keep=2)
    assert newest_checkpoint(tmp_path) is None


def test_a_checkpoint_of_another_encoder_is_refused(small_experiment, tmp_path):
    save_checkpoint(tmp_path, fresh_state(small_experiment, CPU), keep=1)
    other = small_experiment.override({"encoder.arguments.channels": [8, 8, 16, 24]})
    with pytest.raises(ValueError, match="another objective or encoder"):
        newest_checkpoint(tmp_path).restore(fresh_state(other, CPU))


def test_a_value_that_is_not_finite_stops_the_run(small_experiment):
    state = fresh_state(small_experiment, CPU)
    with torch.no_grad():
        next(state.objective.projector.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"step 1: \{'loss': nan.*learning rate.*last samples"):
        run(small_experiment, state, 12)


def test_metrics_of_redone_steps_are_dropped(tmp_path):
    from pipeline.train.loop import LogRow

    def row(step, loss):
        return LogRow(step, step * 32, 0.1, 100.0, 0.0, 1.0, {"loss": loss})

    writer = MetricsWriter(tmp_path, restored_step=0)
    for step in (1, 2, 3):
        writer.write(row(step, 1.0))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # the process died here
    writer = MetricsWriter(tmp_path, restored_step=2)
    writer.write(row(3, 2.0))
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path)] == [(1, 1.0), (2, 1.0), (3, 2.0)]
    assert all(json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())


def test_a_follower_sees_each_row_once_and_survives_a_restart(tmp_path):
    path = tmp_path / "metrics.jsonl"
    new_rows = follow_metrics(tmp_path)
    seen = [next(new_rows)]
    for text in ('{"step": 1}\n{"step": 2}\n{"st', 'ep": 3}\n', ""):
        with path.open("a") as file:
            file.write(text)
        seen.append(next(new_rows))
    path.write_text('{"step": 1}\n')  # resumed after step 1
    seen.append(next(new_rows))
    with path.open("a") as file:
        file.write('{"step": 2}\n')
    seen.append(next(new_rows))
    assert [[row["step"] for row in rows] for rows in seen] == [[], [1, 2], [3], [], [], [2]]


def test_mask_and_views_of_a_step_survive_a_restart(small_experiment):
    """What is drawn in step 5 depends on nothing that a restart could lose."""
    from tests.ssl_models.contract import batch, build

    objective = build("mae")
    whole = batch("mae")
    first = objective.predict(whole.views[0], whole.ids, Step(5, 0.1, seed=3))[1]
    torch.rand(100)  # the global generator has moved
    assert torch.equal(first, objective.predict(whole.views[0], whole.ids, Step(5, 0.1, seed=3))[1])
    assert not torch.equal(first, objective.predict(whole.views[0], whole.ids, Step(6, 0.1, seed=3))[1])
