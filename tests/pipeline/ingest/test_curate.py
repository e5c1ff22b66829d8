"""Every kind of source through the real curation, on Ray."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from pipeline.ingest.curate import CurateConfig, Progress, curate
from pipeline.ingest.store import Store

pytestmark = pytest.mark.cluster
Write = Callable[..., Path]
Make = Callable[..., bytes]


def curated(source: Path, store: Path, **settings: Any) -> Store:
    curate(source, store, CurateConfig(**settings))
    return Store(store)


def rows(store: Store) -> dict[str, tuple[str | None, str, list[str]]]:
    """source → (class name, split, captions)."""
    names = [*store.manifest.classes, None]
    return {row["source"]: (names[row["label"]], row["split"], row["captions"]) for row in store.index.to_pylist()}


def test_all_kinds_of_source_at_once_close_their_accounts(
    ray_local: Any, tmp_path: Path, write: Write, picture: Make, tar: Make
) -> None:
    source = write(tmp_path / "source", {
        "train/cat/1.jpg": picture(1), "train/cat/1.txt": "a cat", "train/dog/2.png": picture(2, format="PNG"),
        "val/cat/3.webp": picture(3, format="WEBP"), "val/dog/page.jpg": "<html>", "val/dog/empty.jpg": "",
        "val/dog/1.jpg": picture(1), "classes.csv": 'wnid,name\ncat,"tabby, cat"\n',
        "train/whole.tar": tar({"4.jpg": picture(4), "4.txt": "four", "4.cls": "cat", "5.pkl": "x"}),
        "train/cut.tar": tar({f"{n}.jpg": picture(n) for n in range(6, 10)})[:5000],
        "bad.parquet": "not one",
    })  # fmt: skip
    pq.write_table(pa.table({"image": [picture(20), picture(4)], "caption": ["twenty", None], "label": ["dog", "cat"]}),
                   source / "test-00000.parquet")  # fmt: skip
    told: list[Progress] = []
    manifest = curate(source, tmp_path / "store", CurateConfig(samples_per_shard=2), told.append)
    store = Store(tmp_path / "store")
    found = rows(store)
    saved = {name: found.pop(name) for name in list(found) if name.startswith("train/cut.tar")}
    assert found == {
        "train/dog/2.png": ("dog", "train", []),
        "val/cat/3.webp": ("tabby", "test", []),
        "val/dog/1.jpg": ("dog", "test", []),
        "test-00000.parquet#0": ("dog", "test", ["twenty"]),
        "test-00000.parquet#1": ("tabby", "test", []),
    }
    assert 0 < len(saved) < 4
    assert {damage.shard: damage.saved for damage in manifest.damaged} == {
        "train/cut.tar": len(saved),
        "bad.parquet": 0,
    }
    assert manifest.refused == {
        "dup_exact": 2, "ext_forbidden": 1, "format_forbidden": 1, "header_bad": 2, "tar_truncated": 1,
    }  # fmt: skip
    assert manifest.seen == manifest.kept + 7 == told[-1].seen
    assert manifest.captioned == 1
    assert manifest.classes == ("dog", "tabby")
    for row in store.index.to_pylist():
        assert Image.open(io.BytesIO(store.read(row["number"]))).size == (row["width"], row["height"])


def test_captions_of_a_caption_file(ray_local: Any, tmp_path: Path, write: Write, picture: Make) -> None:
    lines = [{"image": f"images/{n}.jpg", "caption": f"caption {k} of {n}"} for n in range(30) for k in range(2)]
    source = write(tmp_path / "source", {f"images/{n}.jpg": picture(n) for n in range(30)})
    write(source, {"captions.jsonl": "\n".join(json.dumps(line) for line in lines)})
    store = curated(source, tmp_path / "store", holdout=0.4)
    assert store.manifest.captioned == 30
    assert store.manifest.classes == ()
    assert rows(store)["images/7.jpg"][2] == ["caption 0 of 7", "caption 1 of 7"]
    assert 0 < store.manifest.splits["test"] < 30


def test_many_tasks_at_once_make_the_store_that_one_makes(
    ray_local: Any, tmp_path: Path, write: Write, picture: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "source", {f"{n % 3}/{n}.jpg": picture(n % 17) for n in range(40)})
    many = curated(source, tmp_path / "many", samples_per_shard=4)
    monkeypatch.setattr("ray.data.Dataset.map_batches", one_at_a_time(ray_local.data.Dataset.map_batches))
    one = curated(source, tmp_path / "one", samples_per_shard=4)
    assert many.manifest.digest == one.manifest.digest
    assert many.manifest.index_sha256 == one.manifest.index_sha256
    assert many.manifest.shards == one.manifest.shards
    assert many.refused == one.refused
    assert many.manifest.refused == {"dup_exact": 23}


def one_at_a_time(map_batches: Callable[..., Any]) -> Callable[..., Any]:
    def limited(dataset: Any, function: Any, **options: Any) -> Any:
        return map_batches(dataset, function, concurrency=1, **options)

    return limited


def test_webdataset_reads_our_shards(ray_local: Any, tmp_path: Path, write: Write, picture: Make) -> None:
    source = write(tmp_path / "source", {f"{n}.jpg": picture(n) for n in range(6)})
    write(source, {"3.txt": "three"})
    store = curated(source, tmp_path / "store", samples_per_shard=4)
    samples = list(webdataset.WebDataset([str(path) for path in store.shard_paths], shardshuffle=False))
    assert [sample["jpg"] for sample in samples] == [store.read(number) for number in range(6)]
    records = [json.loads(sample["json"]) for sample in samples]
    assert [record["id"] for record in records] == store.index["id"].to_pylist()
    assert [(sample.get("txt"), record["captions"]) for sample, record in zip(samples, records, strict=True)][3] == (
        b"three", ["three"],
    )  # fmt: skip
    assert len({sample["__key__"] for sample in samples}) == 6
