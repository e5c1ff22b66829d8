"""The sealed store: what it promises to readers, and how it refuses. No Ray: units are curated in this process."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline import curate as module
from pipeline.ingest.config import CurateConfig
from pipeline.ingest.running import Progress, _decoders_for
from pipeline.ingest.selection import read_decisions
from pipeline.ingest.sources import Unit
from pipeline.ingest.store import Manifest, Store
from pipeline.ingest.write import ShardWriter, begin
from pipeline.select.policy import Policy

Write = Callable[..., Path]
Make = Callable[..., bytes]
EXACT = Policy(near_distance=None)


def curate(source: Path, store: Path, config: CurateConfig, tell: Any = None, **options: Any) -> Manifest:
    return module.curate(source, store, config, policy=EXACT, on_progress=tell, **options)


@pytest.fixture(autouse=True)
def _in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the tasks one after the other, last unit first, without Ray."""

    def run(units: list[Unit], task: Any, watch: Any) -> None:
        for unit in reversed(units):
            for progress in task(pa.table({"unit": [unit.model_dump_json()]})):
                watch.take(progress)

    monkeypatch.setattr(module, "run_units", run)
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
    assert len(store.paths) == 3
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
    assert store.count("train") == len(train)
    with pytest.raises(ValueError, match="'val' is unknown"):
        store.select("val")  # type: ignore[arg-type]


def test_what_was_not_kept_is_counted_and_listed(source: Path, picture: Make, write: Write) -> None:
    write(source, {"dog/copy.jpg": picture(0, (40, 20)), "cat/cut.jpg": picture(3)[:-100]})
    store = sealed(source)
    assert store.manifest.seen == 13
    assert store.manifest.refused == {"decode_failed": 1, "dup_exact": 1, "format_forbidden": 1}
    assert {row["source"]: row["reason"] for row in store.refused.to_pylist()} == {
        "dog/page.html": "format_forbidden", "cat/cut.jpg": "decode_failed",
    }  # fmt: skip
    sources = store.index["source"].to_pylist()
    decisions = {sources[row]: value for row, value in enumerate(read_decisions(store, "default").to_pylist())}
    assert decisions["dog/copy.jpg"] == {"reason": "dup_exact", "because": sources.index("cat/0.jpg"), "weight": None}
    assert sum(value["reason"] is None for value in decisions.values()) == store.manifest.kept == 10


def test_training_never_sees_a_test_picture(tmp_path: Path, write: Write, picture: Make) -> None:
    raw = picture(0, format="PNG")
    same = Image.open(io.BytesIO(raw))
    again = io.BytesIO()
    same.save(again, "BMP")  # other bytes, the same pixels
    source = write(tmp_path / "source", {"a/0.png": raw, "test/0.bmp": again.getvalue(), "train/0.png": raw,
                                         "train/1.png": picture(1, format="PNG")})  # fmt: skip
    store = sealed(source)
    sources = store.index["source"].to_pylist()
    assert [sources[number] for number in store.select("test")] == ["test/0.bmp"]
    assert [sources[number] for number in store.select("train")] == ["train/1.png"]
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
    assert other.manifest.selection == first.manifest.selection
    assert other.index["id"].to_pylist() != first.index["id"].to_pylist()
    third = curate(source, source.parent / "another store", CurateConfig(samples_per_shard=4, side=100))
    assert third.digest != first.manifest.digest
    assert third.selection == first.manifest.selection


def test_curating_twice_does_nothing_and_anything_else_is_refused(source: Path, write: Write) -> None:
    first = sealed(source)
    told: list[Progress] = []
    assert curate(source, first.path, CurateConfig(samples_per_shard=4), told.append) == first.manifest
    assert [progress.sealed_before for progress in told] == [True]
    (first.path / "data_card.html").unlink()  # as if killed before it was written
    curate(source, first.path, CurateConfig(samples_per_shard=4))
    assert (first.path / "data_card.html").exists()
    with pytest.raises(ValueError, match=r"side 288 → 100.*choose another --to, replace it with --overwrite"):
        sealed(source, side=100)
    write(source, {"cat/new.jpg": b"x"})
    with pytest.raises(ValueError, match="files were added to, removed from or changed"):
        sealed(source)


