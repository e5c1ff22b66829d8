"""A store that changes after sealing: every change is found, counted and set aside, and training goes on without it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from jobs.cli import app
from pipeline.ingest import fetch
from pipeline.ingest.config import CurateConfig
from pipeline.ingest.store import Store
from pipeline.ingest.verify import quarantine, quarantined, verify
from pipeline.stream.batches import check_files
from pipeline.stream.crops import CenterCrop
from pipeline.stream.read import DamagedSample, Reader
from pipeline.train.worker import open_stream
from tests.pipeline.stores import curate_here, tiny_experiment, write_dump

Damage = Callable[[Store], set[int]]  # does it, and tells which samples it hits


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 samples in three shards, 96 of them for training."""
    folder = tmp_path_factory.mktemp("whole")
    config = CurateConfig(samples_per_shard=40, holdout=0.2)
    return curate_here(write_dump(folder / "dump", 120), folder / "store", config).path


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Store:
    return Store(shutil.copytree(whole, tmp_path / "store"))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "PAUSE_SECONDS", 0.001)


def change(path: Path, at: int, value: int | None = None) -> None:
    """Flips a bit of one byte, or sets the byte."""
    data = bytearray(path.read_bytes())
    data[at] = data[at] ^ 1 if value is None else value
    path.write_bytes(data)


def of_shard(store: Store, shard: int) -> np.ndarray:
    return np.flatnonzero(store.places["shard"].to_numpy() == shard)


def shard_of(store: Store, number: int) -> tuple[Path, int, int]:
    """Where a sample lies: file, offset, length."""
    row = store.places.slice(number, 1).to_pylist()[0]
    return Path(store.paths[row["shard"]].as_py()), row["offset"], row["length"]


