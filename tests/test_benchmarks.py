"""The benchmarks at tiny sizes: they run, measure what they name, and say what is wrong."""

import hashlib
import io
import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from jobs.bench import Table, bench, benchmarks, run
from pipeline.cluster import WORKER_NICENESS
from pipeline.ingest.config import CurateConfig
from tests.benchmarks.duplicates import ORIGINAL, Pool, _limits, _Near
from tests.benchmarks.peers import CONTEXT_LENGTH, Decoding, Work
from tests.benchmarks.planted import EDITS, KINDS, planted
from tests.benchmarks.scenes import encoded, pictures, scene
from tests.benchmarks.stream import median, ratios
from tests.benchmarks.stream_case import ALL_CPU, IN_PLACE, Case, Measured, check, open_loader
from tests.benchmarks.stream_data import write_formats, write_photos
from tests.pipeline.stores import curate_here, write_dump


@pytest.fixture
def command() -> typer.Typer:
    app = typer.Typer()
    app.command()(bench)
    return app


def row_of(table: Table, name: str) -> dict[str, Any]:
    return next(dict(zip(table.columns, row, strict=True)) for row in table.rows if row[0] == name)


@pytest.mark.cluster
def test_curation_is_measured_against_floors_and_a_plain_loop(ray_local: Any) -> None:
    sizes = {"images": 40, "side": 64, "repeats": 1, "stage_images": 200, "hashes": 1000}
    stages, whole, memory = run("curate", sizes)
    assert row_of(stages, "decode, measure, encode, in process")["× floor"] > 1  # it decodes, and does more
    assert row_of(stages, "the same, guarded child")["CPU ms each"] > 0.1  # in ticks of 10 ms: it is counted
    assert {row[0] for row in stages.rows} >= {"tar to samples", "write shard", "near duplicates of 1,000"}
    assert "40 images in 8 tars" in whole.title
    assert row_of(whole, "curate on Ray")["images/s"] > 0
    assert max(row_of(memory, str(row[0]))["decoder"] or 0 for row in memory.rows) > 10  # MB: it was seen at work


@pytest.mark.cluster
@pytest.mark.slow
def test_embedding_is_measured_beside_a_plain_loop(ray_local: Any) -> None:
    speed, memory = run("embedding", {"images": 1000, "distinct": 300, "queries": 10, "seconds": 0.1})
    ours, plain, alone = (row_of(speed, name)["images/s"] for name, *_ in speed.rows)
    assert min(ours, plain, alone) > 0
    assert row_of(speed, "feral, on Ray")["÷ plain loop"] == pytest.approx(ours / plain)
    assert row_of(speed, "feral, on Ray")["÷ encoder alone"] == pytest.approx(ours / alone)
    assert max(row_of(memory, str(row[0]))["worker"] or 0 for row in memory.rows) > 100  # MB: it was seen at work


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


@pytest.mark.slow  # a process a variant
def test_training_is_measured_variant_by_variant() -> None:
    sizes = {"recipes": "demo", "variants": "trained,attention,workers2", "batch": 4, "steps": 1, "rounds": 1}
    speed, laps = run("training", sizes)
    assert [row[0] for row in speed.rows] == ["trained", "attention", "workers2"]
    assert row_of(speed, "trained")["× trained"] == 1
    assert row_of(speed, "trained")["× fp32"] is None  # it was not asked for
    assert row_of(speed, "workers2")["images/s"] > 0
    assert row_of(speed, "attention")["images/s"] is None
    assert row_of(speed, "attention")["what"].endswith("has none")  # a ResNet
    assert [row[0] for row in laps.rows] == ["demo, trained", "demo, workers2"]
    assert all(min(row[1:]) > 0 for row in laps.rows)  # type: ignore[type-var]


