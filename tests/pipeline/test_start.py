"""A run that starts from another: the same weights in the encoder, or a refusal before anything starts."""

import json
from pathlib import Path

import pytest
import torch

from pipeline.experiment import Experiment, build_experiment
from pipeline.ingest.store import Store
from pipeline.run import Run
from pipeline.train.checkpoints import save_checkpoint
from pipeline.train.worker import fresh_state
from tests.pipeline.test_loop import run as train

CPU = torch.device("cpu")
VIT = {"name": "vit_tiny_patch16_224", "image_size": 16, "patch_size": 4, "pool": "mean",
       "arguments": {"depth": 2, "embed_dim": 24, "num_heads": 2}}  # fmt: skip
CLIP = {"name": "clip", "text": {"width": 16, "layers": 1, "heads": 2, "context_length": 16}, "dim": 8}


def begun(experiment: Experiment, path: Path, steps: int = 0) -> Run:
    """A run with a checkpoint after so many steps."""
    run, state = Run.prepare(path, experiment, ["feral"]), fresh_state(experiment, CPU)
    if steps:
        train(experiment, state, steps)
    with torch.no_grad():
        for parameter in state.objective.parameters():
            parameter.add_(0.01)  # not what a seed gives
    save_checkpoint(run.checkpoints, state, keep=2)
    return run


@pytest.fixture(scope="module")
def start(small_experiment, tmp_path_factory) -> Run:
    return begun(small_experiment, tmp_path_factory.mktemp("start") / "first")


def after(small_experiment: Experiment, run: Run, objective: dict, **changes) -> Experiment:
    content = small_experiment.model_dump(mode="json") | {"objective": objective, "encoder": _encoder(run)}
    return build_experiment(content).override({"training.start_from": str(run.path), **changes})


def _encoder(run: Run) -> dict:
    return json.loads(run.experiment_file.read_text())["encoder"]


def encoder_of(run: Run) -> dict[str, torch.Tensor]:
    state = fresh_state(run.experiment, CPU)
    run.newest_checkpoint().restore_objective(state.objective)
    return state.objective.encoder.state_dict()


@pytest.mark.parametrize("objective", ["supervised", "simclr", "byol"])
def test_the_encoder_begins_with_the_weights_of_the_other(small_experiment, small_store, start, objective):
    """All of it, with BatchNorm's statistics; heads are as from scratch; a teacher begins equal to its student."""
    experiment = after(small_experiment, start, {"name": objective}).fitted(small_store)
    experiment.check(small_store)
    begins = fresh_state(experiment, CPU).objective
    scratch = fresh_state(experiment.override({"training.start_from": None, "training.start_digest": None}), CPU)
    theirs = encoder_of(start)
    for name, value in begins.encoder.state_dict().items():
        assert torch.equal(value, theirs[name]), name
    heads = {name: value for name, value in scratch.objective.state_dict().items() if "encoder" not in name}
    for name, value in heads.items():
        if not name.startswith("teacher.layers.0"):
            assert torch.equal(begins.state_dict()[name], value), name
    if objective == "byol":
        for name, value in begins.teacher.layers[0].state_dict().items():
            assert torch.equal(value, theirs[name]), name


def test_of_an_image_text_run_the_image_tower_is_taken(small_experiment, small_store, tmp_path):
    clip = build_experiment(small_experiment.model_dump(mode="json") | {"objective": CLIP})
    other = begun(clip, tmp_path / "clip")
    experiment = after(small_experiment, other, {"name": "supervised"}).fitted(small_store)
    for name, value in fresh_state(experiment, CPU).objective.encoder.state_dict().items():
        assert torch.equal(value, encoder_of(other)[name]), name


