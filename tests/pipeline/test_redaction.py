"""Planted secrets are found nowhere in what is kept or said."""

import json
import sys
from pathlib import Path

import pytest
from sqlalchemy import select

from jobs import cli
from pipeline.ledger import dumps
from pipeline.ledger.database import Ledger
from pipeline.ledger.tables import dump, source, work
from pipeline.ledger.work import add_work, claim, give_up
from pipeline.redaction import typed_command, without_secrets
from pipeline.run import Run
from pipeline.train.attempts import note_failure, read_failure
from tests.pipeline.stores import tiny_experiment

SECRET = "hunter2/+x"
PLANTED = [
    f"postgresql://ada:{SECRET}@db.example/feral",
    f"s3://AKIAEXAMPLE:{SECRET}@bucket/dump",
    f"--env=RAY_AUTH_TOKEN={SECRET}",
    f"AWS_SECRET_ACCESS_KEY={SECRET}",
    f"https://example.org/picture.jpg?width=3&sig={SECRET}",
    f'password="{SECRET} and more"',
    f"could not reach postgresql://ada:{SECRET}@db.example/feral: timeout",
]


@pytest.mark.parametrize("text", PLANTED)
def test_a_secret_is_hidden_and_the_rest_stays(text: str) -> None:
    shown = without_secrets(text)
    assert SECRET not in shown
    assert "***" in shown
    assert without_secrets(shown) == shown
    for kept in ("ada", "db.example/feral", "AKIAEXAMPLE", "bucket/dump", "width=3", "timeout"):
        assert (kept in text) == (kept in shown)


@pytest.mark.parametrize(
    "text",
    [
        "data.store=/stores/cifar10", "objective.temperature=0.2", "s3://bucket/dump?region=eu-central-1",
        "encoder.pool=token,cls", "http://127.0.0.1:8265", "https://user@host/path", "monkey=3", "tokens=5",
    ],
)  # fmt: skip
def test_what_is_no_secret_is_left_alone(text: str) -> None:
    assert without_secrets(text) == text


def test_a_run_keeps_no_secret_of_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["feral", "pretrain", "simclr_32px", *PLANTED])
    assert SECRET not in json.dumps(typed_command())
    run = Run.prepare(tmp_path / "run", tiny_experiment(tmp_path / "store"), ["feral", *PLANTED])
    note_failure(run.path, RuntimeError(PLANTED[-1]))
    kept = "".join(file.read_text() for file in run.path.rglob("*") if file.is_file())
    assert "db.example/feral" in kept
    assert SECRET not in kept
    assert "timeout" in (read_failure(run.path) or {})["message"]


def test_the_ledger_keeps_none(tmp_path: Path) -> None:
    ledger = Ledger.open(str(tmp_path / "ledger.db"), create=True)
    with ledger.writing() as connection:
        dumps.add_source(connection, "web", PLANTED[1])
        dumps.discover(connection, "web", "s3://bucket/1", "listing")
        sealed = dumps.seal(connection, "s3://bucket/1", "listing", "d1", files=1, size=1).dump_id
        lease = claim(connection, add_work(connection, sealed, "curate", "c"), "me")
        assert lease is not None
        give_up(connection, lease, PLANTED[-1], max_attempts=1)
    with ledger.reading() as connection:
        rows = [row for table in (source, work, dump) for row in connection.execute(select(table)).all()]
    assert "timeout" in str(rows)
    assert SECRET not in str(rows)
    assert SECRET.encode() not in (tmp_path / "ledger.db").read_bytes()


def test_an_error_on_the_terminal_shows_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ValueError(PLANTED[-1])

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit):
        cli.main()
    assert "ada:***@db.example" in capsys.readouterr().err
