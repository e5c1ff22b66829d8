"""A blocked picture is never kept, and never read again from a store that was sealed before it was blocked."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.ingest import blocklist
from pipeline.ingest.blocklist import BlockList, block, parse_block_list, read_block_list, replaced_numbers
from pipeline.ingest.config import CurateConfig
from pipeline.ingest.store import Store
from pipeline.ingest.verify import Damaged, quarantine, quarantined
from pipeline.select.policy import Inputs
from pipeline.train.worker import open_stream
from tests.pipeline.stores import curate_here, tiny_experiment, write_dump


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return curate_here(write_dump(tmp_path / "dump", 90), tmp_path / "store", CurateConfig(holdout=0.2))


def test_lines_are_hashes_or_comments_and_a_misread_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_text(f"# court order 12\n{'AB' * 32}\nsha256:{'cd' * 32} # why\n\nphash:00ff00ff00ff00ff\n")
    listed = read_block_list(path)
    assert listed == BlockList(frozenset({"ab" * 32, "cd" * 32}), (0x00FF00FF00FF00FF,))
    assert parse_block_list(listed.lines, "again") == listed
    assert read_block_list(tmp_path / "none") == BlockList()
    with pytest.raises(ValueError, match=r"here, line 1: 'abc' is no hash: write the 64 hex digits"):
        parse_block_list(["abc"], "here")


def test_what_is_blocked_is_not_even_stored(store: Store, tmp_path: Path) -> None:
    rows = store.index.to_pylist()
    listed = BlockList(frozenset({rows[3]["id"]}), (rows[5]["phash"] ^ 0b101,))
    again = curate_here(tmp_path / "dump", tmp_path / "again", inputs=Inputs(block_list=listed))
    assert again.manifest.refused == {"blocklisted": 2}
    assert not {rows[3]["source"], rows[5]["source"]} & set(again.index["source"].to_pylist())
    assert read_block_list(again.path / "blocklist.txt") == listed


def test_a_takedown_holds_from_the_next_read_and_the_order_of_all_others_stays(store: Store) -> None:
    experiment = tiny_experiment(store.path)
    before = open_stream(experiment, Store(store.path))
    train = store.select("train")
    bad = train[[0, 7, len(train) - 1]]
    ids = store.index["id"].to_pylist()
    block(store.path, BlockList(frozenset(ids[number] for number in bad)))
    now = Store(store.path)
    assert set(now.select("train")) == set(train) - set(bad)
    after = open_stream(experiment, now)
    pairs = list(zip(before.local(0, 4), after.local(0, 4), strict=True))
    seen = np.concatenate([old["number"] for old, _ in pairs])
    read = np.concatenate([new["number"] for _, new in pairs])
    assert np.isin(seen, bad).any()
    assert not np.isin(read, bad).any()
    assert (read == seen)[~np.isin(seen, bad)].all()


def test_the_list_only_grows(store: Store) -> None:
    block(store.path, BlockList(frozenset({"ab" * 32})))
    block(store.path, BlockList(hashes=(1,)))
    assert read_block_list(store.path / "blocklist.txt") == BlockList(frozenset({"ab" * 32}), (1,))


def test_what_the_operator_wrote_stays_and_only_what_is_new_is_added(tmp_path: Path) -> None:
    path = tmp_path / "blocklist.txt"
    written = f"# ticket 12, asked by X\r\nSHA256:{'AB' * 32} # caf\xe9".encode("latin-1")
    path.write_bytes(written)
    block(tmp_path, BlockList(frozenset({"ab" * 32})))
    assert path.read_bytes() == written
    block(tmp_path, BlockList(frozenset({"ab" * 32, "cd" * 32}), (1,)))
    assert path.read_bytes() == written + f"\n{'cd' * 32}\nphash:{1:016x}\n".encode()


def test_two_takedowns_at_once_lose_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second begins while the first, which has read the list, is about to write it."""
    replaced = blocklist.replaced
    second = threading.Thread(target=block, args=(tmp_path, BlockList(hashes=(2,))))

    def late(path: Path) -> Any:
        if second.ident is None:
            second.start()
            second.join(0.5)
        return replaced(path)

    monkeypatch.setattr(blocklist, "replaced", late)
    block(tmp_path, BlockList(hashes=(1,)))
    second.join()
    assert read_block_list(tmp_path / "blocklist.txt").hashes == (1, 2)


def test_what_was_damaged_is_blocked_until_the_store_is_written_anew_and_what_the_operator_blocked_for_good(
    store: Store, tmp_path: Path
) -> None:
    rows = store.index.to_pylist()
    damaged = [Damaged(number=n, id=rows[n]["id"], file="", offset=0, why="") for n in (3, 5)]
    block(store.path, BlockList(frozenset({rows[7]["id"]})))
    quarantine(store, damaged)
    block(store.path, BlockList(frozenset({rows[5]["id"]})))  # a takedown of a picture that is set aside, too
    assert set(store.blocked) == {3, 5, 7}
    again = curate_here(tmp_path / "dump", store.path, CurateConfig(holdout=0.2), overwrite=True)
    assert set(again.blocked) == {5, 7}
    assert quarantined(again) == []


def test_a_blocked_number_is_replaced_by_its_next_neighbour() -> None:
    numbers = np.array([2, 3, 5, 8])
    assert replaced_numbers(numbers, np.array([3, 8])).tolist() == [2, 5, 5, 2]
    assert replaced_numbers(numbers, np.array([], np.int64)).tolist() == [2, 3, 5, 8]
    with pytest.raises(ValueError, match="names every sample"):
        replaced_numbers(numbers, numbers)
