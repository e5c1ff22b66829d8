"""Mapped columns are what was written, at any size of batch, and no bytes of the process."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.ingest.mapped import MappedWriter, read_mapped
from pipeline.ingest.store import CAPTIONS_SCHEMA, FILES_SCHEMA, places_schema

SCHEMA = pa.schema([*places_schema(in_place=True), *CAPTIONS_SCHEMA, *FILES_SCHEMA])


def rows(count: int) -> pa.Table:
    random = np.random.default_rng(count)
    columns = {
        name: random.integers(0, 2**31, count).astype(SCHEMA.field(name).type.to_pandas_dtype())
        for name in ("shard", "offset", "length", "checksum", "width", "height", "label", "plain")
    }
    texts = [[f"{'ä' * (i % 3)} {j}" for j in range(i % 4)] for i in range(count)]
    return pa.table(
        columns | {"digest": pa.array([random.bytes(32) for _ in range(count)], pa.binary(32)), "captions": texts,
                   "path": [f"p{i}" * (i % 5) for i in range(count)]}
    ).select(SCHEMA.names).cast(SCHEMA)  # fmt: skip


@pytest.mark.parametrize("sizes", [[], [0], [1], [7, 0, 3, 100]])
def test_what_is_read_is_what_was_written_in_one_contiguous_piece(tmp_path: Path, sizes: list[int]) -> None:
    whole = rows(sum(sizes))
    with MappedWriter(tmp_path / "x.arrow", SCHEMA, tmp_path) as writer:
        first = 0
        for size in sizes:
            for batch in whole.slice(first, size).to_batches():  # a slice: its buffers begin elsewhere
                writer.add(batch)
            first += size
    found = read_mapped(tmp_path / "x.arrow")
    assert found.schema == SCHEMA
    assert found.to_pylist() == whole.to_pylist()
    assert [found[name].num_chunks for name in SCHEMA.names] == [1] * len(SCHEMA)
    assert [path.name for path in tmp_path.iterdir()] == ["x.arrow"]


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def write() -> None:
        with MappedWriter(tmp_path / "x.arrow", SCHEMA, tmp_path) as writer:
            for columns in (SCHEMA.names, SCHEMA.names[:3]):
                writer.add(rows(3).select(columns).to_batches()[0])

    with pytest.raises(KeyError):
        write()
    assert list(tmp_path.iterdir()) == []


def test_referring_to_samples_takes_no_memory_that_grows_with_their_number(tmp_path: Path) -> None:
    """3,000,000 rows are 96 MB of places; in another process, opening and taking some rows adds less than a tenth."""
    count, schema = 3_000_000, places_schema(in_place=False)
    batch = pa.record_batch([pa.array(np.zeros(count // 10, kind.to_pandas_dtype())) for kind in schema.types], schema)
    with MappedWriter(tmp_path / "x.arrow", schema, tmp_path) as writer:
        for _ in range(10):
            writer.add(batch)
    assert (tmp_path / "x.arrow").stat().st_size > 32 * count
    program = (
        "import sys, numpy as np, pyarrow as pa\nfrom pipeline.ingest.mapped import read_mapped\n"
        "anonymous = lambda: int(next(x for x in open('/proc/self/status') if x.startswith('RssAnon')).split()[1])\n"
        "read_mapped, pa.table({'a': [1]}).take(pa.array([0])), np.arange(9)\nbefore = anonymous()\n"
        "table = read_mapped(sys.argv[1])\nassert len(table) == 3_000_000\n"
        "numbers = np.random.default_rng(0).integers(0, len(table), 10_000)\n"
        "assert len(table.take(pa.array(numbers))) == 10_000\n"
        "print(anonymous() - before)"
    )
    told = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "x.arrow")], capture_output=True, text=True, check=True
    )
    assert int(told.stdout) < 9_000, told.stdout  # KB
