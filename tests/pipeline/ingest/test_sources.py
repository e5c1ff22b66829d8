"""What a folder is taken for: labels, splits, captions, declared counts, and files that are no samples. No Ray."""

import gzip
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.ingest.refusals import Refusal
from pipeline.ingest.samples import Address, Broken, Sample
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
    assert (damage.shard, damage.reason, damage.saved, damage.lost) == ("captions.jsonl", "list_bad", 3, 0)
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
    write(tmp_path, {"b.tar": tar({}), "train/a.tar": tar({})})
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
        (["a.tar.gz"], "a.tar.gz", "--compressed if you trust it"),
    ],
)
def test_a_source_without_samples_is_refused(
    tmp_path: Path, write: Write, names: list[str], given: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        list_source(write(tmp_path, dict.fromkeys(names, b"x")) / given, 10)


def test_captions_files_tell_hash_and_origin(tmp_path: Path, write: Write) -> None:
    line = {"image": "a.jpg", "caption": "one", "sha256": "B" * 64, "url": "https://A.example/x.jpg"}
    source = write(tmp_path, {"a.jpg": b"x", "b.jpg": b"x", "metadata.jsonl": json.dumps(line)})
    plan = list_source(source, 10)
    first, second = (item for item in read(plan.units[0], plan.root) if isinstance(item, Sample))
    assert (first.sha256, first.origin, first.address) == ("b" * 64, "a.example", Address("a.jpg", 0))
    assert (second.sha256, second.origin, second.address) == (None, None, Address("b.jpg", 0))


def test_an_endless_line_of_captions_costs_only_itself(tmp_path: Path, write: Write) -> None:
    lines = ['{"image": "a.jpg", "caption": "before"}', "x" * 3_000_000, '{"image": "a.jpg", "caption": "after"}']
    plan = list_source(write(tmp_path, {"a.jpg": b"x", "captions.jsonl": "\n".join(lines)}), 10)
    assert files(plan)["a.jpg"].captions == ("before", "after")
    assert [(damage.reason, damage.saved) for damage in plan.damaged] == [("list_bad", 2)]
    assert "1 lines (the first is line 2)" in plan.damaged[0].why


def test_changed_bytes_of_equal_size_change_the_listing(tmp_path: Path, write: Write) -> None:
    before = list_source(write(tmp_path, {"a.jpg": b"x", "b.jpg": b"y"}), 10).listing
    assert list_source(tmp_path, 10).listing == before
    time.sleep(0.01)
    write(tmp_path, {"b.jpg": b"z"})
    assert list_source(tmp_path, 10).listing != before


def test_compressed_tars_are_read_only_when_declared(
    tmp_path: Path, write: Write, tar: Callable[..., bytes], picture: Callable[..., bytes]
) -> None:
    packed = gzip.compress(tar({"1.jpg": picture(), "1.txt": "one"}))
    plan = list_source(write(tmp_path, {"a.tar.gz": packed}), 10)
    (refused,) = read(plan.units[0], plan.root)
    assert isinstance(refused, Sample)
    assert isinstance(refused.content, Refusal)
    assert (refused.content.reason, "--compressed" in refused.content.detail) == ("ext_forbidden", True)
    for source in (tmp_path, tmp_path / "a.tar.gz"):
        plan = list_source(source, 10, compressed=True)
        (unit,) = plan.units
        assert (unit.kind, unit.compressed) == ("tar", True)
        (sample,) = read(unit, plan.root)
        assert isinstance(sample, Sample)
        assert (sample.content, sample.captions.texts, sample.address) == (picture(), ["one"], None)


def test_an_index_in_place_refuses_what_has_no_addresses(
    tmp_path: Path, write: Write, tar: Callable[..., bytes]
) -> None:
    write(tmp_path, {"a/1.jpg": b"x", "a/1.tar": tar({"1.jpg": b"picture"}), "c/1.tar.gz": gzip.compress(tar({}))})
    (tmp_path / "b").mkdir()
    pq.write_table(pa.table({"image": [b"x"]}), tmp_path / "b/1.parquet")
    plan = list_source(tmp_path / "a", 10, in_place=True)
    samples = [item for unit in plan.units for item in read(unit, plan.root) if isinstance(item, Sample)]
    for sample in samples:
        assert sample.address is not None
        with plan.root.open(sample.address.path) as file:
            file.seek(sample.address.offset)
            assert file.read(len(sample.content)) == sample.content
    assert len(samples) == 2
    for source, options in (("b", {}), ("c", {"compressed": True})):
        with pytest.raises(ValueError, match="curate into a store instead"):
            list_source(tmp_path / source, 10, in_place=True, **options)


def test_counts_are_declared_by_footers_stats_and_indexes(
    tmp_path: Path, write: Write, tar: Callable[..., bytes]
) -> None:
    empty = tar({})
    write(tmp_path, {
        "a/1.tar": empty, "a/1_stats.json": '{"count": 9, "successes": 7}', "2.tar": empty, "3.tar": empty,
        "4.tar": empty, "4_stats.json": "[" * 100_000,
        "sizes.json": '{"2.tar": 5, "3.tar": "many", "gone.tar": 2}',
        "shards.json": '{"shardlist": [{"url": "https://example.org/x/3.tar", "nsamples": 6}, {"url": 3}, 4]}',
    })  # fmt: skip
    pq.write_table(pa.table({"image": [b"x"] * 5}), tmp_path / "t.parquet", row_group_size=2)
    plan = list_source(tmp_path, 2)
    declared = [(unit.path, unit.declared) for unit in plan.units]
    assert declared == [
        ("2.tar", 5), ("3.tar", 6), ("4.tar", None), ("a/1.tar", 7),
        ("t.parquet", 2), ("t.parquet", 2), ("t.parquet", 1),
    ]  # fmt: skip
    assert [(damage.shard, damage.reason, damage.lost) for damage in plan.damaged] == [("gone.tar", "missing", 2)]
    assert plan.declared is None
    (tmp_path / "4.tar").unlink()
    assert list_source(tmp_path, 2).declared == 5 + 6 + 7 + 5 + 2
    single = list_source(tmp_path / "a/1.tar", 2)
    assert [unit.declared for unit in single.units] == [7]


def test_a_sound_parquet_file_with_fewer_rows_than_declared_has_lost_the_others(tmp_path: Path, write: Write) -> None:
    told = {"short": 5, "right": 3, "long": 2, "empty": 4, "bad": 7}
    records = [{"path": f"{name}.parquet", "samples": count} for name, count in told.items()]
    write(tmp_path, {"_MANIFEST.json": json.dumps({"files": records}), "bad.parquet": "no Parquet"})
    for name, rows in {"short": 3, "right": 3, "long": 3, "empty": 0}.items():
        pq.write_table(pa.table({"image": pa.array([b"x"] * rows, pa.binary())}), tmp_path / f"{name}.parquet")
    plan = list_source(tmp_path, 2)
    assert [(damage.shard, damage.reason, damage.saved, damage.lost) for damage in plan.damaged] == [
        ("empty.parquet", "count_mismatch", 0, 4),
        ("long.parquet", "count_mismatch", 3, 0),
        ("short.parquet", "count_mismatch", 3, 2),
    ]
    assert plan.declared == 5 + 3 + 3 + 4 + 7


def test_a_manifest_is_held_against_what_is_there(tmp_path: Path, write: Write, tar: Callable[..., bytes]) -> None:
    good, bad = tar({"1.jpg": b"one"}), tar({"2.jpg": b"two"})
    records = [
        {"path": "good.tar", "size": len(good), "sha256": hashlib.sha256(good).hexdigest(), "samples": 1},
        {"path": "bad.tar", "size": len(bad) - 1, "sha256": "0" * 64, "samples": 1},
        {"path": "gone.tar", "samples": 12}, {"path": "./1.jpg", "size": 1, "sha256": "1" * 64},
        {"path": "2.jpg", "size": 2}, {"path": "gone.jpg"}, {"path": "README.md"}, {"path": 3}, None,
    ]  # fmt: skip
    source = write(tmp_path, {
        "good.tar": good, "bad.tar": bad, "1.jpg": b"x", "2.jpg": b"x", "_MANIFEST.json": json.dumps({"files": records})
    })  # fmt: skip
    plan = list_source(source, 10)
    assert [(damage.shard, damage.reason, damage.lost) for damage in plan.damaged] == [
        ("bad.tar", "count_mismatch", 0), ("gone.tar", "missing", 12), ("_MANIFEST.json", "missing", 1),
    ]  # fmt: skip
    assert plan.declared == 2 + 1 + 1 + 12 + 1
    items = [item for unit in plan.units for item in read(unit, plan.root)]
    broken = [(item.source, item.reason, item.lost) for item in items if isinstance(item, Broken)]
    assert broken == [("bad.tar", "hash_mismatch", 0)]
    samples = {item.source: item for item in items if isinstance(item, Sample)}
    assert samples["1.jpg"].sha256 == "1" * 64
    assert isinstance(samples["2.jpg"].content, Refusal)
    assert samples["2.jpg"].content.reason == "hash_mismatch"
    assert samples["bad.tar#2"].content == b"two"


@pytest.mark.parametrize("path", ["../x.tar", "/x.tar", "pipe:touch x", "file:///x.tar", "s3://other/x.tar", "a::b"])
def test_a_manifest_that_leads_out_of_the_source_is_refused_whole(tmp_path: Path, write: Write, path: str) -> None:
    write(tmp_path, {"1.jpg": b"x", "_MANIFEST.json": json.dumps({"files": [{"path": path}]})})
    with pytest.raises(ValueError, match=r"_MANIFEST.json of .* so nothing of the source was read"):
        list_source(tmp_path, 10)


def test_a_container_that_went_since_it_was_listed_is_damage(
    tmp_path: Path, write: Write, tar: Callable[..., bytes]
) -> None:
    plan = list_source(write(tmp_path, {"a.tar": tar({"1.jpg": b"x"}), "sizes.json": '{"a.tar": 1}'}), 10)
    (tmp_path / "a.tar").unlink()
    (broken,) = read(plan.units[0], plan.root)
    assert isinstance(broken, Broken)
    assert (broken.reason, broken.lost) == ("missing", 1)


def test_a_parquet_file_beside_a_tar_is_its_notes_only_if_it_holds_no_pictures(
    tmp_path: Path, write: Write, picture: Callable[..., bytes], tar: Callable[..., bytes]
) -> None:
    source = write(tmp_path / "source", {"a.tar": tar({"1.jpg": picture(1)}), "b.tar": tar({"2.jpg": picture(2)})})
    pq.write_table(pa.table({"url": ["https://x.org/1"], "width": [4]}), source / "a.parquet")
    pq.write_table(pa.table({"image": [picture(3)]}), source / "b.parquet")
    assert [unit.path for unit in list_source(source, 10).units] == ["a.tar", "b.tar", "b.parquet"]
