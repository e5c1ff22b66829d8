"""The sealed store: what it promises to readers, and how it refuses. No Ray: units are curated in this process."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline.ingest import curate as module
from pipeline.ingest.curate import CurateConfig, Progress, curate, curate_unit
from pipeline.ingest.sources import Plan
from pipeline.ingest.store import Manifest, Store
from pipeline.ingest.write import ShardWriter, begin

Write = Callable[..., Path]
Make = Callable[..., bytes]


@pytest.fixture(autouse=True)
def _in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the tasks one after the other, last unit first, without Ray."""

    def run(plan: Plan, store: Path, config: CurateConfig, tell: Callable[[Progress], None]) -> list[pa.Table]:
        batches = [pa.table({"unit": [unit.model_dump_json()]}) for unit in reversed(plan.units)]
        return [
            report
            for batch in batches
            for report in curate_unit(batch, plan.root, store, config, plan.class_names)
        ]  # fmt: skip

    monkeypatch.setattr(module, "_run", run)
    monkeypatch.setattr(module, "connected", lambda address: io.StringIO())  # any context manager


@pytest.fixture
def source(tmp_path: Path, write: Write, picture: Make) -> Path:
    files = {f"{kind}/{number}.jpg": picture(10 * index + number, (40, 20 + number))
             for index, kind in enumerate(("cat", "dog")) for number in range(5)}  # fmt: skip
    return write(tmp_path / "source", {**files, "dog/0.txt": "a dog", "dog/page.html": "<html>"})


def sealed(source: Path, **settings: int) -> Store:
    store = source.parent / "store"
    curate(source, store, CurateConfig(**{"samples_per_shard": 4, **settings}))  # type: ignore[arg-type]
    return Store(store)


def test_every_sample_can_be_read_by_its_number(source: Path) -> None:
    store = sealed(source)
    assert store.manifest.kept == store.index.num_rows == 10
    assert len(store.shard_paths) == 3
    for row in store.index.to_pylist():
        image = Image.open(io.BytesIO(store.read(row["number"])))
        assert image.size == (row["width"], row["height"]) == (40, 20 + int(row["source"][4]))
        assert store.manifest.classes[row["label"]] == row["source"].split("/")[0]
        assert row["captions"] == (["a dog"] if row["source"] == "dog/0.jpg" else [])
    with pytest.raises(ValueError, match=r"sample 10 is not in .*0\.\.9"):
        store.read(10)


def test_splits_are_disjoint_and_complete(source: Path) -> None:
    store = sealed(source)
    train, test = store.select("train"), store.select("test")
    assert train.dtype == np.int64
    assert sorted([*train, *test]) == list(range(10))
    assert store.manifest.splits == {"train": len(train), "test": len(test)}
    with pytest.raises(ValueError, match="'val' is unknown"):
        store.select("val")  # type: ignore[arg-type]


def test_what_was_not_kept_is_counted_and_listed(source: Path, picture: Make, write: Write) -> None:
    write(source, {"dog/copy.jpg": picture(0, (40, 20)), "cat/cut.jpg": picture(3)[:-100]})
    store = sealed(source)
    assert store.manifest.seen == 13
    assert store.manifest.refused == {"decode_failed": 1, "dup_exact": 1, "format_forbidden": 1}
    assert {row["source"]: row["reason"] for row in store.refused.to_pylist()} == {
        "dog/page.html": "format_forbidden", "dog/copy.jpg": "dup_exact", "cat/cut.jpg": "decode_failed",
    }  # fmt: skip


def test_training_never_sees_a_test_picture(tmp_path: Path, write: Write, picture: Make) -> None:
    raw = picture(0, format="PNG")
    same = Image.open(io.BytesIO(raw))
    again = io.BytesIO()
    same.save(again, "BMP")  # other bytes, the same pixels
    source = write(tmp_path / "source", {"a/0.png": raw, "test/0.bmp": again.getvalue(), "train/0.png": raw,
                                         "train/1.png": picture(1, format="PNG")})  # fmt: skip
    store = sealed(source)
    assert list(zip(store.index["source"].to_pylist(), store.index["split"].to_pylist(), strict=True)) == [
        ("test/0.bmp", "test"), ("train/1.png", "train"),
    ]  # fmt: skip
    assert store.manifest.refused == {"dup_exact": 2}


