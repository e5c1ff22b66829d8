"""MLflow holds a copy of runs and promotions, on a real server; without one nothing waits, fails or is lost (P23)."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from pipeline.ledger.database import Ledger
from pipeline.ledger.promotion import current
from pipeline.mirror import registry
from pipeline.mirror.registry import keep_up, mirror_registry, mirror_runs
from pipeline.mirror.runs import FILE, RunCopy, RunMirror, thinned
from pipeline.mirror.server import LIMITS, NAME, PASSWORD, SETTINGS, TOKEN, URI, USER, NotMirrored, connect, shown
from pipeline.promote import promote
from pipeline.run import Run
from pipeline.train.record import METRICS
from tests.pipeline.ledger.runs import judge, trained

SECRET = "hunter2-of-the-uri"


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    """HOST:PORT of an MLflow server on loopback, with SQLite."""
    folder = tmp_path_factory.mktemp("mlflow")
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db",
               "--artifacts-destination", str(folder / "artifacts"), "--host", "127.0.0.1", "--port", str(port),
               "--workers", "1"]  # fmt: skip
    own = {**os.environ, **SETTINGS, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=own, stdout=log, stderr=log)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.5)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(autouse=True)
def environment(monkeypatch) -> None:
    """What `connect` sets ends with each test."""
    for name in (URI, NAME, USER, PASSWORD, TOKEN, *LIMITS, *SETTINGS):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def server(address, monkeypatch, request):
    """Seen through a URI with a password; each test has a name of its own for what it makes."""
    monkeypatch.setenv(URI, f"http://someone:{SECRET}@{address}")
    monkeypatch.setenv(NAME, request.node.name[:60])
    return connect()


@pytest.fixture
def run(small_experiment, tmp_path) -> Run:
    found = trained(small_experiment, tmp_path / "first")
    write_rows(found, 1, 13)
    return found


def write_rows(run: Run, start: int, stop: int) -> None:
    with (run.path / METRICS).open("a") as file:
        for step in range(start, stop):
            row = {"step": step, "images_seen": 32 * step, "loss": 4 - step / 10, "time": 1e9 + step, "attempt": 1}
            file.write(f"{json.dumps(row)}\n")


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    return Ledger.open(str(tmp_path / "ledger.db"), create=True)


def losses(server, copy_id: str) -> dict[int, float]:
    return {one.step: one.value for one in server.client.get_metric_history(copy_id, "loss")}


# ---- runs ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_is_copied_whole_and_again_without_doubling_anything(server, run):
    copy = RunCopy(server, run)
    copy.update()
    write_rows(run, 13, 20)
    with (run.path / METRICS).open("a") as file:
        file.write('{"step": 20, "loss": 9')  # a line that is just being written
    RunCopy(server, run).update()  # another command goes on
    judge(run, 0.5)
    copy.update("FINISHED")
    (run.path / FILE).write_text(json.dumps({**json.loads((run.path / FILE).read_text()), "position": 0}))
    RunCopy(server, run).update()  # all of it once more
    found = server.client.get_run(copy.id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "first"
    assert found.data.params["objective.temperature"] == str(run.experiment.objective.temperature)
    assert found.data.params["data.batch_size"] == "32"
    assert not any(name.startswith("cluster.") for name in found.data.params)
    assert found.data.tags["feral.run"] == run.experiment.digest
    assert losses(server, copy.id) == pytest.approx({step: 4 - step / 10 for step in range(1, 20)})
    assert len(server.client.get_metric_history(copy.id, "loss")) == 19
    assert found.data.metrics["evaluation/knn_top1"] == run.evaluation.score("knn_top1").trained
    assert found.data.metrics["evaluation/knn_top1/random_encoder"] == pytest.approx(0.3)
    assert found.data.metrics["evaluation/health/rank"] == 9.0


@pytest.mark.slow
def test_a_copy_that_somebody_deleted_is_made_anew(server, run):
    copy = RunCopy(server, run)
    copy.update()
    server.client.delete_run(copy.id)
    again = RunCopy(server, run)
    again.update()
    assert again.id != copy.id
    assert len(losses(server, again.id)) == 12


@pytest.mark.slow
def test_beside_a_command_rows_arrive_while_it_works_and_its_end_is_told(server, run, capfd):
    lines: list[str] = []
    mirror = RunMirror(run, lines.append, pause=0.2)
    wait_for(lambda: (run.path / FILE).exists() and json.loads((run.path / FILE).read_text())["position"] > 0)
    copy_id = json.loads((run.path / FILE).read_text())["run"]
    assert server.client.get_run(copy_id).info.status == "RUNNING"
    write_rows(run, 13, 15)
    wait_for(lambda: len(losses(server, copy_id)) == 14)
    write_rows(run, 15, 16)
    mirror.close(130)
    assert len(losses(server, copy_id)) == 15
    ended = server.client.get_run(copy_id).info
    assert ended.status == "KILLED"
    assert ended.end_time >= ended.start_time
    assert capfd.readouterr() == ("", "")  # MLflow itself would print addresses
    assert lines == [f"mirrored to MLflow at {server.shown}"]


def wait_for(what, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_of_many_rows_some_are_left_out_evenly_and_never_the_last():
    rows = [{"step": step} for step in range(1, 1235)]
    kept = [row["step"] for row in thinned(rows, 500)]
    assert len(kept) <= 500
    assert kept[-1] == 1234
    assert {b - a for a, b in pairwise(kept)} == {3}
    assert thinned(rows, 1234) == rows
    assert thinned([], 500) == []


# ---- no server (P23) -----------------------------------------------------------------------------------------------


@pytest.fixture(params=["unreachable", "hanging"])
def no_server(request, monkeypatch) -> Iterator[str]:
    """A port where nobody listens, or one that takes calls and never answers."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        if request.param == "hanging":
            one.listen(64)
        monkeypatch.setenv(URI, f"http://someone:{SECRET}@127.0.0.1:{one.getsockname()[1]}")
        yield request.param


