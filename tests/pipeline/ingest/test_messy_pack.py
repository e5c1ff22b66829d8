"""Real files of every kind and damage, and random dumps: each is let in or refused as it deserves, and the accounts
close, whatever they are packed in."""

import csv
import io
import json
import random
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.ingest.config import CurateConfig
from pipeline.ingest.decode import FORMATS
from pipeline.ingest.selection import read_decisions
from pipeline.ingest.store import Store
from pipeline.select.policy import PRESETS
from tests.pipeline.stores import curate_here
from tests.test_architecture import ROOT
from tests.test_real_data import unpacked

GROWTH_MB, CHILD_MB = 200, 300  # of the reader, and of the decoder
DECODED = {*FORMATS, "MPO"}  # the latter is a JPEG with more behind it
ALLOWED = {  # by the outcome that the pack notes for Pillow; what is of no format of ours is always format_forbidden
    "ok": {"kept"},
    "error": {"header_bad", "decode_failed"},
    "unidentified": {"header_bad"},
    "truncated": {"header_bad", "decode_failed", "pixels_over_cap"},
    "bomb": {"pixels_over_cap"},
}
EXCEPTIONS = {"files/pillow/Tests__images/broken_data_stream.png": "decode_failed"}  # Pillow reads it by halves
NO_SAMPLES = (".md", ".csv")