def test_a_resumed_run_needs_the_other_no_more(small_experiment, small_store, tmp_path):
    other = begun(small_experiment, tmp_path / "other")
    ours = Run(tmp_path / "ours")
    asked = after(small_experiment, other, {"name": "supervised"})
    experiment = asked.fitted(small_store)
    assert experiment.training.start_digest == other.newest_checkpoint().digest
    Run.prepare(ours.path, experiment, ["feral"])
    straight = fresh_state(experiment, CPU)
    train(experiment, straight, 6)
    state = fresh_state(experiment, CPU)
    train(experiment, state, 3)
    save_checkpoint(ours.checkpoints, state, keep=2)
    for path in sorted(other.path.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    again = ours.start_of(asked).fitted(small_store)  # the command names no digest
    assert again == experiment
    again.check(small_store, begun=True)
    resumed = fresh_state(again, CPU, restored=True)
    ours.newest_checkpoint().restore(resumed)
    train(again, resumed, 6)
    for name, value in straight.objective.state_dict().items():
        assert torch.equal(resumed.objective.state_dict()[name], value), name
    with pytest.raises(ValueError, match=r"has no checkpoint with training.start_digest="):
        again.check(small_store)  # without a checkpoint of its own


def test_weights_that_changed_meanwhile_are_not_taken(small_experiment, small_store, tmp_path):
    other = begun(small_experiment, tmp_path / "other")
    experiment = after(small_experiment, other, {"name": "supervised"}).fitted(small_store)
    state = fresh_state(small_experiment, CPU)
    other.newest_checkpoint().restore(state)
    train(small_experiment, state, 2)
    save_checkpoint(other.checkpoints, state, keep=2)
    experiment.check(small_store)  # the older one is still there
    assert encoder_of(other).keys() == fresh_state(experiment, CPU).objective.encoder.state_dict().keys()
    train(small_experiment, state, 4)
    save_checkpoint(other.checkpoints, state, keep=1)
    with pytest.raises(ValueError, match=r"it keeps step_000000004, with other weights.*training.start_digest=null"):
        experiment.check(small_store)
    with pytest.raises(ValueError, match=r"has no checkpoint with training.start_digest="):
        fresh_state(experiment, CPU)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"encoder.arguments.channels": [8, 8, 16, 24]}, r"encoder.arguments.channels is \[8, 8, 16, 16\] there, .*24"),
        ({"encoder.name": "resnet26"}, "encoder.name is resnet18 there, resnet26 here"),
        ({"encoder.stem": "small"}, "encoder.stem is small_stride2 there, small here"),
        ({"encoder.mean": [0.5, 0.5, 0.5]}, r"encoder.mean is .* there"),
    ],
)
def test_another_encoder_is_refused_before_anything_starts(small_experiment, small_store, start, changes, says):
    experiment = after(small_experiment, start, {"name": "supervised"}, **changes).fitted(small_store)
    with pytest.raises(ValueError, match=says):
        experiment.check(small_store)


def test_what_changes_nothing_in_evaluation_may_differ(small_experiment, small_store, start):
    changes = {"encoder.arguments.drop_path_rate": 0.2, "encoder.image_size": 24}
    after(small_experiment, start, {"name": "supervised"}, **changes).fitted(small_store).check(small_store)


def test_a_weight_that_is_missing_or_unexpected_is_refused(small_experiment, small_store, start, tmp_path):
    """Settings may agree where weights do not."""
    other = begun(small_experiment.override({"encoder.arguments.layers": [1, 1, 1, 2]}), tmp_path / "other")
    content = json.loads(other.experiment_file.read_text())
    content["encoder"]["arguments"]["layers"] = [1, 1, 1, 1]
    other.experiment_file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"model.layer4.1.* is unexpected \(\d+ such in all\)"):
        after(small_experiment, other, {"name": "supervised"}).fitted(small_store).check(small_store)


def test_a_run_that_is_none_or_has_not_trained_is_refused(small_experiment, small_store, tmp_path):
    def fit(path: Path) -> None:
        small_experiment.override({"training.start_from": str(path)}).fitted(small_store)

    with pytest.raises(ValueError, match="is no run"):
        fit(tmp_path / "nothing")
    empty = Run.prepare(tmp_path / "empty", small_experiment, ["feral"])
    with pytest.raises(ValueError, match=r"has no whole checkpoint: train it first"):
        fit(empty.path)


def test_a_vit_may_see_larger_images(small_experiment, small_store: Store, tmp_path):
    """Its positions are resampled, everything else is as it was."""
    content = small_experiment.model_dump(mode="json")
    other = begun(build_experiment(content | {"encoder": VIT}), tmp_path / "vit")
    larger = after(small_experiment, other, {"name": "supervised"}, **{"encoder.image_size": 24}).fitted(small_store)
    larger.check(small_store)
    state, theirs = fresh_state(larger, CPU).objective.encoder.state_dict(), encoder_of(other)
    for name, value in state.items():
        assert name == "model.pos_embed" or torch.equal(value, theirs[name]), name
    before, after_ = theirs["model.pos_embed"], state["model.pos_embed"]  # (1, 17, 24), (1, 37, 24)
    assert torch.equal(after_[:, 0], before[:, 0])  # the class token's
    assert torch.allclose(after_[:, 1:].mean(1), before[:, 1:].mean(1), atol=0.01)
