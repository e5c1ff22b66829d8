"""Alignment and uniformity, drawn: of a run and its checkpoints, and of the trials of a comparison."""

import pytest

from pipeline.evaluate.protocol import Evaluation, Health, Score
from pipeline.report.plane import run_plane, trials_plane


def health(alignment: float | None, uniformity: float) -> Health:
    return Health(
        num_images=100, dim=8, rank=4, spread=0.5, mean_cosine=0.2, uniformity=uniformity, alignment=alignment
    )


def evaluation(trained: Health, score: float = 0.5) -> Evaluation:
    knn = Score(name="knn_top1", protocol="", num_queries=100, trained=score, random_encoder=0.1, raw_pixels=0.2,
                chance=0.1)  # fmt: skip
    return Evaluation(checkpoint="c", step=30, store_digest="d", scores=[knn], skipped=[], neighbours={}, seconds=1,
                      health={"trained": trained, "random": health(0.1, -0.5)})  # fmt: skip


def probe(step: int, alignment: float, uniformity: float) -> dict:
    return {"event": "probe", "step": step, "health": health(alignment, uniformity).model_dump(mode="json")}


def test_a_run_goes_from_before_training_over_its_checkpoints():
    events = [probe(20, 0.3, -2.0), probe(10, 0.2, -1.0), {"event": "fit"}, probe(20, 0.4, -2.5)]  # judged twice
    found = run_plane(evaluation(health(0.5, -3.0)), events)
    assert found is not None
    texts = {dot.text: dot for dot in found.dots}
    assert list(texts) == [
        "step 10, training images: alignment 0.20, uniformity -1.00",
        "step 20, training images: alignment 0.40, uniformity -2.50",
        "before training, test images: alignment 0.10, uniformity -0.50",
        "step 30, test images: alignment 0.50, uniformity -3.00",
    ]
    first, second, before, trained = texts.values()
    assert trained.x < second.x < first.x < before.x  # uniformity, falling to the left
    assert trained.y < second.y < first.y < before.y  # alignment, rising; SVG counts from the top
    (way,) = found.lines
    assert way.points == f"{first.x:.2f},{first.y:.2f} {second.x:.2f},{second.y:.2f}"


def test_nothing_is_drawn_of_what_is_not_known():
    assert run_plane(None, []) is None
    assert run_plane(None, [probe(10, 0.2, -1.0)]) is None
    older = evaluation(health(None, -3.0))
    assert run_plane(older, []) is None  # one dot is no picture
    ends = run_plane(evaluation(health(0.5, -3.0)), [])
    assert ends is not None
    assert (len(ends.dots), ends.lines) == (2, ())


def test_trials_are_tinted_by_their_score_and_named_once_a_method():
    trials = [("a", 0, evaluation(health(0.5, -3.0), 0.6)), ("a", 1, evaluation(health(0.4, -2.9), 0.5)),
              ("b", 0, evaluation(health(0.2, -1.0), 0.2))]  # fmt: skip
    found = trials_plane(trials, "knn_top1")
    assert found is not None
    tints = {dot.text.partition(":")[0]: dot.tint for dot in found.dots}
    assert tints == {
        "a seed 0, 60.0 %": 1.0, "a seed 1, 50.0 %": pytest.approx(0.75), "b seed 0, 20.0 %": 0.0,
        "a seed 0 before training": None, "a seed 1 before training": None, "b seed 0 before training": None,
    }  # fmt: skip
    assert sorted(dot.label for dot in found.dots if dot.label) == ["a", "b", "before training"]