def test_the_same_source_gives_the_same_store_and_the_order_of_files_the_same_digest(
    tmp_path: Path, source: Path, write: Write
) -> None:
    first = sealed(source)
    index = (first.path / "index.parquet").read_bytes()
    curate(source, first.path, CurateConfig(samples_per_shard=4), overwrite=True)
    again = Store(first.path)
    assert (again.path / "index.parquet").read_bytes() == index
    assert again.manifest.shards == first.manifest.shards

    others = {path.relative_to(source).with_stem(f"x{9 - int(path.stem)}"): path for path in source.rglob("*.jpg")}
    moved = write(tmp_path / "moved/source", {str(name): path.read_bytes() for name, path in others.items()})
    write(moved, {"dog/x9.txt": "a dog"})
    other = sealed(moved)
    assert other.manifest.digest == first.manifest.digest
    assert other.index["id"].to_pylist() != first.index["id"].to_pylist()
    assert sealed_digest(source, side=100) != first.manifest.digest


def sealed_digest(source: Path, **settings: int) -> str:
    store = source.parent / "another store"
    return curate(source, store, CurateConfig(samples_per_shard=4, **settings)).digest  # type: ignore[arg-type]


def test_curating_twice_does_nothing_and_anything_else_is_refused(source: Path, write: Write) -> None:
    first = sealed(source)
    told: list[Progress] = []
    assert curate(source, first.path, CurateConfig(samples_per_shard=4), told.append) == first.manifest
    assert [progress.sealed_before for progress in told] == [True]
    with pytest.raises(ValueError, match=r"side 288 → 100.*choose another --to, or replace it with --overwrite"):
        sealed(source, side=100)
    write(source, {"cat/new.jpg": b"x"})
    with pytest.raises(ValueError, match="files were added to, removed from or changed"):
        sealed(source)


def test_an_interrupted_curation_leaves_no_store_and_can_be_run_again(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_table", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            sealed(source)
    with pytest.raises(ValueError, match="interrupted curate, then run it again"):
        Store(source.parent / "store")
    (source.parent / "store/shards/99999.tar").write_bytes(b"of a larger source")
    store = sealed(source)
    assert sorted(store.shard_paths) == sorted((store.path / "shards").iterdir())


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("foreign", ["readme", "manifest.json"])
def test_a_folder_of_something_else_is_never_touched(source: Path, overwrite: bool, foreign: str) -> None:
    store = source.parent / "store"
    (store / "shards").mkdir(parents=True)
    (store / "shards/00000.tar").write_bytes(b"precious")
    (store / foreign).write_text("{}")
    with pytest.raises(ValueError, match=r"neither empty nor an interrupted store|manifest\.json cannot be used"):
        curate(source, store, CurateConfig(), overwrite=overwrite)
    assert (store / "shards/00000.tar").read_bytes() == b"precious"


def test_a_store_within_its_source_is_refused_and_the_other_way_round(source: Path) -> None:
    store = sealed(source)
    for one, other in ((source, source / "x"), (source, source), (store.path / "shards", store.path)):
        with pytest.raises(ValueError, match="lie within one another"):
            curate(one, other, CurateConfig(), overwrite=True)


def test_a_source_of_rejects_only_says_so_and_seals_nothing(tmp_path: Path, write: Write) -> None:
    source = write(tmp_path / "source", {"a.jpg": "<html>", "b.jpg": ""})
    with pytest.raises(ValueError, match=r"nothing in .*'format_forbidden': 1.*refused\.parquet lists"):
        sealed(source)
    assert (tmp_path / "store/refused.parquet").exists()
    with pytest.raises(ValueError, match="not a sealed store"):
        Store(tmp_path / "store")


def test_damage_to_a_store_is_refused_with_the_way_out(source: Path) -> None:
    store = sealed(source)
    with pytest.raises(ValueError, match=r"no store at .*: make one with `feral curate"):
        Store(source.parent / "nowhere")

    shard = store.shard_paths[0]
    shard.write_bytes(shard.read_bytes()[:600])
    with pytest.raises(ValueError, match="ends before sample 0"):
        store.read(0)

    index, manifest = store.path / "index.parquet", store.path / "manifest.json"
    index.write_bytes(index.read_bytes().replace(b"dog", b"cat", 1))
    with pytest.raises(ValueError, match=r"index\.parquet is missing or not the one that was sealed"):
        Store(store.path)
    for change, message in (({"format": 2}, "store format 2 is unknown"), ({"more": 1}, "more: Extra inputs")):
        manifest.write_text(json.dumps(store.manifest.model_dump() | change))
        with pytest.raises(ValueError, match=message):
            Store(store.path)


def test_a_shard_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    begin(tmp_path / "store", overwrite=False)
    with pytest.raises(TypeError), ShardWriter(tmp_path / "store", 0, 10) as writer:
        writer.add(0, b"jpeg", [], {"no": b"JSON"})
    assert list((tmp_path / "store/shards").iterdir()) == []


def test_accounting_is_asserted(source: Path) -> None:
    manifest: Manifest = sealed(source).manifest
    assert manifest.seen == manifest.kept + sum(manifest.refused.values())
