"""The real stages, from pictures to the champion, in this process without Ray: what each kind of dump comes to."""

import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from sqlalchemy import Row, select

from pipeline import curate as curation
from pipeline import pretrain
from pipeline.cycle.config import Cycle
from pipeline.cycle.curating import _room
from pipeline.cycle.engine import run_pass
from pipeline.cycle.job import EXIT, Pass, Step
from pipeline.cycle.stages import stages_of
from pipeline.cycle.training import _images
from pipeline.evaluate import suite
from pipeline.evaluate.forgetting import read_forgetting
from pipeline.experiment import Experiment
from pipeline.ingest.store import Store
from pipeline.ledger.database import Ledger
from pipeline.ledger.lineage import dumps_of, fed, inputs
from pipeline.ledger.promotion import current, events, resolve
from pipeline.ledger.seen import saw
from pipeline.ledger.tables import dump, work
from pipeline.run import Run
from pipeline.stream.batches import named_store
from pipeline.train.checkpoints import save_checkpoint
from pipeline.train.record import Recorder, fingerprint
from pipeline.train.worker import fresh_state, open_batches
from tests.pipeline.embedding import embed_here
from tests.pipeline.stores import tiny_experiment, write_dump
from tests.pipeline.test_loop import run as train_here

CPU = torch.device("cpu")
pytestmark = pytest.mark.slow


def fit_here(experiment: Experiment, run: Run, *hooks: Any) -> None:
    """In place of Ray Train: the same loop, in this process."""
    done = run.newest_checkpoint()
    if done is not None and done.step >= experiment.total_steps:
        return
    state, batches = fresh_state(experiment, CPU), open_batches(experiment)

    def account(columns):
        counts = batches.counts(columns) if experiment.data.replay else ()
        return fingerprint(columns["number"], columns["visit"]), 0, *counts

    train_here(
        experiment, state, experiment.total_steps, on_log=Recorder(run.path, 1, state.step).write, account=account
    )
    save_checkpoint(run.checkpoints, state, keep=2)


def without_ray(patch: pytest.MonkeyPatch) -> None:
    def units(units, task, watch) -> None:
        for unit in units:
            for progress in task(pa.table({"unit": [unit.model_dump_json()]})):
                watch.take(progress)

    patch.setattr(curation, "run_units", units)
    patch.setattr(curation, "connected", lambda address: nullcontext())
    patch.setattr(pretrain, "fit", fit_here)
    patch.setattr(suite, "ALWAYS", {"classification": suite.ALWAYS["classification"]})
    embed_here(patch)


class Production:
    """A cycle with a recipe that trains in a second, and its ledger."""

    def __init__(self, root: Path) -> None:
        self.root, self.ledger = root, Ledger.open(str(root / "ledger.db"), create=True)
        reading = {"holdout": 0.2}
        policy = {"policy": "none", "thresholds": {"exact_duplicates": True}, "reading": reading}
        self.cycle = Cycle.model_validate(
            {
                "root": root / "production", "recipe": "tiny", "images_per_dump": 384, "ledger": None,
                "sources": [
                    {"name": "web", "root": str(root / "incoming"), "quiet_minutes": 0, **policy},
                    {"name": "other", "root": str(root / "other"), "quota": 0.2, **policy},
                ],
            }
        )  # fmt: skip
        recipe = tiny_experiment(root).override({"data.store": "", "optimizer.warmup": 0.1})
        self.stages = stages_of(recipe, lambda steps: nullcontext(SimpleNamespace(show=print, tell=print)))
        (root / "incoming").mkdir()
        (root / "other").mkdir()

    def tick(self, *only: str) -> Pass:
        return run_pass(
            self.cycle, self.ledger, [stage for stage in self.stages if not only or stage.name in only], tell=print
        )

    def dumps(self) -> dict[str, Row]:
        """By the name of the delivery's folder."""
        from pipeline.cycle.contents import read_contents

        with self.ledger.reading() as connection:
            rows = connection.execute(select(dump)).all()
        return {read_contents(self.cycle.root, row.dump_id).name: row for row in rows}

    def output(self, row: Row, stage: str) -> str:
        unit = select(work.c.output).where(work.c.dump_id == row.dump_id, work.c.stage == stage)
        with self.ledger.reading() as connection:
            return connection.execute(unit).scalar_one()


def whole(folder: Path) -> None:
    (folder / "_SUCCESS").touch()


