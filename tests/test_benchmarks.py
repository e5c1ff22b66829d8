"""The benchmarks at tiny sizes: they run, measure what they name, and say what is wrong."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from jobs.bench import Table, bench, benchmarks, run
from tests.benchmarks.duplicates import ORIGINAL, Pool, _limits, _Near
from tests.benchmarks.planted import EDITS, KINDS, planted
from tests.benchmarks.scenes import encoded, pictures, scene


@pytest.fixture
def command() -> typer.Typer:
    app = typer.Typer()
    app.command()(bench)
    return app


def row_of(table: Table, name: str) -> dict[str, Any]:
    return next(dict(zip(table.columns, row, strict=True)) for row in table.rows if row[0] == name)


@pytest.mark.cluster
def test_curation_is_measured_against_floors_and_a_plain_loop(ray_local: Any) -> None:
    sizes = {"images": 40, "side": 64, "repeats": 1, "stage_images": 16, "hashes": 1000}
    stages, whole, memory = run("curate", sizes)
    assert row_of(stages, "decode, measure, encode, in process")["× floor"] > 1  # it decodes, and does more
    assert row_of(stages, "the same, guarded child")["CPU ms each"] > 0.1  # the child's time is counted
    assert {row[0] for row in stages.rows} >= {"tar to samples", "write shard", "near duplicates of 1,000"}
    assert "40 images in 8 tars" in whole.title
    assert row_of(whole, "curate on Ray")["images/s"] > 0
    assert max(row_of(memory, str(row[0]))["decoder"] or 0 for row in memory.rows) > 10  # MB: it was seen at work


def test_each_stage_finds_its_kind_of_duplicate() -> None:
    recall, limits, dropped = run("duplicates", {"images": 12, "copied": 6, "side": 160})
    assert [row[0] for row in recall.rows] == list(KINDS)
    assert row_of(recall, "same file")["bytes"] == 100
    comment = row_of(recall, "other comment")
    assert (comment["bytes"], comment["pixels"]) == (0, 100)
    assert row_of(recall, "JPEG 90")["d 2"] > 80
    assert row_of(recall, "mirrored")["d 6"] < 50 < row_of(recall, "resize 0.5×")["d 6"]
    assert row_of(limits, "any")["found d 8"] >= row_of(limits, "4")["found d 8"]
    assert all(row[dropped.columns.index("copies")] >= 3 * 6 for row in dropped.rows)  # type: ignore[operator]


def test_different_originals_that_are_taken_for_one_are_counted() -> None:
    hashes = np.array([0b0, 0b11, 0b1111 << 40], np.uint64)
    thumbs = np.array([[50], [60], [50]], np.uint8).repeat(48, 1)
    numbers = np.arange(3)
    pool = Pool(numbers, np.full(3, ORIGINAL), numbers, numbers, hashes, thumbs)
    copied = Pool(*(np.append(values, values[:1], 0) for values in vars(pool).values()))
    copied.kind[3] = KINDS.index("JPEG 90")
    table = _limits(copied, _Near.of(copied))
    assert [row_of(table, "12")[f"others d {distance}"] for distance in (0, 2, 4)] == [0, 1, 2]
    assert row_of(table, "8")["others d 2"] == 0  # told apart by colour
    assert row_of(table, "4")["found d 0"] == 100


def test_planted_duplicates_are_what_they_are_called() -> None:
    raw = next(pictures(1, 60))
    copies = dict(planted(raw))
    assert tuple(copies) == KINDS
    opened = {kind: Image.open(io.BytesIO(copy)).convert("RGB") for kind, copy in copies.items()}
    pixels = {kind: hashlib.sha256(image.tobytes()).hexdigest() for kind, image in opened.items()}
    assert copies["same file"] == raw != copies["other comment"]
    assert pixels["same file"] == pixels["other comment"] == pixels["as PNG"]
    assert len({pixels[kind] for kind in EDITS}) == len(EDITS)
    assert opened["resize 0.5×"].size == (30, 22)
    small = encoded(scene(np.random.default_rng(0), 20, 20))
    assert "resize 0.5×" in dict(planted(small))
    assert "resize 0.25×" not in dict(planted(small))  # 5 pixels: curation would refuse it


def test_pictures_come_evenly_from_a_folder(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"{number}.JPG").write_bytes(bytes([number]))
    (tmp_path / "notes.txt").write_text("no picture")
    assert list(pictures(3, 32, tmp_path)) == [b"\0", b"\4", b"\x08"]
    with pytest.raises(ValueError, match=r"holds no \.jpg"):
        list(pictures(3, 32, tmp_path / "nothing"))


def test_the_command_lists_prints_and_saves(command: typer.Typer, tmp_path: Path) -> None:
    listed = CliRunner().invoke(command, [])
    assert "curate: " in listed.output
    assert "copied=200" in listed.output
    saved = tmp_path / "found.json"
    result = CliRunner().invoke(
        command, ["duplicates", "images=4", "copied=2", "side=32", "--save", str(saved)], catch_exceptions=False
    )
    assert "4 originals, 38 copies of 2 of them" in result.output  # a quarter of 24 pixels is too small
    found = json.loads(saved.read_text())
    assert found["machine"]["cores"] >= 1
    assert found["tables"][0]["rows"][0][:3] == ["same file", 2, 100.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "no benchmark 'nothing'; there are: .*curate, duplicates"),
        (["duplicates", "image=5"], "no setting image; there are: images=500"),
        (["duplicates", "images=1"], "images=1: should be greater than or equal to 2"),
        (["duplicates", "images"], "is no setting: write key=value"),
        (["duplicates", "pairs=/nowhere/x.png"], "pairs=/nowhere/x.png: there is no folder"),
        (["duplicates", "encoder=/nowhere"], "/nowhere"),
        (["duplicates", "--save", "/nowhere/x.json"], "there is no folder"),
    ],
)
def test_what_is_wrong_is_said(command: typer.Typer, arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CliRunner().invoke(command, arguments, catch_exceptions=False)


def test_without_a_checkout_there_are_no_benchmarks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="benchmarks run from a checkout"):
        benchmarks(tmp_path)
