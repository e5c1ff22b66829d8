"""The supervised twin: what it is trained with, what of its scores stands beside a run's, and the whole command."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from pipeline.evaluate.protocol import Evaluation, Score
from pipeline.evaluate.suite import evaluate
from pipeline.evaluate.twin import beside_twin, twin_of
from pipeline.experiment import Experiment, build_experiment
from pipeline.export.card import card
from pipeline.export.forms import FORMS
from pipeline.export.trained import Trained
from pipeline.report.run_report import write_report
from pipeline.run import Run
from pipeline.settings import settings
from pipeline.supervised import supervised_experiment, twin_experiment
from pipeline.train.checkpoints import save_checkpoint
from pipeline.train.fit import TrainingFailed
from pipeline.train.worker import fresh_state
from tests.pipeline.embedding import embed_here
from tests.pipeline.stores import curate_here, tiny_experiment
from tests.pipeline.test_loop import run as train_here
from tests.pipeline.test_start import CPU, VIT, begun


@pytest.fixture
def run(small_experiment: Experiment, tmp_path: Path) -> Run:
    return begun(small_experiment, tmp_path / "first", steps=2)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Commands train and embed in this process, without Ray; returns the names of the runs that were trained."""
    trained: list[str] = []

    def train(run: Run, progress, tell) -> None:
        state = fresh_state(run.experiment, CPU)
        train_here(run.experiment, state, run.experiment.total_steps)
        save_checkpoint(run.checkpoints, state, keep=1)
        trained.append(run.path.name)

    monkeypatch.setattr("pipeline.supervised.train", train)
    monkeypatch.setattr("pipeline.cluster.connected", lambda address, cpus: nullcontext())
    embed_here(monkeypatch)
    return trained


# ---- what it is trained with ---------------------------------------------------------------------------------------


def test_it_differs_in_what_labels_need_and_in_nothing_else(small_experiment):
    mine, twins = (
        settings(one.model_dump(mode="json")) for one in (small_experiment, supervised_experiment(small_experiment))
    )
    differ = {key for key in mine.keys() & twins.keys() if mine[key] != twins[key]}
    assert {key.split(".")[0] for key in differ} == {"views", "objective", "optimizer"}
    assert (twins["objective.name"], twins["optimizer.name"]) == ("supervised", "sgd")
    assert (twins["views.crop_scale"], twins["views.jitter_probability"]) == (mine["views.crop_scale"], 0)


def test_without_batchnorm_it_is_trained_as_deit(small_experiment):
    there = build_experiment(small_experiment.model_dump(mode="json") | {"encoder": VIT})
    twin = supervised_experiment(there)
    assert (twin.optimizer.name, twin.optimizer.layer_decay) == ("adamw", None)
    assert (twin.objective.mixup, twin.objective.cutmix, twin.objective.label_smoothing) == (0.8, 1.0, 0.1)
    assert twin.encoder.arguments == {**VIT["arguments"], "drop_path_rate": 0.1}
    twin.check_model()


def test_it_sees_as_many_images_as_the_run_and_those_before_it(small_experiment):
    """In batches of 256 at most; a run that went on from step 100 had seen more than its own settings say."""
    going_on = small_experiment.override(
        {"training.continue_from": "/runs/before", "training.continue_step": 100, "data.batch_size": 512,
         "training.images_seen": 5_120}
    )  # fmt: skip
    twin = supervised_experiment(going_on)
    assert (twin.data.batch_size, twin.training.images_seen, twin.training.continue_from) == (256, 110 * 512, None)
    assert twin.total_steps == 220


def test_what_can_have_no_twin_is_refused(small_experiment, small_store, tmp_path):
    supervised = begun(supervised_experiment(small_experiment).fitted(small_store), tmp_path / "labelled")
    with pytest.raises(ValueError, match="learns from labels itself"):
        twin_experiment(supervised)
    run = begun(small_experiment, tmp_path / "run")
    begun(small_experiment, twin_of(run).path)
    with pytest.raises(ValueError, match=r"is no supervised twin \(objective 'simclr', encoder .*move it elsewhere"):
        twin_experiment(run)


