"""Fetching bytes: storage that fails now and then changes nothing; storage that fails for good is told from damage."""

import errno
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import fs

from pipeline.ingest import fetch
from pipeline.ingest.fetch import Fetch, Sample
from pipeline.ingest.places import Place

FILES, COUNT, LENGTH = 3, 40, 3000


@pytest.fixture
def content(tmp_path: Path) -> dict[str, bytes]:
    """Three files of forty samples, one after the other with small gaps."""
    files = {f"{tmp_path}/{name}": os.urandom(COUNT * (LENGTH + 500)) for name in "abc"}
    for name, data in files.items():
        Path(name).write_bytes(data)
    return files


def wanted(content: dict[str, bytes], place: Place | None = None, names: Any = None) -> Fetch:
    """All samples, in an order of their own, one of them twice."""
    numbers = np.append(np.random.default_rng(0).permutation(FILES * COUNT), 5)
    files, offsets = numbers // COUNT, numbers % COUNT * (LENGTH + 500)
    data = list(content.values())

    def whole(row: int, found: memoryview) -> bool:
        return bytes(found) == data[files[row]][offsets[row] : offsets[row] + LENGTH]

    return Fetch(place, names or list(content), files, offsets, np.full(len(numbers), LENGTH), whole)


def complete(found: list[Sample]) -> bool:
    return sorted(sample.row for sample in found) == list(range(FILES * COUNT + 1)) and not any(
        sample.fault for sample in found
    )


def test_neighbours_are_read_in_few_ranges_and_each_sample_is_given_once(
    content: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[tuple[int, int]] = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, at: reads.append((at, length)) or pread(fd, length, at))
    task = wanted(content)
    assert complete(list(task))
    assert [start for start, _ in reads] == [0, 0, 0]
    assert task.failures.sum() == 0
    monkeypatch.setattr(fetch, "LOCAL", (0, 2**19))  # no gap is read along
    reads.clear()
    assert complete(list(wanted(content)))
    assert [length for _, length in reads] == [LENGTH] * FILES * COUNT


def test_a_small_read_ahead_holds_few_bytes_and_gives_all_samples(
    content: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a file's last range is read before the next one of the same file is begun."""
    monkeypatch.setattr(fetch, "LOCAL", (0, LENGTH))
    monkeypatch.setattr(fetch, "AHEAD_BYTES", 1)
    assert complete(list(wanted(content)))


@pytest.mark.parametrize("kind", ["error", "short", "empty", "damage", "slow"])
def test_storage_that_fails_now_and_then_changes_nothing(
    content: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(fetch, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(fetch, "TRIES", 12)
    monkeypatch.setattr(fetch, "LOCAL", (0, 2**19))
    pread, chance, failed = os.pread, random.Random(1), [0]

    def flaky(fd: int, length: int, offset: int) -> bytes:
        data = pread(fd, length, offset)
        if chance.random() > 0.3:
            return data
        failed[0] += kind not in ("short", "slow")
        if kind == "error":
            raise OSError(errno.EIO, "Input/output error")
        if kind == "damage":
            return bytes(len(data)) if chance.random() < 0.1 else data
        time.sleep(0.001)
        return {"short": data[: len(data) // 2 + 1], "empty": b"", "slow": data}[kind]

    monkeypatch.setattr(os, "pread", flaky)
    task = wanted(content)
    found = list(task)
    if kind == "empty":  # twice nothing is taken for the end of the file
        found = [sample for sample in found if not (sample.fault or "").startswith("the file ends")]
        assert not any(sample.fault for sample in found)
    else:
        assert complete(found)
    assert (task.failures.sum() > 0) == (failed[0] > 0)


@pytest.mark.parametrize("fault", [OSError(errno.EIO, "Input/output error"), ConnectionError("503 Slow Down")])
def test_storage_that_fails_for_good_ends_in_bounded_time_and_blames_no_sample(
    content: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, fault: OSError
) -> None:
    monkeypatch.setattr(fetch, "PAUSE_SECONDS", 0.01)

    def broken(*_: int) -> bytes:
        raise fault

    monkeypatch.setattr(os, "pread", broken)
    began = time.perf_counter()
    with pytest.raises(ConnectionError, match=r"a cannot be read: .*(Input|503).*tried 5 times.*same command resumes"):
        list(wanted(content))
    assert time.perf_counter() - began < 2


def test_the_pauses_of_a_read_that_fails_add_up_to_seconds_not_minutes() -> None:
    pauses = [fetch.PAUSE_SECONDS * 2**number for number in range(fetch.TRIES - 1)]
    assert 2 < 0.5 * sum(pauses) + 1 < 1.5 * sum(pauses) < 10


def test_a_cut_a_missing_and_a_changed_file_are_faults_of_the_samples_they_hold(
    content: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "PAUSE_SECONDS", 0.001)
    a, b, c = map(Path, content)
    a.write_bytes(a.read_bytes()[: 10 * 3500 + 100])
    b.unlink()
    changed = bytearray(c.read_bytes())
    changed[7 * 3500 + 1] ^= 1
    c.write_bytes(changed)
    task = wanted(content)
    faults = {(int(task.files[row]), int(task.offsets[row]) // 3500): fault for row, _, fault in task if fault}
    assert faults == (
        {(0, number): "the file ends at byte 35100" for number in range(10, COUNT)}
        | {(1, number): "the file is missing" for number in range(COUNT)}
        | {(2, 7): fetch.CHANGED}
    )


def test_a_file_that_was_restored_while_it_was_open_is_read_anew(
    content: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "PAUSE_SECONDS", 0.001)
    path = Path(next(iter(content)))
    path.write_bytes(bytes(COUNT * 3500))
    assert sum(sample.fault is not None for sample in wanted(content)) >= COUNT
    restored = path.with_name("restored")
    restored.write_bytes(content[str(path)])
    restored.replace(path)
    assert complete(list(wanted(content)))


def test_no_file_stays_open_that_is_not_needed(content: dict[str, bytes]) -> None:
    root = Path(next(iter(content))).parent
    place = Place(fs.LocalFileSystem(), str(root), str(root))
    before = len(os.listdir("/proc/self/fd"))
    task = wanted(content, place, list("abc"))
    most = [len(os.listdir("/proc/self/fd")) for _ in task]
    assert max(most) <= before + 1 + FILES
    assert len(os.listdir("/proc/self/fd")) == before
    iterator = iter(wanted(content, place, list("abc")))
    next(iterator)
    iterator.close()  # type: ignore[attr-defined]
    del iterator
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_link_in_a_source_is_not_followed(content: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "a")
    place = Place(fs.LocalFileSystem(), str(tmp_path), str(tmp_path))
    task = wanted(content, place, ["link", "b", "c"])
    assert {int(task.files[row]) for row, _, fault in task if fault} == {0}


def test_the_fixture_would_show_a_mix_up(content: dict[str, bytes]) -> None:
    names = list(content)
    found = list(wanted(content, None, [names[1], names[0], names[2]]))
    assert sum(sample.fault == fetch.CHANGED for sample in found) >= 2 * COUNT
