"""Studies: their definitions, what their numbers say, and a real one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import jobs.studies
from jobs.cli import app
from jobs.studies import STUDIES, find_study
from pipeline.evaluate.spread import Spread
from pipeline.evaluate.suite import ON_DEMAND
from pipeline.ingest.store import Store
from pipeline.report.study import lines, markdown, write_study
from pipeline.report.study_figure import draw_study, fill_figure
from pipeline.tune.compare import Trial
from pipeline.tune.study import Cell, Point, Study, agreement, cells
from tests.jobs.test_compare import trial
from tests.pipeline.stores import tiny_experiment

NUMBERS = (50.0, 60.0, 55.0, 40.0)


def tiny(store: Path = Path("store"), **more) -> Study:
    points = tuple(
        Point((value,), tiny_experiment(store), {"objective.temperature": value}, {"linear probe": published})
        for value, published in zip((0.1, 0.2, 0.5, 1.0), NUMBERS, strict=True)
    )
    content = {
        "name": "tiny", "question": "which temperature?", "axes": ("temperature",), "points": points,
        "found": "0.2", "source": "a paper, table 1", "scores": {"linear probe": "linear_top1", "k-NN": "knn_top1"},
    }  # fmt: skip
    return Study(**content | more)


def trials_of(study: Study, linear: tuple[float, ...], seeds: int = 1) -> list[Trial]:
    return [
        trial(study.label(point), seed, 0.4, value + 0.01 * seed)
        for seed in range(seeds)
        for point, value in zip(study.points, linear, strict=True)
    ]


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_builds_and_its_points_differ(name: str):
    study = find_study(name)()
    assert study.name == name
    found = study.contenders({"training.images_seen": 20_000})
    assert len({contender.recipe for contender in found}) == len(found)
    assert len({contender.experiment.digest for contender in found}) == len(found)
    assert max(contender.experiment.training.images_seen for contender in found) == 20_000
    assert {*study.also} <= {*ON_DEMAND}
    for point in study.points:
        assert len(point.place) == len(study.axes)
        assert {*point.published} <= {*study.scores}
        assert all(1 < value < 100 for value in point.published.values())  # percent


def test_what_a_study_varies_is_refused_and_the_rest_holds_for_all():
    study = tiny()
    assert {one.experiment.data.batch_size for one in study.contenders({"data.batch_size": 64})} == {64}
    for key in ("objective.temperature", "training.seed"):
        with pytest.raises(ValueError, match=f"{key} is what the study tiny varies"):
            study.contenders({key: 1})
    with pytest.raises(ValueError, match=r"^temperature 0\.1: data\.batch_size=7 is not a multiple"):
        study.contenders({"data.batch_size": 7})


def test_a_point_may_see_a_share_of_the_images():
    point = replace(tiny().points[0], length=0.5)
    (half,) = tiny(points=(point,)).contenders({"training.images_seen": 640})
    assert half.experiment.training.images_seen == 320


@pytest.mark.parametrize(("measured", "order"), [((0.3, 0.6, 0.5, 0.2), "1.00"), ((0.5, 0.2, 0.3, 0.6), "-1.00")])
def test_the_order_of_the_points_is_compared_with_the_published_one(measured, order):
    study = tiny()
    linear, knn = agreement(study, cells(study, trials_of(study, measured)))
    assert linear.endswith(f"the order of the 4 points agrees with theirs by ρ = {order} (Spearman; 1: the same)")
    assert ("as published (60.0)" in linear) == (order == "1.00")
    assert ("; published: temperature 0.2 (60.0)" in linear) == (order == "-1.00")
    assert knn.startswith("k-NN: best here temperature 0.1 (40.0 %)")  # nothing published


def test_a_point_whose_trials_failed_is_counted_and_compared_with_nothing():
    study = tiny()
    trials = trials_of(study, (0.3, 0.6, 0.5, 0.2), seeds=2)
    trials[0] = Trial(trials[0].recipe, 0, "", error="boom")
    trials[4] = Trial(trials[4].recipe, 1, "", error="boom")
    found = cells(study, trials)
    assert [cell.missing for cell in found] == [2, 0, 0, 0]
    assert found[1].measured["linear probe"].percent() == "60.5 ± 0.7"
    assert "ρ" not in agreement(study, found)[0]  # three points show no order
    assert lines(study, found)[0][:4] == ["0.1", "–", "–", "50.0"]
    assert agreement(study, cells(study, [])) == []


@pytest.mark.parametrize(
    ("figure", "axes"),
    [("curves", ("temperature",)), ("bars", ("temperature",)), ("profiles", ("temperature",)), ("matrix", ("a", "b"))],
)
def test_files_hold_question_numbers_and_command(tmp_path: Path, figure, axes):
    study = tiny(figure=figure, axes=axes, question="which | one?")
    if len(axes) == 2:
        places = (("x", "x"), ("x", "y"), ("y", "y"), ("z", "x"))
        points = tuple(replace(one, place=place) for one, place in zip(study.points, places, strict=True))
        study = replace(study, points=points)
    found = cells(study, trials_of(study, (0.3, 0.6, 0.5, 0.2)))
    write_study(tmp_path, study, found, "common words", "feral study tiny")
    text = (tmp_path / "study.md").read_text()
    assert text.startswith("`feral study tiny`")
    assert len({line.count(" | ") for line in text.splitlines() if line.startswith("| ")}) == 1
    for words in (
        "Which | one?",
        "Published: 0.2 (a paper, table 1).",
        "common words",
        "| published |",
        "| 60.0 | 40.0",
    ):
        assert words in text
    assert "missing" not in text  # no trial failed
    content = json.loads((tmp_path / "study.json").read_text())
    assert content["points"][1]["measured"]["linear probe"]["mean"] == 0.6
    assert content["points"][1]["published"] == {"linear probe": 60.0}
    assert draw_study(study, found, tmp_path / "study.png").stat().st_size > 10_000
    assert draw_study(study, cells(study, []), tmp_path / "empty.png").exists()
    failed = [Trial(study.label(point), 0, "", error="boom") for point in study.points]
    assert "| missing |" in markdown(study, cells(study, failed), "", "")


@pytest.mark.parametrize("name", STUDIES)
def test_the_legend_of_every_study_is_within_its_figure(name: str):
    from matplotlib.figure import Figure

    study, figure = find_study(name)(), Figure(layout="constrained")
    scores = {title: Spread.of([0.4]) for title in study.scores}
    fill_figure(figure, study, [Cell(point, "", scores, {}, None, None, 0) for point in study.points])
    figure.canvas.draw()
    for legend in figure.legends:
        extent = legend.get_window_extent()
        assert 0 <= extent.x0 < extent.x1 <= figure.bbox.width
    assert bool(figure.legends) == (study.figure != "matrix" and study.figure != "bars")


def test_a_name_that_is_no_study_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean temperature"):
        find_study("temperatur")


def test_the_list_names_every_study():
    printed = CliRunner().invoke(app, ["studies"], catch_exceptions=False).output
    assert all(name in printed for name in STUDIES)


@pytest.mark.cluster
@pytest.mark.slow
def test_a_study_is_run_and_resumed(ray_local, small_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    study = tiny(
        small_store.path,
        points=tiny(small_store.path).points[:2],
        scores={"h": "linear_top1", "g(h)": "linear_top1_projection"},
        also=("projection",),
    )
    study = replace(study, points=tuple(replace(point, published={}) for point in study.points))
    monkeypatch.setattr(jobs.studies, "STUDIES", {"tiny": lambda: study})
    arguments = ["study", "tiny", "training.images_seen=64", "--to", str(tmp_path / "s")]
    printed = CliRunner().invoke(app, arguments, catch_exceptions=False).output
    assert "2 points × 1 seeds, 128 images in all" in printed
    assert "temperature 0.1 seed 0 starts" in printed
    content = json.loads((tmp_path / "s" / "study.json").read_text())
    assert all({*point["measured"]} == {"h", "g(h)"} for point in content["points"])
    assert (tmp_path / "s" / "study.png").exists()
    again = CliRunner().invoke(app, arguments, catch_exceptions=False).output
    assert "starts" not in again
    assert "best here" in again
