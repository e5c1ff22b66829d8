"""Units of work of a source, and the one door to all readers: the raw samples of a unit."""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO, Literal, NamedTuple

from pipeline.ingest.compressed import decompressed
from pipeline.ingest.parquet import Columns, read_parquet
from pipeline.ingest.places import Place
from pipeline.ingest.ranges import lost_connection
from pipeline.ingest.refusals import Reason, Refusal
from pipeline.ingest.samples import (
    MAX_CAPTION_BYTES,
    MAX_IMAGE_BYTES,
    Address,
    Broken,
    Captions,
    Sample,
    captions_of,
)
from pipeline.ingest.store import Split
from pipeline.ingest.tars import read_tar
from ssl_models.config import Config

_AHEAD = 8  # files of object storage that are read at once: each costs a round trip, and up to 64 MB


class File(NamedTuple):
    """One file of a folder source that counts as a sample; `refusal` (reason, detail) if its listing settles it.

    A tuple, as there may be millions of them.
    """

    path: str
    label: str | None = None
    split: Split | None = None
    captions: tuple[str, ...] = ()
    sidecar: str | None = None
    origin: str | None = None
    sha256: str | None = None
    refusal: tuple[Reason, str] | None = None


class Unit(Config):
    """A bounded amount of work that one task does, writing its own shards: some files, a tar, or some row groups.

    `declared` is how many samples the source says that there are; `sha256` is that of the whole container, and only
    the first unit of a container carries it.
    """

    number: int = 0
    kind: Literal["files", "tar", "parquet"]
    path: str = ""
    split: Split | None = None
    files: tuple[File, ...] = ()
    compressed: bool = False
    row_groups: tuple[int, ...] = ()
    first_row: int = 0
    columns: Columns | None = None
    declared: int | None = None
    sha256: str | None = None


def read(unit: Unit, root: Place) -> Iterator[Sample | Broken]:
    """The raw samples of a unit, in order.

    Raises:
        ConnectionError: object storage cannot be read now; what was yielded is good, the unit is to be read again.
    """
    return _read_files(unit.files, root) if unit.kind == "files" else _read_container(unit, root)


def _read_container(unit: Unit, root: Place) -> Iterator[Sample | Broken]:
    try:
        with root.open(unit.path) as file:
            for item in _parsed(file, unit):
                if isinstance(item, Broken) and (lost := lost_connection(file)):
                    raise lost
                yield item
            if unit.sha256:
                file.seek(0)
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
                if sha256 != unit.sha256:
                    yield Broken(unit.path, "hash_mismatch", f"sha256 {sha256}; declared is {unit.sha256}", lost=0)
    except ConnectionError:
        raise
    except OSError as error:
        reason: Reason = "missing" if isinstance(error, FileNotFoundError) else "quarantined"
        yield Broken(unit.path, reason, f"cannot be read: {error.strerror or error}", lost=unit.declared)


def _parsed(file: BinaryIO, unit: Unit) -> Iterator[Sample | Broken]:
    if unit.kind == "parquet":
        return read_parquet(file, unit.path, unit.columns, unit.row_groups, unit.first_row, unit.split)
    if unit.compressed:
        return read_tar(decompressed(file, unit.path), unit.path, unit.split)
    return read_tar(file, unit.path, unit.split, addressed=unit.path)


def _read_files(files: Iterable[File], root: Place) -> Iterator[Sample]:
    if root.is_local:
        yield from (_read_file(file, root) for file in files)
        return
    with ThreadPoolExecutor(_AHEAD) as pool:
        waiting: deque[Future[Sample]] = deque()
        for file in files:
            waiting.append(pool.submit(_read_file, file, root))
            if len(waiting) >= _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _read_file(file: File, root: Place) -> Sample:
    captions = captions_of(list(file.captions))
    content: bytes | Refusal
    try:
        if file.refusal:
            raise Refusal(*file.refusal)
        content = root.read(file.path, MAX_IMAGE_BYTES)
        if len(content) > MAX_IMAGE_BYTES:
            raise Refusal("bytes_over_cap", f"more than {MAX_IMAGE_BYTES} bytes")
    except Refusal as refusal:
        content = refusal
    except ConnectionError:
        raise
    except OSError as error:
        content = Refusal("header_bad", f"cannot be read: {error.strerror or error}")
    if file.sidecar:
        try:
            text = root.read(file.sidecar, MAX_CAPTION_BYTES).decode("utf-8", "replace")
            captions = captions_of(text, list(file.captions))
        except ConnectionError:
            raise
        except OSError:
            captions = Captions(captions.texts, captions.dropped + 1)
    address = Address(file.path, 0)
    return Sample(file.path, content, captions, file.label, file.split, address, file.origin, file.sha256)
