"""The clusters that we describe can be started: checked offline, with the code that `ray up` checks them with."""

import copy
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

MANIFESTS = sorted((Path(__file__).parents[2] / "jobs" / "manifests").glob("cluster*.yaml"))
README = Path(__file__).parents[2] / "README.md"
RAY = "2.60.0"
COMMANDS = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")


def checked(raw: dict[str, Any]) -> dict[str, Any]:
    """The manifest with the provider's defaults, as `ray up` would use it.

    Raises:
        jsonschema.ValidationError: an unknown key, or a value of the wrong type.
        ValueError: it does not hang together, or Ray is not pinned.
    """
    from ray.autoscaler._private.util import prepare_config, validate_config

    full = prepare_config(copy.deepcopy(raw))
    validate_config(full)
    commands = " ".join(str(command) for key in COMMANDS for command in full[key])
    if "ray-wheels" in commands or "nightly" in commands:
        raise ValueError("the setup commands would install a nightly Ray: write them out")
    if f'"ray[data,default,train,tune]=={RAY}"' not in commands:
        raise ValueError(f"ray {RAY} is not pinned in the setup commands")
    for image in images(full):
        if not image.startswith(f"rayproject/ray:{RAY}-py311-"):
            raise ValueError(f"{image} is not an image of ray {RAY}")
    return full


def images(full: dict[str, Any]) -> list[str]:
    """Every image that a node would run."""
    places = [full["docker"], *(kind.get("docker", {}) for kind in full["available_node_types"].values())]
    return [image for place in places for key, image in place.items() if key.endswith("image")]


@pytest.fixture(params=MANIFESTS, ids=lambda path: path.stem)
def raw(request: pytest.FixtureRequest) -> dict[str, Any]:
    return yaml.safe_load(request.param.read_text())


@pytest.fixture
def aws() -> dict[str, Any]:
    (path,) = [path for path in MANIFESTS if path.name == "cluster.yaml"]
    return yaml.safe_load(path.read_text())


def test_there_is_one_for_the_cloud_and_one_for_machines_that_stand_there(aws: dict[str, Any]) -> None:
    kinds = {path.name: yaml.safe_load(path.read_text())["provider"]["type"] for path in MANIFESTS}
    assert kinds == {"cluster.yaml": "aws", "cluster-on-premises.yaml": "local"}


def test_ray_accepts_it_and_the_version_is_pinned(raw: dict[str, Any]) -> None:
    import ray

    assert checked(raw)["cluster_name"] == raw["cluster_name"]
    assert ray.__version__ == RAY


def test_a_typo_is_refused(raw: dict[str, Any]) -> None:
    raw["setup_comands"] = raw.pop("setup_commands")
    with pytest.raises(jsonschema.ValidationError, match="setup_comands"):
        checked(raw)


def test_setup_commands_left_out_or_unpinned_are_refused(raw: dict[str, Any]) -> None:
    raw["setup_commands"] = [command.replace(f"=={RAY}", "") for command in raw["setup_commands"]]
    with pytest.raises(ValueError, match="not pinned"):
        checked(raw)
    del raw["setup_commands"]
    with pytest.raises(ValueError, match=r"nightly|not pinned"):
        checked(raw)


def test_an_image_of_another_ray_and_an_unknown_head_are_refused(aws: dict[str, Any]) -> None:
    newer = copy.deepcopy(aws)
    newer["available_node_types"]["training"]["docker"]["worker_image"] = "rayproject/ray:latest-gpu"
    with pytest.raises(ValueError, match="latest-gpu is not an image of ray"):
        checked(newer)
    with pytest.raises(ValueError, match="head_node_type"):
        checked({**aws, "head_node_type": "haed"})


def test_no_work_is_scheduled_on_the_head_and_gpus_are_for_training(aws: dict[str, Any]) -> None:
    kinds = checked(aws)["available_node_types"]
    head = kinds.pop(aws["head_node_type"])
    assert head["resources"]["CPU"] == 0
    assert head["max_workers"] == 0
    assert set(kinds) == {"data", "training"}
    for name, kind in kinds.items():
        gpus = kind["resources"].get("GPU", 0)
        assert (gpus > 0) == (name == "training")
        assert kind.get("labels", {}).get("ray-subcluster") == (None if gpus else "data")  # see pipeline.placement
        assert (gpus > 0) == kind.get("docker", aws["docker"])["worker_image"].endswith("-gpu")
    assert kinds["data"]["min_workers"] >= 1  # or no run would find the CPUs that it asks for at its start
    assert sum(kind["max_workers"] for kind in kinds.values()) <= aws["max_workers"]


def test_the_cluster_wants_a_token_and_its_dashboard_stays_on_the_head(raw: dict[str, Any]) -> None:
    full = checked(raw)
    assert "~/.ray/auth_token" in full["file_mounts"].values()
    starts = [command for key in ("head_start_ray_commands", "worker_start_ray_commands") for command in full[key]]
    starts = [command for command in starts if "ray start" in command]
    assert len(starts) == 2
    for command in starts:
        assert "RAY_AUTH_MODE=token" in command + " ".join(full["docker"].get("run_options", []))
    assert "--dashboard-host=127.0.0.1" in starts[0]


def test_a_machine_without_a_gpu_is_for_data() -> None:
    (path,) = [path for path in MANIFESTS if path.name == "cluster-on-premises.yaml"]
    start = yaml.safe_load(path.read_text())["worker_start_ray_commands"][-1]
    label = start[start.index("$(command") :]
    for nvidia, words in (("true", ""), ("false", "--labels=ray-subcluster=data")):
        script = f"command() {{ {nvidia}; }}; echo {label}"
        said = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout
        assert said.strip() == words


def test_what_is_installed_is_what_was_tested(raw: dict[str, Any], tmp_path: Path) -> None:
    mounted = {remote for remote, local in raw["file_mounts"].items() if local == "dist"}
    (folder,) = mounted
    (install,) = [command for command in raw["setup_commands"] if "pip install" in command]
    assert f"--constraint {folder}/constraints.txt" in install
    (tmp_path / "feral-7-py3-none-any.whl").touch()
    printed = re.sub(r"\S*pip install", r"printf '%s\\n'", install).replace(folder, str(tmp_path))
    words = subprocess.run(["bash", "-c", printed], capture_output=True, text=True, check=True).stdout.splitlines()
    assert f"{tmp_path}/feral-7-py3-none-any.whl[postgres]" in words  # several machines share a ledger


def test_what_the_cloud_mounts_is_where_our_commands_look(aws: dict[str, Any]) -> None:
    mount = aws["initialization_commands"][-1]
    assert "mount -t nfs4 FILE-SYSTEM:/ /shared" in mount
    assert "--volume /shared:/shared" in aws["docker"]["run_options"]
    section = README.read_text().partition("## On a cluster")[2].partition("\n## ")[0]
    assert {path.split("/")[1] for path in re.findall(r"(?<![\w.])/\w[\w/]*", section)} == {"shared"}
