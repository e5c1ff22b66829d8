"""A Ray that we start is ours alone."""

import os
import subprocess
import sys

import pytest

STARTED = """
import os, subprocess, sys
import ray
from pipeline.cluster import connected

ask = "import sys; from ray._raylet import GcsClient; print(len(GcsClient(address=sys.argv[1]).get_all_node_info()))"
def asked(**environment):
    line = [sys.executable, "-c", ask, ray.get_runtime_context().gcs_address]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    return subprocess.run(line, env=kept | environment, capture_output=True, text=True, timeout=60)

with connected():
    known = {name: os.environ[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
    assert known["RAY_AUTH_MODE"] == "token"
    mine = asked(**known)
    assert mine.stdout == "1\\n", mine.stderr
    for stranger in ({"RAY_AUTH_MODE": "disabled"}, known | {"RAY_AUTH_TOKEN": "0" * 64}):
        refused = asked(**stranger)
        assert refused.returncode != 0, refused.stdout
        assert "auth" in refused.stderr.lower(), refused.stderr
    assert ray.get(ray.remote(lambda: 7).remote()) == 7
print("kept out")
"""


@pytest.mark.slow
@pytest.mark.cluster
def test_a_local_instance_keeps_strangers_out() -> None:
    """Ray listens on every interface of the machine."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    done = subprocess.run([sys.executable, "-c", STARTED], env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.endswith("kept out\n"), done.stdout + done.stderr
