"""Every kind of source through the real curation, on Ray."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from pipeline import curate as module
from pipeline.cluster import UNSAFE_RAY
from pipeline.curate import curate
from pipeline.ingest.config import CurateConfig
from pipeline.ingest.running import Progress
from pipeline.ingest.store import Store
from pipeline.select.policy import Policy
from pipeline.stream.crops import CenterCrop
from pipeline.stream.ray_reading import read_with_ray
from pipeline.stream.read import Reader

pytestmark = pytest.mark.cluster
Write = Callable[..., Path]
Make = Callable[..., bytes]
ROOT = Path(__file__).parents[3]


def curated(source: Path, store: Path, **settings: Any) -> Store:
    curate(source, store, CurateConfig(**settings))
    return Store(store)


def rows(store: Store) -> dict[str, tuple[str | None, str, list[str]]]:
    """source → (class name, split, captions) of what is kept."""
    names, index = [*store.manifest.classes, None], store.index.to_pylist()
    kept = [index[number] for split in ("train", "test") for number in store.select(split)]  # type: ignore[arg-type]
    return {row["source"]: (names[row["label"]], row["split"], row["captions"]) for row in kept}


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
    manifest = curate(source, tmp_path / "store", CurateConfig(samples_per_shard=2), on_progress=told.append)
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
    assert {damage.shard: (damage.reason, damage.saved) for damage in manifest.damaged} == {
        "train/cut.tar": ("tar_truncated", len(saved)),
        "bad.parquet": ("parquet_damaged", 0),
    }
    assert manifest.refused == {
        "dup_exact": 2, "ext_forbidden": 1, "format_forbidden": 1, "header_bad": 1, "tar_truncated": 1,
    }  # fmt: skip
    assert manifest.seen == manifest.kept + 6 == told[-1].seen
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


def test_any_number_of_workers_makes_the_same_store(
    ray_local: Any, tmp_path: Path, write: Write, picture: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "source", {f"{n % 3}/{n}.jpg": picture(n % 17) for n in range(40)})
    map_batches, made = ray_local.data.Dataset.map_batches, []
    for workers in (1, 2, 4):
        monkeypatch.setattr("ray.data.Dataset.map_batches", at_most(workers, map_batches))
        manifest = curated(source, tmp_path / f"store {workers}", samples_per_shard=4).manifest
        made.append((manifest.selection, manifest.digest, manifest.index_sha256, manifest.shards, manifest.refused))
    assert made[0] == made[1] == made[2]
    assert made[0][-1] == {"dup_exact": 23}


def at_most(workers: int, map_batches: Callable[..., Any]) -> Callable[..., Any]:
    def limited(dataset: Any, function: Any, **options: Any) -> Any:
        return map_batches(dataset, function, concurrency=workers, **options)

    return limited


def test_a_killed_curation_goes_on_and_ends_the_same(tmp_path: Path, write: Write, picture: Make) -> None:
    """SIGKILL of the whole process group, driver and workers, in mid-run; then the same command again."""
    source = write(tmp_path / "source", {f"{n}.jpg": picture(n, (400, 300)) for n in range(400)})
    command = [sys.executable, "-m", "jobs.cli", "curate", str(source), "samples_per_shard=10", "--to"]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    killed = subprocess.Popen(
        [*command, str(tmp_path / "store")], cwd=ROOT, env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    units = tmp_path / "store/units"
    deadline = time.monotonic() + 90
    while len(list(units.glob("*.json"))) < 8 and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    done = {path.name: path.stat().st_mtime_ns for path in units.glob("*.json")}
    assert 8 <= len(done) < 40
    again = subprocess.run(
        [*command, str(tmp_path / "store")], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    whole = subprocess.run(
        [*command, str(tmp_path / "whole")], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert whole.returncode == 0, whole.stderr
    one, other = Store(tmp_path / "store").manifest, Store(tmp_path / "whole").manifest
    assert (one.digest, one.selection, one.index_sha256, one.shards) == (
        other.digest, other.selection, other.index_sha256, other.shards,
    )  # fmt: skip
    assert one.seen == 400


def test_a_reader_that_dies_costs_its_unit(
    ray_local: Any, tmp_path: Path, write: Write, picture: Make, tar: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What no guard can contain, such as a fault inside pyarrow itself, ends the worker: three times, then no more."""
    source = write(tmp_path / "source", {f"{name}.tar": tar({f"{name}{n}.jpg": picture(ord(name) + 10 * n)
                                                              for n in range(3)}) for name in "abc"})  # fmt: skip
    real = module.curate_unit

    def fatal(batch: pa.Table, **options: Any) -> Any:
        if b'"path":"b.tar"' in batch["unit"][0].as_py().encode():
            with (options["store"] / "units/00001.attempts").open("ab") as file:
                file.write(b".")
            os.kill(os.getpid(), signal.SIGSEGV)
        yield from real(batch, **options)

    monkeypatch.setattr(module, "curate_unit", fatal)
    store = curated(source, tmp_path / "store")
    assert store.manifest.kept == 6
    [damage] = store.manifest.damaged
    assert (damage.shard, damage.reason, damage.lost) == ("b.tar", "quarantined", None)


