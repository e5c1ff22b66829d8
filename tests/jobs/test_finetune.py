"""Fine-tuning against training from scratch: what differs, what the table says, and a real one that is resumed."""

import json
from dataclasses import replace
from math import log10

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from jobs.finetune import parse_budgets
from pipeline.evaluate.convergence import read_learned
from pipeline.evaluate.protocol import Evaluation, Score
from pipeline.evaluate.spread import Spread
from pipeline.experiment import Experiment, build_experiment
from pipeline.report.efficiency import efficiency_plot
from pipeline.report.run_report import write_report
from pipeline.run import Run
from pipeline.settings import settings
from pipeline.train.checkpoints import newest_checkpoint, save_checkpoint
from pipeline.train.worker import fresh_state
from pipeline.tune.compare import Trial
from pipeline.tune.convergence import Convergence, Sooner
from pipeline.tune.finetune import Arm, Budget, arms, base_experiment, usual_epochs
from pipeline.tune.finetune_table import explanation, lines, read_table, table, verdict, write_table
from tests.pipeline.test_loop import run as train
from tests.pipeline.test_start import CPU, VIT, begun


@pytest.fixture(scope="module")
def start(small_experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return begun(small_experiment, tmp_path_factory.mktemp("finetune") / "first", steps=2)


def made(start: Run, draws: int = 1, **changes) -> list[Arm]:
    base = base_experiment(start.experiment, None, changes)
    budgets = [Budget(share=0.1), Budget(shots=2), Budget(share=1.0)]
    return arms(base, start, base.data.open(), budgets, usual_epochs(base), draws)


# ---- what is trained -----------------------------------------------------------------------------------------------


def test_the_twin_from_scratch_differs_in_nothing_but_the_start(start):
    for ours, theirs in zip(made(start)[::2], made(start)[1::2], strict=True):
        first, second = (settings(arm.trial(1).model_dump(mode="json")) for arm in (ours, theirs))
        differ = {key for key, value in first.items() if value != second[key]}
        assert differ == {"training.start_from", "training.start_digest"}
        assert (ours.starts, theirs.starts) == (True, False)
        assert first["training.start_digest"] == start.newest_checkpoint().digest


def test_a_draw_is_of_labels_and_of_the_seed(start):
    arm = made(start)[0]
    seen = {(arm.trial(draw).data.labels_draw, arm.trial(draw).training.seed) for draw in range(3)}
    assert seen == {(0, 0), (1, 1), (2, 2)}


def test_length_is_in_epochs_of_the_labelled_images_but_not_too_few_steps(start):
    found = made(start)
    assert [arm.images for arm in found[::2]] == [24, 6, 242]
    assert [arm.experiment.total_steps for arm in found[::2]] == [200, 200, 30 * 242 // 32]
    base = base_experiment(start.experiment, None, {"training.images_seen": 640})
    fixed = arms(base, start, base.data.open(), [Budget(shots=1)], None)
    assert {arm.experiment.total_steps for arm in fixed} == {20}


def test_an_encoder_with_batchnorm_gets_sgd_and_one_without_layer_decay_and_mixing(small_experiment):
    resnet = base_experiment(small_experiment, None, {})
    assert (resnet.optimizer.name, resnet.optimizer.layer_decay, resnet.objective.mixup) == ("sgd", None, 0)
    there = build_experiment(small_experiment.model_dump(mode="json") | {"encoder": VIT})
    vit = base_experiment(there, None, {"objective.cutmix": 0.5})
    assert (vit.optimizer.name, vit.optimizer.layer_decay) == ("adamw", 0.65)
    assert (vit.objective.mixup, vit.objective.cutmix) == (0.8, 0.5)
    assert vit.encoder.arguments == {**VIT["arguments"], "drop_path_rate": 0.1}
    vit.check_model()


def test_a_vit_with_all_of_it_resumes_exactly(small_experiment, small_store, tmp_path):
    """Mixing, stochastic depth, layer decay, few labels: the same losses to the last bit after a restart."""
    there = build_experiment(small_experiment.model_dump(mode="json") | {"encoder": VIT})
    base = base_experiment(there, None, {"training.images_seen": 320})
    base = base.override({"data.shots": 4}).fitted(small_store)
    assert base.total_steps == 10
    expected, rows = [], []
    train(base, fresh_state(base, CPU), 6, expected)
    state = fresh_state(base, CPU)
    train(base, state, 3, rows)
    save_checkpoint(tmp_path, state, keep=1)
    resumed = fresh_state(base.override({"training.seed": 9}), CPU, restored=True)
    newest_checkpoint(tmp_path).restore(resumed)
    train(base, resumed, 6, rows)
    assert rows == expected
    assert len({loss for _, loss in rows}) == 6


@pytest.mark.parametrize("key", ["data.labels_draw", "training.seed", "training.start_from", "objective.name"])
def test_what_the_command_varies_cannot_be_set(small_experiment, key):
    with pytest.raises(ValueError, match=f"{key} is what fine-tuning varies"):
        base_experiment(small_experiment, None, {key: 1})


def test_budgets_are_read_from_lists():
    assert [str(budget) for budget in parse_budgets("0.01,1", "1,5")] == ["1 %", "100 %", "1 a class", "5 a class"]
    assert [budget.share for budget in parse_budgets(None, None)] == [0.01, 0.1, 1]
    assert [budget.shots for budget in parse_budgets(None, "3")] == [3]
    for labels, shots, says in (
        ("10", None, "1 % is 0.01"),
        (None, "0", "1 or more"),
        ("x", None, "no list of numbers"),
    ):
        with pytest.raises(ValueError, match=says):
            parse_budgets(labels, shots)


# ---- what is concluded ---------------------------------------------------------------------------------------------


def trial(arm: Arm, draw: int, top1: float | None) -> Trial:
    if top1 is None:
        return Trial(arm.recipe, draw, "runs/x", error="TrainingFailed: full disk")
    score = Score(name="classifier_top1", protocol="", num_queries=10_000, trained=top1, random_encoder=0.1,
                  raw_pixels=0.3, chance=0.1)  # fmt: skip
    evaluation = Evaluation(checkpoint="c", step=2, store_digest="d", scores=[score], skipped=[], neighbours={},
                            seconds=5)  # fmt: skip
    return Trial(arm.recipe, draw, "runs/x", evaluation)


def judged(start: Run) -> tuple[list[Arm], list[Trial]]:
    """Better with 10 %, worse with two of each class, and nobody knows with all; one trial has failed."""
    found, trials = made(start), []
    values = [(0.40, 0.30), (0.20, 0.25), (0.700, 0.702)]
    for draw in range(3):
        for arm in found:
            value = values[found.index(arm) // 2][0 if arm.starts else 1] + draw / 100
            trials.append(trial(arm, draw, None if arm is found[5] and draw == 2 else value))
    return found, trials


def test_the_verdict_tells_gains_of_pairs_from_chance(start):
    rows = table(*judged(start))
    assert lines(start, rows)[0][-1] == "gain"
    assert lines(start, rows)[1:] == [
        ("10 %", "24", "41.0 ± 1.0", "31.0 ± 1.0", "+10.0"),
        ("2 a class", "6", "21.0 ± 1.0", "26.0 ± 1.0", "-5.0"),
        ("100 %", "242", "71.0 ± 1.0", "70.7 ± 0.7", "-0.2"),
    ]
    assert verdict(rows, "first") == (
        "From first: better than from scratch with 10 % (+10.0); worse with 2 a class (-5.0); not distinguishable from "
        "scratch with 100 % (-0.2)."
    )


def test_top_5_stands_in_the_table_of_more_than_five_classes(start):
    found, trials = judged(start)
    score = trials[0].evaluation.score("classifier_top1")
    more = score.model_copy(update={"name": "classifier_top5", "trained": 0.8})
    trials[0] = replace(trials[0], evaluation=trials[0].evaluation.model_copy(update={"scores": [score, more]}))
    titles, first, second, _ = lines(start, table(found, trials))
    assert titles[-2:] == ("top-5 from first, %", "top-5 from scratch, %")
    assert (first[-2:], second[-2:]) == (("80.0", "–"), ("–", "–"))


def test_a_single_draw_and_none_conclude_nothing(start):
    found, trials = judged(start)
    single = table(found, [one for one in trials if one.seed == 0])
    assert "not distinguishable from scratch with 10 % (+10.0)" in verdict(single, "first")
    assert "a single draw tells no more: give --draws 3" in verdict(single, "first")
    assert verdict(table(found, []), "first") == "Nothing can be said yet: no pair of trials has ended."


def test_the_data_efficiency_curve_is_over_the_logarithm_of_labels(start):
    rows = table(*judged(start))
    found = efficiency_plot(rows, ("ours", "scratch"))
    assert found is not None
    ours, scratch = ([dot for dot in found.dots if dot.text.startswith(name)] for name in ("ours", "scratch"))
    places = [dot.x for dot in ours]
    assert (places[1] - places[0]) / (places[2] - places[0]) == pytest.approx(log10(24 / 6) / log10(242 / 6))
    assert ours[1].text == "ours, 24 images: 41.0 ± 1.0 %"
    assert len(scratch) == 3
    values = {tick.label: tick.place for tick in found.y_ticks}
    assert values["20"] > ours[0].y > values["40"]  # 21 % lies between
    whiskers = [line for line in found.lines if "whisker" in line.look]
    assert len(whiskers) == 6
    for line, dot in zip(whiskers, (*ours, *scratch), strict=True):
        (left, low), (right, high) = (map(float, point.split(",")) for point in line.points.split(" "))
        assert left == right == pytest.approx(dot.x, abs=0.01)
        assert low >= dot.y >= high  # SVG counts from the top
    assert {dot.label for dot in found.dots} == {"", "ours", "scratch"}
    assert efficiency_plot(rows[:1], ("ours", "scratch")) is None


def test_the_explanation_names_a_layer_decay_only_where_there_is_one(start):
    found, _ = judged(start)
    assert "layer decay" not in explanation(found, start.experiment, 3)
    assert "rate 0.05 per 256, mixup 0" in explanation(found, start.experiment, 3)


def test_the_report_of_the_run_shows_the_table(start):
    found, trials = judged(start)
    rows = table(found, trials)
    assert read_table(start) is None
    assert "Fine-tuned" not in write_report(start).read_text()
    (start.path / "finetune").mkdir()
    explained = explanation(found, start.experiment, 3)
    side = tuple((images, Spread(share, 0.01, 3)) for images, share in ((100, 0.2), (200, 0.3), (400, 0.4)))
    curves = [Convergence("10 %", 200, side, side, Sooner(1.0), (1.0, 1.0, 1.0))]
    path = write_table(start, rows, curves, found, trials, explained, "feral finetune first")
    content = json.loads(path.read_text())
    assert content["rows"][0]["run"] == {"mean": pytest.approx(0.41), "std": pytest.approx(0.01), "count": 3}
    assert len(content["trials"]) == 18
    assert {"draw": 2, "error": "TrainingFailed: full disk"}.items() <= content["trials"][-1].items()
    read = read_table(start)
    assert (read["rows"], read["lines"], read["convergence"]) == (rows, lines(start, rows), curves)
    page = write_report(start).read_text()
    for words in (verdict(rows, "first"), "41.0 ± 1.0", "from scratch, %", "feral finetune first", 'href="#finetuned"'):
        assert words in page
    assert "Data efficiency" in page
    assert "from scratch, 242 images: 70.7 ± 0.7 %" in page
    assert "10 %: the 40.0 % at which training from scratch ends are reached no sooner" in page
    assert "from first, 200 images: 30.0 ± 1.0 %" in page
    path.write_text("{}")
    assert "is no table of `feral finetune`" in write_report(start).read_text()
    path.unlink()


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.long
def test_a_run_is_fine_tuned_and_the_command_resumes(ray_local, small_experiment, tmp_path):
    start = begun(small_experiment, tmp_path / "first", steps=2)
    arguments = ["finetune", str(start.path), "training.images_seen=64", "--shots", "2"]

    def command(draws: int) -> str:
        result = CliRunner().invoke(app, [*arguments, "--draws", str(draws)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    printed = command(1)
    assert "2 a class of the labels, from first seed 0: knn_top1 " in printed
    assert "a single draw tells no more" in printed
    trials = sorted((start.path / "finetune" / "trials").iterdir())
    assert len(trials) == 2
    for path in trials:
        evaluation = Run(path).evaluation
        assert evaluation.score("classifier_top1").num_queries > 20
        assert "bank of 6 clean images" in evaluation.score("knn_top1").protocol  # no other labels are looked at
        assert Run(path).report_file.exists()
        assert [images for images, _ in read_learned(path).points] == [32, 64]
    before = [Run(path).evaluation_file.stat().st_mtime_ns for path in trials]
    assert "2 of 4 trials were finished before" in command(2)
    assert [Run(path).evaluation_file.stat().st_mtime_ns for path in trials] == before
    assert [row.gain.count for row in read_table(start)["rows"]] == [2]
