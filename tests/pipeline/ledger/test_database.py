"""Where a ledger lies, how it is made and brought up to date, and what it refuses."""

import re
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from pipeline.ledger import database, migrations
from pipeline.ledger.database import Ledger, Unusable, network_file_system, now
from pipeline.ledger.dumps import add_source
from pipeline.ledger.migrations import HEAD, VERSION, migrate, revision
from pipeline.ledger.tables import event, metadata, source


def test_the_migrations_make_exactly_the_tables(where):
    ledger = Ledger.open(where, create=True)
    with ledger.reading() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION, "compare_type": True})
        assert compare_metadata(context, metadata) == []
        assert revision(connection) == HEAD
    assert ScriptDirectory(str(Path(migrations.__file__).parent)).get_current_head() == HEAD


def test_a_ledger_of_any_earlier_version_is_brought_up_to_date_when_it_is_opened(where):
    """Step by step: each revision as the start, with a row that must outlast the upgrade."""
    steps = [step.revision for step in ScriptDirectory(str(Path(migrations.__file__).parent)).walk_revisions()]
    for step in reversed(steps):
        old = Ledger(database._engine(database._url(where)), "old")
        with old.writing() as connection:
            for table in (*reversed(metadata.sorted_tables), VERSION):
                connection.execute(text(f'DROP TABLE IF EXISTS "{table}"'))
            migrate(connection, step)
            connection.execute(text("INSERT INTO source VALUES ('web', 's3://bucket', 'marker', NULL)"))
        with Ledger.open(where).reading() as connection:
            assert revision(connection) == HEAD
            assert connection.execute(source.select()).one().root == "s3://bucket"


def test_the_stored_ledger_of_the_first_version_opens(tmp_path):
    """tests/pipeline/ledger/version_0001.sql was written by that version, with a row in every table."""
    import sqlite3

    path = tmp_path / "ledger.db"
    with sqlite3.connect(path) as connection:
        connection.executescript((Path(__file__).parent / "version_0001.sql").read_text())
    with Ledger.open(str(path)).reading() as connection:
        assert revision(connection) == HEAD
        for table in metadata.sorted_tables:
            assert connection.execute(table.select()).all() or table.name == "resolution", table.name  # 0002 adds it


def test_a_ledger_of_a_newer_version_is_left_alone(ledger, where):
    with ledger.writing() as connection:
        connection.execute(text(f"UPDATE {VERSION} SET version_num = '0999'"))
    with pytest.raises(ValueError, match=f"schema 0999, and this version of feral knows {HEAD}"):
        Ledger.open(where)


def test_two_who_open_a_new_ledger_at_once_both_find_it_whole(where):
    found: list[object] = []

    def go() -> None:
        try:
            found.append(Ledger.open(where, create=True))
        except Exception as error:
            found.append(error)

    threads = [threading.Thread(target=go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [type(one) for one in found] == [Ledger] * 4, found


def test_an_error_undoes_the_whole_transaction(ledger):
    with suppress(RuntimeError), ledger.writing() as connection:
        add_source(connection, "web", "s3://bucket")
        raise RuntimeError
    with ledger.reading() as connection:
        assert connection.execute(source.select()).all() == []


def test_a_ledger_that_others_keep_locked_is_said_to_be_unusable_for_now(where, monkeypatch):
    monkeypatch.setattr(database, "_BUSY_SECONDS", 1)
    ledger = Ledger.open(where, create=True)
    with ledger.writing(), pytest.raises(Unusable, match=r"cannot be used: .*lock"), ledger.writing():
        pass


def test_references_are_enforced_and_reasons_asked_for(ledger):
    row = {"at": 0.0, "action": "promoted", "name": "champion", "checkpoint": "none", "actor": "me", "reason": "why"}
    for wrong in (row, row | {"reason": ""}, row | {"action": "celebrated"}):
        with pytest.raises(IntegrityError), ledger.writing() as connection:
            connection.execute(event.insert().values(wrong))


def test_a_reader_cannot_write_on_postgresql_and_the_clock_is_the_servers(ledger):
    with ledger.reading() as connection:
        first = now(connection)
        assert now(connection) >= first  # not that of the transaction's begin
    if ledger.engine.dialect.name == "postgresql":
        with pytest.raises(Exception, match="read-only"), ledger.reading() as connection:
            add_source(connection, "web", "s3://bucket")


def test_a_file_is_not_made_by_looking_for_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(database.VARIABLE, raising=False)
    with pytest.raises(
        ValueError, match=r"no ledger at .*runs/ledger.db: `feral promote RUN` and `feral tick FILE` begin one"
    ):
        Ledger.open()
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv(database.VARIABLE, str(tmp_path / "other.db"))
    assert Ledger.open(create=True).shown == str(tmp_path / "other.db")
    assert Ledger.open("sqlite:///other.db").shown == str(tmp_path / "other.db")


def test_what_is_no_ledger_is_said_to_be_none(tmp_path):
    (tmp_path / "text.db").write_text("this is no database, but it is long enough to be looked at" * 20)
    with pytest.raises(ValueError, match="not a database"):
        Ledger.open(str(tmp_path / "text.db"))
    for wrong in ("mysql://me:hidden@host/db", "postgresql://me:hidden@host:port/db", "sqlite://"):
        with pytest.raises(ValueError, match=r"a file \(runs/ledger.db\) or postgresql://") as error:
            Ledger.open(wrong)
        assert "hidden" not in str(error.value)


@pytest.mark.postgres
def test_a_password_is_never_shown(postgres):
    password = re.search(r":(\w+)@", postgres)[1]  # type: ignore[index]
    ledger = Ledger.open(f"{postgres}?application_name=test", create=True)
    assert password not in ledger.shown
    assert password not in repr(ledger)
    for wrong in (postgres.replace(password, "wrong-secret"), postgres.replace("127.0.0.1", "feral:wrong-secret@host")):
        with pytest.raises(ValueError, match="ledger") as error:
            Ledger.open(wrong)
        assert "wrong-secret" not in str(error.value)


MOUNTS = """/dev/vda / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
/dev/vdb /home/local ext4 rw 0 0
bucket /mnt/my\\040bucket fuse.s3fs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/srv/a.db", None), ("/home/me/a.db", "nfs4"), ("/home/local/a.db", None), ("/mnt/my bucket/x", "fuse.s3fs")],
)
def test_network_file_systems_are_told_from_local_ones(path, kind):
    assert network_file_system(Path(path), MOUNTS) == kind


def test_a_ledger_on_a_network_file_system_is_refused_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "network_file_system", lambda path: "nfs4")
    with pytest.raises(ValueError, match=r"nfs4.*postgresql://user@host/database.*FERAL_LEDGER"):
        Ledger.open(str(tmp_path / "ledger.db"), create=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_commands_that_need_no_ledger_do_not_import_sqlalchemy():
    code = "import sys, jobs.cli, pipeline.evaluate.foreign; assert 'sqlalchemy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
