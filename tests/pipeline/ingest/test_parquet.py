"""The guarded Parquet reader: the layouts it knows, and files that it does not trust."""

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.ingest import parquet
from pipeline.ingest.parquet import layout, read_parquet
from pipeline.ingest.refusals import Refusal
from pipeline.ingest.samples import Broken, Sample


def read(
    path: Path, image: str | None = None, caption: str | None = None, groups: tuple[int, ...] | None = None
) -> list[Sample | Broken]:
    with path.open("rb") as file:
        found = layout(file, path.name, image, caption)
        groups = tuple(range(len(found.rows))) if groups is None else groups
        first = sum(found.rows[: min(groups, default=0)])
        return list(read_parquet(file, path.name, found.columns, groups, first, None))


def rows(items: list[Sample | Broken]) -> list[tuple]:
    assert all(isinstance(item, Sample) for item in items)
    return [(i.source, i.content, i.captions.texts, i.label, i.split) for i in items if isinstance(i, Sample)]


def test_plain_columns_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    table = {
        "jpg": [b"a", b"b"], "captions": [["one", "two"], None], "label": [3, None], "split": ["train", "validation"],
        "score": [0.1, 0.2],
    }  # fmt: skip
    pq.write_table(pa.table(table), path)
    assert rows(read(path)) == [
        ("x.parquet#0", b"a", ["one", "two"], "3", "train"),
        ("x.parquet#1", b"b", [], None, "test"),
    ]


def test_the_layout_of_hugging_face_is_read_with_its_class_names(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    table = pa.table({
        "image": [{"bytes": b"a", "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}], "text": ["one", "two"],
        "label": [1, 0],
    })  # fmt: skip
    notes = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(notes)}), path)
    first, second = read(path)
    assert rows([first]) == [("x.parquet#0", b"a", ["one"], "dog", None)]
    assert isinstance(second, Sample)
    assert isinstance(second.content, Refusal)


def test_origin_and_hash_are_read_and_a_url_gives_its_host_only(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    urls = ["https://user@A.example:8/1.jpg?x", "file:///etc/passwd", None]
    pq.write_table(pa.table({"jpg": [b"a", b"b", b"c"], "url": urls, "sha256": ["A" * 64, "short", None]}), path)
    samples = [item for item in read(path) if isinstance(item, Sample)]
    assert [(sample.origin, sample.sha256) for sample in samples] == [
        ("a.example", "a" * 64),
        (None, None),
        (None, None),
    ]
    assert {sample.address for sample in samples} == {None}


def test_pickled_objects_are_only_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pickled = pickle.dumps(Ran())
    pq.write_table(pa.table({"image": [pickled], "object": [pickled]}), path)
    assert rows(read(path)) == [("x.parquet#0", pickled, [], None, None)]
    assert not Ran.ran
    pickle.loads(pickled)
    assert Ran.ran  # so the test would notice


class Ran:
    """Notices that it is unpickled."""

    ran = False

    def __setstate__(self, state: object) -> None:
        Ran.ran = True

    def __getstate__(self) -> dict[str, int]:
        return {"a": 1}


def test_text_that_is_not_utf8_costs_no_row(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    buffers = pa.array([b"fine", b"bad \xff", b"fine too"]).buffers()
    text = pa.Array.from_buffers(pa.string(), 3, buffers)
    for dictionary in (True, False):
        pq.write_table(pa.table({"image": [b"a", b"b", b"c"], "text": text}), path, use_dictionary=dictionary)
        assert [row[2] for row in rows(read(path))] == [["fine"], ["bad \ufffd"], ["fine too"]]


def test_a_long_caption_is_dropped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [b"a"], "captions": [["x" * 9000, "short"]]}), path)
    (sample,) = read(path)
    assert isinstance(sample, Sample)
    assert sample.captions == (["short"], 1)


def test_row_groups_can_be_read_apart(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [bytes([n]) for n in range(10)]}), path, row_group_size=4)
    assert [row[:2] for row in rows(read(path, groups=(1, 2)))] == [
        (f"x.parquet#{n}", bytes([n])) for n in range(4, 10)
    ]


def test_columns_can_be_named_and_a_wrong_name_says_what_there_is(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"scan": [b"a"], "words": ["one"], "id": [1]}), path)
    assert rows(read(path, "scan", "words")) == [("x.parquet#0", b"a", ["one"], None, None)]
    with pytest.raises(
        ValueError, match=r"no column of image bytes among scan \(binary\).*name it with image_column=NAME"
    ):
        read(path)
    with pytest.raises(ValueError, match="no column 'id' of image bytes"):
        read(path, "id")
    with pytest.raises(ValueError, match=r"no column 'id' of text.*name one with caption_column=NAME"):
        read(path, "scan", "id")


class Hostile(pa.ExtensionType):
    """A registered type that runs code to read what a file says about it."""

    ran = False

    def __init__(self) -> None:
        super().__init__(pa.binary(), "feral.test.hostile")

    def __arrow_ext_serialize__(self) -> bytes:
        return b"cos\nsystem\n"

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> "Hostile":
        cls.ran = True
        return cls()


