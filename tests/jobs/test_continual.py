"""`feral continue` and `feral cooldown` as a person types them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from jobs.pretrain import pretrain_run
from pipeline.ingest.config import CurateConfig
from pipeline.run import Run
from pipeline.train.record import read_metrics
from tests.pipeline.stores import curate_here, tiny_experiment, write_dump

PLATEAU = {"optimizer.schedule": "constant", "optimizer.warmup_images": 64}


@pytest.mark.cluster
@pytest.mark.slow
def test_a_dump_after_the_other_and_a_candidate(ray_local, small_store, tmp_path, capsys):
    """Two workers; what was fed is told; the report shows it; forgetting is told of the chain."""
    changes = {**PLATEAU, "cluster.workers": 2}
    first = pretrain_run(tiny_experiment(small_store.path).override(changes), tmp_path / "first")
    dump = write_dump(tmp_path / "dump", 100, 25)
    second = curate_here(dump, tmp_path / "second", CurateConfig(holdout=0.2))

    command = CliRunner()
    asked = ["continue", str(first.path), f"data.store={second.path}", "training.images_seen=256"]
    done = command.invoke(app, asked, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "8 steps of 32 images on from step 12, " in done.output
    assert "images of store, " in done.output
    assert "images seen: 64 of store, 192 of second (planned: 64, 192)" in done.output
    (path,) = tmp_path.glob("second-*")
    run = Run.open(path)
    assert [row["step"] for row in read_metrics(path)] == list(range(13, 21))
    assert {row["learning_rate"] for row in read_metrics(path)} == {0.1 * 32 / 256}
    inputs = json.loads((path / "inputs.json").read_text())
    assert [one["consumed"] for one in inputs["stores"]] == [64, 192]
    page = run.report_file.read_text()
    assert "samples consumed" in page
    assert "on second and 1 older store</h1>" in page
    assert "Not shown" not in page
    again = command.invoke(app, asked, catch_exceptions=False)
    assert "finished already, at step 20" in again.output

    done = command.invoke(app, ["cooldown", str(path), "training.images_seen=64"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "2 steps of 32 images down from step 20" in done.output
    cooled = Run.open(Path(f"{path}-cooldown"))
    assert cooled.newest_checkpoint().step == 22
    assert run.newest_checkpoint().step == 20

    stores = ["--on", str(small_store.path), "--on", str(second.path)]
    chain = ["evaluate", str(first.path), str(path), *stores, "--to", str(tmp_path / "chain"), "--chain"]
    done = command.invoke(app, chain, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "forgotten" in done.output
    matrix = json.loads((tmp_path / "chain" / "forgetting.json").read_text())
    assert (matrix["encoders"], matrix["stores"]) == (["first", path.name], ["store", "second"])
    assert 'id="forgotten"' in run.report_file.read_text()


def test_mistakes_are_one_line(small_store, tmp_path):
    with pytest.raises(ValueError, match="nowhere is no run"):
        CliRunner().invoke(app, ["continue", str(tmp_path / "nowhere")], catch_exceptions=False)
    with pytest.raises(ValueError, match="--chain compares an encoder with earlier ones"):
        CliRunner().invoke(app, ["evaluate", "one", "--chain"], catch_exceptions=False)