def test_a_store_without_labels_is_refused_before_anything_starts(small_store, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(sorted((small_store.path.parent / "dump").rglob("*.png"))):
        (flat / f"{number}.png").write_bytes(path.read_bytes())
    run = begun(tiny_experiment(curate_here(flat, tmp_path / "store").path), tmp_path / "run")
    result = CliRunner().invoke(app, ["evaluate", str(run.path), "--supervised"])
    assert isinstance(result.exception, ValueError)
    assert "learns from labels, but no image of" in str(result.exception)
    assert not twin_of(run).path.exists()


# ---- what stands beside --------------------------------------------------------------------------------------------


def evaluation(**values: float) -> Evaluation:
    scores = [
        Score(
            name=name, protocol="5-NN", num_queries=100, trained=value, random_encoder=0.1, raw_pixels=0.2, chance=0.1
        )
        for name, value in values.items()
    ]
    return Evaluation(checkpoint="c", step=2, store_digest="d", asked="a", scores=scores, skipped=[], neighbours={},
                      seconds=5)  # fmt: skip


def test_only_what_was_asked_in_the_same_way_stands_beside():
    mine, twin = evaluation(knn_top1=0.5, zero_shot_top1=0.4), evaluation(knn_top1=0.9, classifier_top1=0.95)
    beside = beside_twin(mine, twin)
    assert [score.supervised for score in beside.scores] == [0.9, None]
    assert [*beside.columns] == ["trained", "random_encoder", "raw_pixels", "chance", "supervised"]
    other_protocol = [score.model_copy(update={"protocol": "20-NN"}) for score in twin.scores]
    for other in (
        None,
        twin.model_copy(update={"asked": "about other samples"}),
        twin.model_copy(update={"store_digest": "other"}),
        twin.model_copy(update={"scores": other_protocol}),
    ):
        stale = beside_twin(beside, other)  # what no longer holds goes
        assert stale == mine
        assert "supervised" not in stale.columns


def test_a_run_that_is_judged_again_has_its_twin_beside_it(run, here, small_store):
    assert not evaluate(run).has_twin
    twin = begun(supervised_experiment(run.experiment).fitted(small_store), twin_of(run).path, steps=2)
    found = evaluate(twin)
    again = evaluate(run)
    assert [score.supervised for score in again.scores] == [found.score(score.name).trained for score in again.scores]


# ---- the command ---------------------------------------------------------------------------------------------------


def test_the_command_trains_the_twin_once_and_shows_it_everywhere(run, here):
    write_report(run)
    assert "--supervised" not in run.report_file.read_text()  # not judged yet: nothing to stand beside
    evaluate(run)
    assert f"feral evaluate {run.path} --supervised" in write_report(run).read_text()

    def command(*more: str) -> str:
        result = CliRunner().invoke(
            app, ["evaluate", str(run.path), *more], env={"COLUMNS": "140"}, catch_exceptions=False
        )
        assert result.exit_code == 0, result.output
        return result.output

    printed = command("--supervised")
    assert "training the supervised twin, supervised with resnet18 at 16 px: 12 steps of 32 images" in printed
    assert "supervised twin" in printed.partition("knn_top1")[0]
    twin = twin_of(run)
    knn = run.evaluation.score("knn_top1")
    assert knn.supervised == twin.evaluation.score("knn_top1").trained > knn.chance
    commands = [json.loads(line)["command"] for line in twin.commands_file.read_text().splitlines()]
    assert len(commands) == 1
    text = run.report_file.read_text()
    assert f"With labels, the same encoder reaches {100 * knn.supervised:.1f} %." in text
    assert "its report" in text
    assert "--supervised" not in text
    trained = Trained.of(run)
    shown = card(trained, "timm", FORMS["timm"], None)
    assert "| chance | supervised twin |" in shown
    assert f"| {knn.shown(knn.supervised)} |" in next(line for line in shown.splitlines() if "knn_top1" in line)

    command("--supervised", "--also", "depths")  # nothing is trained again, and both are asked for more
    assert here == ["supervised"]
    assert run.evaluation.score("linear_top1_depth1").supervised is not None
    command()
    assert run.evaluation.score("knn_top1").supervised == knn.supervised


def test_a_twin_that_fails_ends_the_command_with_where_to_look(run, here, monkeypatch):
    def fail(run: Run, progress, tell) -> None:
        raise TrainingFailed("no memory left")

    monkeypatch.setattr("pipeline.supervised.train", fail)
    result = CliRunner().invoke(app, ["evaluate", str(run.path), "--supervised"])
    assert result.exit_code == 1
    assert "training failed: no memory left" in result.output
    assert str(twin_of(run).path / "logs") in result.output
    assert run.evaluation is None


def test_in_a_table_of_encoders_the_twin_of_each_run_is_one_of_them(run, here, small_store, tmp_path):
    arguments = ["evaluate", str(run.path), "--on", str(small_store.path), "--to", str(tmp_path / "table")]
    result = CliRunner().invoke(app, [*arguments, "--supervised"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    lines = (tmp_path / "table" / "table.md").read_text().splitlines()
    assert {"first", "first/supervised"} <= {line.split(" | ")[0].strip("| ") for line in lines}
    assert (tmp_path / "table" / "first_supervised--store.html").exists()


def test_a_run_without_a_checkpoint_is_told_before_its_twin_is_trained(small_experiment, here, tmp_path):
    run = Run.prepare(tmp_path / "run", small_experiment, ["feral"])
    result = CliRunner().invoke(app, ["evaluate", str(run.path), "--supervised"])
    assert "has no whole checkpoint: train it first" in str(result.exception)
    assert here == []


def test_where_no_twin_can_be_the_option_is_refused(run, small_experiment, small_store, tmp_path):
    supervised = begun(supervised_experiment(small_experiment).fitted(small_store), tmp_path / "labelled")
    for arguments, says in (
        ([str(supervised.path), "--on", str(small_store.path)], "none of these is a run that was trained without"),
        ([str(run.path), str(run.path), "--chain"], "--chain compares encoders of one training"),
    ):
        result = CliRunner().invoke(app, ["evaluate", "--supervised", *arguments])
        assert says in str(result.exception)