@pytest.mark.parametrize("other", ["o", "ot", "oth"])  # shifts what follows within base64
def test_extension_types_are_refused_before_they_run_code(tmp_path: Path, other: str) -> None:
    path = tmp_path / "x.parquet"
    hostile = pa.ExtensionArray.from_storage(Hostile(), pa.array([b"b"]))
    pq.write_table(pa.table({"image": [b"a"], other: hostile}), path)
    pa.register_extension_type(Hostile())
    try:
        (broken,) = read(path)
        assert isinstance(broken, Broken)
        assert broken.reason == "parquet_unsafe"
        assert not Hostile.ran
        pq.read_metadata(path)
        assert Hostile.ran  # so the test would notice
    finally:
        Hostile.ran = False
        pa.unregister_extension_type("feral.test.hostile")


@pytest.mark.parametrize("mutate", [lambda raw: raw[:-20], lambda raw: b"", lambda raw: b"PAR1" * 100])
def test_a_file_without_a_footer_is_damage(tmp_path: Path, mutate: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [b"a"]}), path)
    path.write_bytes(mutate(path.read_bytes()))
    (broken,) = read(path)
    assert isinstance(broken, Broken)
    assert (broken.reason, broken.lost) == ("parquet_damaged", None)


def test_damage_costs_one_row_group(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [bytes([n]) * 5000 for n in range(100)]}), path, row_group_size=40,
                   compression="gzip", use_dictionary=False)  # fmt: skip
    raw = bytearray(path.read_bytes())
    column = pq.read_metadata(path).row_group(1).column(0)
    start = column.data_page_offset
    raw[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(raw)
    items = read(path)
    broken = [item for item in items if isinstance(item, Broken)]
    assert [(item.reason, item.lost, item.why.split(" cannot")[0]) for item in broken] == [
        ("parquet_damaged", 40, "rows 40 to 79")
    ]
    kept = [row[:2] for row in rows([item for item in items if isinstance(item, Sample)])]
    assert kept == [(f"x.parquet#{n}", bytes([n]) * 5000) for n in [*range(40), *range(80, 100)]]


def test_an_unsafe_row_group_says_how_many_rows_it_loses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [b"a"] * 30 + [b"b"] * 10}), path, row_group_size=30)
    monkeypatch.setattr(parquet, "MAX_ROW_GROUP_ROWS", 20)
    broken, *samples = read(path)
    assert isinstance(broken, Broken)
    assert (broken.reason, broken.lost) == ("parquet_unsafe", 30)
    assert [row[0] for row in rows(samples)] == [f"x.parquet#{number}" for number in range(30, 40)]


def test_a_file_that_shrank_since_it_was_listed_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [b"a"] * 10}), path)
    (broken,) = read(path, groups=(0, 1))
    assert isinstance(broken, Broken)
    assert broken.reason == "parquet_damaged"


BOMB = """
import resource, sys
from pathlib import Path
from pipeline.ingest.parquet import layout, read_parquet
with Path(sys.argv[1]).open("rb") as file:
    found = layout(file, "x", None, None)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    items = read_parquet(file, "x", found.columns, tuple(range(len(found.rows))), 0, None)
    seen = [(type(item).__name__, len(getattr(item, "captions", [[]])[0]), getattr(item, "reason", ""))
            for _, item in zip(range(100), items)]
    print(len(seen), *set(seen), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, sep="\\n")
"""


def _run_bomb(path: Path) -> list[str]:
    done = subprocess.run([sys.executable, "-c", BOMB, str(path)], capture_output=True, text=True, check=True)
    return done.stdout.split("\n")[:-1]


def _write(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path, compression="gzip", dictionary_pagesize_limit=2**30, store_schema=False)
    assert path.stat().st_size < 2**20


def test_a_value_that_stands_in_many_rows_is_held_once(tmp_path: Path) -> None:
    image = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), pa.array([b"x" * (20 << 20)]))
    _write(tmp_path / "x.parquet", pa.table({"image": image}))  # 400 GB
    seen, *kinds, megabytes = _run_bomb(tmp_path / "x.parquet")
    assert (seen, kinds) == ("100", ["('Sample', 0, '')"])
    assert int(megabytes) < 200


def test_a_row_of_endless_captions_is_cut(tmp_path: Path) -> None:
    number = 3_000_000
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * number, pa.int32()), pa.array(["x" * 8000]))
    captions = pa.ListArray.from_arrays(pa.array([0, number], pa.int32()), texts)
    _write(tmp_path / "x.parquet", pa.table({"image": [b"a"], "captions": captions}))  # 24 GB
    seen, *kinds, megabytes = _run_bomb(tmp_path / "x.parquet")
    assert (seen, kinds) == ("1", ["('Sample', 1, '')"])
    assert int(megabytes) < 200


def test_a_column_that_unpacks_without_end_is_refused_unread(tmp_path: Path) -> None:
    table = pa.table({"image": [b"\0" * (8 << 20)] * 20})
    pq.write_table(table, tmp_path / "x.parquet", compression="gzip", use_dictionary=False)
    seen, *kinds, megabytes = _run_bomb(tmp_path / "x.parquet")
    assert (seen, kinds) == ("1", ["('Broken', 0, 'parquet_unsafe')"])
    assert int(megabytes) < 50
