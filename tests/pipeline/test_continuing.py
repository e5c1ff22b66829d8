"""A run that goes on from another: as if it had never stopped; never warmed up again; and the cooldown, which ends."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.experiment import Experiment, build_experiment
from pipeline.ingest.config import CurateConfig
from pipeline.ingest.store import Store
from pipeline.run import Run
from pipeline.train.checkpoints import save_checkpoint
from pipeline.train.continuing import continued, cooled_down
from pipeline.train.inputs import inputs_of
from pipeline.train.loop import curves_span
from pipeline.train.record import Recorder, fingerprint
from pipeline.train.worker import fresh_state, open_batches
from pipeline.tune.finetune import base_experiment
from ssl_models.batch import Step
from tests.pipeline.stores import curate_here, write_dump
from tests.pipeline.test_loop import run as train

CPU = torch.device("cpu")
PLATEAU = {"optimizer.schedule": "constant", "optimizer.warmup_images": 64, "training.checkpoint_every": 100}
OBJECTIVES = {
    "simclr": {"name": "simclr", "projector_dims": [16, 8]},
    "byol": {"name": "byol", "projector_dims": [16, 8], "predictor_dim": 16},
    "moco": {"name": "moco", "queue_size": 64},
    "vae": {"name": "vae", "latent_dim": 4, "decoder_width": 4},
}


def plateau(small_experiment: Experiment, objective: str = "simclr", **changes) -> Experiment:
    content = small_experiment.model_dump(mode="json") | {"objective": OBJECTIVES[objective]}
    return build_experiment(content).override({**PLATEAU, **changes})


def begun(experiment: Experiment, path: Path, store: Store, *, rows: list | None = None) -> Run:
    """A run that has been trained to its end, here."""
    experiment = experiment.fitted(store)
    experiment.check(store)
    run = Run.prepare(path, experiment, ["feral"])
    state = fresh_state(experiment, CPU)
    train(experiment, state, experiment.total_steps, rows)
    save_checkpoint(run.checkpoints, state, keep=2)
    return run


@pytest.fixture(scope="module")
def next_store(tmp_path_factory) -> Store:
    """The next dump: 100 other pictures."""
    folder = tmp_path_factory.mktemp("next")
    return curate_here(write_dump(folder / "dump", 100, 25), folder / "second", CurateConfig(holdout=0.2))


@pytest.fixture(scope="module")
def first(small_experiment, small_store, tmp_path_factory) -> Run:
    return begun(plateau(small_experiment), tmp_path_factory.mktemp("runs") / "first", small_store)


def onto(run: Run, store: Store, **changes) -> Experiment:
    return continued(run.experiment, run.path, {"data.store": str(store.path), **changes})


# ---- on the plateau ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_with_the_same_data_it_is_the_run_that_never_stopped(small_experiment, small_store, tmp_path, objective):
    """Bit for bit: encoder, heads, teacher, queue, optimizer, order of samples and curves, over two continuations."""
    decay = {"optimizer.name": "adamw", "optimizer.final_weight_decay": 0.1} if objective == "byol" else {}
    experiment = plateau(small_experiment, objective, **decay)
    rows, expected = [], []
    straight = begun(
        experiment.override({"training.images_seen": 15 * 32}), tmp_path / "straight", small_store, rows=expected
    )
    run = begun(experiment.override({"training.images_seen": 5 * 32}), tmp_path / "0", small_store, rows=rows)
    for number in ("1", "2"):
        asked = continued(run.experiment, run.path, {"training.images_seen": 5 * 32})
        run = begun(asked, tmp_path / number, small_store, rows=rows)
    assert run.experiment.total_steps == 15
    assert rows == expected
    states = [fresh_state(each.experiment, CPU, restored=True) for each in (straight, run)]
    for each, state in zip((straight, run), states, strict=True):
        each.newest_checkpoint().restore(state)
        assert state.step == 15
    for name, value in states[0].objective.state_dict().items():
        assert torch.equal(states[1].objective.state_dict()[name], value), name
    for phase, optimizer in states[0].optimizers.items():
        mine, theirs = optimizer.state_dict()["state"], states[1].optimizers[phase].state_dict()["state"]
        for key, values in mine.items():
            assert all(torch.equal(torch.as_tensor(values[n]), torch.as_tensor(theirs[key][n])) for n in values)


def test_the_next_dump_begins_at_its_beginning_and_no_view_comes_again(first, next_store, small_store):
    """All that was trained on before is replayed; numbers of older samples stay; nobody sees one visit twice."""
    experiment = onto(first, next_store, **{"training.images_seen": 32 * 20}).fitted(next_store)
    experiment.check(next_store)
    assert experiment.data.replay == (str(small_store.path),)
    assert (experiment.training.continue_step, experiment.data.first_step, experiment.total_steps) == (12, 12, 32)
    seen = set()
    for columns in open_batches(first.experiment).local(0, 12):
        seen |= set(zip(columns["number"].tolist(), columns["visit"].tolist(), strict=True))
    assert len(seen) == 12 * 32
    new = []
    for columns in open_batches(experiment).local(12, 32):
        views = set(zip(columns["number"].tolist(), columns["visit"].tolist(), strict=True))
        assert len(views) == 32
        assert not seen & views
        seen |= views
        new += columns["number"][columns["store"] == 1].tolist()
    assert np.bincount(new[:72], minlength=400)[300:].max() == 1  # the first epoch of the new dump: 3 batches' shares
    assert min(new) >= 300


def test_nothing_is_warmed_up_again(first, next_store, small_store, tmp_path):
    rates = []
    experiment = onto(first, next_store).fitted(next_store)
    state = fresh_state(experiment, CPU)
    assert state.step == 12
    train(experiment, state, 16, on_log=lambda row: rates.append(row.learning_rate))
    assert rates == [pytest.approx(0.1 * 32 / 256)] * 4
    restored = fresh_state(first.experiment, CPU, restored=True)
    first.newest_checkpoint().restore(restored)
    assert restored.step == 12  # the run that it goes on from stays as it was


def test_curves_without_horizon_hold_on_the_plateau_and_end_in_the_cooldown(small_experiment):
    experiment = plateau(small_experiment, "byol")
    training, optimizer = experiment.training, experiment.optimizer
    span = curves_span(training, optimizer, experiment.total_steps)
    assert span.progress(5) is None
    assert [optimizer.warmed(images) for images in (0, 32, 64, 10**9)] == [0, 0.5, 1, 1]
    down = curves_span(training.model_copy(update={"cooldown": True, "continue_step": 12}), optimizer, 20)
    assert [down.progress(step) for step in (12, 16, 20)] == [0, 0.5, 1]
    ends = curves_span(training, small_experiment.optimizer, 12)
    assert ends.progress(6) == 0.5
    on_plateau = [Step(step, None, 0, warmed=optimizer.warmed(32 * step)).begun(0.3) for step in range(4)]
    assert on_plateau == [0, 0.5, 1, 1]  # what a run begins with takes the warm-up
    assert Step(0, None, 0, warmed=0.0).begun(0) == 1  # what takes no time is done at once


def test_a_resumed_run_needs_the_other_no_more(small_experiment, small_store, next_store, tmp_path):
    other = begun(plateau(small_experiment), tmp_path / "other", small_store)
    asked = onto(other, next_store, **{"training.images_seen": 6 * 32})
    ours, expected, rows = Run(tmp_path / "ours"), [], []
    experiment = asked.fitted(next_store)
    straight = fresh_state(experiment, CPU)
    train(experiment, straight, 18, expected)
    Run.prepare(ours.path, experiment, ["feral"])
    state = fresh_state(experiment, CPU)
    train(experiment, state, 15, rows)
    save_checkpoint(ours.checkpoints, state, keep=2)
    shutil.rmtree(other.path)
    again = ours.start_of(asked).fitted(next_store)
    assert again == experiment
    again.check(next_store, begun=True)
    resumed = fresh_state(again, CPU, restored=True)
    ours.newest_checkpoint().restore(resumed)
    train(again, resumed, 18, rows)
    assert rows == expected
    with pytest.raises(ValueError, match=r"has no checkpoint with training\.continue_digest="):
        again.check(next_store)


def test_a_dump_that_comes_again_is_not_replayed_too(first, next_store, small_store, tmp_path):
    second = begun(onto(first, next_store, **{"training.images_seen": 64}), tmp_path / "second", next_store)
    again = continued(second.experiment, second.path, {"data.store": str(small_store.path)})
    assert again.data.replay == (str(next_store.path),)
    assert checked(again, small_store).training.continue_step == 14


def test_what_went_on_can_be_fine_tuned(first, next_store, small_store):
    cooled = cooled_down(onto(first, next_store).fitted(next_store), first.path)
    base = base_experiment(cooled, None, {})
    assert (base.training.continue_from, base.training.cooldown, base.data.replay) == (None, False, ())
    assert base.fitted(next_store).total_steps > 0


# ---- cooldown ------------------------------------------------------------------------------------------------------


def test_a_cooldown_falls_from_the_plateau_to_zero_on_the_same_mixture(first, small_store, tmp_path):
    experiment = cooled_down(first.experiment, first.path, {"training.images_seen": 8 * 32}).fitted(small_store)
    experiment.check(small_store)
    assert experiment.data.first_step == 0  # the order goes on
    rates = []
    state = fresh_state(experiment, CPU)
    train(experiment, state, 20, on_log=lambda row: rates.append(row.learning_rate))
    plateau_rate = 0.1 * 32 / 256
    assert rates == pytest.approx([plateau_rate * (1 - math.sqrt((step + 0.5) / 8)) for step in range(8)])
    assert cooled_down(first.experiment, first.path).training.images_seen == round(0.15 * 384)


def test_the_teacher_of_a_cooldown_comes_to_rest(small_experiment, small_store, tmp_path, monkeypatch):
    from ssl_models.momentum import MomentumTeacher

    momenta = []
    follow = MomentumTeacher.follow
    monkeypatch.setattr(MomentumTeacher, "follow", lambda self, m, *s: momenta.append(m) or follow(self, m, *s))
    run = begun(plateau(small_experiment, "byol"), tmp_path / "byol", small_store)
    assert momenta == [0.99] * 12
    experiment = cooled_down(run.experiment, run.path, {"training.images_seen": 8 * 32}).fitted(small_store)
    train(experiment, fresh_state(experiment, CPU), 20)
    assert momenta[12:] == pytest.approx([1 - 0.01 * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)])


# ---- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"optimizer.learning_rate": 0.2},
            "optimizer.learning_rate is 0.1 there, 0.2 here; what is restored fits only",
        ),
        ({"optimizer.name": "adamw"}, "optimizer.name is sgd there, adamw here"),
        ({"optimizer.schedule": "cosine"}, "optimizer.schedule is constant there, cosine here"),
        ({"objective": OBJECTIVES["byol"]}, "objective.name is simclr there, byol here"),
        ({"objective.projector_dims": [16, 16]}, r"objective.projector_dims is \[16, 8\] there, \[16, 16\] here"),
        ({"encoder.image_size": 24}, "encoder.image_size is 16 there, 24 here.*training.start_from="),
        ({"data.batch_size": 64}, "data.batch_size is 32 there, 64 here"),
        ({"training.continue_from": "/nowhere"}, "training.continue_from=/nowhere is no run"),
    ],
)
def test_what_cannot_go_on_is_refused_with_the_way_out(first, next_store, changes, says):
    with pytest.raises(ValueError, match=says):
        checked(onto(first, next_store, **changes), next_store)


def checked(experiment: Experiment, store: Store) -> Experiment:
    fitted = experiment.fitted(store)
    fitted.check(store)
    return fitted


def test_a_run_with_an_end_and_a_cooldown_cannot_go_on(small_experiment, small_store, next_store, first, tmp_path):
    ended = begun(small_experiment, tmp_path / "ended", small_store)
    with pytest.raises(ValueError, match=r"towards an end \(optimizer.schedule=cosine.*start_from="):
        checked(onto(ended, next_store), next_store)
    cooled = begun(cooled_down(first.experiment, first.path), tmp_path / "cooled", small_store)
    with pytest.raises(ValueError, match=r"is a cooldown: .*; go on from .*first, whose plateau it left"):
        checked(onto(cooled, next_store), next_store)
    short = begun(plateau(small_experiment, **{"optimizer.warmup_images": 1000}), tmp_path / "short", small_store)
    with pytest.raises(ValueError, match="has seen 384 images and is still in its warm-up of 1,000: train it longer"):
        checked(onto(short, next_store), next_store)


def test_a_bank_goes_on_with_its_own_samples_only(small_experiment, small_store, next_store, tmp_path):
    bank = {"name": "instdisc", "negatives": 16}
    experiment = plateau(small_experiment).override({"objective": bank, "training.images_seen": 64})
    run = begun(experiment, tmp_path / "bank", small_store)
    checked(continued(run.experiment, run.path), small_store)
    with pytest.raises(ValueError, match="'instdisc' holds something of every sample: it can go on with the same data"):
        checked(onto(run, next_store), next_store)


def test_settings_that_need_another_are_refused(small_experiment):
    with pytest.raises(ValueError, match=r"cooldown=true anneals a run .*: give training.continue_from=RUN, too"):
        small_experiment.override({"training.cooldown": True})
    with pytest.raises(ValueError, match="give one of them"):
        small_experiment.override({"training.continue_from": "a", "training.start_from": "b"})


# ---- what it was fed -----------------------------------------------------------------------------------------------


def test_realised_counts_are_those_of_the_steps_that_count(first, next_store, small_store, tmp_path):
    """Also when steps are done again after a fault."""
    experiment = onto(first, next_store, **{"training.images_seen": 10 * 32, "training.log_every": 2}).fitted(
        next_store
    )
    run = Run.prepare(tmp_path / "second", experiment, ["feral"])
    batches, counted = open_batches(experiment), np.zeros(2, int)

    def account(columns):
        return fingerprint(columns["number"], columns["visit"]), 0, *batches.counts(columns)

    def attempt(number: int, step: int, stop: int) -> None:
        state, recorder = fresh_state(experiment, CPU), Recorder(run.path, number, step)
        state.step = step
        train(experiment, state, stop, on_log=recorder.write, account=account)

    attempt(1, 12, 18)
    attempt(2, 16, 22)  # the steps 17 and 18 once more
    for columns in batches.local(12, 22):
        counted += batches.counts(columns)
    found = inputs_of(run)
    assert [one.consumed for one in found.stores] == counted.tolist() == [80, 240]
    assert [one.planned for one in found.stores] == [80, 240]
    assert [one.store for one in found.stores] == [str(small_store.path), str(next_store.path)]
    assert found.line.endswith("80 of store, 240 of second (planned: 80, 240)")
