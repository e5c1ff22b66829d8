"""Workers that die, hang, or meet what is no number: the run ends as if nothing had been, or says why it cannot."""

import numpy as np
import pytest
import torch

from pipeline.ingest.store import Store
from pipeline.train.attempts import Skips
from pipeline.train.fit import TrainingFailed, fit
from pipeline.train.record import read_all_metrics, read_events
from tests.faults.injected import Fault, assert_equal_to_undisturbed, begun, struck_by, undisturbed
from tests.pipeline.stores import tiny_experiment

pytestmark = [pytest.mark.faults, pytest.mark.cluster]


@pytest.fixture
def experiment(small_store: Store):
    """12 steps on two workers; 7 batches are an epoch."""
    return tiny_experiment(small_store.path).override({"cluster.workers": 2, "cluster.max_failures": 3})


def test_killed_workers_repeat_an_undisturbed_run(ray_local, experiment, tmp_path):
    """At a random step, at an epoch's end, and while a checkpoint is written."""
    random_step = int(np.random.default_rng().integers(1, 4))
    faults = (
        Fault("kill", random_step, attempt=1, rank=1),
        Fault("kill", 7, attempt=2, rank=0),
        Fault("kill in save", 7, attempt=3, rank=0),
    )
    run, told = begun(tmp_path / "run", experiment), list[str]()
    with struck_by(*faults):
        fit(experiment, run, tell=told.append)
    assert_equal_to_undisturbed(run, undisturbed(experiment))
    attempts = [event for event in read_events(run.path) if event["event"] == "attempt"]
    assert [event["attempt"] for event in attempts] == [1, 2, 3, 4], random_step
    assert [event["step"] for event in attempts] == [0, 0, 4, 4], random_step
    assert len(read_all_metrics(run.path)) > 12
    assert sum("started again" in line for line in told) == 3
    assert any("back at work" in line for line in told)
    checkpoint = run.newest_checkpoint()
    assert checkpoint is not None
    assert checkpoint.step == 12
    assert not list(run.checkpoints.glob(".*"))


def test_a_worker_that_hangs_is_started_again(ray_local, experiment, tmp_path):
    experiment = experiment.override({"cluster.hang_seconds": 20})
    run = begun(tmp_path / "run", experiment)
    with struck_by(Fault("hang", 6, rank=1)):
        fit(experiment, run)
    assert_equal_to_undisturbed(run, undisturbed(experiment))
    assert "strike" in (run.path / "logs" / "hang-001-rank1.txt").read_text()


def test_a_loss_that_is_not_finite_stops_all_ranks_and_says_all(ray_local, experiment, tmp_path):
    run = begun(tmp_path / "run", experiment)
    with (
        struck_by(Fault("poison", 5, rank=1)),
        pytest.raises(TrainingFailed, match=r"step 6: loss is nan at learning rate .*; samples \d+.*32 in all.*skip"),
    ):
        fit(experiment, run)
    events = read_events(run.path)
    assert sum(event["event"] == "attempt" for event in events) == 1  # no restart would help
    (event,) = [event for event in events if event["event"] == "nonfinite"]
    assert len(event["ids"]) == 32
    checkpoint = run.newest_checkpoint()
    assert checkpoint is not None
    assert checkpoint.step == 4
    fit(experiment, run)  # the same command resumes
    assert_equal_to_undisturbed(run, undisturbed(experiment))


def test_going_back_and_skipping_is_a_function_that_a_restart_repeats(ray_local, experiment, tmp_path):
    """Steps 5 and 6 read batches 4 and 5 of the plan, and went bad: from then on step 5 reads batch 6."""
    experiment = experiment.override({"training.on_nonfinite": "skip"})
    run, told = begun(tmp_path / "run", experiment), list[str]()
    with struck_by(Fault("poison", 5, rank=1), Fault("kill", 10, attempt=2)):
        fit(experiment, run, tell=told.append)
    assert Skips.read(run.path).made == ((4, 2),)
    assert_equal_to_undisturbed(run, undisturbed(experiment, [0, 1, 2, 3, *range(6, 14)]))
    assert any("going back" in line for line in told)


def test_an_error_that_no_restart_would_mend_is_told_once(ray_local, experiment, tmp_path):
    run = begun(tmp_path / "run", experiment)
    with struck_by(Fault("raise", 2, rank=1)), pytest.raises(TrainingFailed, match=r"^this rank cannot go on$"):
        fit(experiment, run)
    assert sum(event["event"] == "attempt" for event in read_events(run.path)) == 1


def test_a_shard_damaged_after_sealing_is_named_and_set_aside(ray_local, small_store, tmp_path):
    import shutil

    from pipeline.ingest.verify import quarantine, verify

    copy = Store(shutil.copytree(small_store.path, tmp_path / "store"))
    experiment = tiny_experiment(copy.path)
    number = int(copy.select("train")[20])
    offset, shard = (copy.column(name)[number].as_py() for name in ("offset", "shard"))
    with open(copy.paths[shard].as_py(), "r+b") as file:
        file.seek(offset + 300)
        byte = file.read(1)[0]
        file.seek(offset + 300)
        file.write(bytes([byte ^ 0x55]))
    run = begun(tmp_path / "run", experiment)
    with pytest.raises(TrainingFailed, match=rf"sample {number} is damaged.*feral verify .*--quarantine"):
        fit(experiment, run)
    quarantine(copy, verify(copy).loose(copy.blocked))
    fit(experiment, run)
    checkpoint = run.newest_checkpoint()
    assert checkpoint is not None
    assert checkpoint.step == 12
    assert torch.isfinite(torch.tensor([row["loss"] for row in read_all_metrics(run.path)])).all()
