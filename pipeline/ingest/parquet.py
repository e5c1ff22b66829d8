"""The guarded reader of Parquet files: finds the columns of images, captions and labels; reads them in small batches.

Plain pyarrow, and never a file with extension types: an engine that registered such types may run code to read them.
"""

import base64
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.ingest.notes import sha256_of
from pipeline.ingest.refusals import Reason, Refusal
from pipeline.ingest.samples import MAX_IMAGE_BYTES, Broken, Sample, captions_of, host_of, named
from pipeline.ingest.store import SPLITS, Split
from ssl_models.config import Config

IMAGE_COLUMNS = ("image", "bytes", "jpg", "image_bytes", "img", "jpeg", "png", "webp")
CAPTION_COLUMNS = ("caption", "text", "captions")
LABEL_COLUMNS = ("label", "class")
MAX_ROW_GROUP_BYTES = 8 * 2**30
MAX_ROW_GROUP_ROWS = 5_000_000
MAX_ROW_GROUP_VALUES = 50_000_000  # of one column: lists hold more than one a row
MAX_RATIO = 200  # unpacked to packed, of columns over 64 MB
MAX_FOOTER_BYTES = 64 * 2**20
MAX_CAPTIONS = 100  # of one row's list
_SMALL_BYTES = 64 * 2**20
_BATCH_ROWS = 32
_BUFFER_BYTES = 2**20  # else a column of a row group is read whole