def test_without_an_answer_a_command_neither_waits_nor_fails(no_server, run, monkeypatch, caplog):
    """Only its end waits, and not for long; what was not sent stands in the run's files."""
    connect()  # the import is not what is timed
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    before = (run.path / METRICS).read_bytes()
    lines: list[str] = []
    begun = time.monotonic()
    mirror = RunMirror(run, lines.append, pause=0.1)
    assert time.monotonic() - begun < 0.5
    wait_for(lambda: lines)
    begun = time.monotonic()
    mirror.close(0, patience=1.0)
    assert time.monotonic() - begun < 3
    wait_for(lambda: not mirror.thread.is_alive())
    why = r"(Read timed out. \(read timeout=1\)|.*Connection refused); the run goes on, and this is tried again"
    assert re.fullmatch(rf"MLflow at http://127.0.0.1:\d+: {why}", lines[0])
    assert "did not take all of the run in 1 s: the same command once more" in lines[-1]
    assert len(lines) == 2  # and not a line a try
    assert (run.path / METRICS).read_bytes() == before
    assert not (run.path / FILE).exists()
    assert SECRET not in "".join(lines) + caplog.text


def test_a_promotion_stands_without_an_answer_and_says_what_is_missing(no_server, run, ledger, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    judge(run, 0.5)
    lines: list[str] = []
    assert promote(ledger, run, tell=lines.append).action == "promoted"
    with ledger.reading() as connection:
        assert current(connection, "champion") == run.newest_checkpoint().digest
    assert lines[-1].startswith("not mirrored to MLflow: ")
    assert "`feral ledger mirror`" in lines[-1]
    assert SECRET not in "".join(lines)


def test_without_a_name_for_a_server_nothing_of_mlflow_is_touched(run, ledger):
    lines: list[str] = []
    mirror = RunMirror(run, lines.append)
    assert not mirror.thread.is_alive()
    mirror.close(0)
    keep_up(ledger, lines.append)
    assert lines == []
    with pytest.raises(NotMirrored, match=f"{URI} names no server"):
        connect()


def test_without_the_library_it_says_what_to_install(run, monkeypatch):
    monkeypatch.setenv(URI, "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    lines: list[str] = []
    mirror = RunMirror(run, lines.append)
    mirror.thread.join(20)
    mirror.close(0)
    assert lines == ["not mirrored to MLflow: mlflow is not installed: from the checkout, pip install -e '.[mlflow]'"]


@pytest.mark.parametrize("uri", [f"http://a:{SECRET}@host:5000", f"postgresql://a:{SECRET}@db/x?password={SECRET}",
                                 f"https://host/?token={SECRET}#{SECRET}"])  # fmt: skip
def test_a_uri_is_shown_without_what_is_secret_in_it(uri):
    assert SECRET not in shown(uri)
    assert "host" in shown(uri) or "db" in shown(uri)
    assert shown("sqlite:////abs/mlflow.db") == "sqlite:////abs/mlflow.db"


# ---- the registry --------------------------------------------------------------------------------------------------


def registered(server) -> dict[str, str]:
    """Alias → digest."""
    model = server.client.get_registered_model(server.name)
    found = {name: server.client.get_model_version(server.name, version) for name, version in model.aliases.items()}
    return {name: version.tags["feral.checkpoint"] for name, version in found.items()}


@pytest.fixture
def promoted(run, ledger, small_experiment, tmp_path) -> tuple[str, str]:
    """Two champions, one after the other: digests."""
    second = trained(small_experiment, tmp_path / "second", seed=1)
    for one, share in ((run, 0.4), (second, 0.9)):
        judge(one, share)
        assert promote(ledger, one, reason="because").action == "promoted"
    return run.newest_checkpoint().digest, second.newest_checkpoint().digest


@pytest.mark.slow
def test_versions_and_the_alias_follow_promotions_and_rollbacks(server, run, ledger, promoted, tmp_path):
    """Promotion mirrors by itself; a rollback moves the alias and makes no version; nothing is a pickle or a secret."""
    first, second = promoted
    assert registered(server) == {"champion": second}
    undone = ["rollback", "--reason", "misses birds", "--ledger", str(tmp_path / "ledger.db")]
    said = CliRunner().invoke(app, undone)
    assert said.exit_code == 0, said.output
    assert registered(server) == {"champion": first}
    assert SECRET not in said.output
    versions = server.client.search_model_versions(f"name='{server.name}'")
    assert {one.tags["feral.checkpoint"] for one in versions} == {first, second}
    assert {one.current_stage for one in versions} == {"None"}
    one = server.client.get_model_version_by_alias(server.name, "champion")
    assert "because" in one.description
    assert float(one.tags["evaluation/knn_top1"]) == pytest.approx(run.evaluation.score("knn_top1").trained, abs=1e-4)
    folder = f"model-{first[:12]}"
    files = [Path(file.path).name for file in server.client.list_artifacts(one.run_id, folder)]
    assert "README.md" in files
    assert any(name.endswith(".safetensors") for name in files)
    assert not [name for name in files if name.endswith((".pt", ".pth", ".pkl", ".bin"))]
    card = Path(server.client.download_artifacts(one.run_id, f"{folder}/README.md", str(tmp_path))).read_text()
    assert "trained by feral" in card
    for path in run.path.rglob("*.json*"):
        assert SECRET not in path.read_text()


@pytest.mark.slow
def test_what_was_missed_is_caught_up_with_and_done_again_changes_nothing(
    server, run, ledger, small_experiment, tmp_path, monkeypatch
):
    """Two promotions while no server was named, and a first try that fails in the middle."""
    uri = os.environ.pop(URI)
    second = trained(small_experiment, tmp_path / "second", seed=1)
    for one, share in ((run, 0.4), (second, 0.9)):
        judge(one, share)
        promote(ledger, one)
    monkeypatch.setenv(URI, uri)
    real = registry.RunCopy.update
    monkeypatch.setattr(registry.RunCopy, "update", _fails_once(real))
    with pytest.raises(NotMirrored, match="of this test"):
        mirror_registry(server, ledger, print)
    lines: list[str] = []
    mirror_registry(server, ledger, lines.append)
    mirror_runs(server, ledger, lines.append)
    assert registered(server) == {"champion": second.newest_checkpoint().digest}
    again: list[str] = []
    mirror_registry(server, ledger, again.append)
    assert (len(lines), again) == (5, [])
    assert len(server.client.search_model_versions(f"name='{server.name}'")) == 2
    assert len(server.client.search_runs([server.client.get_experiment_by_name(server.name).experiment_id])) == 2


def _fails_once(real):
    left = [NotMirrored("of this test")]

    def update(self, status=None) -> None:
        if left:
            raise left.pop()
        real(self, status)

    return update


@pytest.mark.slow
def test_a_champion_whose_bytes_are_gone_moves_no_alias_and_is_named(server, run, ledger, monkeypatch):
    uri = os.environ.pop(URI)
    judge(run, 0.4)
    promote(ledger, run)
    monkeypatch.setenv(URI, uri)
    run.path.rename(run.path.with_name("away"))
    with pytest.raises(NotMirrored, match=r"has no version: .*first is gone; champion stands for a checkpoint that"):
        mirror_registry(server, ledger, print)
    assert registered(server) == {}
    run.path.with_name("away").rename(run.path)
    mirror_registry(server, ledger, print)
    assert registered(server) == {"champion": run.newest_checkpoint().digest}
