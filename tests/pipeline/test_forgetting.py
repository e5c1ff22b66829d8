"""The forgetting matrix: best past value less present value, of each dump's held-back images."""

from pathlib import Path

import pytest

from pipeline.evaluate.forgetting import Forgetting, forgetting, read_forgetting, write_forgetting
from pipeline.evaluate.protocol import Evaluation, Health, Score
from pipeline.evaluate.transfer import Judged
from pipeline.report.run_report import write_report
from pipeline.run import Run


def judged(encoder: str, store: str, knn: float | None, rank: float = 5.0) -> Judged:
    shown = {"protocol": "", "num_queries": 100, "random_encoder": 0.1, "raw_pixels": 0.1, "chance": 0.1}
    scores = [] if knn is None else [Score(name="knn_top1", trained=knn, **shown)]
    health = {"trained": Health(num_images=100, dim=8, rank=rank, spread=1, mean_cosine=0)}
    evaluation = Evaluation(
        checkpoint="step_1", step=1, store_digest="", scores=scores, skipped=[], neighbours={}, seconds=0, health=health
    )
    return Judged(encoder, store, Path(), evaluation)


VALUES = {("P1", "a"): 0.7, ("P2", "a"): 0.8, ("P3", "a"): 0.65, ("P1", "b"): 0.2, ("P2", "b"): 0.5, ("P3", "b"): 0.6}


def test_the_best_past_value_is_compared_with_the_present_one(tmp_path):
    found = forgetting([judged(*place, value) for place, value in VALUES.items()])
    assert found.values == ((0.7, 0.2), (0.8, 0.5), (0.65, 0.6))
    assert found.forgotten == pytest.approx((0.15, -0.1))
    assert found.mean_of_older == pytest.approx(0.15)
    assert found.table == [
        ["knn_top1", "a", "b"],
        ["P1", "70.0 %", "20.0 %"],
        ["P2", "80.0 %", "50.0 %"],
        ["P3", "65.0 %", "60.0 %"],
        ["forgotten", "+15.0", "-10.0"],
    ]
    write_forgetting(found, tmp_path)
    assert read_forgetting(tmp_path) == found
    assert read_forgetting(tmp_path / "elsewhere") is None


def test_without_labels_everywhere_the_effective_rank_is_compared():
    first = [judged("P1", "a", 0.7), judged("P1", "b", None, 9)]
    found = forgetting([*first, judged("P2", "a", 0.6), judged("P2", "b", None, 7)])
    assert (found.score, found.forgotten) == ("rank", (0, 2))
    assert found.table[-1] == ["forgotten", "+0.0", "+2.0"]


def test_one_encoder_has_forgotten_nothing():
    with pytest.raises(ValueError, match="name two or more, oldest first"):
        forgetting([judged("P1", "a", 0.7)])


def test_the_report_of_the_last_run_shows_it(small_experiment, tmp_path):
    run = Run.prepare(tmp_path / "run", small_experiment, ["feral"])
    assert "Forgotten" not in write_report(run).read_text()
    matrix = Forgetting(score="knn_top1", encoders=("P1", "<b>P2"), stores=("a",), values=((0.9,), (0.5,)))
    write_forgetting(matrix, run.path)
    page = write_report(run).read_text()
    assert "+40.0" in page
    assert "<b>P2" not in page
