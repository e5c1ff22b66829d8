"""`feral tick` and `feral watch` as a person or a scheduler types them."""

import json
import os
import re
import shlex
import shutil
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from jobs.cli import app
from jobs.tick import watch
from pipeline.cycle import stages as real
from tests.pipeline.cycle import day
from tests.pipeline.cycle.day import deliver
from tests.pipeline.stores import write_dump

FILE = """
root = "production"
recipe = "simclr_32px"
images_per_dump = 128
ledger = "ledger.db"
{more}
[[sources]]
name = "web"
root = "incoming"
quiet_minutes = 0
"""
TINY = """
[settings]
data.batch_size = 32
data.lanes = 4
encoder.name = "resnet18"
encoder.image_size = 16
encoder.stem = "small_stride2"
encoder.arguments = { layers = [1, 1, 1, 1], channels = [8, 8, 16, 16] }
objective.projector_dims = [16, 8]
training.precision = "fp32"
"""
SIMPLE = 'policy = "none"\nthresholds = { exact_duplicates = true }\nreading = { holdout = 0.2 }\n'


@pytest.fixture
def production(tmp_path, monkeypatch) -> Path:
    """A cycle whose stages only write text."""
    monkeypatch.setattr(real, "stages_of", lambda recipe, progress: day.stages())
    monkeypatch.setattr("pipeline.cluster.connected", lambda address, cpus: nullcontext())
    (tmp_path / "incoming").mkdir()
    file = tmp_path / "production.toml"
    file.write_text(FILE.format(more=""))
    return file


