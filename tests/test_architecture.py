"""The law of imports, and what the code base never does."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("ssl_models", "pipeline", "jobs")  # each may import itself and those before it
SOURCES = [path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path):
    layer = LAYERS.index(path.relative_to(ROOT).parts[0])
    above = LAYERS[layer + 1 :]
    assert not [name for name in imported(path) if name.split(".")[0] in above]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_models_know_neither_ray_nor_files(path):
    if path.relative_to(ROOT).parts[0] == "ssl_models":
        assert not {name.split(".")[0] for name in imported(path)} & {"ray", "pathlib", "os", "typer", "pyarrow"}


def test_the_loop_imports_without_ray():
    """The loop, checkpoints and metrics serve machines that have no Ray."""
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['ray'] = None\n"
        "import pipeline.train.loop, pipeline.train.checkpoints, pipeline.train.record, pipeline.experiment\n"
        "import pipeline.stream.batches, pipeline.train.worker, ssl_models.objectives"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_ray_is_never_joined_by_accident():
    """`ray.init()` without an address attaches to whatever cluster it finds on the host."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "ray.init":
                assert "address" in {keyword.arg for keyword in node.keywords}, path


def test_no_pickle_door_is_open():
    """No webdataset decoders, no unsafe loading, no URL opener on what a manifest says."""
    for path in SOURCES:
        closed = {"webdataset", "pickle", "urllib.request", "requests"}
        assert not {door for door in closed for name in imported(path) if f"{name}.".startswith(f"{door}.")}, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords), path