@pytest.fixture(scope="module")
def production(tmp_path_factory) -> Production:
    """After two ticks: a first dump; then a second with copies, rejects, a poisoned and a tiny dump."""
    made = Production(tmp_path_factory.mktemp("cycle"))
    incoming = made.root / "incoming"
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        whole(write_dump(incoming / "1-first", 300))
        assert EXIT[made.tick().status] == 0

        whole(write_dump(incoming / "2-second", 240, 25))
        pictures = sorted((incoming / "1-first").rglob("*.png"))
        for number, path in enumerate(pictures):
            (incoming / "3-renamed").mkdir(exist_ok=True)
            shutil.copy(path, incoming / "3-renamed" / f"{number}.png")
        for number in range(3):
            (incoming / "4-rejects").mkdir(exist_ok=True)
            (incoming / "4-rejects" / f"{number}.png").write_text("no picture")
        poisoned = write_dump(incoming / "5-poisoned", 60, 26)
        for number in range(40):
            Image.fromarray(np.full((30, 30, 3), (200, 10, 10), np.uint8)).save(poisoned / f"{number}.bmp")
        write_dump(incoming / "6-tiny", 12, 27)
        (incoming / "7-text").mkdir()
        (incoming / "7-text" / "notes.md").write_text("nothing to see")
        (incoming / "8-empty").mkdir()
        for folder in incoming.iterdir():
            whole(folder)
        made.second = made.tick()  # type: ignore[attr-defined]
    return made


def test_what_each_dump_comes_to(production):
    found = {name: (row.state, row.reason) for name, row in production.dumps().items()}
    assert found["1-first"] == ("promoted", "the first: there was nothing to compare with")
    assert found["2-second"][0] in ("promoted", "held")
    assert found["3-renamed"] == ("skipped", "no new samples: 300 dup_exact")
    assert found["4-rejects"] == ("skipped", "nothing could be kept: 3 format_forbidden")
    assert found["5-poisoned"][0] == "quarantined"
    assert "40 of 100 pictures (40%) are copies of" in found["5-poisoned"][1]
    assert "suspicious_cluster_share = 0.25" in found["5-poisoned"][1]
    assert found["6-tiny"][0] == "skipped"
    assert "less than the 24 of one batch" in found["6-tiny"][1]
    assert found["7-text"] == ("skipped", "no image, .tar or .parquet file is in it")
    assert found["8-empty"] == ("skipped", "it is empty")
    assert EXIT[production.second.status] == 30


def test_the_first_dump_is_trained_without_an_end_and_the_next_goes_on_from_it_with_replay(production):
    first, second = (production.dumps()[name] for name in ("1-first", "2-second"))
    plateau, following = (Run.open(Path(production.output(row, "train"))) for row in (first, second))
    assert plateau.experiment.optimizer.schedule == "constant"
    assert plateau.experiment.optimizer.warmup_images == 39  # a tenth of the first run
    assert following.experiment.training.continue_from == str(plateau.path)
    assert following.experiment.total_steps == 24
    candidate = Run.open(Path(production.output(second, "cooldown")))
    assert candidate.experiment.training.cooldown
    assert candidate.experiment.training.images_seen == 64  # 15 % of 12 steps
    with production.ledger.reading() as connection:
        read = {row.role: (row.planned, row.consumed) for row in inputs(connection, following.experiment.digest)}
    assert read == {"replay": (96, 96), "new": (288, 288)}


def test_champion_and_base_moved_together_and_both_can_be_traced(production):
    first, second = (production.dumps()[name] for name in ("1-first", "2-second"))
    with production.ledger.reading() as connection:
        base, champion = (resolve(connection, name) for name in ("base", "champion"))
        said = [(event.name, event.action) for event in events(connection)]
        assert dumps_of(fed(connection, base.digest)) == [first.dump_id, second.dump_id]
        picture = Store(production.output(first, "curate"))
        seen = saw(connection, picture.column("id")[int(picture.select("train")[0])].as_py())
    assert {row.digest for row in seen.tainted} >= {base.digest, champion.digest}
    assert said[:2] == [("champion", "promoted"), ("base", "promoted")]
    assert said[3] == ("base", "promoted")
    assert base.run == Path(production.output(second, "train"))
    passed = second.state == "promoted"
    assert champion.run == Path(production.output(second if passed else first, "cooldown"))
    assert said[2] == ("champion", "promoted" if passed else "held")


def test_the_candidate_is_judged_on_all_dumps_once_and_reported(production):
    second = production.dumps()["2-second"]
    candidate = Run.open(Path(production.output(second, "cooldown")))
    matrix = read_forgetting(candidate.path)
    assert matrix is not None
    assert (len(matrix.encoders), len(matrix.stores)) == (2, 2)
    judged = list((production.cycle.root / "evaluations").glob("*.json"))
    assert len(judged) == 4
    assert 'id="forgotten"' in candidate.report_file.read_text()


def test_another_tick_finds_nothing_to_do_and_moves_nothing(production, monkeypatch):
    without_ray(monkeypatch)
    with production.ledger.reading() as connection:
        before = current(connection, "champion"), current(connection, "base")
    assert production.tick().status == "nothing"
    with production.ledger.reading() as connection:
        assert (current(connection, "champion"), current(connection, "base")) == before


