"""The guarded reader of Parquet files: finds the columns of images, captions and labels; reads them in small batches.

Plain pyarrow, and never a file with extension types: an engine that registered such types may run code to read them.
"""

import base64
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.ingest.decode import Refusal
from pipeline.ingest.samples import MAX_IMAGE_BYTES, Broken, Sample, captions_of, named
from pipeline.ingest.store import SPLITS, Split
from ssl_models.config import Config

IMAGE_COLUMNS = ("image", "bytes", "jpg", "image_bytes", "img", "jpeg", "png", "webp")
CAPTION_COLUMNS = ("caption", "text", "captions")
LABEL_COLUMNS = ("label", "class")
MAX_ROW_GROUP_BYTES = 8 * 2**30
MAX_ROW_GROUP_ROWS = 5_000_000
MAX_FOOTER_BYTES = 64 * 2**20
_BATCH_ROWS = 32


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
    label_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """Columns and rows of each row group; both empty if the footer cannot be used (reading will say why)."""

    columns: Columns | None
    rows: tuple[int, ...]


def layout(path: Path, name: str, image_column: str | None, caption_column: str | None) -> Layout:
    """Reads a file's footer only.

    Raises:
        ValueError: a sound file without the columns that were named, or without any column of images.
    """
    try:
        footer = _safe_footer(path)
        schema = footer.schema.to_arrow_schema()
    except (Refusal, pa.ArrowException, OSError, ValueError):
        return Layout(None, ())
    listed = ", ".join(f"{field.name} ({field.type})" for field in schema)
    image = image_column or next((column for column in IMAGE_COLUMNS if _image_field(schema, column) is not None), None)
    if image is None or _image_field(schema, image) is None:
        wanted = f"no column {image_column!r} of" if image_column else "no column of"
        raise ValueError(f"{name} has {wanted} image bytes among {listed}: name it with --image-column")
    caption = caption_column or next((column for column in CAPTION_COLUMNS if _is_caption(schema, column)), None)
    if caption_column and not _is_caption(schema, caption_column):
        raise ValueError(f"{name} has no column {caption_column!r} of text among {listed}: see --caption-column")
    label = next((column for column in LABEL_COLUMNS if _is(schema, column, pa.types.is_integer, _is_text)), None)
    columns = Columns(
        image=image,
        image_field=_image_field(schema, image) or None,
        caption=caption,
        label=label,
        split="split" if _is(schema, "split", _is_text) else None,
        label_names=_label_names(footer, label),
    )
    return Layout(columns, tuple(footer.row_group(group).num_rows for group in range(footer.num_row_groups)))


def read_parquet(
    path: Path, name: str, columns: Columns | None, row_groups: tuple[int, ...], first_row: int, split: Split | None
) -> Iterator[Sample | Broken]:
    """Yields the samples of some row groups, which begin at row `first_row` of the file, and `Broken` for damage."""
    try:
        footer = _safe_footer(path)
        if columns is None:
            raise Refusal("header_bad", "its schema cannot be read")
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for group in row_groups:
                yield from _read_group(file, group, columns, name, first_row, split)
                first_row += footer.row_group(group).num_rows
    except Refusal as refusal:
        yield Broken(name, refusal.reason, refusal.detail)
    except (pa.ArrowException, OSError) as error:
        yield Broken(name, "header_bad", f"cannot be opened: {error}")


def _read_group(
    file: pq.ParquetFile, group: int, columns: Columns, name: str, row: int, split: Split | None
) -> Iterator[Sample | Broken]:
    """One row group, which begins at row `row`; damage costs no more than its group."""
    about = file.metadata.row_group(group)
    if about.total_byte_size > MAX_ROW_GROUP_BYTES or about.num_rows > MAX_ROW_GROUP_ROWS:
        size = f"{about.num_rows} rows, {about.total_byte_size} bytes"
        yield Broken(name, "parquet_unsafe", f"row group {group} is too large ({size}): write smaller ones")
        return
    wanted = [columns.image + (f".{columns.image_field}" if columns.image_field else "")]
    wanted += [column for column in (columns.caption, columns.label, columns.split) if column]
    end = row + about.num_rows
    why = "fewer rows than its footer says"
    try:
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=wanted, use_threads=False):
            for record in batch.to_pylist():
                yield _sample(record, columns, f"{name}#{row}", split)
                row += 1
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: text that is not UTF-8
        why = str(error)
    if row != end:
        yield Broken(name, "count_mismatch", f"rows {row} to {end - 1} cannot be read: {why}")


def _sample(record: dict[str, object], columns: Columns, source: str, split: Split | None) -> Sample:
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
    label = record[columns.label] if columns.label else None
    if columns.label_names and isinstance(label, int):
        label = columns.label_names[label] if 0 <= label < len(columns.label_names) else None
    told = SPLITS.get(str(record[columns.split]).lower()) if columns.split else None
    captions = captions_of(record[columns.caption] if columns.caption else None)
    return Sample(source, content, captions, named(label), told or split)


def _safe_footer(path: Path) -> pq.FileMetaData:
    """The footer, after a look at its bytes for extension types: pyarrow, in only opening a file, lets whoever has
    registered such a type read what the file says about it. (Ray Data registers some in every worker.)

    Raises:
        Refusal: parquet_unsafe, or header_bad for what is no whole Parquet file.
        OSError, pyarrow.ArrowException: a footer that cannot be parsed.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 8))
        length, magic = int.from_bytes(file.read(4), "little"), file.read(4)
        if magic != b"PAR1" or length > size - 12:
            raise Refusal("header_bad", "it has no footer: it was cut, or is no Parquet file")
        if length > MAX_FOOTER_BYTES:
            raise Refusal("parquet_unsafe", f"a footer of {length} bytes; the most is {MAX_FOOTER_BYTES}")
        file.seek(size - 8 - length)
        footer = file.read(length)
    if any(needle in footer for needle in _EXTENSION):
        raise Refusal("parquet_unsafe", "it holds Arrow extension types: write it with plain columns")
    return pq.read_metadata(path)


def _is(schema: pa.Schema, column: str, *tests: object) -> bool:
    """Whether the schema has one such column, of a type that passes one of the tests."""
    where = schema.get_all_field_indices(column)
    return len(where) == 1 and any(test(schema.field(where[0]).type) for test in tests)  # type: ignore[operator]


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_bytes(kind: pa.DataType) -> bool:
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