def test_an_interrupted_curation_leaves_no_store_and_goes_on_from_the_units_that_were_done(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = curate(source, source.parent / "whole", CurateConfig(samples_per_shard=4))
    runs = module.run_units
    with monkeypatch.context() as patch:
        patch.setattr(module, "run_units", lambda units, *rest: (runs(units[1:], *rest), 1 / 0))
        with pytest.raises(ZeroDivisionError):
            sealed(source)
    with pytest.raises(ValueError, match="interrupted curate, then run it again"):
        Store(source.parent / "store")
    done: list[int] = []
    monkeypatch.setattr(
        module, "run_units", lambda units, *rest: done.extend(u.number for u in units) or runs(units, *rest)
    )
    told: list[Progress] = []
    manifest = curate(source, source.parent / "store", CurateConfig(samples_per_shard=4), told.append)
    assert done == [0]
    assert told[0].resumed == 2
    assert told[-1].seen == manifest.seen == 11
    assert (manifest.digest, manifest.selection, manifest.index_sha256) == (
        whole.digest, whole.selection, whole.index_sha256,
    )  # fmt: skip
    assert manifest.shards == whole.shards


def test_what_another_interrupted_curation_left_is_not_taken_for_this_one(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "build_index", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sealed(source, side=16)
    store = sealed(source)
    assert min(store.index["height"].to_pylist()) == 20
    assert sorted(store.paths.to_pylist()) == sorted(str(path) for path in (store.path / "shards").iterdir())


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("foreign", ["readme", "manifest.json"])
def test_a_folder_of_something_else_is_never_touched(source: Path, overwrite: bool, foreign: str) -> None:
    store = source.parent / "store"
    (store / "shards").mkdir(parents=True)
    (store / "shards/00000.tar").write_bytes(b"precious")
    (store / foreign).write_text("{}")
    refusal = r"neither empty nor an interrupted store|manifest\.json (is not a store's|cannot be used)"
    with pytest.raises(ValueError, match=refusal):
        curate(source, store, CurateConfig(), overwrite=overwrite)
    assert (store / "shards/00000.tar").read_bytes() == b"precious"


def test_a_store_within_its_source_is_refused_and_the_other_way_round(source: Path) -> None:
    store = sealed(source)
    for one, other in ((source, source / "x"), (source, source), (store.path / "shards", store.path)):
        with pytest.raises(ValueError, match="lie within one another"):
            curate(one, other, CurateConfig(), overwrite=True)


def test_a_source_of_rejects_only_says_so_and_seals_nothing(tmp_path: Path, write: Write) -> None:
    source = write(tmp_path / "source", {"a.jpg": "<html>", "b.jpg": ""})
    with pytest.raises(ValueError, match=r"nothing in .*'format_forbidden': 1.*refused\.parquet lists every file"):
        sealed(source)
    assert (tmp_path / "store/refused.parquet").exists()
    with pytest.raises(ValueError, match="not a sealed store"):
        Store(tmp_path / "store")


def test_damage_to_a_store_is_refused_with_the_way_out(source: Path) -> None:
    store = sealed(source)
    with pytest.raises(ValueError, match=r"no store at .*: make one with `feral curate"):
        Store(source.parent / "nowhere")

    shard = Path(store.paths[0].as_py())
    shard.write_bytes(shard.read_bytes()[:600])
    with pytest.raises(ValueError, match="ends before sample 0"):
        store.read(0)

    manifest = store.path / "manifest.json"
    for name in ("index.parquet", "places.arrow", "captions.arrow"):
        whole = (store.path / name).read_bytes()
        (store.path / name).write_bytes(whole[:-1])
        with pytest.raises(ValueError, match=rf"{name} is not the one that was sealed.*it had {len(whole):,} bytes"):
            Store(store.path)
        (store.path / name).unlink()
        with pytest.raises(ValueError, match=f"{name} is missing.*--overwrite"):
            Store(store.path)
        (store.path / name).write_bytes(whole)
    for change, message in (
        ({"format": 2}, "store format 2 is unknown.*curate the source again"),
        ({"more": 1}, "more: Extra inputs"),
    ):
        manifest.write_text(json.dumps(store.manifest.model_dump() | change))
        with pytest.raises(ValueError, match=message):
            Store(store.path)


def test_a_shard_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    begin(tmp_path / "store", "plan", overwrite=False)
    with pytest.raises(TypeError), ShardWriter(tmp_path / "store", 0, 10) as writer:
        writer.add(0, b"jpeg", [], {"no": b"JSON"})
    assert list((tmp_path / "store/shards").iterdir()) == []


def test_accounting_is_asserted(source: Path) -> None:
    manifest: Manifest = sealed(source).manifest
    assert manifest.seen == manifest.kept + sum(manifest.refused.values())


@pytest.mark.parametrize(
    ("units", "cpus", "decoders"), [(1, [2], 2), (1, [64, 4], 8), (3, [2], 1), (10, [16, 16], 3), (1000, [0.5], 1)]
)
def test_few_units_use_many_decoders(units: int, cpus: list[float], decoders: int) -> None:
    assert _decoders_for(units, cpus) == decoders
