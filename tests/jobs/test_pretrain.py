"""The main job on a real Ray: train, evaluate, report, resume, and the demo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jobs.pretrain import duration, pretrain_run, progress_line
from pipeline.ingest.store import Store
from pipeline.pretrain import plan_line
from pipeline.run import Run
from pipeline.train.checkpoints import save_checkpoint
from pipeline.train.record import read_metrics
from pipeline.train.worker import fresh_state
from tests.pipeline.stores import tiny_experiment
from tests.pipeline.test_loop import run as train_here

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


@pytest.mark.cluster
@pytest.mark.slow
def test_two_workers_and_a_resume_equal_one_uninterrupted_process(ray_local, small_store, tmp_path, capsys):
    experiment = tiny_experiment(small_store.path).override({"cluster.workers": 2})
    expected: list[tuple[int, float]] = []
    train_here(experiment, fresh_state(experiment, CPU), experiment.total_steps, expected)

    run = Run.prepare(tmp_path / "run", experiment, ["feral", "pretrain"])
    state = fresh_state(experiment, CPU)
    train_here(experiment, state, 5)
    save_checkpoint(run.checkpoints, state, keep=2)  # as if the driver had been killed after step 5
    pretrain_run(experiment, run.path)
    rows = read_metrics(run.path)
    assert [row["step"] for row in rows] == list(range(6, 13))
    for (step, loss), row in zip(expected[5:], rows, strict=True):
        assert row["loss"] == pytest.approx(loss, abs=1e-4), step
    printed = capsys.readouterr().out
    assert "resuming after step 5" in printed
    assert "knn_top1" in printed

    evaluation = run.evaluation
    assert evaluation is not None
    assert evaluation.step == 12
    assert {score.name for score in evaluation.scores} >= {"knn_top1", "linear_top1", "linear_10pct", "cluster_top1"}
    for score in evaluation.scores[:2]:
        assert score.num_queries == small_store.manifest.splits["test"]
        assert score.chance == pytest.approx(1 / 3)
        assert score.raw_pixels > 0.9  # the hue tells the class
    assert run.report_file.read_text().count("<h2") >= 5
    assert list((run.path / "tensorboard").iterdir())

    before = run.evaluation_file.stat().st_mtime_ns
    pretrain_run(experiment, run.path)
    assert "finished already, at step 12" in capsys.readouterr().out
    assert run.evaluation_file.stat().st_mtime_ns == before

    with pytest.raises(ValueError, match=r"holds another experiment \(training.seed: 0 there, 1 now\)"):
        pretrain_run(experiment.override({"training.seed": 1}), run.path)


@pytest.mark.cluster
@pytest.mark.slow
def test_clip_is_judged_by_zero_shot_and_retrieval(ray_local, small_store, tmp_path):
    experiment = tiny_experiment(small_store.path).override(
        {"objective": {"name": "clip", "dim": 8, "text": {"width": 16, "layers": 1, "heads": 2, "context_length": 12}}}
    )
    evaluation = pretrain_run(experiment, tmp_path / "run").evaluation
    assert evaluation is not None
    names = {score.name for score in evaluation.scores}
    assert names >= {"zero_shot_top1", "knn_top1", "retrieval_text_to_image_r10", "retrieval_image_to_text_r1"}
    zero_shot = evaluation.score("zero_shot_top1")
    assert zero_shot is not None
    assert zero_shot.raw_pixels > 0.9  # captions name the colour


@pytest.mark.cluster
@pytest.mark.slow
def test_the_demo(tmp_path):
    """As a stranger runs it, with less training: a process of its own, in an empty folder."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", "demo", "--images", "600", "--images-seen", "2560"],
        cwd=tmp_path, env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    manifest = Store(tmp_path / "demo" / "store").manifest
    assert manifest.seen == 600 == manifest.kept + sum(manifest.refused.values())
    assert manifest.refused["dup_exact"] >= 18
    assert manifest.refused["decode_failed"] + manifest.refused["format_forbidden"] >= 6
    assert manifest.captioned == manifest.kept
    evaluation = Run.open(tmp_path / "demo" / "run").evaluation
    assert evaluation is not None
    knn = evaluation.score("knn_top1")
    assert knn is not None
    assert knn.raw_pixels < 0.45  # of 60 images; test_demo_dump.py holds the bound of 35 % on more
    report = tmp_path / "demo" / "run" / "report.html"
    assert f"open {report}" in done.stdout
    assert "feral demo --images 600" in report.read_text()


def test_the_progress_line_says_what_a_person_waits_for():
    row = {"step": 50, "images_seen": 12800, "images_per_second": 400.0, "loss": 3.14159, "data_wait_ratio": 0.021}
    line = progress_line(row, total_steps=1000)
    assert line == "step 50/1000 · 400 images/s · loss 3.1416 · 10 min 08 s left · data wait 2%"
    assert duration(59.6) == "1 min 00 s"
    assert duration(3 * 3600 + 61) == "3 h 01 min"


def test_a_gpu_that_is_not_used_is_told(small_store, monkeypatch):
    experiment = tiny_experiment(small_store.path)
    with_gpu = experiment.override({"cluster.use_gpu": True})
    for found, plan, end in (
        (0, experiment, "1 worker(s) on CPU, fp32"),
        (1, experiment, "1 worker(s) on CPU, fp32; a GPU is here and not used: cluster.use_gpu=true"),
        (1, with_gpu, "1 worker(s) on GPU, fp32"),
    ):
        monkeypatch.setattr("torch.cuda.device_count", lambda found=found: found)
        assert plan_line(plan, [small_store]).endswith(end)
