"""`feral promote`, `rollback` and `ledger` as a person and a scheduler see them; `champion` wherever a run is named."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from jobs.cli import app
from pipeline.evaluate.encoders import RunEncoders
from pipeline.evaluate.foreign import find_encoders
from pipeline.ledger.names import find_run
from pipeline.run import Run
from pipeline.tune.finetune import Budget, arms, base_experiment
from tests.pipeline.ledger.runs import judge, trained


@pytest.fixture
def runs(small_experiment, tmp_path, monkeypatch) -> list[Run]:
    """Three judged runs below runs/, each better than the one before; the working directory is above."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FERAL_LEDGER", raising=False)
    found = [trained(small_experiment, tmp_path / "runs" / name, seed=seed) for seed, name in enumerate("abc")]
    for run, share in zip(found, (0.5, 0.7, 0.9), strict=True):
        judge(run, share)
    return found


def feral(*arguments: str, code: int = 0) -> str:
    result: Result = CliRunner().invoke(app, [*arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception  # a ValueError is what `main` prints
    assert result.exit_code == code, result.output
    return result.output


def test_the_whole_way_from_the_first_champion_to_a_rollback(runs):
    said = feral("promote", "runs/b")
    assert "champion is" in said
    assert "there was nothing to compare with" in said
    held = feral("promote", "runs/a", code=20)
    assert "held" in held
    assert "FAILED" in held
    assert re.search(r"guard +│ knn_top1 +│ +70\.\d +│ +50\.\d +│ -(19|20|21)\.\d", held)
    assert "feral rollback" in feral("promote", "runs/c", "--reason", "more birds")
    assert "already" in feral("promote", "runs/c")
    overview = feral("ledger")
    assert "more birds" in overview
    assert "curated" in overview
    assert "runs/c again" not in feral("rollback", "--reason", "misses small birds")
    assert [row["action"] for row in json.loads(feral("ledger", "events", "--json"))] == [
        "promoted", "held", "promoted", "rolled back"
    ]  # fmt: skip
    assert "misses small birds" in feral("ledger", "events", "--last", "1")
    assert find_run("champion").path == runs[1].path


def test_what_schedulers_read_is_one_object(runs):
    found = json.loads(feral("promote", "runs/b", "--json"))
    assert found["action"] == "promoted"
    assert found["held_for"] == []
    held = json.loads(feral("promote", "runs/a", "--json", code=20))
    assert held["held_for"] == ["guard", "target"]
    assert {"kind", "what", "passed", "champion", "candidate", "difference", "interval", "bound"} <= {*held["gate"][-1]}
    feral("promote", "runs/c", "--json")
    back = json.loads(feral("rollback", "--reason", "birds", "--json"))
    assert (back["run"], back["checkpoint"]) == (str(runs[1].path), found["checkpoint"])
    assert json.loads(feral("ledger", "--json"))["names"][0]["digest"] == found["checkpoint"]


def test_force_and_rollback_ask_for_a_reason(runs):
    feral("promote", "runs/b")
    with pytest.raises(ValueError, match="say why, with --reason"):
        feral("promote", "runs/a", "--force")
    assert "against the gate" in feral("promote", "runs/a", "--force", "--reason", "labels were wrong")
    assert "Missing option" in feral("rollback", code=2)
    with pytest.raises(ValueError, match="needs a reason"):
        feral("rollback", "--reason", "")


def test_lineage_and_takedown_are_asked_by_names_and_digests(runs, small_store):
    feral("promote", "runs/b")
    said = feral("ledger", "lineage", "champion")
    assert "runs/b, step 12" in said
    assert "384 of 384 planned samples" in said
    assert "fed by 1 dump(s)" in said
    found = json.loads(feral("ledger", "lineage", "runs/b", "--json"))
    assert found["dumps"] == [small_store.manifest.digest]
    assert json.loads(feral("ledger", "lineage", found["checkpoint"][:10], "--json")) == found
    ids = small_store.column("id").to_pylist()
    seen = json.loads(feral("ledger", "saw", ids[int(small_store.select("train")[0])], "--json"))
    assert seen["checkpoints"] == [found["checkpoint"]]
    assert seen["names"] == ["champion"]
    assert "saw it, among them champion" in feral("ledger", "saw", ids[int(small_store.select("train")[0])])
    held = feral("ledger", "saw", ids[int(small_store.select("test")[0])])
    assert "0 recorded checkpoint(s) saw it" in held
    assert "test split" in held
    with pytest.raises(ValueError, match="knows no nobody"):
        feral("ledger", "lineage", "nobody")


def test_the_champion_stands_wherever_a_run_is_named(runs, small_experiment):
    """Pinned to the checkpoint that was promoted, whatever the run has saved since."""
    import torch

    from pipeline.export.trained import Trained
    from pipeline.train.checkpoints import save_checkpoint
    from pipeline.train.worker import fresh_state

    feral("promote", "runs/b")
    promoted = runs[1].newest_checkpoint()
    assert promoted is not None
    state = fresh_state(runs[1].experiment, torch.device("cpu"))
    state.step = 13
    save_checkpoint(runs[1].checkpoints, state, keep=1)
    assert runs[1].newest_checkpoint().step == 13
    found = find_encoders("champion")
    assert isinstance(found, RunEncoders)
    assert found.checkpoint == promoted
    assert found.directory == runs[1].path
    run = find_run("champion")
    assert Trained.of(run).checkpoint == promoted
    base, store = base_experiment(run.experiment, None, {}), small_experiment.data.open()
    started = next(arm for arm in arms(base, run, store, [Budget(share=0.5)], None) if arm.starts)
    assert started.experiment.training.start_digest == promoted.digest
    assert "report" in feral("report", "champion")
    assert "safetensors" in feral("export", "champion", "--to", "safetensors")
    assert (runs[1].path / "exports" / "safetensors" / "README.md").exists()


def test_a_name_that_is_also_a_folder_is_refused_and_both_can_be_meant(runs, small_experiment):
    feral("promote", "runs/b")
    other = trained(small_experiment, Path("champion"), seed=7)
    with pytest.raises(ValueError, match=r"write \./champion for what lies here, or .*runs/b"):
        find_run("champion")
    assert find_run("./champion").path == other.path
    assert find_run(str(runs[1].path)).path == runs[1].path


def test_a_name_that_there_is_not_is_told_with_those_that_there_are(runs):
    with pytest.raises(
        ValueError, match=r"champion is no run.*there is none yet: `feral promote RUN` and `feral tick FILE` begin one"
    ):
        find_run("champion")
    feral("promote", "runs/b")
    with pytest.raises(ValueError, match=r"champoin is no run.*it knows champion"):
        find_run("champoin")
    with pytest.raises(ValueError, match=r"nowhere/run is no run: it has no experiment\.json; `feral pretrain`"):
        find_run("nowhere/run")
    with pytest.raises(ValueError, match="is no encoder"):
        find_encoders("champoin")


def test_another_ledger_is_named_by_option_or_environment(runs, tmp_path, monkeypatch):
    feral("promote", "runs/b", "--ledger", "other.db", "--reason", "more birds")
    assert not Path("runs/ledger.db").exists()
    assert "more birds" in feral("ledger", "--ledger", "other.db")
    assert "runs/b" in feral("ledger", "--ledger", "other.db", "lineage", "champion")
    assert "runs/b" in feral("ledger", "lineage", "champion", "--ledger", "other.db")
    monkeypatch.setenv("FERAL_LEDGER", str(tmp_path / "other.db"))
    assert find_run("champion").path == runs[1].path


def test_without_a_ledger_the_way_to_one_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FERAL_LEDGER", raising=False)
    for command in (["ledger"], ["ledger", "events"], ["rollback", "--reason", "x"]):
        with pytest.raises(ValueError, match="`feral promote RUN` and `feral tick FILE` begin one"):
            feral(*command)


@pytest.mark.cluster
@pytest.mark.slow
def test_both_are_judged_on_the_store_that_is_asked_for(ray_local, runs, small_store):
    """A champion of other data is compared on common ground, and what was judged there is not judged again."""
    feral("promote", "runs/a", "--force", "--reason", "to begin with")
    for code in (20, 20):  # untrained weights, nearly the same scores
        said = feral("promote", "runs/b", "--on", str(small_store.path), code=code)
    assert "judged before" in said
    assert "linear_top1" in said
    assert len(list((runs[1].path / "evaluations").glob("*.json"))) == 2
