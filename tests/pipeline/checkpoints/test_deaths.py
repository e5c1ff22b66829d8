"""Checkpoints: processes that die while they save, and files that may not grow."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from pipeline.train.checkpoints import (
    CheckpointFailed,
    commit,
    newest_checkpoint,
    writing,
)
from pipeline.train.loop import TrainState
from tests.pipeline.checkpoints.saving import advance, make_state, names, small_state, write

DEATHS = {  # where the process is killed: the n-th flush, or a call; and the step that must be chosen then
    "half a file": 4,
    "flush 1": 4,  # objective.safetensors is written
    "flush 2": 4,  # and optimizers.pt
    "flush 3": 4,  # and the marker
    "flush 4": 4,  # all, before the directory has its name
    "flush 5": 8,  # has its name
    "removal": 8,  # an old one has been moved aside
}


def die_in_every_way(root: Path) -> None:
    """Run in a process of its own: for each death a child that saves step 8 beside 2 and 4, and is killed."""
    small_state()  # what torch imports late, the children need not
    for death in DEATHS:
        child = os.fork()
        if child == 0:
            write(root / death, 2, 4).close()
            die_at(death)
            write(root / death, 8, keep=2).close()
            os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), death


def die_at(death: str) -> None:
    flush, rmtree, flushes = commit.flush, shutil.rmtree, iter(range(1, 9))

    def kill():
        os.kill(os.getpid(), signal.SIGKILL)

    if death == "half a file":
        writing.save_file = lambda tensors, path: (path.write_bytes(b"half"), kill())
    elif death == "removal":
        shutil.rmtree = lambda path, **options: (
            kill() if path.name.startswith(".step_removed") else rmtree(path, **options)
        )
    else:
        writing.flush = commit.flush = lambda path: kill() if f"flush {next(flushes)}" == death else flush(path)


def run_out_of_space(root: Path) -> None:
    """Run in a process of its own: the system refuses to let files grow, then lets them."""
    writer = write(root / "limited", 4)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    state = make_state()
    for step, objective in ((8, state.objective), (9, nn.Linear(1, 1))):  # either file is the one that fails
        writer.save(TrainState(objective, advance(state).optimizers, step))
        try:
            writer.wait()
        except CheckpointFailed as failed:
            (root / f"message {step}").write_text(str(failed))
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    state.step = 12
    writer.save(state)
    writer.close()


@pytest.fixture(scope="module")
def after_accidents(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("accidents")
    code = (
        "import sys, pathlib, tests.pipeline.checkpoints.test_deaths as t\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "t.die_in_every_way(root)\nt.run_out_of_space(root)"
    )
    repository = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", code, root], cwd=repository, check=True, timeout=300)
    return root


@pytest.mark.parametrize("death", DEATHS)
def test_a_save_that_died_is_never_chosen_and_is_cleaned_up(after_accidents, tmp_path, death):
    directory = tmp_path / "checkpoints"
    shutil.copytree(after_accidents / death, directory)
    assert any(path.name.startswith(".") for path in directory.iterdir()) == (death != "flush 5")
    lines = []
    assert newest_checkpoint(directory, lines.append).step == DEATHS[death]
    assert not lines
    write(directory, 12).close()
    assert not [name for name in names(directory) if not name.startswith("step_")]
    assert newest_checkpoint(directory).step == 12


def test_files_that_may_not_grow_fail_the_save_and_nothing_else(after_accidents):
    directory = after_accidents / "limited"
    assert names(directory) == ["step_000000004", "step_000000012"]
    assert newest_checkpoint(directory).step == 12
    for message in (after_accidents / "message 8", after_accidents / "message 9"):
        assert "the file is larger than this system allows" in message.read_text()
        assert "the last good checkpoint is of step 4" in message.read_text()
