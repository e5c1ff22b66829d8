"""Labels choose the nodes."""

from typing import Any

import pytest

from pipeline.cluster import ClusterConfig
from pipeline.placement import data_nodes, room, selected, training_nodes
from pipeline.train.fit import tell_of_room
from tests.pipeline.stores import tiny_experiment

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


def test_who_waits_for_nodes_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    nodes(monkeypatch, (DATA, {"CPU": 16.0}), (UNLABELLED, {"CPU": 4.0, "GPU": 1.0}))
    experiment, said = tiny_experiment(tmp_path).override({"cluster.workers": 2, "cluster.use_gpu": True}), list[str]()
    tell_of_room(experiment, said.append)
    assert said == ["the nodes that train have room for 1 of 2 worker(s) now: waiting for more nodes"]
    tell_of_room(experiment.override({"cluster.workers": 1}), said.append)
    assert len(said) == 1
