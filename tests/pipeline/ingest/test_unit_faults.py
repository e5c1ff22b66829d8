"""Units that kill their workers, and commands and tasks that would write into the same store. No Ray."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline import curate as module
from pipeline.ingest.config import CurateConfig
from pipeline.ingest.sources import Unit
from pipeline.ingest.store import Store
from pipeline.ingest.task import leave_quarantined, report_file, report_of
from pipeline.ingest.write import ShardWriter
from pipeline.lock import locked
from pipeline.select.policy import Policy

Write = Callable[..., Path]
Make = Callable[..., bytes]


@pytest.fixture(autouse=True)
def _in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "run_units", run_here)
    monkeypatch.setattr(module, "connected", lambda address: contextlib.nullcontext())


def run_here(units: list[Unit], task: Any, watch: Any) -> None:
    for unit in units:
        for progress in task(pa.table({"unit": [unit.model_dump_json()]})):
            watch.take(progress)


@pytest.fixture
def source(tmp_path: Path, write: Write, picture: Make) -> Path:
    """Eight pictures; three units of `sealed`."""
    return write(tmp_path / "source", {f"{number}.jpg": picture(number) for number in range(8)})


def sealed(source: Path, **settings: int) -> Store:
    config = CurateConfig(**{"samples_per_shard": 3, **settings})  # type: ignore[arg-type]
    module.curate(source, source.parent / "store", config, policy=Policy(near_distance=None))
    return Store(source.parent / "store")


def test_one_command_at_a_time_writes_a_store(source: Path) -> None:
    store = source.parent / "store"
    with locked(store, "the store"), pytest.raises(ValueError, match="another command works on the store"):
        sealed(source)
    assert not store.exists()
    sealed(source)


def test_what_a_task_of_another_plan_says_late_is_not_taken_for_this_one(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command with other settings was killed; a task of it lived on until after this one began."""
    store, runs = source.parent / "store", module.run_units

    def with_a_straggler(units: list[Unit], task: Any, watch: Any) -> None:
        leave_quarantined(store, "another plan", units[0], "of other settings")
        runs(watch.pending, task, watch)

    monkeypatch.setattr(module, "run_units", with_a_straggler)
    assert sealed(source).manifest.kept == 8


def test_a_report_of_a_version_that_named_no_plan_is_of_no_plan(tmp_path: Path) -> None:
    unit = Unit(kind="tar", path="a.tar")
    (tmp_path / "units").mkdir()
    leave_quarantined(tmp_path, "this plan", unit, "why")
    report = report_of(tmp_path, "this plan", 0)
    assert report is not None
    report_file(tmp_path, 0).write_text(report.model_dump_json(exclude={"plan"}))
    assert report_of(tmp_path, "this plan", 0) is None


def test_a_unit_that_kills_its_workers_costs_itself_and_is_reported(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = iter([1, 3])  # of the unit, in each execution; after fewer, something else has failed

    def crashing(units: list[Unit], task: Any, watch: Any) -> Exception | None:
        bad = next((unit for unit in units if unit.number == 1), None)
        run_here([unit for unit in units if unit is not bad], task, watch)
        return die(source, {1: next(starts)}) if bad else None

    monkeypatch.setattr(module, "run_units", crashing)
    store = sealed(source)
    assert list(starts) == []
    [damage] = store.manifest.damaged
    assert (damage.reason, damage.lost) == ("quarantined", 3)
    assert store.manifest.lost == 3 == (store.manifest.declared or 0) - store.manifest.seen
    assert "RuntimeError" in damage.why


def test_a_unit_that_others_take_down_with_them_is_no_killer(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killers = [5, 4, 3]

    def crashing(units: list[Unit], task: Any, watch: Any) -> Exception | None:
        """Unit 0 takes long: each killer's end ends it, too."""
        if killers:
            return die(source, {killers.pop(): 3, 0: 1})
        run_here(units, task, watch)
        return None

    monkeypatch.setattr(module, "run_units", crashing)
    damaged = sealed(source, samples_per_shard=1).manifest.damaged
    assert [damage.shard for damage in damaged] == ["3.jpg", "4.jpg", "5.jpg"]


def test_whoever_reads_all_shards_gets_nothing_of_a_unit_that_was_quarantined(
    source: Path, monkeypatch: pytest.MonkeyPatch, picture: Make
) -> None:
    def crashing(units: list[Unit], task: Any, watch: Any) -> Exception | None:
        run_here(units[:-1], task, watch)
        with ShardWriter(source.parent / "store", units[-1].number, 1) as writer:
            for position in range(3):
                writer.add(position, picture(position), [], {})
        return die(source, {units[-1].number: 3})

    monkeypatch.setattr(module, "run_units", crashing)
    store = sealed(source)
    assert [damage.shard for damage in store.manifest.damaged] == ["6.jpg … 7.jpg"]
    names = sorted(path.name for path in (store.path / "shards").iterdir())
    assert names == [shard.name for shard in store.manifest.shards] == ["00000.tar", "00001.tar"]


def die(source: Path, starts: dict[int, int]) -> Exception:
    """What an execution leaves, and gives, in which units were started so often."""
    for unit, count in starts.items():
        with (source.parent / f"store/units/{unit:05d}.attempts").open("ab") as file:
            file.write(b"." * count)
    return RuntimeError("SIGSEGV")
