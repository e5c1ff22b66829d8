"""The command itself is killed, told to stop, or given twice; what it left is damaged; and it is given again."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.ingest.store import Store
from pipeline.run import Run
from pipeline.train.attempts import Attempt
from pipeline.train.record import read_events, read_metrics
from tests.faults.injected import assert_equal_to_undisturbed, undisturbed
from tests.pipeline.stores import tiny_experiment

pytestmark = [pytest.mark.faults, pytest.mark.cluster]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def experiment(small_store: Store):
    return tiny_experiment(small_store.path)


def command(path: Path, experiment, seconds_a_step: float = 0.0) -> "subprocess.Popen[str]":
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.faults.drive", str(path), experiment.model_dump_json(), str(seconds_a_step)],
        cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def wait_for_step(path: Path, step: int, process: "subprocess.Popen[str]") -> None:
    until = time.monotonic() + 120
    while not any(row["step"] >= step for row in read_metrics(path)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.05)


def finished(process: "subprocess.Popen[str]", code: int = 0) -> str:
    output = process.communicate(timeout=300)[0]
    assert process.returncode == code, output
    assert "Traceback" not in output
    return output


def test_a_killed_command_given_again_loses_and_repeats_no_step(experiment, tmp_path):
    """Also after the newest checkpoint was cut short and Ray's own state destroyed; and never two at once."""
    path, experiment = tmp_path / "run", experiment.override({"training.images_seen": 32 * 60})
    first = command(path, experiment, seconds_a_step=0.5)
    try:
        wait_for_step(path, 9, first)
        second = finished(command(path, experiment), code=2)
        assert f"another command works on the run {path} (process {first.pid} on" in second
    finally:
        first.kill()
        first.communicate()
    Attempt.claim(path)  # workers outlive their driver by seconds: from here on they save nothing more
    newest = Run.open(path).newest_checkpoint()
    assert newest is not None
    weights = newest.path / "objective.safetensors"
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size // 2)
    shutil.rmtree(next((path / "ray").iterdir()))
    output = finished(command(path, experiment))
    assert f"{newest.path.name} is damaged and passed over" in output
    assert f"resuming after step {newest.step - 4}" in output
    run = Run.open(path)
    assert_equal_to_undisturbed(run, undisturbed(experiment))
    assert run.evaluation is not None
    kinds = [event["event"] for event in read_events(path)]
    assert kinds.count("command") == 2
    assert kinds.count("end") == 1
    assert "idle" in output  # what passed between the two commands
    assert "finished already" in finished(command(path, experiment))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves(experiment, tmp_path, number):
    path = tmp_path / "run"
    first = command(path, experiment, seconds_a_step=0.5)
    wait_for_step(path, 5, first)
    first.send_signal(number)
    output = finished(first, code=128 + number)
    assert "stopping: the workers save after the step they are in" in output
    rows = read_metrics(path)
    assert rows[-1]["step"] < 12
    assert f"stopped after step {rows[-1]['step']}; the same command resumes" in output  # no step lost
    finished(command(path, experiment))
    assert_equal_to_undisturbed(Run.open(path), undisturbed(experiment))