def _in_base64(text: bytes) -> list[bytes]:
    """What `text` looks like inside base64, for each of its three alignments; only the characters that it decides."""
    encoded = [base64.b64encode(bytes(shift) + text) for shift in range(3)]
    return [code[-(-shift * 8 // 6) : (shift + len(text)) * 8 // 6] for shift, code in enumerate(encoded)]


_EXTENSION = _in_base64(b"ARROW:extension:name")  # a footer holds the Arrow schema in base64


class Columns(Config):
    """Where a Parquet file keeps what a sample needs. `label_names` gives integer labels their names."""

    image: str
    image_field: str | None = None  # the struct's field that holds the bytes
    caption: str | None = None
    label: str | None = None
    split: str | None = None
    url: str | None = None
    sha256: str | None = None
    label_names: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """All columns that are read."""
        named = (self.image, self.caption, self.label, self.split, self.url, self.sha256)
        return [column for column in named if column]

    def hold(self, path: str) -> bool:
        """Whether a leaf of the file, as `captions.list.element`, belongs to a column that is read."""
        return any(path == column or path.startswith(column + ".") for column in self.names)


@dataclass(frozen=True)
class Layout:
    """Columns and rows of each row group; both empty if the footer cannot be used (reading will say why)."""

    columns: Columns | None
    rows: tuple[int, ...]


def layout(file: BinaryIO, name: str, image_column: str | None, caption_column: str | None) -> Layout:
    """Reads a file's footer only.

    Raises:
        ConnectionError: the file cannot be read now.
        ValueError: a sound file without the columns that were named, or without any column of images.
    """
    try:
        footer = _safe_footer(file)
        schema = footer.schema.to_arrow_schema()
    except ConnectionError:
        raise
    except (Refusal, pa.ArrowException, OSError, ValueError):
        return Layout(None, ())
    listed = ", ".join(f"{field.name} ({field.type})" for field in schema)
    image = image_column or next((column for column in IMAGE_COLUMNS if _image_field(schema, column) is not None), None)
    if image is None or _image_field(schema, image) is None:
        wanted = f"no column {image_column!r} of" if image_column else "no column of"
        raise ValueError(f"{name} has {wanted} image bytes among {listed}: name it with image_column=NAME")
    caption = caption_column or next((column for column in CAPTION_COLUMNS if _is_caption(schema, column)), None)
    if caption_column and not _is_caption(schema, caption_column):
        raise ValueError(
            f"{name} has no column {caption_column!r} of text among {listed}: name one with caption_column=NAME"
        )
    label = next((column for column in LABEL_COLUMNS if _is(schema, column, pa.types.is_integer, _is_text)), None)
    split, url, sha256 = (key if _is(schema, key, _is_text) else None for key in ("split", "url", "sha256"))
    columns = Columns(
        image=image,
        image_field=_image_field(schema, image) or None,
        caption=caption,
        label=label,
        split=split,
        url=url,
        sha256=sha256,
        label_names=_label_names(footer, label),
    )
    return Layout(columns, tuple(footer.row_group(group).num_rows for group in range(footer.num_row_groups)))


def read_parquet(
    file: BinaryIO, name: str, columns: Columns | None, row_groups: tuple[int, ...], first_row: int, split: Split | None
) -> Iterator[Sample | Broken]:
    """Yields the samples of some row groups, which begin at row `first_row` of the file, and `Broken` for damage.

    Raises:
        ConnectionError: the file cannot be read now.
    """
    try:
        footer = _safe_footer(file)
        if columns is None:
            raise Refusal("parquet_damaged", "its schema cannot be read")
        if row_groups and row_groups[-1] >= footer.num_row_groups:
            raise Refusal("parquet_damaged", "it changed after it was listed")
        leaves = [footer.schema.column(index) for index in range(len(footer.schema))]
        packed = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY" and columns.hold(leaf.path)]
        # As a dictionary, a value that stands in many rows is held once, and a list of them as numbers.
        opened = pq.ParquetFile(
            file, metadata=footer, read_dictionary=packed, pre_buffer=False, buffer_size=_BUFFER_BYTES
        )
    except ConnectionError:
        raise
    except Refusal as refusal:
        yield Broken(name, refusal.reason, refusal.detail)
        return
    except (pa.ArrowException, OSError, ValueError) as error:
        yield Broken(name, "parquet_damaged", f"cannot be opened: {error}")
        return
    for group in row_groups:
        yield from _read_group(opened, group, columns, name, first_row, split)
        first_row += footer.row_group(group).num_rows


def _unsafe(footer: pq.FileMetaData, group: int, columns: Columns) -> str | None:
    """Why a row group is not read, from what the footer says of the columns that would be."""
    about = footer.row_group(group)
    found = (about.column(index) for index in range(about.num_columns))
    chunks = [chunk for chunk in found if columns.hold(chunk.path_in_schema)]
    unpacked = sum(chunk.total_uncompressed_size for chunk in chunks)
    values = max((chunk.num_values for chunk in chunks), default=0)
    if about.num_rows > MAX_ROW_GROUP_ROWS or unpacked > MAX_ROW_GROUP_BYTES or values > MAX_ROW_GROUP_VALUES:
        return f"is too large ({about.num_rows} rows, {unpacked} bytes, {values} values): write smaller ones"
    for chunk in chunks:
        size = chunk.total_uncompressed_size
        if size > _SMALL_BYTES and size > MAX_RATIO * max(1, chunk.total_compressed_size):
            return f"grows from {chunk.total_compressed_size} to {size} bytes in {chunk.path_in_schema}: no images do"
    return None


def _read_group(
    file: pq.ParquetFile, group: int, columns: Columns, name: str, row: int, split: Split | None
) -> Iterator[Sample | Broken]:
    """One row group, which begins at row `row`; damage costs no more than its group."""
    rows = file.metadata.row_group(group).num_rows
    if why := _unsafe(file.metadata, group, columns):
        yield Broken(name, "parquet_unsafe", f"row group {group} {why}", lost=rows)
        return
    wanted = [columns.image + (f".{columns.image_field}" if columns.image_field else ""), *columns.names[1:]]
    end = row + rows
    reason: Reason = "count_mismatch"
    why = "fewer rows than its footer says"
    try:
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=wanted, use_threads=False):
            for number in range(min(batch.num_rows, end - row)):
                record = {
                    key: _plain(column[number]) for key, column in zip(batch.schema.names, batch.columns, strict=True)
                }
                yield _sample(record, columns, f"{name}#{row}", split)
                row += 1
    except ConnectionError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: text that is not UTF-8
        reason, why = "parquet_damaged", str(error)
    if row != end:
        yield Broken(name, reason, f"rows {row} to {end - 1} cannot be read: {why}", lost=end - row)


def _plain(scalar: pa.Scalar) -> object:
    """One value for Python; of a list, its first `MAX_CAPTIONS`. Text that is not UTF-8 is repaired."""
    if isinstance(scalar, pa.ListScalar) and scalar.is_valid:
        return [_plain(item) for item in scalar.values[:MAX_CAPTIONS]]
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        text = scalar.value if isinstance(scalar, pa.DictionaryScalar) else scalar
        return text.as_buffer().to_pybytes().decode("utf-8", "replace")


def _sample(record: dict[str, object], columns: Columns, source: str, split: Split | None) -> Sample:
    def told(column: str | None) -> object:
        return record[column] if column else None

    value = record[columns.image]
    if columns.image_field:
        value = value.get(columns.image_field) if isinstance(value, dict) else None
    content: bytes | Refusal
    if not isinstance(value, bytes):
        content = Refusal("header_bad", "the row holds no image bytes")
    elif len(value) > MAX_IMAGE_BYTES:
        content = Refusal("bytes_over_cap", f"{len(value)} bytes; the most is {MAX_IMAGE_BYTES}")
    else:
        content = value
    label = told(columns.label)
    if columns.label_names and isinstance(label, int):
        label = columns.label_names[label] if 0 <= label < len(columns.label_names) else None
    return Sample(
        source,
        content,
        captions_of(told(columns.caption)),
        named(label),
        SPLITS.get(str(told(columns.split)).lower(), split),
        origin=host_of(told(columns.url)),
        sha256=sha256_of(told(columns.sha256)),
    )


def _safe_footer(file: BinaryIO) -> pq.FileMetaData:
    """The footer, after a look at its bytes for extension types: pyarrow, in only opening a file, lets whoever has
    registered such a type read what the file says about it. (Ray Data registers some in every worker.)

    Raises:
        Refusal: parquet_unsafe, or parquet_damaged for what is no whole Parquet file.
        OSError, pyarrow.ArrowException: a footer that cannot be parsed.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 8))
    tail = file.read(8)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != b"PAR1" or length > size - 12:
        raise Refusal("parquet_damaged", "it has no footer: it was cut, or is no Parquet file")
    if length > MAX_FOOTER_BYTES:
        raise Refusal("parquet_unsafe", f"a footer of {length} bytes; the most is {MAX_FOOTER_BYTES}")
    file.seek(size - 8 - length)
    footer = file.read(length)
    if any(needle in footer for needle in _EXTENSION):
        raise Refusal("parquet_unsafe", "it holds Arrow extension types: write it with plain columns")
    found = pq.read_metadata(pa.BufferReader(b"PAR1" + footer + tail))  # what was looked at, not the file again
    if any(found.row_group(group).num_rows < 0 for group in range(found.num_row_groups)):
        raise Refusal("parquet_damaged", "its footer tells of fewer than no rows")
    return found


def _is(schema: pa.Schema, column: str, *tests: object) -> bool:
    """Whether the schema has one such column, of a type that passes one of the tests."""
    where = schema.get_all_field_indices(column)
    return len(where) == 1 and any(test(schema.field(where[0]).type) for test in tests)  # type: ignore[operator]


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_caption(schema: pa.Schema, column: str) -> bool:
    def texts(kind: pa.DataType) -> bool:
        return (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _is_text(kind.value_type)

    return _is(schema, column, _is_text, texts)


def _image_field(schema: pa.Schema, column: str) -> str | None:
    """ "" for a column of bytes, the field's name for a struct that holds bytes, None for no column of images."""
    if _is(schema, column, _is_bytes):
        return ""
    if _is(schema, column, pa.types.is_struct):
        kind = schema.field(column).type
        if any(field.name == "bytes" and _is_bytes(field.type) for field in kind):
            return "bytes"
    return None


def _label_names(footer: pq.FileMetaData, label: str | None) -> tuple[str, ...]:
    """Class names that Hugging Face's datasets leave in the footer; () if there are none."""
    try:
        notes = json.loads((footer.metadata or {}).get(b"huggingface", b"{}"))
        names = notes["info"]["features"][label]["names"]
        return tuple(str(name) for name in names)
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()