def flip(store: Store) -> set[int]:
    path, offset, length = shard_of(store, 50)
    change(path, offset + length // 2)
    return {50}


def flip_that_decodes(store: Store) -> set[int]:
    """Another quantisation: the picture is another one, and no decoder complains."""
    path, offset, _ = shard_of(store, 51)
    table = path.read_bytes().index(b"\xff\xdb", offset)
    change(path, table + 5)
    return {51}


def cut(store: Store) -> set[int]:
    path, offset, _ = shard_of(store, 70)
    path.write_bytes(path.read_bytes()[: offset + 10])
    return {int(number) for number in of_shard(store, 1) if number >= 70}


def deleted(store: Store) -> set[int]:
    shard_of(store, 0)[0].unlink()
    return set(of_shard(store, 0).tolist())


def replaced_by_another(store: Store) -> set[int]:
    shutil.copy(shard_of(store, 119)[0], shard_of(store, 0)[0])
    return set(of_shard(store, 0).tolist())


MUTATIONS: list[Damage] = [flip, flip_that_decodes, cut, deleted, replaced_by_another]


def test_a_store_that_nobody_touched_is_whole(store: Store) -> None:
    told: list[tuple[int, int]] = []
    verdict = verify(store, lambda done, of: told.append((done, of)))
    assert (verdict.whole, verdict.damaged, verdict.faults) == (120, (), ())
    assert told == [(40, 120), (80, 120), (120, 120)]
    check_files(store)
    said = CliRunner().invoke(app, ["verify", str(store.path)])
    assert (said.exit_code, said.stdout) == (0, "120 samples = 120 whole + 0 damaged\n")


@pytest.mark.parametrize("damage", MUTATIONS)
def test_damage_is_found_refused_and_set_aside_and_the_order_of_all_others_stays(store: Store, damage: Damage) -> None:
    experiment = tiny_experiment(store.path).override({"data.batch_size": 8})
    epoch = open_stream(experiment, store).plan.steps_per_epoch
    before = list(open_stream(experiment, store).local(0, epoch))

    hit = damage(store)
    fetch._shard.cache_clear()  # another process has no deleted file open
    verdict = verify(store)
    assert {sample.number for sample in verdict.damaged} == hit
    assert verdict.whole + len(verdict.damaged) == 120
    trained = np.concatenate([columns["number"] for columns in before])
    assert np.isin(trained, list(hit)).any()
    with pytest.raises(DamagedSample, match=rf"sample \d+ is damaged: .*tar at byte \d+: .*`feral verify {store.path}"):
        list(open_stream(experiment, store).local(0, epoch))

    quarantine(store, verdict.loose(store.blocked))
    now = Store(store.path)
    check_files(now)
    after = list(open_stream(experiment, now).local(0, epoch))
    for old, new in zip(before, after, strict=True):
        others = ~np.isin(old["number"], list(hit))
        assert not np.isin(new["number"], list(hit)).any()
        for name in ("number", "crops", "label", "visit"):
            assert np.array_equal(old[name][others], new[name][others]), name
    again = verify(now)
    assert again.damaged == verdict.damaged == tuple(quarantined(now))
    assert again.loose(now.blocked) == []


def test_the_command_adds_up_says_the_way_out_and_is_done_when_nothing_is_loose(store: Store) -> None:
    flip(store)
    deleted(store)
    with pytest.raises(ValueError, match=r"00000\.tar is missing, and was sealed with .*`feral verify .*--quarantine`"):
        check_files(store)
    run, path = CliRunner().invoke, str(store.path)
    said = run(app, ["verify", path])
    assert said.exit_code == 1
    assert said.stdout.splitlines()[:3] == [
        "120 samples = 79 whole + 41 damaged (0 of them set aside)",
        "  40: the file is missing",
        "  1: its bytes are not those that were sealed",
    ]
    assert "… and 36 more" in said.stdout
    assert f"feral verify {path} --quarantine" in said.stdout
    for options in (["--quarantine"], []):
        said = run(app, ["verify", path, *options])
        assert said.exit_code == 0
        assert said.stdout.startswith("120 samples = 79 whole + 41 damaged (41 of them set aside)\n")
        assert "next:" not in said.stdout


def test_what_is_restored_is_told(store: Store) -> None:
    path = shard_of(store, 50)[0]
    good = path.read_bytes()
    flip(store)
    quarantine(store, list(verify(store).damaged))
    path.write_bytes(good)
    said = CliRunner().invoke(app, ["verify", str(store.path)])
    assert said.exit_code == 0
    assert "120 samples = 120 whole + 0 damaged\n1 whole samples are blocked with damaged ones" in said.stdout


def test_a_whole_copy_of_a_damaged_sample_is_set_aside_with_it_and_told(tmp_path: Path) -> None:
    dump = write_dump(tmp_path / "dump", 30)
    pictures = sorted(dump.rglob("*.png"))
    shutil.copy(pictures[3], pictures[3].with_name("copy.png"))
    store = curate_here(dump, tmp_path / "store")
    ids = store.column("id").to_pylist()
    one, other = next((i, j) for i in range(31) for j in range(i) if ids[i] == ids[j])
    path, offset, _ = shard_of(store, one)
    change(path, offset)
    verdict = verify(store)
    assert [sample.number for sample in verdict.damaged] == [one]
    quarantine(store, list(verdict.damaged))
    assert sorted(store.blocked) == sorted([one, other])
    assert "1 whole samples are blocked" in CliRunner().invoke(app, ["verify", str(store.path)]).stdout


@pytest.mark.parametrize("name", ["index.parquet", "places.arrow", "captions.arrow", "refused.parquet"])
def test_a_file_beside_the_shards_that_was_changed_is_named(store: Store, name: str) -> None:
    change(store.path / name, (store.path / name).stat().st_size // 2)
    said = CliRunner().invoke(app, ["verify", str(store.path), "--quarantine"])
    assert said.exit_code == 1
    assert f"{name} was changed after it was sealed: restore it, or write the store anew" in said.stdout
    trusted = name in ("captions.arrow", "refused.parquet")
    assert ("120 samples = 120 whole" if trusted else "120 samples were not checked") in said.stdout
    assert not (store.path / "quarantine.jsonl").exists()


def test_a_selection_that_was_changed_is_named(store: Store) -> None:
    file = max((store.path / "selections/default").iterdir(), key=lambda path: path.stat().st_size)
    change(file, file.stat().st_size // 2)
    said = CliRunner().invoke(app, ["verify", str(store.path)])
    assert said.exit_code == 1
    assert f"selections/default/{file.name}" in said.stdout


def test_a_shard_that_changed_between_its_images_is_told_apart(store: Store) -> None:
    path, offset, _ = shard_of(store, 0)
    change(path, offset - 512)  # the tar header of the first image
    verdict = verify(store)
    assert verdict.whole == 120
    [fault] = verdict.faults
    assert "00000.tar was changed after it was sealed, but the images in it are whole" in fault


def test_in_place_every_sample_is_compared_with_what_was_curated(tmp_path: Path) -> None:
    dump = write_dump(tmp_path / "dump", 60)
    store = curate_here(dump, tmp_path / "store", CurateConfig(in_place=True))
    reader = Reader(CenterCrop(16), place=store.place)
    numbers, epochs = np.arange(60), np.zeros(60, np.int64)
    before = reader.read(reader.references(store, numbers, epochs))
    assert verify(store).whole == 60
    check_files(store)
    paths = [dump / path for path in store.paths.to_pylist()]
    change(paths[3], -20)
    paths[7].unlink()
    paths[9].write_bytes(paths[9].read_bytes()[:-1])
    paths[11].unlink()
    os.symlink(paths[12], paths[11])
    hit = {number for number, shard in enumerate(store.places["shard"].to_pylist()) if shard in (3, 7, 9, 11)}
    verdict = verify(store)
    assert {sample.number for sample in verdict.damaged} == hit
    for number in hit:
        with pytest.raises(DamagedSample, match=rf"sample {number} is damaged: .*; restore the file, or `feral verify"):
            reader.read(reader.references(store, np.array([number]), epochs[:1]))
    quarantine(store, list(verdict.damaged))
    assert set(store.blocked) == hit
    left = np.setdiff1d(numbers, store.blocked)
    after = reader.read(reader.references(store, left, epochs[: len(left)]))
    assert np.array_equal(after["crops"], before["crops"][left])


def test_in_place_nothing_is_set_aside_where_the_list_of_files_is_damaged(tmp_path: Path) -> None:
    store = curate_here(write_dump(tmp_path / "dump", 12), tmp_path / "store", CurateConfig(in_place=True))
    change(store.path / "files.arrow", (store.path / "files.arrow").read_bytes().index(b"blue/"))
    said = CliRunner().invoke(app, ["verify", str(store.path), "--quarantine"])
    assert said.exit_code == 1
    assert "files.arrow was changed after it was sealed" in said.stdout
    assert "12 samples were not checked" in said.stdout
    assert len(store.blocked) == 0
    assert not (store.path / "quarantine.jsonl").exists()


def test_a_note_that_cannot_be_read_is_refused_with_the_way_out(store: Store) -> None:
    (store.path / "quarantine.jsonl").write_text(json.dumps({"number": 1}) + "\n")
    with pytest.raises(ValueError, match=r"quarantine\.jsonl cannot be read: remove it, and `feral verify"):
        check_files(store)


def test_storage_that_fails_is_not_taken_for_damage(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(store)

    def broken(*_: Any) -> bytes:
        raise ConnectionError("503")

    monkeypatch.setattr(os, "pread", broken)
    said = CliRunner().invoke(app, ["verify", str(store.path), "--quarantine"])
    assert isinstance(said.exception, ValueError)
    assert "cannot be read: 503; tried 5 times" in str(said.exception)
    assert not (store.path / "quarantine.jsonl").exists()
