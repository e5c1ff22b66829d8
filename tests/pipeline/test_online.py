"""Checkpoints judged while training goes on."""

import json
import time

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.cluster import cores_each
from pipeline.evaluate.encoders import RunEncoders
from pipeline.evaluate.health import alignment, health
from pipeline.evaluate.online import OnlineProbe, judge_checkpoint
from pipeline.evaluate.probes import knn_predictions
from pipeline.evaluate.validation import held_back
from pipeline.ingest.store import Store
from pipeline.report.curves import draw_curves, probe_rows
from pipeline.run import Run
from pipeline.train.checkpoints import save_checkpoint
from pipeline.train.fit import fit
from pipeline.train.record import read_events, read_metrics
from pipeline.train.worker import fresh_state
from tests.pipeline.embedding import HERE
from tests.pipeline.test_loop import run as train_here

CPU = torch.device("cpu")


@pytest.fixture
def run(small_experiment, tmp_path) -> Run:
    found = Run.prepare(tmp_path / "run", small_experiment, ["feral", "pretrain"])
    state = fresh_state(small_experiment, CPU)
    state.step = 4
    save_checkpoint(found.checkpoints, state, keep=2)
    return found


def test_a_probe_is_the_k_nn_of_training_images_and_nothing_of_the_test_split(run, small_store, monkeypatch):
    select = Store.select

    def only_train(self, split, **options):
        assert split == "train"
        return select(self, split, **options)

    monkeypatch.setattr(Store, "select", only_train)
    found = judge_checkpoint(run, "step_000000004", 120, with_random=True)
    numbers, asked = held_back(small_store.select("train"), 120, 0.25)
    rows = HERE.here(RunEncoders.of(run), small_store, numbers, ("trained",))["trained"]
    labels = small_store.column("label").to_numpy()[numbers]
    answers = knn_predictions(rows[~asked], labels[~asked], rows[asked], 20, 0.07)
    assert found["knn"] == pytest.approx((answers == labels[asked]).mean())
    assert found["queries"] == asked.sum() > 10
    assert len(numbers) == 120
    views = HERE.here(RunEncoders.of(run), small_store, numbers, ("trained",), "pairs")
    aligned = alignment(views["trained"], views["trained_view2"])
    assert found["health"] == health(rows, aligned).model_dump(mode="json") == found["random"]
    assert found["step"] == 4
    json.dumps(found)


def test_held_back_images_are_the_same_whatever_else_is_there():
    numbers = np.arange(0, 3000, 3)
    few, _ = held_back(numbers, 100, 0.25)
    assert len(few) == 100
    more, asked = held_back(numbers, 500, 0.25)
    assert {*few} <= {*more}
    assert 0.2 < asked.mean() < 0.3
    assert np.all(np.diff(more) > 0)


def test_without_labels_a_probe_tells_the_health_alone(run, monkeypatch):
    column = Store.column

    monkeypatch.setattr(
        Store,
        "column",
        lambda self, name: (
            pa.chunked_array([pa.array([-1] * len(column(self, name)), pa.int32())])
            if name == "label"
            else column(self, name)
        ),
    )
    found = judge_checkpoint(run, "step_000000004", 120, with_random=False)
    assert found["knn"] is None
    assert found["health"]["num_images"] == 120


def test_a_checkpoint_that_is_gone_is_said_and_no_more(run):
    with pytest.raises(ValueError, match="it is gone, or damaged"):
        judge_checkpoint(run, "step_000000009", 120, with_random=False)


@pytest.mark.cluster
@pytest.mark.slow
def test_training_with_probes_is_training_without_them(ray_local, small_store, small_experiment, tmp_path):
    experiment = small_experiment.override({"evaluation.online_images": 100, "training.checkpoint_every": 4})
    expected: list[tuple[int, float]] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(cores_each(1))  # as the worker's: sums in another order would differ
    train_here(experiment, fresh_state(experiment, CPU), experiment.total_steps, expected)
    torch.set_num_threads(threads)
    run = Run.prepare(tmp_path / "run", experiment, ["feral", "pretrain"])
    told: list[str] = []
    fit(experiment, run, tell=told.append)
    assert [(row["step"], row["loss"]) for row in read_metrics(run.path)] == expected

    probe = OnlineProbe(run, 100, told.append)  # whatever came in time, the last checkpoint is judged now
    for _ in range(600):
        probe.look()
        if probe.pending is None:
            break
        time.sleep(0.2)
    events = [event for event in read_events(run.path) if event["event"] == "probe"]
    assert events[-1]["step"] == 12
    assert any(line.startswith("step 12: k-NN ") for line in told)
    rows = probe_rows(events, 32)
    assert rows[-1]["images_seen"] == 12 * 32
    titles = [curve.title for curve in draw_curves(read_metrics(run.path), rows)]
    assert "k-NN of held-back training images" in titles
    assert {"effective rank of embeddings", "alignment of two views"} <= {*titles}


def test_what_a_probe_says(run):
    probe = OnlineProbe(run, 100, print)
    found = judge_checkpoint(run, "step_000000004", 120, with_random=True)
    probe.random = found.pop("random")
    assert probe._line(found).startswith("step 4: k-NN ")
    flat = {**found, "health": {**found["health"], "mean_cosine": 0.9999}}
    assert "collapsed: all embeddings are alike" in probe._line(flat)
