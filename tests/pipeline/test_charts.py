"""Drawings: axes place values rightly, labels never meet, fronts and importances are what they say."""

import json
from itertools import combinations

import numpy as np
import pytest

from pipeline.report.axes import axis_of, of_categories
from pipeline.report.costs import Candidate, cost_plots
from pipeline.report.learning import read_learning
from pipeline.report.plots import HEIGHT, NARROW, Dot, _boxes, _meet, placed, stairs
from pipeline.train.record import append_event
from pipeline.tune.front import front
from pipeline.tune.importance import importances


def test_an_axis_is_logarithmic_where_values_reach_far_and_of_categories_where_they_are_no_numbers() -> None:
    near, far = axis_of("x", [0.1, 0.2, 0.5]), axis_of("x", [1e-4, 1e-2])
    assert near.place(0.3) == pytest.approx(near.place(0.2) / 2 + near.place(0.4) / 2)
    assert far.place(1e-3) == pytest.approx(far.place(1e-4) / 2 + far.place(1e-2) / 2)
    assert [tick.label for tick in far.ticks] == ["0.0001", "0.0003", "0.001", "0.003", "0.01"]
    assert axis_of("x", [0.1, 0.2], log=True).place(0.1414) == pytest.approx(50, abs=0.1)
    words = axis_of("x", [[256, 64], "cosine", None, True, [256, 64]])
    assert [tick.label for tick in words.ticks] == ["[256, 64]", '"cosine"', "null", "true"]
    assert [words.place(value) for value in ([256, 64], None)] == [12.5, 62.5]
    assert [tick.label for tick in of_categories("x", [512, 64, 128]).ticks] == ["64", "128", "512"]
    assert axis_of("x", []).ticks == ()


@pytest.mark.parametrize("values", [[3.0], [3.0, 3.0], [0.0], [-2.0, 5.0], [1e-9, 1e9]])
def test_all_values_and_ticks_lie_on_the_axis(values: list[float]) -> None:
    axis = axis_of("x", values)
    assert all(0 <= axis.place(value) <= 100 for value in values)
    assert all(-1e-9 <= tick.place <= 100 + 1e-9 for tick in axis.ticks)
    assert len({tick.label for tick in axis.ticks}) == len(axis.ticks) > 1


def test_no_label_covers_another_one_or_a_dot() -> None:
    draw = np.random.default_rng(0)
    dots = placed([Dot(*draw.uniform(0, 100, 2), "", label=f"method number {number}") for number in range(40)])
    shown = [one for one in dots if one.side]
    boxes = [dict(_boxes(one.x * NARROW / 100, one.y * HEIGHT / 100, 6.4 * len(one.label)))[one.side] for one in shown]
    assert 1 < len(shown) < 40
    assert not [pair for pair in combinations(boxes, 2) if _meet(*pair)]
    for left, top, right, bottom in boxes:
        inside = [(one.x * NARROW / 100, one.y * HEIGHT / 100) for one in dots]
        assert not [point for point in inside if left < point[0] < right and top < point[1] < bottom]


def test_the_front_is_what_nothing_beats_in_both() -> None:
    draw = np.random.default_rng(1)
    points = [tuple(point) for point in draw.integers(0, 12, (60, 2)).tolist()]
    for better in (False, True):
        sign = -1 if better else 1
        found = {points[place] for place in front(points, better)}
        beaten = {
            one for one in points for other in points
            if other != one and sign * other[0] <= sign * one[0] and other[1] >= one[1]
        }  # fmt: skip
        assert found == set(points) - beaten
    assert stairs([(1, 2), (3, 5)]) == [(1, 2), (3, 2), (3, 5)]


def test_a_cost_that_is_unknown_or_the_same_of_all_has_no_plot() -> None:
    some = [Candidate("a", 0.5, 60, None, 2e9, 1000), Candidate("b", 0.4, 90, None, 3e9, 1000)]
    plots = cost_plots(some, "k-NN")
    assert [plot.title for plot in plots] == ["Training time", "Peak memory"]
    assert "a 50.0\N{NO-BREAK SPACE}%" in plots[0].summary
    assert [(dot.look, dot.label) for dot in plots[0].dots] == [("", ""), ("best", "a")]
    assert cost_plots(some[:1], "k-NN") == []


def drawn(count: int) -> tuple[list[dict[str, object]], list[float]]:
    draw = np.random.default_rng(0)
    changes = [
        {"rate": float(10 ** draw.uniform(-4, -1)), "norm": ["batch", "layer"][draw.integers(2)]} for _ in range(count)
    ]
    return changes, [0.4 - 0.05 * (np.log10(one["rate"]) + 2.5) ** 2 + float(draw.normal(0, 0.005)) for one in changes]


def test_importance_finds_what_matters_and_calls_the_rest_chance() -> None:
    found = importances(*drawn(24), log=["rate"])
    assert [(row.setting, row.clear) for row in found.rows] == [("rate", True), ("norm", False)]
    assert 2 * found.rows[0].chance < found.rows[0].share <= found.explained < 1
    assert found.rows[1].share < 0.1
    assert found == importances(*drawn(24), log=["rate"])


def test_importance_of_noise_is_not_trusted() -> None:
    changes, _ = drawn(20)
    found = importances(changes, np.random.default_rng(5).normal(0.4, 0.01, 20).tolist())
    assert found.explained < 0.3
    assert not any(row.clear for row in found.rows)


def test_too_few_trials_tell_no_importance() -> None:
    with pytest.raises(ValueError, match="9 trials have finished; fewer than 10"):
        importances(*drawn(9))
    changes, scores = drawn(12)
    with pytest.raises(ValueError, match="the same score"):
        importances(changes, [0.5] * 12)
    wide = [{**one, "a": place, "b": -place} for place, one in enumerate(changes)]
    with pytest.raises(ValueError, match="fewer than 16"):
        importances(wide, scores)


def test_probes_without_labels_are_no_points_of_a_learning_curve(tmp_path) -> None:
    """They know the health of embeddings alone."""
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 2, "images_seen": 8, "loss": 1.0}) + "\n")
    for step, knn in ((1, None), (2, 0.5)):
        append_event(tmp_path, "probe", step=step, knn=knn)
    found = read_learning("simclr", "seed 0", tmp_path)
    assert found is not None
    assert found.probes == [(8.0, 50.0)]
