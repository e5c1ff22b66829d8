"""What is sealed, what waits, and what drifted (P18): an incomplete one is never read, a changed one not trained."""

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select

from pipeline.cycle import deliveries
from pipeline.cycle.config import Source
from pipeline.cycle.contents import read_contents
from pipeline.cycle.deliveries import Finding, look
from pipeline.cycle.delivery import still_sealed
from pipeline.ingest import places
from pipeline.ledger.database import Ledger, Unusable
from pipeline.ledger.dumps import gaps, move
from pipeline.ledger.overview import overview
from pipeline.ledger.tables import dump

WEB = Source(name="web", root="incoming", quiet_minutes=0)


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    return Ledger.open(str(tmp_path / "ledger.db"), create=True)


@pytest.fixture
def find(tmp_path, ledger) -> Callable[..., list[Finding]]:
    """Looks once; what is not said of `web` stands at its default."""
    (tmp_path / "incoming").mkdir()

    def once(**changes) -> list[Finding]:
        source = WEB.model_copy(update={"root": str(tmp_path / "incoming"), **changes})
        return list(look(ledger, tmp_path / "production", source))

    return once


def delivered(folder: Path, *names: str, content: str = "x") -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content} {name}")
    return folder


def manifest(folder: Path, **changes) -> None:
    files = [
        {"path": path.name, "size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        | changes.get(path.stem, {})
        for path in sorted(folder.iterdir())
    ]
    (folder / "_MANIFEST.json").write_text(json.dumps({"files": files}))


def dumps(ledger: Ledger) -> list:
    with ledger.reading() as connection:
        return list(connection.execute(select(dump).order_by(dump.c.admit_no)).all())


def kinds(found: list[Finding]) -> list[str]:
    return [one.kind for one in found]


def growing(folder: Path) -> None:
    (folder / "_MANIFEST.json").write_text(json.dumps({"files": [{"path": "a.tar"}, {"path": "b.tar", "size": 5}]}))


def other_size(folder: Path) -> None:
    manifest(folder, a={"size": 1_000})


def other_bytes(folder: Path) -> None:
    manifest(folder, a={"sha256": 64 * "0"})


@pytest.mark.parametrize(
    ("prepare", "changes", "kind", "said"),
    [
        (lambda folder: None, {}, "waiting", "neither _SUCCESS nor _MANIFEST.json"),
        (lambda folder: delivered(folder, "_SUCCESS"), {}, "sealed", "dump 1"),
        (manifest, {}, "sealed", "1 file(s)"),
        (growing, {}, "waiting", "names what is not there yet: b.tar"),
        (other_size, {}, "waiting", "declares 1000"),
        (other_bytes, {}, "quarantined", "other bytes than _MANIFEST.json declares, as a.tar"),
        (lambda folder: None, {"seal": "quiet"}, "sealed", "dump 1"),
        (lambda folder: None, {"seal": "quiet", "quiet_minutes": 60}, "waiting", "0.0 of 60 minutes"),
        (lambda folder: delivered(folder, "_SUCCESS"), {"number": r"batch-(\d+)"}, "ignored", "has no number"),
    ],
)
def test_when_a_delivery_is_whole(tmp_path, find, ledger, prepare, changes, kind, said):
    prepare(delivered(tmp_path / "incoming" / "monday", "a.tar"))
    (one,) = find(**changes)
    assert (one.kind, one.name.rstrip("/")) == (kind, "web/monday")
    assert said in one.said
    assert len(dumps(ledger)) == (kind in ("sealed", "quarantined"))
    if kind in ("sealed", "quarantined"):
        assert find(**changes) == []  # told once


def test_single_files_are_deliveries_and_other_files_are_none(tmp_path, find):
    incoming = delivered(tmp_path / "incoming", "a.tar", "README.md", ".hidden.tar")
    (tmp_path / "incoming" / "link").symlink_to(incoming / "a.tar")
    found = {one.name: one for one in find()}
    assert found["web/a.tar"].kind == "waiting"
    assert 'set seal = "quiet"' in found["web/a.tar"].said
    assert "symbolic link" in found["web/link"].said
    assert len(found) == 2
    assert kinds(find(seal="quiet")) == ["sealed", "ignored"]


def test_the_same_bytes_elsewhere_are_the_same_dump_and_other_names_are_not(tmp_path, find, ledger):
    incoming = tmp_path / "incoming"
    delivered(incoming / "a", "1.png", "2.png", "_SUCCESS")
    delivered(incoming / "b", "1.png", "2.png", "_SUCCESS")
    (delivered(incoming / "c", "_SUCCESS") / "one.png").write_bytes((incoming / "a" / "1.png").read_bytes())
    assert kinds(find()) == ["sealed", "known", "sealed"]
    first, renamed = dumps(ledger)
    assert (first.files, first.state, renamed.files) == (2, "verified", 1)
    assert find() == []
    os.utime(incoming / "a" / "1.png")  # touched, not changed
    assert find() == []


@pytest.mark.parametrize("state", ["verified", "curated", "promoted", "skipped"])
@pytest.mark.parametrize("change", ["other size", "same size", "missing", "all gone"])
def test_what_changed_after_it_was_sealed_is_not_trained_on(tmp_path, find, ledger, change, state):
    folder = delivered(tmp_path / "incoming" / "a", "1.png", "2.png", "_SUCCESS")
    find()
    (one,) = dumps(ledger)
    if state != "verified":
        with ledger.writing() as connection:
            move(connection, one.dump_id, "verified", state)
    if change == "missing":
        (folder / "1.png").unlink()
    elif change == "all gone":
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    else:
        (folder / "1.png").write_text("y 1.png" if change == "same size" else "other")
    found = find()
    if state in ("verified", "curated"):
        assert kinds(found) == ["drifted"]
        assert dumps(ledger)[0].state == "drifted"
        assert "1.png" in dumps(ledger)[0].reason or change == "all gone"
    else:
        assert kinds(found) == ([] if change == "all gone" else ["changed"])
        assert dumps(ledger)[0].state == state
    assert find() == []
    assert len(dumps(ledger)) == 1


def test_what_drifted_can_be_delivered_again_elsewhere(tmp_path, find, ledger):
    folder = delivered(tmp_path / "incoming" / "a", "1.png", "_SUCCESS")
    find()
    folder.rename(tmp_path / "incoming" / "b")
    gone, again = find()
    assert (gone.kind, again.kind) == ("drifted", "known")
    assert "which drifted: `feral ledger retry 1 --reason …` takes it from here" in again.said
    (one,) = dumps(ledger)
    assert one.state == "drifted"
    assert read_contents(tmp_path / "production", one.dump_id).name == "b"
    with ledger.writing() as connection:
        move(connection, one.dump_id, "drifted", "verified")
    assert find() == []


def test_files_that_come_late_are_a_dump_of_their_own_and_the_first_is_untouched(tmp_path, find, ledger):
    folder = delivered(tmp_path / "incoming" / "batch-1", "1.png", "_SUCCESS")
    numbered = {"number": r"batch-(\d+)"}
    find(**numbered)
    delivered(folder, "2.png", "sub/3.png")
    assert kinds(find(**numbered, quiet_minutes=60)) == ["waiting"]
    assert kinds(find(**numbered)) == ["late"]
    first, late = dumps(ledger)
    assert (late.parent_id, late.files, late.seq) == (first.dump_id, 2, None)
    assert (first.state, first.files, first.seq) == ("verified", 1, 1)
    assert set(read_contents(tmp_path / "production", late.dump_id).files) == {"2.png", "sub/3.png"}
    delivered(tmp_path / "incoming" / "batch-2", "4.png", "_SUCCESS")
    assert kinds(find(**numbered)) == ["sealed"]  # its number is free
    (folder / "2.png").write_text("changed")
    assert kinds(find(**numbered)) == ["drifted"]
    assert [one.state for one in dumps(ledger)] == ["verified", "drifted", "verified"]


def test_a_file_that_is_added_while_another_changes_counts_too(tmp_path, find, ledger):
    folder = delivered(tmp_path / "incoming" / "a", "1.png", "_SUCCESS")
    find()
    (folder / "1.png").write_text("changed")
    delivered(folder, "2.png")
    assert kinds(find()) == ["drifted", "late"]
    assert [one.state for one in dumps(ledger)] == ["drifted", "verified"]


def test_what_cannot_be_read_belongs_to_the_dump_and_is_told(tmp_path, find, ledger):
    """Curation counts it as refused: nothing of a delivery is lost silently."""
    folder = delivered(tmp_path / "incoming" / "a", "1.png", "_SUCCESS")
    (folder / "link.png").symlink_to("/etc/passwd")
    (one,) = find()
    assert "2 file(s)" in one.said
    assert "1 of them cannot be read, as link.png: a symbolic link, which is never followed" in one.said
    contents = read_contents(tmp_path / "production", dumps(ledger)[0].dump_id)
    assert {*contents.files} == {"1.png", "link.png"}
    source = WEB.model_copy(update={"root": str(tmp_path / "incoming")})
    assert still_sealed(source, contents) is None
    assert find() == []
    (folder / "link.png").unlink()
    delivered(folder, "link.png")
    assert still_sealed(source, contents) == "1 file(s) changed: link.png"
    assert kinds(find()) == ["drifted"]


@pytest.mark.parametrize("hidden", ["", "sub/"])
def test_a_delivery_with_a_folder_that_cannot_be_listed_waits(tmp_path, find, ledger, monkeypatch, hidden):
    listed = places._scanned
    folder = delivered(tmp_path / "incoming" / "a", "1.png", "sub/2.png", "_SUCCESS")

    def refused(root, prefix):
        if (root, prefix) == (str(folder), hidden):
            raise PermissionError(errno.EACCES, "Permission denied")
        return listed(root, prefix)

    with monkeypatch.context() as patch:
        patch.setattr(places, "_scanned", refused)
        (one,) = find(seal="quiet")
        assert (one.kind, one.said) == (
            "waiting", f"{hidden or 'it'} is a folder that cannot be listed: Permission denied",
        )  # fmt: skip
    assert kinds(find()) == ["sealed"]
    (row,) = dumps(ledger)
    assert row.files == 2
    contents = read_contents(tmp_path / "production", row.dump_id)
    delivered(folder, "late.png")  # it is looked at again
    monkeypatch.setattr(places, "_scanned", refused)
    assert kinds(find()) == ["waiting"]
    assert dumps(ledger)[0].state == "verified"
    with pytest.raises(ConnectionError, match="cannot be listed"):
        still_sealed(WEB.model_copy(update={"root": str(tmp_path / "incoming")}), contents)


def test_gaps_in_the_numbers_are_told(tmp_path, find, ledger):
    for number in (3, 4, 7):
        delivered(tmp_path / "incoming" / f"batch-{number}", f"{number}.png", "_SUCCESS")
    delivered(tmp_path / "incoming" / "batch-8", "8.png")
    find(number=r"batch-(\d+)")
    with ledger.reading() as connection:
        assert gaps(connection, "web") == (4, [5, 6])
        found = overview(connection)
    assert [(gap.source_id, gap.last, gap.missing) for gap in found["gaps"]] == [("web", 7, [5, 6])]
    assert [row.uri.rpartition("/")[2] for row in found["deliveries"]] == ["batch-8"]


def test_a_number_that_is_taken_is_told_without_reading_what_has_it(tmp_path, find, ledger, monkeypatch):
    numbered = {"number": r"batch-(\d+)"}
    delivered(tmp_path / "incoming" / "batch-3", "1.png", "_SUCCESS")
    find(**numbered)
    delivered(tmp_path / "incoming" / "copy of batch-3", "1.png", "_SUCCESS")
    assert kinds(find(**numbered)) == ["known"]  # which is found out by reading it
    delivered(tmp_path / "incoming" / "old-batch-3", "other.png", "_SUCCESS")
    monkeypatch.setattr(deliveries, "read_files", not_called)
    for _ in range(2):
        (taken,) = find(**numbered)
        assert "not read: number 3 of source web is dump" in taken.said
    assert len(list((tmp_path / "production" / "dumps").iterdir())) == len(dumps(ledger)) == 1


def test_what_drifted_is_not_read_again_until_a_person_decides(tmp_path, find, ledger, monkeypatch):
    folder = delivered(tmp_path / "incoming" / "a", "1.png", "_SUCCESS")
    find()
    (folder / "1.png").write_text("y 1.png")
    assert kinds(find()) == ["drifted"]
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.cycle.contents.file_digest", not_called)
        assert find() == []
    with ledger.writing() as connection:
        move(connection, dumps(ledger)[0].dump_id, "drifted", "verified")
    assert kinds(find()) == ["drifted"]
    delivered(folder, "2.png")
    assert kinds(find()) == ["late"]


def not_called(*arguments):
    raise AssertionError("read")


def test_an_empty_delivery_is_a_dump_without_files(tmp_path, find, ledger):
    delivered(tmp_path / "incoming" / "a", "_SUCCESS")
    assert kinds(find()) == ["sealed"]
    assert dumps(ledger)[0].files == 0


def test_just_before_and_after_it_is_read_a_dump_is_compared_once_more(tmp_path, find, ledger):
    folder = delivered(tmp_path / "incoming" / "a", "1.png", "_SUCCESS")
    find()
    source = WEB.model_copy(update={"root": str(tmp_path / "incoming")})
    contents = read_contents(tmp_path / "production", dumps(ledger)[0].dump_id)
    delivered(folder, "late.png")
    assert still_sealed(source, contents) is None
    (folder / "1.png").write_text("changed")
    assert still_sealed(source, contents) == "1 file(s) changed: 1.png"
    folder.rename(tmp_path / "away")
    with pytest.raises(ConnectionError, match="no source at"):  # no fault of the dump
        still_sealed(source, contents)


def test_a_source_that_cannot_be_listed_is_said_to_be_so_and_a_ledger_that_fails_is_no_fault_of_a_delivery(
    tmp_path, find, monkeypatch
):
    delivered(tmp_path / "incoming" / "a", "1.png", "_SUCCESS")

    def fails(error):
        def raising(*arguments):
            raise error

        return raising

    with monkeypatch.context() as patch:
        patch.setattr(places, "_scanned", fails(PermissionError(errno.EACCES, "Permission denied")))
        with pytest.raises(ValueError, match="incoming cannot be listed: Permission denied"):
            find()
    monkeypatch.setattr(deliveries, "_look_at", fails(Unusable("locked for too long")))
    with pytest.raises(Unusable):
        find()


def test_a_source_that_is_not_there_is_said_to_be_so(tmp_path, ledger):
    with pytest.raises(ValueError, match="no source at"):
        list(look(ledger, tmp_path, WEB.model_copy(update={"root": str(tmp_path / "nowhere")})))