def test_a_source_over_its_quota_is_capped_and_told(production, monkeypatch):
    """A fifth of all: with n others, a quarter of n."""
    without_ray(monkeypatch)
    whole(write_dump(production.root / "other" / "flood", 200, 28))
    (step,) = production.tick("curate").steps
    row = production.dumps()["flood"]
    store = named_store(production.output(row, "curate"))
    others = sum(
        named_store(production.output(production.dumps()[name], "curate")).count("train")
        for name in ("1-first", "2-second")
    )
    assert store.selection == "quota"
    assert store.count("train") == others // 4
    assert f"{others // 4} of its " in step.said
    assert "other may give 20% of all" in step.said
    assert row.reason == "capped by the quota of other"
    whole(write_dump(production.root / "other" / "more", 40, 29))
    (step,) = production.tick("curate").steps
    assert step.kind == "skipped"
    assert "other has its share of 20%" in step.said


@pytest.mark.parametrize(
    ("own", "others", "room"), [(0, 0, None), (50, 0, None), (0, 80, 20), (20, 80, 0), (25, 80, -5)]
)
def test_the_room_in_a_quota(own, others, room):
    source = SimpleNamespace(name="a", quota=0.2)
    assert _room(source, {"a": own, "b": others}) == room  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("images", "epochs", "replay", "expected"),
    [(384, None, 0.25, 384), (385, None, 0, 416), (None, 2, 0, 512), (None, 2, 0.25, 672), (1, None, 0, 32)],
)
def test_how_long_a_dump_is_trained_on(production, images, epochs, replay, expected):
    """Whole batches of 32; an epoch is over the new images, 242 of which are a part of the batches."""
    cycle = production.cycle.model_copy(update={"images_per_dump": images, "epochs_per_dump": epochs})
    store = named_store(production.output(production.dumps()["1-first"], "curate"))
    assert store.count("train") == 242
    assert _images(cycle, tiny_experiment(store.path), store, replay) == expected


def test_of_a_delivery_with_late_files_only_these_are_read(production, monkeypatch):
    without_ray(monkeypatch)
    folder = write_dump(production.root / "incoming" / "a-first", 20, 40)
    whole(folder)
    (step,) = production.tick("curate").steps
    assert step.said.startswith("20 new images of 20")
    write_dump(folder / "more", 3, 41)
    (step,) = production.tick("curate").steps
    assert step.said.startswith("3 new images of 3")
    with production.ledger.reading() as connection:
        (parent,) = connection.execute(select(dump.c.parent_id).where(dump.c.dump_id == step.dump_id)).scalars()
    assert parent is not None


def test_a_file_that_changes_while_it_is_read_makes_the_dump_drift(production, monkeypatch):
    without_ray(monkeypatch)
    folder = write_dump(production.root / "incoming" / "9-changing", 60, 30)
    whole(folder)
    read = curation.run_units

    def changing(*arguments):
        read(*arguments)
        next(folder.rglob("*.png")).write_bytes(b"other")

    monkeypatch.setattr(curation, "run_units", changing)
    found = production.tick("curate")
    assert EXIT[found.status] == 30
    row = production.dumps()["9-changing"]
    assert row.state == "drifted"
    assert "1 file(s) changed" in row.reason


def test_a_dump_that_nothing_could_judge_is_not_trained_on(production, monkeypatch):
    """It has no labels: the gate would hold the candidate, whatever it is worth."""
    without_ray(monkeypatch)
    production.tick()  # nothing else is under way
    pictures = sorted(write_dump(production.root / "unlabelled", 80, 33).rglob("*.png"))
    folder = production.root / "incoming" / "b-unlabelled"
    folder.mkdir()
    for picture in pictures:
        shutil.move(picture, folder / picture.name)
    whole(folder)
    production.tick("curate")
    row = production.dumps()["b-unlabelled"]

    def trained(*judges: Path) -> Step:
        monkeypatch.setattr(production, "cycle", production.cycle.model_copy(update={"judge_on": judges}))
        (step,) = [step for step in production.tick("train").steps if step.admit_no == row.admit_no]
        return step

    unlabelled, labelled = (
        named_store(production.output(production.dumps()[name], "curate")).path for name in ("b-unlabelled", "1-first")
    )
    refused = trained()
    assert refused.kind == "error"
    assert "no labels on both splits, nor captions for a recipe that compares images with text" in refused.said
    assert "name a labelled store in judge_on" in refused.said
    assert f"feral ledger skip {row.admit_no}" in refused.said
    assert "name others in judge_on" in trained(labelled, unlabelled).said
    assert trained(labelled).kind == "done"
