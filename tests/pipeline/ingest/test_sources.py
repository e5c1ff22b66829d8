"""What a folder is taken for: labels, splits, captions, and files that are no samples. No Ray."""

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.ingest.decode import Refusal
from pipeline.ingest.samples import Sample
from pipeline.ingest.sources import File, Plan, list_source, read

Write = Callable[..., Path]


def files(plan: Plan) -> dict[str, File]:
    return {file.path: file for unit in plan.units for file in unit.files}


def test_class_folders_are_labels_and_top_folders_splits(tmp_path: Path, write: Write) -> None:
    names = ["train/cat/1.jpg", "train/dog/images/2.jpg", "Val/cat/3.jpg", "test/dog/4.jpg"]
    found = files(list_source(write(tmp_path, dict.fromkeys(names, b"x")), 10))
    assert {name: (file.label, file.split) for name, file in found.items()} == {
        "train/cat/1.jpg": ("cat", "train"),
        "train/dog/images/2.jpg": ("dog", "train"),
        "Val/cat/3.jpg": ("cat", "test"),
        "test/dog/4.jpg": ("dog", "test"),
    }


def test_one_folder_is_no_class(tmp_path: Path, write: Write) -> None:
    found = files(list_source(write(tmp_path, {"train/photos/1.jpg": b"x", "train/2.jpg": b"x"}), 10))
    assert [file.label for file in found.values()] == [None, None]


def test_sidecars_and_metadata_are_not_samples_and_everything_else_is(tmp_path: Path, write: Write) -> None:
    source = write(tmp_path, {
        "a.jpg": b"x", "a.txt": "a caption", "b.tiff": b"x", "page.html": "x", "alone.txt": "x", "data.zip": b"x",
        "SOURCE.txt": "x", "README.md": "x", "notes.json": "{}", "list.csv": "x",
        ".hidden.jpg": b"x", ".git/x.jpg": b"x",
    })  # fmt: skip
    found = files(list_source(source, 10))
    assert list(found) == ["a.jpg", "alone.txt", "b.tiff", "data.zip", "page.html"]
    assert found["a.jpg"].sidecar == "a.txt"
    refused = {name: file.refusal[0] for name, file in found.items() if file.refusal}
    assert refused == {"data.zip": "ext_forbidden"}


def test_several_lines_of_an_image_are_several_captions_and_its_folder_no_class(tmp_path: Path, write: Write) -> None:
    source = write(tmp_path, {
        "images/0/a.jpg": b"x", "images/1/b.jpg": b"x", "images/1/c.jpg": b"x", "images/1/c.txt": "from a sidecar",
        "captions.jsonl": '{"image": "images/0/a.jpg", "caption": "one"}\n'
                          '{"file_name": "./images/0/a.jpg", "text": "two"}\n'
                          '{"file": "images/1/c.jpg", "caption": "from a line"}\n'
                          '{"image": "images/1/lost.jpg", "caption": "of nothing"}\nnot JSON\n[1]\n',
    })  # fmt: skip
    plan = list_source(source, 10)
    found = files(plan)
    assert found["images/0/a.jpg"].captions == ("one", "two")
    assert {file.label for file in found.values()} == {None}
    samples = {item.source: item for item in read(plan.units[0], plan.root) if isinstance(item, Sample)}
    assert samples["images/1/c.jpg"].captions.texts == ["from a sidecar", "from a line"]
    (damage,) = plan.damaged
    assert (damage.shard, damage.saved) == ("captions.jsonl", 3)
    assert "3 lines (the first is line 4)" in damage.why


def test_class_names_are_readable_and_unique(tmp_path: Path, write: Write) -> None:
    text = 'wnid,name\nn1,"tabby, tabby cat"\nn2,crane\nn3,"crane, a bird"\n'
    plan = list_source(write(tmp_path, {"n1/1.jpg": b"x", "n2/2.jpg": b"x", "classes.csv": text}), 10)
    assert plan.class_names == {"n1": "tabby", "n2": "crane (n2)", "n3": "crane (n3)"}


def test_nothing_outside_of_the_source_is_read(tmp_path: Path, write: Write) -> None:
    write(tmp_path, {"secret.jpg": b"secret", "secrets/1.jpg": b"secret", "source/a.jpg": b"a", "source/b.jpg": b"b"})
    source = tmp_path / "source"
    (source / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (source / "folder").symlink_to(tmp_path / "secrets")
    (source / "captions.jsonl").symlink_to(tmp_path / "secret.jpg")
    (source / "a.txt").symlink_to(tmp_path / "secret.jpg")
    os.mkfifo(source / "pipe.jpg")
    plan = list_source(source, 10)
    (source / "b.jpg").unlink()
    (source / "b.jpg").symlink_to(tmp_path / "secret.jpg")  # after it was listed
    samples = [item for item in read(plan.units[0], plan.root) if isinstance(item, Sample)]
    reasons = {s.source: s.content.reason for s in samples if isinstance(s.content, Refusal)}
    assert reasons == {
        "a.txt": "key_invalid", "b.jpg": "header_bad", "captions.jsonl": "key_invalid", "folder": "key_invalid",
        "link.jpg": "key_invalid", "pipe.jpg": "key_invalid",
    }  # fmt: skip
    assert [(s.source, s.captions.texts) for s in samples if s.content == b"a"] == [("a.jpg", [])]


def test_a_name_that_is_not_utf8_costs_one_sample(tmp_path: Path, write: Write) -> None:
    write(tmp_path, {"a.jpg": b"x"})
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg")).write_bytes(b"x")
    found = files(list_source(tmp_path, 10))
    assert [(name, file.refusal is None) for name, file in found.items()] == [("\\xff.jpg", False), ("a.jpg", True)]


def test_units_are_bounded_sorted_and_of_all_kinds(tmp_path: Path, write: Write, tar: Callable[..., bytes]) -> None:
    write(tmp_path, {f"{number}.jpg": b"x" for number in range(5)})
    write(tmp_path, {"b.tar": tar({}), "train/a.tar": tar({}), "b.parquet": "the tar's own notes, not a source"})
    pq.write_table(pa.table({"image": [b"x"] * 10}), tmp_path / "test-00000-of-00001.parquet", row_group_size=1)
    plan = list_source(tmp_path, 2)
    assert [unit.number for unit in plan.units] == list(range(len(plan.units)))
    assert [[file.path for file in unit.files] for unit in plan.units[:3]] == [
        ["0.jpg", "1.jpg"], ["2.jpg", "3.jpg"], ["4.jpg"],
    ]  # fmt: skip
    assert [(unit.path, unit.split) for unit in plan.units[3:5]] == [("b.tar", None), ("train/a.tar", "train")]
    assert [(unit.split, unit.first_row, unit.row_groups) for unit in plan.units[5:]] == [
        ("test", row, (row, row + 1)) for row in range(0, 10, 2)
    ]


@pytest.mark.parametrize(
    ("names", "given", "message"),
    [
        ([], "missing", "no source at .*missing"),
        (["notes.md"], ".", "holds no image, .tar or .parquet"),
        (["a.zip"], "a.zip", "unpack it"),
    ],
)
def test_a_source_without_samples_is_refused(
    tmp_path: Path, write: Write, names: list[str], given: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        list_source(write(tmp_path, dict.fromkeys(names, b"x")) / given, 10)
