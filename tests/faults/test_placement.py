"""Data tasks run on the nodes for data, training on the others, and nothing on the head."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.faults, pytest.mark.cluster]
ROOT = Path(__file__).parents[2]


def test_every_task_runs_where_its_label_says(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.placement", str(tmp_path)],
        cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    ran = {stage: set(nodes) for line in done.stdout.splitlines() for stage, nodes in json.loads(line).items()}
    assert ran == {
        "curate": {"data"}, "select": {"data"}, "read": {"data"}, "stream": {"data"}, "train": {"training"},
    }  # fmt: skip