def feral(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def test_every_exit_status_and_what_it_says(production):
    incoming = production.parent / "incoming"
    assert "nothing: no new delivery; there is no champion yet" in feral("tick", production, code=10).output
    deliver(incoming / "growing", "g", whole=False)
    assert "1 delivery(s) not whole yet" in feral("tick", production, code=10).output
    deliver(incoming / "a", "a1", "a2")
    said = feral("tick", production).output
    assert "web/a: sealed: dump 1" in said
    assert "dump 1 train: trained" in said
    assert "done: champion is " in said
    page = production.parent / "production" / "index.html"
    assert f"overview: {page}" in said
    assert "1 promoted, 0 held, 0 not used" in page.read_text()
    deliver(incoming / "b", "bad")
    said = feral("tick", production, code=20).output
    assert re.search("held: dump 2 waits for a person, for worse; `.*feral promote ", said)
    assert "feral ledger retry 2 --reason …`" in said
    deliver(incoming / "c", "poison")
    assert "feral ledger skip 3 --reason …`" in feral("tick", production, code=30).output
    shutil.rmtree(incoming)
    said = feral("tick", production, code=1).output
    assert "error: source web: no source at" in said
    assert "Traceback" not in said


def test_a_page_that_cannot_be_written_fails_no_tick(production):
    page = production.parent / "production" / "index.html"
    page.mkdir(parents=True)
    deliver(production.parent / "incoming" / "a", "a1")
    said = feral("tick", production).output
    assert "no overview was written: " in said
    assert "done: champion is " in said


def test_schedulers_read_one_object_and_may_take_only_errors_for_failures(production):
    incoming = production.parent / "incoming"
    assert json.loads(feral("tick", production, "--json", "--exit-zero").stdout)["exit"] == 10
    deliver(incoming / "a", "a1", "a2")
    found = json.loads(feral("tick", production, "--json").stdout)
    assert (found["status"], found["exit"]) == ("done", 0)
    assert [one["stage"] for one in found["stages"]] == [*day.WORK]
    assert {"kind", "admit_no", "dump_id", "stage", "said", "seconds", "output"} <= {*found["stages"][0]}
    assert found["deliveries"][0]["kind"] == "sealed"
    assert Path(found["overview"]).read_text()
    assert found["names"]["champion"] != found["names"]["base"]
    deliver(incoming / "b", "bad")
    assert json.loads(feral("tick", production, "--json", "--exit-zero").stdout)["status"] == "held"
    deliver(incoming / "c", "poison")
    assert json.loads(feral("tick", production, "--json", "--exit-zero").stdout)["exit"] == 30
    shutil.rmtree(incoming)
    assert json.loads(feral("tick", production, "--json", "--exit-zero", code=1).stdout)["errors"]


def test_mistakes_in_the_file_are_one_line_and_status_1(production, tmp_path):
    production.write_text(FILE.format(more="replay_share = 2"))
    result = feral("tick", production, code=1)
    assert "replay_share=2: should be less than 1" in result.output
    assert json.loads(feral("tick", production, "--json", "--exit-zero", code=1).stdout)["status"] == "error"
    assert "cannot be read" in feral("tick", tmp_path / "nowhere.toml", code=1).output
    production.write_text(FILE.format(more="").replace("simclr_32px", "simclr_33px"))
    assert "did you mean" in feral("tick", production, code=1).output
    with pytest.raises(ValueError, match="--example"):
        feral("tick")
    assert 'recipe = "simclr_32px"' in feral("tick", "--example").output


@pytest.mark.parametrize("told_by", ["terminal", "page"])
def test_a_command_that_a_tick_tells_finds_the_ledger_from_any_folder(production, tmp_path, monkeypatch, told_by):
    deliver(production.parent / "incoming" / "a", "poison")
    said = feral("tick", production, code=30).output
    if told_by == "page":
        said = (production.parent / "production" / "index.html").read_text()
    (command,) = re.findall(r"FERAL_LEDGER=\S+ feral ledger skip 1 --reason", said)
    setting, _, *words = shlex.split(command)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv(*setting.split("=", 1))
    assert "is skipped" in feral(*words, "an advertisement").output


def test_nothing_is_named_where_the_ledger_is_the_default(production, monkeypatch):
    monkeypatch.chdir(production.parent)
    monkeypatch.delenv("FERAL_LEDGER", raising=False)
    production.write_text(FILE.format(more="").replace('ledger = "ledger.db"', ""))
    deliver(production.parent / "incoming" / "a", "poison")
    assert "FERAL_LEDGER" not in feral("tick", production, code=30).output
    assert "FERAL_LEDGER" not in (production.parent / "production" / "index.html").read_text()


def test_a_person_looks_retries_and_skips(production):
    incoming, ledger = production.parent / "incoming", production.parent / "ledger.db"
    deliver(incoming / "a", "a1", "a2")
    deliver(incoming / "b", "poison")
    feral("tick", production, code=30)
    feral("ledger", "retry", "2", "--reason", "looked at it", "--ledger", ledger)
    feral("tick", production, code=30)
    assert "is skipped" in feral("ledger", "skip", "2", "--reason", "an advertisement", "--ledger", ledger).output
    assert "no new delivery" in feral("tick", production, code=10).output
    said = feral("ledger", "events", "--ledger", ledger).output
    assert "looked at it" in said
    assert "an advertisement" in said
    actions = [row["action"] for row in json.loads(feral("ledger", "events", "--json", "--ledger", ledger).output)]
    assert actions == ["promoted", "promoted", "retried", "skipped"]
    found = json.loads(feral("ledger", "--json", "--ledger", ledger).output)
    assert [row["state"] for row in found["dumps"]] == ["promoted", "skipped"]
    assert found["work"] == [] or {row["state"] for row in found["work"]} == {"waiting"}


def watching(file: Path, log: Path) -> int:
    """`feral watch FILE --every 1` in a process of its own, which writes to `log`; its number."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT)
        os.dup2(out, 1)
        sys.stdout = os.fdopen(1, "w", buffering=1)
        watch(file, every=1, ledger=None, address=None)
        code = 0
    finally:
        os._exit(code)


def test_a_mirror_that_nobody_answers_for_is_told_and_the_tick_is_done(production, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert "MLflow" not in feral("tick", production, code=10).output  # nothing was done: there is nothing to mirror
    deliver(production.parent / "incoming" / "a", "a1")
    output = feral("tick", production).output
    assert "not mirrored to MLflow" in output
    assert "done: champion is" in output


def test_watch_ticks_until_it_is_told_to_stop_and_survives_a_tick_that_fails(production):
    incoming, log = production.parent / "incoming", production.parent / "log"
    shutil.rmtree(incoming)
    child = watching(production, log)
    until(log, "error: source web: no source at")
    time.sleep(2.5)
    assert log.read_text().count("error: source web") <= 2  # the line and the closing one: told once
    deliver(incoming / "a", "a1")
    until(log, "done: champion is")
    production.write_text("broken")
    until(log, "cannot be read")
    os.kill(child, signal.SIGTERM)
    assert day.ended(child) == 0
    assert "told to stop by SIGTERM: left" in log.read_text()
    assert "Traceback" not in log.read_text()


def until(log: Path, said: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not log.exists() or said not in log.read_text():
        assert time.monotonic() < end, said
        time.sleep(0.1)


@pytest.mark.cluster
@pytest.mark.slow
def test_a_first_dump_a_second_and_a_copy_with_everything_real(ray_local, tmp_path):
    """The only one with Ray: what the stages do is asked in tests/pipeline/cycle/test_stages.py."""
    file, ledger = tmp_path / "production.toml", tmp_path / "ledger.db"
    file.write_text(FILE.format(more="compare_dumps = 1\n" + TINY) + SIMPLE)
    incoming = tmp_path / "incoming"
    (write_dump(incoming / "1", 160) / "_SUCCESS").touch()
    shutil.copytree(incoming / "1", incoming / "2")
    (write_dump(incoming / "3", 160, 25) / "_SUCCESS").touch()
    found = json.loads(feral("tick", file, "--json", "--exit-zero").stdout)
    assert [one["kind"] for one in found["deliveries"]] == ["sealed", "known", "sealed"]
    first, second = json.loads(feral("ledger", "--json", "--ledger", ledger).output)["dumps"]
    assert first["state"] == "promoted"
    assert second["state"] in ("promoted", "held")
    lineage = json.loads(feral("ledger", "lineage", "base", "--json", "--ledger", ledger).output)
    assert len(lineage["dumps"]) == 2
    assert found["names"]["base"] == lineage["checkpoint"]
    page = Path(found["overview"]).read_text()
    assert "data_card.html" in page
    assert page.count("report.html") == 2
    assert page.count("k-NN ") == 2  # a score of each candidate
    assert "is gone" not in page
    assert json.loads(feral("tick", file, "--json", code=10).stdout)["stages"] == []
