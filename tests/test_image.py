"""What can be said of the image without building it: it copies what there is, installs what was tested, and runs as
nobody in particular. (Nothing here builds it: that needs a container engine.)"""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
BUILDERS = ("build-essential", "gcc", "g++", "make", "git", "-dev", "cargo", "rustc")


def instructions() -> list[tuple[str, list[str]]]:
    """(instruction, words) of the Dockerfile, with lines joined."""
    joined = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], shlex.split(line)[1:]) for line in lines]


def stages() -> list[list[tuple[str, list[str]]]]:
    found: list[list[tuple[str, list[str]]]] = []
    for instruction in instructions():
        if instruction[0] == "FROM":
            found.append([])
        found[-1].append(instruction)
    return found


def copied() -> list[str]:
    return [word for name, words in stages()[0] if name == "COPY" for word in words[:-1]]


def test_all_that_is_copied_is_there_and_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert next(line for line in ignored if not line.startswith("#")) == "*"
    let_in = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert let_in == set(copied())
    assert all((ROOT / name).exists() for name in copied())


def test_all_packages_and_what_the_build_reads_are_copied() -> None:
    packages = [pattern.rstrip("*") for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]]
    assert set(packages) <= set(copied())
    assert {PROJECT["project"]["readme"], "pyproject.toml", "constraints.txt"} <= set(copied())


def test_what_is_installed_is_what_was_tested() -> None:
    (install,) = [words for name, words in instructions() if name == "RUN" and "--constraint" in words]
    assert install[install.index("--constraint") + 1] == "constraints.txt"
    (what,) = [word for word in install if word.startswith(".[")]
    extras = what.removeprefix(".[").removesuffix("]").split(",")
    assert {"mlflow", "postgres"} <= set(extras)  # several machines share a ledger and may have a server of runs
    assert set(extras) <= set(PROJECT["project"]["optional-dependencies"])


def test_python_and_version_are_those_of_the_project_and_its_manifests() -> None:
    froms = [words[0] for name, words in instructions() if name == "FROM"]
    (image,) = set(froms)
    version = re.fullmatch(r"python:(\d+)\.(\d+)-slim-bookworm", image)  # never `latest`
    assert version is not None
    assert PROJECT["project"]["requires-python"] == f">={version[1]}.{version[2]}"
    tag = f"feral:{PROJECT['project']['version']}"
    assert f"--tag {tag} " in (ROOT / "Dockerfile").read_text()
    for path in (ROOT / "jobs" / "manifests").glob("*.yaml"):
        assert set(re.findall(r"feral:[\d.]+", path.read_text())) <= {tag}, path
    cloud = yaml.safe_load((ROOT / "jobs" / "manifests" / "cluster.yaml").read_text())["docker"]["worker_image"]
    assert f"-py{version[1]}{version[2]}-" in cloud  # a job is submitted with the Python that it runs on


def test_it_runs_as_an_ordinary_user_without_tools_to_build_with() -> None:
    last = stages()[-1]
    (user,) = [words[0] for name, words in last if name == "USER"]
    assert user == "1000:1000"
    cluster = yaml.safe_load((ROOT / "jobs" / "manifests" / "raycluster.yaml").read_text())["spec"]
    assert cluster["headGroupSpec"]["template"]["spec"]["securityContext"]["runAsUser"] == 1000
    names = [name for name, _ in last]
    assert "RUN" not in names[names.index("USER") :]
    text = " ".join(word for name, words in last if name == "RUN" for word in words)
    assert not [tool for tool in BUILDERS if re.search(rf"(^|\s)\S*{re.escape(tool)}(\s|$)", text)]
    assert "--no-install-recommends" in text
    assert "/var/lib/apt/lists" in text


@pytest.mark.parametrize("word", ["ADD", "curl", "sudo", "chmod", "TOKEN", "PASSWORD", "SECRET"])
def test_nothing_is_fetched_by_hand_and_no_secret_is_built_in(word: str) -> None:
    assert word not in (ROOT / "Dockerfile").read_text()