@pytest.fixture(scope="module")
def messy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked("messy_dev.tar.gz", tmp_path_factory.mktemp("messy"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked("photos_dev.tar", tmp_path_factory.mktemp("photos"))


def outcomes(store: Store) -> dict[str, str]:
    """kept, or the reason, by source; of the samples that were let in, whatever the policy says of them."""
    return dict.fromkeys(store.index["source"].to_pylist(), "kept") | {
        row["source"]: row["reason"] for row in store.refused.to_pylist()
    }


def noted(pack: Path) -> dict[str, dict[str, str]]:
    with (pack / "manifest.csv").open() as file:
        return {row["file"]: row for row in csv.DictReader(file) if not row["file"].endswith(NO_SAMPLES)}


RUN = """
import os, sys
from pathlib import Path
from pipeline.ingest.config import CurateConfig
from tests.pipeline.ingest.test_hostile_corpus import peak_mb, watched_decoders
from tests.pipeline.stores import EVERYTHING, curate_here
decoders = watched_decoders()
Path("/proc/self/clear_refs").write_text("5")
before = peak_mb(os.getpid())
curate_here(Path(sys.argv[1]), Path(sys.argv[2]), CurateConfig(decode_min_side=1), EVERYTHING)
print(peak_mb(os.getpid()) - before, max(decoders.values()))
"""


@pytest.mark.slow
def test_every_file_of_the_pack_is_let_in_or_refused_as_it_deserves(messy: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUN, str(messy), str(tmp_path / "store")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    grown_mb, child_mb = map(float, done.stdout.split())
    assert grown_mb < GROWTH_MB
    assert child_mb < CHILD_MB
    store, rows = Store(tmp_path / "store"), noted(messy)
    found = outcomes(store)
    assert set(found) == set(rows)
    wrong = {}
    for file, row in rows.items():
        allowed = {EXCEPTIONS[file]} if file in EXCEPTIONS else ALLOWED[row["outcome"]]
        if row["format"] not in DECODED:  # or none that was noted
            allowed = {"format_forbidden"} if row["format"] else {"format_forbidden", *allowed}
        if found[file] not in allowed:
            wrong[file] = (found[file], allowed)
    assert not wrong
    assert store.manifest.seen == len(rows) == store.manifest.admitted + len(store.refused)
    assert store.manifest.lost == 0
    assert not store.manifest.damaged


@pytest.mark.slow
def test_a_few_messy_files_among_photos_give_one_selection_in_any_packing(
    messy: Path, photos: Path, tmp_path: Path
) -> None:
    drawn = random.Random(0)
    good = drawn.sample(sorted(photos.glob("[ic]*_*/*.*")), 291)
    by_outcome: dict[str, list[str]] = {}
    for file, row in sorted(noted(messy).items()):
        by_outcome.setdefault(row["outcome"], []).append(file)
    bad = [messy / file for files in by_outcome.values() for file in drawn.sample(files, 2)][:9]
    files = {f"{number:05d}.jpg": path.read_bytes() for number, path in enumerate([*good, *bad, *good[:10]])}
    stores = {
        kind: curate_here(pack(tmp_path / kind, files), tmp_path / f"store_{kind}", CurateConfig(side=64),
                          PRESETS["clean"][0])
        for kind, pack in PACKINGS.items()
    }  # fmt: skip
    kept = {
        kind: (store.manifest.kept, store.manifest.refused, store.manifest.selection) for kind, store in stores.items()
    }
    assert kept["folder"] == kept["tar"] == kept["parquet"]
    for store in stores.values():
        manifest = store.manifest
        assert manifest.seen == len(files) == manifest.kept + sum(manifest.refused.values())
        assert manifest.refused["dup_exact"] >= 10
        assert manifest.kept >= 280


def as_folder(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def as_tars(folder: Path, files: dict[str, bytes]) -> Path:
    """Two shards."""
    folder.mkdir()
    half = len(files) // 2
    for shard, part in enumerate((list(files.items())[:half], list(files.items())[half:])):
        (folder / f"{shard}.tar").write_bytes(tarred(dict(part)))
    return folder


def as_parquet(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    pq.write_table(pa.table({"image": list(files.values())}), folder / "all.parquet", row_group_size=100)
    return folder


PACKINGS = {"folder": as_folder, "tar": as_tars, "parquet": as_parquet}


def tarred(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


# ---- any mixture ---------------------------------------------------------------------------------------------------


def picture(seed: int, format: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


def content(seed: int, kind: str) -> bytes:
    """A picture, or what is left of one."""
    raw = picture(seed, kind if kind in FORMATS else "JPEG")
    return {"cut": raw[: len(raw) // 2], "html": b"<html>", "empty": b"", "noise": raw[100:]}.get(kind, raw)


KINDS = [*FORMATS, *FORMATS, "cut", "html", "empty", "noise"]


def some(drawn: random.Random) -> list[bytes]:
    """Files of which some are copies of one another, and some are broken."""
    return [content(drawn.randrange(12), drawn.choice(KINDS)) for _ in range(drawn.randrange(10))]


def mutated(raw: bytes, how: str, share: float) -> bytes:
    place = int(share * len(raw))
    return {
        "none": raw, "cut": raw[:place], "insert": raw[:place] + b"!?" * 37 + raw[place:], "double": raw + raw,
        "flip": raw[:place] + bytes(255 - byte for byte in raw[place : place + 40]) + raw[place + 40 :],
    }[how]  # fmt: skip


@pytest.mark.slow
@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**64))
def test_the_accounts_of_any_dump_close_and_its_packing_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    root, drawn = tmp_path_factory.mktemp("dump"), random.Random(seed)
    files, members, rows = some(drawn), some(drawn), some(drawn)
    how, share = drawn.choice(["none", "cut", "flip", "insert", "double"]), drawn.random()
    source = as_folder(root / "source", {f"{number}.jpg": raw for number, raw in enumerate([picture(100), *files])})
    tar = tarred({f"{number}.jpg": raw for number, raw in enumerate(members)})
    (source / "a.tar").write_bytes(mutated(tar, how, share))
    pq.write_table(pa.table({"image": pa.array(rows, pa.binary())}), source / "b.parquet", row_group_size=4)
    config = CurateConfig(side=32, holdout=0.3)
    store = curate_here(source, root / "store", config)
    manifest = store.manifest
    decisions = read_decisions(store, "default")["reason"]
    kept = store.index["id"].filter(pc.is_null(decisions)).to_pylist()
    assert manifest.seen == manifest.kept + sum(manifest.refused.values())
    assert len(decisions) == manifest.admitted == store.index.num_rows
    assert manifest.seen == manifest.admitted + len(store.refused)
    told = Counter(store.refused["reason"].to_pylist()) + Counter(decisions.drop_null().to_pylist())
    assert told == manifest.refused
    assert len(kept) == len(set(kept)) == manifest.kept
    assert manifest.seen >= 1 + len(files) + len(rows)
    if how == "none":
        assert manifest.seen == 1 + len(files) + len(members) + len(rows)
        assert not manifest.damaged
    before = {path: path.stat().st_mtime_ns for path in store.path.rglob("*")}
    assert curate_here(source, root / "store", config).manifest == manifest
    assert {path: path.stat().st_mtime_ns for path in store.path.rglob("*")} == before
    again = curate_here(source, root / "again", config.model_copy(update={"samples_per_shard": 3}))
    assert again.manifest.selection == manifest.selection
    assert json.loads((again.path / "data_card.json").read_bytes())["counts"]["kept"] == manifest.kept
