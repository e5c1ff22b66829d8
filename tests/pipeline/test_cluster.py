"""Where work runs: labels choose nodes, and a Ray that we start is ours alone."""

import os
import subprocess
import sys
from typing import Any

import pytest

from pipeline.cluster import ClusterConfig, data_nodes, room, selected, training_nodes

TWO = ClusterConfig(workers=2)
DATA, UNLABELLED = {"ray-subcluster": "data"}, {}


def nodes(monkeypatch: pytest.MonkeyPatch, *given: tuple[dict[str, str], dict[str, float]]) -> None:
    """The cluster has a head without CPUs, a dead node that would fit, and these."""
    import ray

    head = {"Alive": True, "Labels": {"ray-subcluster": "head"}, "Resources": {"memory": 1e9}}
    dead = {"Alive": False, "Labels": {"ray-subcluster": "training"}, "Resources": {"CPU": 64.0}}
    alive = [{"Alive": True, "Labels": labels, "Resources": resources} for labels, resources in given]
    monkeypatch.setattr(ray, "nodes", lambda: [head, dead, *alive])


def test_without_labels_work_runs_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, (UNLABELLED, {"CPU": 4.0}))
    assert data_nodes() == {}
    assert training_nodes(TWO) == training_nodes(ClusterConfig(workers=2, min_workers=1)) == {}


def test_data_tasks_go_to_their_nodes_and_training_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, (DATA, {"CPU": 16.0}), (UNLABELLED, {"CPU": 2.0}))
    assert data_nodes() == DATA
    assert training_nodes(TWO) == {"ray-subcluster": "!data"}
    assert [node["Resources"]["CPU"] for node in selected(data_nodes())] == [16]
    assert [node["Resources"]["CPU"] for node in selected(training_nodes(TWO))] == [2]


def test_training_takes_nodes_for_data_where_the_others_have_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, (DATA, {"CPU": 16.0}), (UNLABELLED, {"CPU": 1.0}))
    assert training_nodes(TWO) == {}


def test_a_gpu_needs_no_label_and_may_still_have_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, (DATA, {"CPU": 16.0}))
    gpus = ClusterConfig(workers=2, use_gpu=True)
    assert training_nodes(gpus) == {}
    assert room(selected(training_nodes(gpus)), gpus) == 0


def test_nodes_labelled_for_training_are_taken_unless_ray_would_not_count_them(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, (DATA, {"CPU": 16.0}), ({"ray-subcluster": "training"}, {"CPU": 8.0, "GPU": 4.0}))
    assert training_nodes(TWO) == {"ray-subcluster": "training"}
    with pytest.raises(ValueError, match=r"min_workers=1.*start the nodes that train without it"):
        training_nodes(ClusterConfig(workers=2, min_workers=1))


def test_room_is_what_the_scarcest_resource_leaves() -> None:
    cluster = ClusterConfig(workers=9, use_gpu=True, cpus_per_worker=3, worker_resources={"train": 1})
    resources: dict[str, Any] = {"CPU": 16.0, "GPU": 8.0, "train": 4.0}
    assert room([{"Resources": resources}, {"Resources": resources | {"train": 9.0}}], cluster) == 4 + 5
    assert room([{"Resources": {"CPU": 64.0}}], cluster) == 0


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
