"""Nodes that leave with notice, die without, and come: training goes on with what is there, in the same order."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.run import Run
from pipeline.train.record import read_events, read_metrics
from tests.faults.injected import assert_equal_to_undisturbed, undisturbed
from tests.pipeline.stores import tiny_experiment

pytestmark = [pytest.mark.faults, pytest.mark.cluster]
ROOT = Path(__file__).parents[2]


def test_nodes_come_and_go(small_store, tmp_path):
    experiment = tiny_experiment(small_store.path).override(
        {
            "cluster.workers": 2,
            "cluster.min_workers": 1,
            "cluster.worker_resources": {"train": 1},
            "cluster.resize_seconds": 5,
            "training.images_seen": 32 * 120,
            "optimizer.learning_rate": 1e-4,  # a higher one magnifies the rounding of other worlds
        }
    )
    environment = os.environ | {
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1",
        "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.nodes", str(tmp_path / "run"), experiment.model_dump_json()],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=550,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    run = Run.open(tmp_path / "run")
    events = read_events(run.path)
    assert [event["world_size"] for event in events if event["event"] == "attempt"] == [2, 1, 2, 1], done.stdout
    drained = next(event for event in events if event["event"] == "preempted")
    assert drained["attempt"] == 1
    first = [row["step"] for row in read_metrics(run.path) if row["attempt"] == 1]
    again = next(event for event in events if event["event"] == "attempt" and event["attempt"] == 2)
    assert again["step"] == first[-1]  # nothing was done again
    assert_equal_to_undisturbed(run, undisturbed(experiment.override({"cluster.workers": 1})), tolerance=1e-3)
