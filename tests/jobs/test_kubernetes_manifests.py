"""The manifests for Kubernetes are what its published schemas accept, hold no secret, and fit each other."""

import copy
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from jobs.submit import check_command
from tests.jobs.published import accept
from tests.jobs.test_manifests import RAY

FOLDER = Path(__file__).parents[2] / "jobs" / "manifests"
NAMES = ("shared-volume", "raycluster", "rayjob", "cronjob", "raycronjob")


def manifest(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def paths(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of every value below, containers too."""
    if path:
        yield path
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in pairs:
        yield from paths(value, (*path, key))


def at(content: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        content = content[key]
    return content


def pods(content: Any) -> list[dict[str, Any]]:
    """Every pod that a manifest would start."""
    return [at(content, path) for path in paths(content) if isinstance(at(content, path), dict)
            and "containers" in at(content, path)]  # fmt: skip


def refused(content: dict[str, Any]) -> bool:
    try:
        accept(content)
    except jsonschema.ValidationError:
        return True
    return False


@pytest.mark.parametrize("name", NAMES)
def test_the_published_schemas_accept_it(name: str) -> None:
    accept(manifest(name))


FREE = ("labels", "rayStartParams", "requests", "limits", "clusterSelector")  # whose keys are the user's own


@pytest.mark.parametrize("name", NAMES)
def test_a_misspelt_field_anywhere_is_refused(name: str) -> None:
    good = manifest(name)
    fields = [path for path in paths(good) if isinstance(path[-1], str) and not (path[-2:-1] and path[-2] in FREE)]
    assert len(fields) > 5
    for path in fields:
        bad = copy.deepcopy(good)
        at(bad, path[:-1])[f"{path[-1]}X"] = at(bad, path[:-1]).pop(path[-1])
        assert refused(bad), f"{path} is not missed"


@pytest.mark.parametrize("name", NAMES)
def test_a_value_of_another_type_anywhere_is_refused(name: str) -> None:
    good = manifest(name)
    for path in paths(good):
        bad = copy.deepcopy(good)
        at(bad, path[:-1])[path[-1]] = {"no": ["such", "thing"]}
        assert refused(bad), f"{path} may be anything"


def test_values_that_kubernetes_knows_a_few_of() -> None:
    spec = manifest("cronjob")["spec"]
    assert (spec["concurrencyPolicy"], spec["jobTemplate"]["spec"]["template"]["spec"]["restartPolicy"]) == (
        "Forbid", "Never",
    )  # fmt: skip
    assert manifest("rayjob")["spec"]["submissionMode"] == manifest("raycronjob")["spec"]["jobTemplate"][
        "submissionMode"] == "K8sJobMode"  # fmt: skip


def test_the_cluster_wants_a_token_and_runs_the_ray_that_was_tested() -> None:
    cluster = manifest("raycluster")["spec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == RAY
    assert manifest("rayjob")["spec"]["rayClusterSpec"] == cluster


def test_data_nodes_are_labelled_grow_and_stay_and_training_nodes_have_the_gpus() -> None:
    cluster = manifest("raycluster")["spec"]
    head, (data, training) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert cluster["enableInTreeAutoscaling"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert data["labels"] == {"ray-subcluster": "data"}
    assert 1 <= data["minReplicas"] < data["maxReplicas"]
    assert "labels" not in training  # see pipeline.placement.training_nodes
    assert training["minReplicas"] == 0
    gpus = [pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") for pod in pods(cluster)]
    assert gpus == [None, None, "4"]
    for group in (data, training):
        assert "spot" in [taint["key"] for taint in group["template"]["spec"]["tolerations"]]


@pytest.mark.parametrize("name", ["raycluster", "rayjob", "cronjob"])
def test_pods_have_no_more_rights_than_they_need(name: str) -> None:
    for pod in pods(manifest(name)):
        assert pod["securityContext"]["runAsNonRoot"]
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
            }  # fmt: skip
            assert container["resources"]["limits"]
            assert re.fullmatch(r"feral:\d+\.\d+\.\d+", container["image"])  # never `latest`


@pytest.mark.parametrize("name", NAMES)
def test_no_secret_stands_in_it(name: str) -> None:
    for path in paths(good := manifest(name)):
        if path[-1] == "name" and re.search("TOKEN|PASSWORD|SECRET|KEY", str(at(good, path))):
            assert "value" not in at(good, path[:-1])
        if isinstance(at(good, path), str):
            assert not re.search(r"://[^/\s]*:[^/@\s]+@", at(good, path))


def test_all_see_the_same_volume_at_the_same_place() -> None:
    claim = manifest("shared-volume")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in pods(manifest("raycluster")):
        (volume,) = pod["volumes"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        (mount,) = pod["containers"][0]["volumeMounts"]
        assert mount == {"name": volume["name"], "mountPath": "/shared"}


def test_what_is_run_is_a_command_of_ours_that_fits_the_cluster() -> None:
    words = shlex.split(manifest("rayjob")["spec"]["entrypoint"])
    assert words[0] == "feral"
    check_command(words[1:])
    settings = dict(word.split("=") for word in words if "=" in word)
    data, training = manifest("raycluster")["spec"]["workerGroupSpecs"]
    workers, lanes = int(settings["cluster.workers"]), int(settings["data.lanes"])
    assert lanes % workers == int(settings["data.batch_size"]) % lanes == 0
    assert workers <= training["maxReplicas"] * 4
    cpus = int(data["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert workers + int(settings["cluster.data_cpus"]) <= data["minReplicas"] * cpus  # else the run does not start


def test_schedules_are_safe_and_wait_for_the_cluster_that_is_described() -> None:
    cron = manifest("cronjob")["spec"]
    assert cron["timeZone"]
    assert cron["startingDeadlineSeconds"] > 0
    (pod,) = pods(cron)
    assert pod["containers"][0]["args"][-1] == "--exit-zero"
    cluster = manifest("raycluster")["metadata"]["name"]
    assert f"http://{cluster}-head-svc:8265" in pod["containers"][0]["command"]
    assert manifest("raycronjob")["spec"]["jobTemplate"]["clusterSelector"] == {"ray.io/cluster": cluster}