@pytest.mark.slow  # a process a measurement
@pytest.mark.long
def test_chunks_and_parts_take_less_memory() -> None:
    sizes = {"rows": "2048,4096", "plain_rows": 2048, "chunks": "32", "images": 256, "micro_batches": "8", "side": 32}
    losses, steps = run("large_batch", sizes)
    found = {tuple(row[:3]): row[3:] for row in losses.rows}
    for name in ("NT-Xent", "CLIP", "SigLIP"):
        (plain, _, value), (chunked, seconds, same) = found[name, 2048, "plain"], found[name, 2048, "32"]
        assert plain > 32  # type: ignore[operator]  # MB: two or more matrices of 16 MB
        assert chunked < plain / 2  # type: ignore[operator]
        assert seconds > 0  # type: ignore[operator]
        assert same == pytest.approx(value, rel=1e-5)
        assert found[name, 4096, "plain"] == (None, None, None)
        assert found[name, 4096, "32"][2] > 0  # type: ignore[operator]
    (_, plain, _, value), (_, cached, _, same) = steps.rows
    assert cached < plain / 2  # type: ignore[operator]
    assert same == pytest.approx(value, rel=1e-5)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures with captions, in the formats of the packages that are installed."""
    folder = tmp_path_factory.mktemp("photos")
    assert write_photos(folder, 24, 48) == 24
    write_formats(folder, cpus=1)
    return folder


@pytest.mark.parametrize("peer", ["ImageFolder", "webdataset", "LitData"])
@pytest.mark.parametrize(("work", "decoding"), [("crop", "tensor"), ("simclr", "pil"), ("clip", "tensor")])
def test_each_peer_delivers_every_picture(photos: Path, peer: str, work: Work, decoding: Decoding) -> None:
    if peer != "ImageFolder":
        pytest.importorskip(peer.lower())
    case = Case(peer, decoding, work, str(photos), images=24, batch=8, size=32, cpus=0, seconds=1, began=0)
    loaded = list(islice(open_loader(case), 6))  # two epochs
    for batch in loaded:
        check(batch, case)
    assert {number for batch in loaded for number in batch["number"].tolist()} == set(range(24))


def test_a_batch_that_is_not_what_was_asked_for_is_refused() -> None:
    case = Case("feral", None, "clip", "", images=24, batch=2, size=4, cpus=1, seconds=1, began=0)
    good: dict[str, Any] = {
        "views": [torch.randint(256, (2, 1, 4, 4, 3), dtype=torch.uint8)],
        "number": torch.arange(2),
        "tokens": torch.zeros(2, CONTEXT_LENGTH),
    }
    check(good, case)
    with pytest.raises(ValueError, match="made views"):
        check(good | {"views": good["views"] * 2}, case)
    with pytest.raises(ValueError, match=r"made tokens \(2, 24\)"):
        check(good | {"tokens": torch.zeros(2, 24)}, case)
    with pytest.raises(ValueError, match="empty pictures"):
        check(good | {"views": [torch.zeros_like(good["views"][0])]}, case)


def test_each_ratio_is_to_the_peer_that_is_best_in_its_unit() -> None:
    def measured(per_second: float, cpu_ms: float) -> Measured:
        return Measured(per_second, cpu_ms, start_seconds=1, first_seconds=1, memory=1, object_store=None, distinct=9)

    def case(loader: str, decoding: Decoding | None = None) -> Case:
        return Case(loader, decoding, "simclr", "", images=9, batch=2, size=4, cpus=1, seconds=1, began=0)

    table = ratios(
        {
            case("feral"): measured(600, 2),
            case(ALL_CPU): measured(90, 9),
            case("ImageFolder", "pil"): measured(100, 20),
            case("LitData", "pil"): measured(80, 12),  # slower, yet it takes less of the processor
        }
    )
    device, colour, wall = table.rows
    assert [(row[0], row[3]) for row in table.rows] == [
        ("simclr: feral", "LitData, pil"),
        (f"simclr: {ALL_CPU}", "LitData, pil"),
        (f"simclr: {ALL_CPU}", "ImageFolder, pil"),
    ]
    assert device[5:] == (pytest.approx(6), 5, "yes")
    assert colour[5:] == (pytest.approx(12 / 9), 1.5, "no")
    assert wall[5:] == (pytest.approx(0.9), None, None)
    assert median([measured(1, 5), measured(9, 4), measured(2, 6)]) == measured(2, 5)


@pytest.mark.slow  # a process and a Ray a loader
@pytest.mark.cluster
@pytest.mark.long
def test_the_stream_is_measured_beside_peers(ray_local: Any) -> None:
    sizes = {"images": 32, "side": 64, "size": 32, "batch": 16, "seconds": 0.5, "rounds": 1, "cpus": 1}
    tables = run("stream", sizes | {"work": "c", "loaders": "feral in place,imagefolder,litdata,mosaic"})
    clip, compared = tables
    assert [str(row[0]).partition(",")[0].partition(":")[0] for row in clip.rows] == [
        IN_PLACE, "ImageFolder", "ImageFolder", "LitData", "MosaicML",
    ]  # fmt: skip
    ours = row_of(clip, IN_PLACE)
    assert ours["images/s"] > 0
    assert ours["stored MB"] > 0
    assert ours["seen"] == "32/32"
    assert ours["MB"] > row_of(clip, "ImageFolder, pil")["MB"] > 100  # torch, and Ray's processes
    assert row_of(clip, "ImageFolder, pil")["CPU ms"] > 0
    assert not compared.rows  # no target is about this one


@pytest.mark.slow
@pytest.mark.cluster
def test_a_step_of_the_worker_is_measured_beside_a_bare_one(ray_local: Any) -> None:
    (table,) = run("worker_loop", {"models": "8", "rounds": 1, "steps": 10})
    row = row_of(table, str(table.rows[0][0]))
    assert row["bare ms"] > 0.1
    assert row["ours ms"] > 0.1
    assert row["more µs"] == pytest.approx(1000 * (row["ours ms"] - row["bare ms"]))


@pytest.mark.slow  # a process each
def test_the_linear_probe_is_measured_beside_the_one_that_it_equals() -> None:
    (table,) = run("linear_probe", {"images": 4_000, "dim": 16, "queries": 500, "iterations": 20})
    ours, theirs = (row_of(table, str(row[0])) for row in table.rows)
    assert abs(ours["right %"] - theirs["right %"]) < 5  # another strength may have been chosen
    assert ours["right %"] > 20
    assert min(ours["seconds"], theirs["seconds"], ours["with mapped pages MB"]) > 0


@pytest.mark.slow
def test_a_step_is_measured_beside_an_online_probe() -> None:
    (table,) = run("online_probe", {"model": "8", "rounds": 2, "steps": 2, "images": 100, "all_cores": False})
    row = row_of(table, f"1 thread, niceness {WORKER_NICENESS}")
    assert row["alone ms"] > 0.1
    assert row["beside a probe ms"] > 0.1
    assert row["CPU s a probe"] > 0
    assert row["probe's share of a core %"] >= 0


@pytest.mark.slow
def test_a_step_is_measured_beside_a_mirror_whose_server_is_away() -> None:
    (table,) = run("mirror", {"model": "8", "rounds": 2, "steps": 2})
    for row in (row_of(table, server) for server in ("refuses calls", "never answers")):
        assert min(row["alone ms"], row["beside the mirror ms"]) > 0.1
        assert row["mirror's share of a core %"] >= 0


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
        (["training", "recipes=nothing"], "'nothing' is no recipe"),
        (["training", "variants=faster"], "variants=faster: there are fp32, "),
        (["stream", "loaders=ray,faster"], "none begins with 'faster'; there are feral, "),
        (["large_batch", "chunks=64,no"], "chunks=64,no: whole numbers from 2 on"),
        (["worker_loop", "models=none"], "models=none: none begins so; there are ResNet"),
        (["online_probe", "model=none"], "model=none: none begins so; there are ResNet"),
    ],
)
def test_what_is_wrong_is_said(command: typer.Typer, arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CliRunner().invoke(command, arguments, catch_exceptions=False)


def test_without_a_checkout_there_are_no_benchmarks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="benchmarks run from a checkout"):
        benchmarks(tmp_path)


def test_cifar10_is_trained_and_measured_without_ray(small_store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.benchmarks import cifar10
    from tests.pipeline.stores import tiny_experiment

    monkeypatch.setattr(cifar10, "find_recipe", lambda name: lambda: tiny_experiment(small_store.path))
    settings = {"store": str(small_store.path), "epochs": 2, "seconds": 1, "variants": "eager", "processes": 1}
    speed, scores = run("cifar10", settings)
    assert row_of(speed, "feral, eager")["images/s"] > 0
    row = row_of(scores, "simclr_cifar10")
    assert row["k-NN %"] > 50  # three colours: chance is a third
    assert row["minutes"] > 0


def test_lightlys_loop_takes_a_step(tmp_path: Path) -> None:
    pytest.importorskip("lightly")
    from tests.benchmarks import cifar10

    loop = cifar10._lightly(write_dump(tmp_path, 12, side=32), batch_size=4, half=True, processes=0)
    loop.step(next(loop.batches))


def test_going_on_is_measured_against_starting_anew(tmp_path: Path) -> None:
    store = curate_here(write_dump(tmp_path / "dump", 200, 24), tmp_path / "store", CurateConfig(holdout=0.2))
    before = sorted(path for path in store.path.rglob("*"))
    sizes = {"store": str(store.path), "dumps": 3, "images": 64, "batch": 16}
    scores, replayed, alone = run("continual", sizes)
    assert [row[0] for row in scores.rows] == [
        "going on, 25 % replay",
        "going on, no replay",
        "from scratch on everything",
    ]
    assert {row_of(scores, str(row[0]))["images"] for row in scores.rows} == {3 * 64 + 16}  # all of them saw as many
    anew, on = (
        row_of(scores, name)["images, each dump"] for name in ("from scratch on everything", "going on, no replay")
    )
    assert (on, anew) == (3 * 64 + 3 * 16, 6 * 64 + 3 * 16)
    for matrix in (replayed, alone):
        assert [row[0] for row in matrix.rows] == ["after dump1", "after dump2", "after dump3", "forgotten"]
        assert row_of(matrix, "after dump1") == row_of(alone, "after dump1")  # the first dump is trained on once
    assert sorted(path for path in store.path.rglob("*")) == before  # nothing is written into the store
    with pytest.raises(ValueError, match=r"dumps=4: .* has only 3 classes"):
        run("continual", {**sizes, "dumps": 4})
