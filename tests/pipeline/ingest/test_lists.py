"""Lists of image files as a source: what they say, what they may not name, and what is not there."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.ingest.places import Place
from pipeline.ingest.refusals import Refusal
from pipeline.ingest.samples import Address, Sample
from pipeline.ingest.sources import list_source, read

Write = Callable[..., Path]


def samples(source: Path, per_shard: int = 10) -> list[Sample]:
    plan = list_source(source, per_shard)
    return [item for unit in plan.units for item in read(unit, plan.root) if isinstance(item, Sample)]


def jsonl(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def test_a_list_of_json_lines_says_all_there_is_to_say(tmp_path: Path, write: Write) -> None:
    first = {
        "path": "photos/b.jpg",
        "captions": ["one", "two"],
        "class": "dog",
        "split": "validation",
        "sha256": "A" * 64,
    }
    write(tmp_path, {
        "photos/a.jpg": b"a", "photos/b.jpg": b"b", "photos/unlisted.jpg": b"c", "photos/a.txt": "no sidecar of a list",
        "list.jsonl": jsonl(first | {"sha256": "A" * 64}, {"file_name": "./photos/a.jpg", "text": "x", "url": "https://A.org/1"},
                            {"image": "photos/b.jpg", "caption": "three", "class": "cat"}),
    })  # fmt: skip
    one, two = samples(tmp_path / "list.jsonl")
    assert (one.source, one.content, one.captions.texts) == ("photos/b.jpg", b"b", ["one", "two", "three"])
    assert (one.label, one.split, one.sha256, one.origin) == ("dog", "test", "a" * 64, None)
    assert (two.source, two.content, two.captions.texts, two.origin) == ("photos/a.jpg", b"a", ["x"], "a.org")
    assert (one.address, two.address) == (Address("photos/b.jpg", 0), Address("photos/a.jpg", 0))


@pytest.mark.parametrize(("name", "mark"), [("list.csv", ","), ("list.tsv", "\t")])
def test_a_table_is_a_list_too(tmp_path: Path, write: Write, name: str, mark: str) -> None:
    text = '\ufeffLabel;File;caption;split\r\ndog;a.jpg;"two\nlines";train\r\n\r\ncat;b.jpg;"say ""hi""";\r\n;;;\r\n'
    write(tmp_path, {"a.jpg": b"a", "b.jpg": b"b", name: text.replace(";", mark)})
    found = samples(tmp_path / name)
    assert [(s.source, s.label, s.captions.texts, s.split) for s in found] == [
        ("a.jpg", "dog", ["two lines"], "train"), ("b.jpg", "cat", ['say "hi"'], None),
    ]  # fmt: skip
    assert [(d.reason, d.saved, d.lost) for d in list_source(tmp_path / name, 10).damaged] == [("list_bad", 2, 1)]


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd", "../x.jpg", "a/../../x.jpg", "file:x.jpg", "file:///etc/passwd", "s3://other/x.jpg",
        "pipe:touch X", "simplecache::http://h/x.jpg", "reference://x", "a::b.jpg", "C:/x.jpg",
        "a\\b.jpg", "a\0.jpg", "a//b.jpg",
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_list_that_names_anything_else_is_refused_before_anything_is_opened(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch, path: str, kind: str
) -> None:
    text = jsonl({"path": "a.jpg"}, {"path": path}) if kind == "jsonl" else f"path,caption\na.jpg,\n{path},x\n"
    write(tmp_path, {"a.jpg": b"a", f"list.{kind}": text})
    opened: list[str] = []
    really = Place.open
    monkeypatch.setattr(Place, "open", lambda self, name: opened.append(name) or really(self, name))
    with pytest.raises(ValueError, match=r"line \d: the path .* so nothing of it was read"):
        list_source(tmp_path / f"list.{kind}", 10)
    assert opened == [f"list.{kind}"]
    assert sorted(os.listdir(tmp_path)) == ["a.jpg", f"list.{kind}"]


def test_what_is_not_there_is_counted_and_what_is_no_line_too(tmp_path: Path, write: Write) -> None:
    lines = jsonl({"path": "a.jpg"}, *({"path": f"gone/{number}.jpg"} for number in range(7)))
    write(tmp_path, {"a.jpg": b"a", "list.jsonl": lines + "no JSON\n\n[1]\n" + "x" * 3_000_000 + "\n{}"})
    plan = list_source(tmp_path / "list.jsonl", 10)
    bad, missing = plan.damaged
    assert (bad.reason, bad.lost) == ("list_bad", 4)
    assert "the first is line 9" in bad.why
    assert (missing.reason, missing.saved, missing.lost) == ("missing", 1, 7)
    assert "gone/0.jpg" in missing.why
    assert "gone/6.jpg" not in missing.why
    assert plan.declared == 1 + 7 + 4


def test_a_link_that_a_list_names_is_refused(tmp_path: Path, write: Write) -> None:
    write(tmp_path, {"secrets/s.jpg": b"secret", "source/a.jpg": b"a"})
    source = tmp_path / "source"
    (source / "folder").symlink_to(tmp_path / "secrets")
    (source / "link.jpg").symlink_to(tmp_path / "secrets/s.jpg")
    paths = ("a.jpg", "folder/s.jpg", "link.jpg")
    write(source, {"list.jsonl": jsonl(*({"path": path} for path in paths))})
    found = samples(source / "list.jsonl")
    assert [(s.source, s.content.reason if isinstance(s.content, Refusal) else s.content) for s in found] == [
        ("a.jpg", b"a"), ("folder/s.jpg", "key_invalid"), ("link.jpg", "key_invalid"),
    ]  # fmt: skip


def test_units_follow_the_list_and_a_changed_file_changes_the_listing(tmp_path: Path, write: Write) -> None:
    names = [f"{number}.jpg" for number in (3, 1, 2)]
    write(tmp_path, {**dict.fromkeys(names, b"x"), "other.jpg": b"x", "list.csv": "path\n" + "\n".join(names)})
    plan = list_source(tmp_path / "list.csv", 2)
    assert [[file.path for file in unit.files] for unit in plan.units] == [["3.jpg", "1.jpg"], ["2.jpg"]]
    assert [unit.declared for unit in plan.units] == [2, 1]
    write(tmp_path, {"other.jpg": b"changed"})
    assert list_source(tmp_path / "list.csv", 2).listing == plan.listing
    write(tmp_path, {"1.jpg": b"changed"})
    assert list_source(tmp_path / "list.csv", 2).listing != plan.listing


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("list.csv", "name,caption\na.jpg,x\n", "no column of paths among name, caption"),
        ("list.csv", "", "names no image file"),
        ("list.jsonl", "[]\n", "names no image file: each line needs one of path"),
        ("list.jsonl", jsonl({"path": "gone.jpg"}), "none of the 1 files .* is there, as gone.jpg"),
    ],
)
def test_a_list_of_nothing_is_refused(tmp_path: Path, write: Write, name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list_source(write(tmp_path, {name: text}) / name, 10)


def test_an_unclosed_quote_costs_lines_and_no_memory(tmp_path: Path, write: Write) -> None:
    rows = "".join(f"{number}.jpg,text {number}\n" for number in range(20_000))
    write(tmp_path, {"0.jpg": b"x", "19999.jpg": b"x", "list.csv": 'path,caption\n0.jpg,good\n1.jpg,"open\n' + rows})
    plan = list_source(tmp_path / "list.csv", 10)
    assert [file.path for file in plan.units[0].files] == ["0.jpg", "19999.jpg"]
    assert {damage.reason for damage in plan.damaged} == {"list_bad", "missing"}
