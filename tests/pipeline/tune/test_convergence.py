"""How fast fine-tuning learns: judged on images without labels, curves of pairs, and by which factor it is sooner."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluate.convergence import FILE, judge_convergence, judged_steps, learned, read_learned
from pipeline.evaluate.embed import Embedding
from pipeline.evaluate.encoders import RunEncoders
from pipeline.report.efficiency import convergence_plots
from pipeline.train.checkpoints import save_checkpoint
from pipeline.train.worker import fresh_state
from pipeline.tune.compare import Trial
from pipeline.tune.convergence import Sooner, convergence, restored, sooner
from pipeline.tune.finetune import Arm, Budget
from tests.pipeline.embedding import HERE
from tests.pipeline.test_labels import experiment
from tests.pipeline.test_start import CPU, begun


def test_a_run_is_judged_ten_times_unless_no_image_is_left(small_store):
    few = experiment(small_store, **{"data.shots": 5, "training.images_seen": 32 * 320})
    assert judged_steps(few, small_store) == [10, 20, 40, 80, 120, 160, 200, 240, 280, 320]
    short = few.override({"training.images_seen": 32 * 4})
    assert judged_steps(short, small_store) == [1, 2, 3, 4]
    assert judged_steps(few.override({"data.shots": None, "data.labels": 1.0}), small_store) == []


def test_the_classifier_is_judged_on_training_images_without_their_labels(small_store, tmp_path):
    few = experiment(small_store, **{"data.shots": 5})
    run, state = begun(few, tmp_path / "run", steps=12), fresh_state(few, CPU)
    state.step = 3
    save_checkpoint(run.checkpoints, state, keep=9)
    found = learned(run, run.kept_checkpoints(), threads=1)
    asked = np.setdiff1d(small_store.select("train"), few.training_samples(small_store)[0])
    truth = small_store.column("label").to_numpy()[asked]
    assert found.queries == len(asked) > 200
    assert [images for images, _ in found.points] == [3 * 32, 12 * 32]
    for checkpoint, (_, top1) in zip(run.kept_checkpoints(), found.points, strict=True):
        encoders = RunEncoders("run", few.model_dump(mode="json"), checkpoint)
        objective = encoders.load()["trained"]
        rows = Embedding.here(HERE, encoders, small_store, asked, ("trained",))["trained"]
        right = rows @ objective.classify.weight.detach().numpy().T + objective.classify.bias.detach().numpy()
        assert top1 == pytest.approx((right.argmax(1) == truth).mean())


def test_what_was_judged_is_kept_and_its_checkpoints_are_not(small_store, tmp_path):
    few = experiment(small_store, **{"data.shots": 5, "training.keep_checkpoints": 1})
    run, state = begun(few, tmp_path / "run"), fresh_state(few, CPU)
    for state.step in (3, 6, 12):
        save_checkpoint(run.checkpoints, state, keep=9)
    assert read_learned(run.path) is None
    judge_convergence(run, [3, 12], threads=1)
    assert [images for images, _ in read_learned(run.path).points] == [96, 384]
    assert [one.step for one in run.kept_checkpoints()] == [12]
    before = (run.path / FILE).read_bytes()
    judge_convergence(run, [3, 12], threads=1)
    assert (run.path / FILE).read_bytes() == before
    (run.path / FILE).write_text("[]")
    with pytest.raises(ValueError, match="holds no learning curve"):
        read_learned(run.path)


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ([(10, 0.2), (20, 0.4), (40, 0.8)], Sooner(40 / 25)),  # half of the goal is between 20 and 40: linear
        ([(10, 0.6), (20, 0.4), (40, 0.8)], Sooner(4.0, at_least=True)),
        ([(10, 0.2), (20, 0.3), (40, 0.4)], None),
        ([(10, 0.2), (20, 0.3), (40, 0.5)], Sooner(1.0)),
        ([(10, 0.2), (20, 0.7), (40, 0.1)], Sooner(40 / 16)),  # it was there once
    ],
)
def test_how_much_sooner_is_a_ratio_of_images_seen(run, expected):
    found = sooner(run, [(10, 0.1), (20, 0.6), (40, 0.5)])
    assert found == (expected and Sooner(pytest.approx(expected.times), expected.at_least))


def pair(folder: Path, small_store, points: dict[tuple[bool, int], list[tuple[int, float]]]):
    """Arms of one budget and trials by (from the run, draw) that left curves."""
    few = experiment(small_store, **{"data.shots": 5})
    found = [Arm(f"5, {starts}", few, Budget(shots=5), 15, starts) for starts in (True, False)]
    trials = []
    for (starts, draw), curve in points.items():
        path = folder / f"{starts}{draw}"
        path.mkdir()
        (path / FILE).write_text(json.dumps({"queries": 200, "points": curve}))
        trials.append(Trial(f"5, {starts}", draw, str(path)))
    return found, trials


def test_curves_are_means_over_the_draws_that_both_sides_have(small_store, tmp_path):
    curves = {
        (True, 0): [(10, 0.2), (20, 0.4), (40, 0.8)],
        (True, 1): [(10, 0.3), (20, 0.6), (40, 0.8)],
        (True, 2): [(10, 0.9), (20, 0.9), (40, 0.9)],  # its twin has not ended
        (False, 0): [(10, 0.1), (20, 0.2), (40, 0.4)],
        (False, 1): [(10, 0.1), (20, 0.2), (40, 0.6)],
    }
    (row,) = convergence(*pair(tmp_path, small_store, curves))
    assert [(images, round(spread.mean, 6), spread.count) for images, spread in row.run] == [
        (10, 0.25, 2), (20, 0.5, 2), (40, 0.8, 2),
    ]  # fmt: skip
    assert row.of_draws == (2.0, 2.0)
    assert row.words == (
        "5 a class: the 50.0 % at which training from scratch ends are reached 2.0× sooner (each draw: 2.0×, 2.0×)"
    )
    assert restored(json.loads(json.dumps(asdict(row)))) == row
    (drawn,) = convergence_plots([row], ("ours", "scratch"))
    places = [dot.x for dot in drawn.dots if dot.text.startswith("ours")]
    assert places[1] - places[0] == pytest.approx(places[2] - places[1])  # a factor is a distance
    assert "ours, 20 images: 50.0 ± 14.1 %" in {dot.text for dot in drawn.dots}


def test_what_is_not_reached_or_was_there_at_once_is_said(small_store, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    never = {(True, 0): [(10, 0.2), (20, 0.3)], (False, 0): [(10, 0.1), (20, 0.5)]}
    (row,) = convergence(*pair(tmp_path / "a", small_store, never))
    assert row.words == "5 a class: the 50.0 % at which training from scratch ends are not reached"
    (row,) = convergence(*pair(tmp_path / "b", small_store, {**never, (True, 0): [(1, 0.6), (20, 0.7)]}))
    assert "reached more than 20× sooner" in row.words
    assert convergence(*pair(tmp_path, small_store, {(True, 0): [(1, 0.6)]})) == []
