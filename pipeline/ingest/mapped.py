"""Arrow files of one record batch, mapped into memory: opening one costs nothing, and reading a row costs that row.

Every column is one contiguous array without nulls, so that numpy sees it without a copy, at any number of rows.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.ingest.write import replaced


def read_mapped(path: Path) -> pa.Table:
    """The columns of a file, each a single chunk that lies in the file.

    Raises:
        ValueError: the file is not what `MappedWriter` writes.
    """
    with pa.ipc.open_file(pa.memory_map(str(path))) as file:
        return file.read_all()


class MappedWriter:
    """Writes such a file from batch after batch, in bounded memory; it appears at `path` whole or not at all.

    Columns are of a fixed width, `large_string`, or `large_list` of `large_string`. Their buffers grow in files below
    the folder `scratch` until the number of rows is known.
    """

    def __init__(self, path: Path, schema: pa.Schema, scratch: Path) -> None:
        self._path, self._schema, self._rows = path, schema, 0
        self._folder = TemporaryDirectory(dir=scratch, prefix=f".{path.name}.")
        self._buffers: dict[tuple[str, int], _Grown] = {}

    def __enter__(self) -> "MappedWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            for buffer in self._buffers.values():
                buffer.file.close()
            self._folder.cleanup()

    def add(self, batch: pa.RecordBatch) -> None:
        """Appends rows; columns that the schema does not have are left out."""
        self._rows += batch.num_rows
        for column in self._schema:
            array = batch.column(column.name)
            assert array.null_count == 0, column.name
            for place, (data, are_lengths) in enumerate(_parts(array.cast(column.type))):
                self._buffer(column.name, place).append(data, are_lengths)

    def _buffer(self, name: str, place: int) -> "_Grown":
        if (name, place) not in self._buffers:
            self._buffers[name, place] = _Grown(Path(self._folder.name) / f"{name}.{place}")
        return self._buffers[name, place]

    def _finish(self) -> None:
        if not self._rows:
            self.add(pa.RecordBatch.from_pylist([], self._schema))
        columns = [self._column(column) for column in self._schema]
        with replaced(self._path) as file, pa.ipc.new_file(file, self._schema) as writer:
            writer.write_batch(pa.record_batch(columns, schema=self._schema))

    def _column(self, column: pa.Field) -> pa.Array:
        buffers = [self._buffers[name, place].mapped() for name, place in sorted(self._buffers) if name == column.name]
        if pa.types.is_large_list(column.type):
            offsets, *texts = buffers
            count = self._buffers[column.name, 0].total
            child = pa.Array.from_buffers(column.type.value_type, count, [None, *texts])
            return pa.Array.from_buffers(column.type, self._rows, [None, offsets], children=[child])
        return pa.Array.from_buffers(column.type, self._rows, [None, *buffers])


def _parts(array: Any) -> Iterator[tuple[np.ndarray, bool]]:
    """What an array adds to each buffer of its column: bytes, or the lengths that its offsets tell."""
    if pa.types.is_large_list(array.type):
        yield pc.list_value_length(array).to_numpy(), True
        array = array.flatten()
    if pa.types.is_large_string(array.type):
        yield pc.binary_length(array).to_numpy(), True
        ends = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]
        data = np.frombuffer(array.buffers()[2] or b"", np.uint8)
        yield data[ends[0] : ends[-1]] if len(array) else data[:0], False
    elif not pa.types.is_large_list(array.type):
        width = array.type.bit_width // 8
        data = np.frombuffer(array.buffers()[1] or b"", np.uint8)
        yield data[array.offset * width : (array.offset + len(array)) * width], False


class _Grown:
    """A buffer that grows in a file. Lengths are kept as offsets: one more than there are."""

    def __init__(self, path: Path) -> None:
        self.file, self.total, self._path = path.open("wb"), 0, path

    def append(self, data: np.ndarray, are_lengths: bool) -> None:
        if not are_lengths:
            self.file.write(data.data)
            return
        if self.file.tell() == 0:
            self.file.write(bytes(8))
        ends = self.total + np.cumsum(data, dtype=np.int64)
        self.total = int(ends[-1]) if len(ends) else self.total
        self.file.write(ends.data)

    def mapped(self) -> pa.Buffer:
        self.file.close()
        if self._path.stat().st_size == 0:  # cannot be mapped
            return pa.py_buffer(b"")
        return pa.memory_map(str(self._path)).read_buffer()
