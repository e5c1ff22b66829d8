"""The guarded Parquet reader: the layouts it knows, and files that it does not trust."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.ingest.decode import Refusal
from pipeline.ingest.parquet import layout, read_parquet
from pipeline.ingest.samples import Broken, Sample


def read(
    path: Path, image: str | None = None, caption: str | None = None, groups: tuple[int, ...] | None = None
) -> list[Sample | Broken]:
    found = layout(path, path.name, image, caption)
    groups = tuple(range(len(found.rows))) if groups is None else groups
    return list(read_parquet(path, path.name, found.columns, groups, sum(found.rows[: min(groups, default=0)]), None))


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
    with pytest.raises(ValueError, match=r"no column of image bytes among scan \(binary\).*--image-column"):
        read(path)
    with pytest.raises(ValueError, match="no column 'id' of image bytes"):
        read(path, "id")
    with pytest.raises(ValueError, match=r"no column 'id' of text.*--caption-column"):
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
    assert [(item.reason, item.why.split(" cannot")[0]) for item in broken] == [("count_mismatch", "rows 40 to 79")]
    kept = [row[:2] for row in rows([item for item in items if isinstance(item, Sample)])]
    assert kept == [(f"x.parquet#{n}", bytes([n]) * 5000) for n in [*range(40), *range(80, 100)]]
