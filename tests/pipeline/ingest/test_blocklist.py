"""A blocked picture is never kept, and never read again from a store that was sealed before it was blocked."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.ingest.blocklist import BlockList, block, parse_block_list, read_block_list, replaced_numbers
from pipeline.ingest.config import CurateConfig
from pipeline.ingest.store import Store
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


def test_a_blocked_number_is_replaced_by_its_next_neighbour() -> None:
    numbers = np.array([2, 3, 5, 8])
    assert replaced_numbers(numbers, np.array([3, 8])).tolist() == [2, 5, 5, 2]
    assert replaced_numbers(numbers, np.array([], np.int64)).tolist() == [2, 3, 5, 8]
    with pytest.raises(ValueError, match="names every sample"):
        replaced_numbers(numbers, numbers)