def test_storage_that_does_not_answer_is_a_message(
    ray_local: Any, tmp_path: Path, write: Write, picture: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(batch: pa.Table, **options: Any) -> Any:
        raise ConnectionError("s3://dumps/x cannot be read: timed out")
        yield

    monkeypatch.setattr(module, "curate_unit", unreachable)
    source = write(tmp_path / "source", {"1.jpg": picture(1)})
    with pytest.raises(ValueError, match=r"timed out: the source's storage does not answer.*run the command again"):
        curate(source, tmp_path / "store")


def test_an_index_in_place_feeds_the_stream_with_the_right_pixels(
    ray_local: Any, tmp_path: Path, write: Write, picture: Make, tar: Make, encode: Make
) -> None:
    turned = Image.new("RGB", (40, 20), "red")
    exif = turned.getexif()
    exif[0x0112] = 6
    files = {f"a/{n}.jpg": picture(n, (50, 40)) for n in range(4)} | {"a/p.png": picture(9, (48, 40), format="PNG")}
    source = write(tmp_path / "source", {**files, "t.tar": tar({"5.jpg": picture(5), "6.jpg": picture(6)}),
                                         "a/turned.jpg": encode(turned, "JPEG", exif=exif.tobytes())})  # fmt: skip
    curate(source, tmp_path / "store", CurateConfig(in_place=True), policy=Policy(near_distance=None))
    store = Store(tmp_path / "store")
    assert not list((store.path / "shards").glob("*"))
    assert store.manifest.kept == 8
    sizes = dict(zip(store.index["source"].to_pylist(), zip(store.index["width"].to_pylist(),
                     store.index["height"].to_pylist(), strict=True), strict=True))  # fmt: skip
    assert sizes["a/turned.jpg"] == (20, 40)
    assert store.read(0) == picture(0, (50, 40))
    reader = Reader(CenterCrop(16), place=store.place)
    references = reader.references(store, np.arange(8), np.zeros(8, np.int64))
    blocks = list(read_with_ray(reader, references, 8))
    assert blocks[0]["crops"].shape == (8, 1, 16, 16, 3)
    row = store.index["source"].to_pylist().index("a/turned.jpg")
    assert np.abs(blocks[0]["crops"][row].astype(int) - [255, 0, 0]).max() < 10
    (source / "a/1.jpg").write_bytes(picture(77, (50, 40)))
    with pytest.raises(ValueError, match=r"a/1\.jpg at byte 0: .*; restore the file, or `feral verify"):
        reader.read(references)


@pytest.mark.parametrize("name", UNSAFE_RAY)
def test_h4_ray_settings_that_unpickle_data_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(ValueError, match=f"{name} is set"):
        curate(tmp_path, tmp_path / "store")


def test_webdataset_reads_our_shards(ray_local: Any, tmp_path: Path, write: Write, picture: Make) -> None:
    source = write(tmp_path / "source", {f"{n}.jpg": picture(n) for n in range(6)})
    write(source, {"3.txt": "three"})
    store = curated(source, tmp_path / "store", samples_per_shard=4)
    samples = list(webdataset.WebDataset(store.paths.to_pylist(), shardshuffle=False))
    assert [sample["jpg"] for sample in samples] == [store.read(number) for number in range(6)]
    records = [json.loads(sample["json"]) for sample in samples]
    assert [record["id"] for record in records] == store.index["id"].to_pylist()
    assert [(sample.get("txt"), record["captions"]) for sample, record in zip(samples, records, strict=True)][3] == (
        b"three", ["three"],
    )  # fmt: skip
    assert len({sample["__key__"] for sample in samples}) == 6
