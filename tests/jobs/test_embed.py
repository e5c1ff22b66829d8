"""`feral embed`, `search` and `evaluate` of any encoder, on a real Ray."""

import json
import re
from pathlib import Path

import pyarrow.dataset as ds
import pytest
import torch
from safetensors.torch import save_file

from jobs.embed import embed, search
from jobs.evaluate import evaluate
from pipeline.run import Run
from pipeline.train.checkpoints import save_checkpoint
from pipeline.train.worker import fresh_state
from tests.pipeline.stores import write_dump


@pytest.fixture
def run(small_experiment, tmp_path) -> Run:
    found = Run.prepare(tmp_path / "run", small_experiment, ["feral", "pretrain"])
    save_checkpoint(found.checkpoints, fresh_state(small_experiment, torch.device("cpu")), keep=2)
    return found


@pytest.mark.cluster
@pytest.mark.slow
def test_a_folder_that_nobody_curated_is_embedded_and_searched(ray_local, run, tmp_path, capsys):
    dump = write_dump(tmp_path / "dump", 40)
    (dump / "red" / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    copy = (dump / "red" / "00000.png").read_bytes()
    (dump / "red" / "copy.png").write_bytes(copy)  # no policy drops what can be decoded
    embed(str(run.path), str(dump), tmp_path / "out")
    said = capsys.readouterr().out
    assert "42 images seen = 41 embedded + 1 refused (" in said
    found = ds.dataset(tmp_path / "out", format="parquet").to_table()
    assert len(found) == 41
    assert {"red", "green", "blue"} == {*found["label"].to_pylist()}
    page = tmp_path / "page.html"
    search(tmp_path / "out", image=dump / "red" / "00000.png", count=2, page=page)
    said = capsys.readouterr().out
    assert "red/00000.png" in said
    assert "red/copy.png" in said
    assert page.read_text().count("<img") == 3
    before = [path.stat().st_mtime_ns for path in sorted((tmp_path / "out").glob("*.parquet"))]
    embed(str(run.path), str(dump), tmp_path / "out")
    assert "41 of 41 images embedded" in capsys.readouterr().out
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "out").glob("*.parquet"))] == before
    (dump / "green" / "new.png").write_bytes(copy)
    with pytest.raises(ValueError, match=r"--to another|--overwrite"):
        embed(str(run.path), str(dump), tmp_path / "out")


@pytest.mark.cluster
@pytest.mark.slow
def test_anothers_encoder_stands_in_the_table_of_a_run(ray_local, run, small_store, tmp_path, capsys):
    import timm

    save_file(timm.create_model("resnet10t").state_dict(), tmp_path / "weights.safetensors")
    theirs = f"timm:resnet10t@{tmp_path / 'weights.safetensors'}"
    evaluate([str(run.path), theirs], to=tmp_path / "out")
    said = capsys.readouterr().out
    assert "timm:resnet10t, untrained" in said
    table = (tmp_path / "out" / "table.md").read_text()
    assert table.count("|\n") >= 7
    files = sorted(path.name for path in (tmp_path / "out").glob("*.json"))
    assert files == ["run--store.json", "timm_resnet10t--store.json"]
    judged = json.loads((tmp_path / "out" / files[1]).read_text())
    assert judged["checkpoint"] == theirs
    assert judged["store_digest"] == small_store.manifest.digest
    assert {"knn_top1", "linear_top1"} <= {score["name"] for score in judged["scores"]}


def test_what_cannot_be_judged_or_searched_is_refused_before_anything_starts(run, tmp_path):
    with pytest.raises(ValueError, match="give one of --image FILE and --text SENTENCE"):
        search(tmp_path)
    with pytest.raises(ValueError, match="--also shapes: there are depths, knowledge"):
        evaluate([str(run.path)], also=["shapes"])
    with pytest.raises(ValueError, match="is no encoder"):
        evaluate([str(tmp_path / "nowhere")])
    save_file({}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="names no weights"):
        evaluate(["torchvision:resnet18"])


def test_the_python_of_the_documentation_names_what_there_is():
    text = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    code = "".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    imports = [line for line in code.splitlines() if line.startswith("from ")]
    assert len(imports) >= 5
    exec("\n".join(imports), {})
    compile(code, "docs/evaluation.md", "exec")
