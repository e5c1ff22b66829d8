"""The sealed store: canonical shards with one index. Everything after `feral curate` reads this, and only this.

STORE/shards/00000.tar ...   plain WebDataset tars: {key}.jpg, {key}.txt (first caption), {key}.json
STORE/index.parquet          one row a sample; the row number is the sample's stable number
STORE/refused.parquet        source, reason, detail of everything that was seen and not kept
STORE/manifest.json          counts and digests; written last: a folder without it is not a store
"""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError, field_validator

from ssl_models.config import Config

FORMAT = 1
MANIFEST, INDEX, REFUSED, SHARDS = "manifest.json", "index.parquet", "refused.parquet", "shards"
Split = Literal["train", "test"]
SPLITS: dict[str, Split] = {"train": "train", "test": "test", "val": "test", "valid": "test", "validation": "test"}

INDEX_SCHEMA = pa.schema(
    [
        ("number", pa.int64()),  # 0..N-1, the row
        ("id", pa.string()),  # sha256 of the source's bytes
        ("shard", pa.int32()),  # index into manifest.shards
        ("offset", pa.int64()),  # of the JPEG inside the shard, in bytes
        ("length", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("captions", pa.list_(pa.string())),
        ("label", pa.int32()),  # index into manifest.classes; -1: none
        ("split", pa.string()),
        ("pixels", pa.string()),  # sha256 of the canonical pixels
        ("source", pa.string()),  # path in the source, shard.tar#key or file.parquet#row
    ]
)
REFUSED_SCHEMA = pa.schema([("source", pa.string()), ("reason", pa.string()), ("detail", pa.string())])


class ShardEntry(Config):
    """One shard file of a store."""

    name: str
    bytes: int
    sha256: str


class Damage(Config):
    """A container of the source that could not be read to its end: how many samples were read before, and why."""

    shard: str
    saved: int
    why: str


class Manifest(Config):
    """What a store holds and where it came from. `seen == kept + sum(refused.values())` always holds."""

    format: int = FORMAT
    source: str
    listing: str  # digest of the source's paths and sizes: has it changed since?
    seen: int
    kept: int
    refused: dict[str, int]
    captioned: int  # samples with at least one caption
    captions_dropped: int  # captions over the size limit; their images are kept
    classes: tuple[str, ...]
    splits: dict[Split, int]
    shards: tuple[ShardEntry, ...]
    damaged: tuple[Damage, ...]
    config: dict[str, Any]
    digest: str  # of (id, split, label, captions) of all kept samples, in any order, and the config
    index_sha256: str
    seconds: float
    created: str  # UTC, ISO 8601

    @field_validator("format")
    @classmethod
    def _known(cls, value: int) -> int:
        if value != FORMAT:
            raise ValueError(f"store format {value} is unknown; this version of feral reads format {FORMAT}")
        return value


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Store:
    """A sealed store, open for reading. Holds a path and the manifest; the index is loaded when first used.

    Raises:
        ValueError: nothing at `path`, not sealed, unknown format, or an index that is not the sealed one.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.manifest = read_manifest(self.path)
        index = self.path / INDEX
        if not index.is_file() or file_sha256(index) != self.manifest.index_sha256:
            raise ValueError(
                f"{index} is missing or not the one that was sealed (its sha256 differs from the manifest's): restore "
                f"the file, or write the store anew with `feral curate {self.manifest.source} --to {path} --overwrite`"
            )

    @cached_property
    def index(self) -> pa.Table:
        """One row a sample, with the columns of `INDEX_SCHEMA`."""
        return pq.read_table(self.path / INDEX, schema=INDEX_SCHEMA)

    @cached_property
    def refused(self) -> pa.Table:
        """One row a refused sample: source, reason, detail."""
        return pq.read_table(self.path / REFUSED, schema=REFUSED_SCHEMA)

    @property
    def shard_paths(self) -> list[Path]:
        """Absolute paths, in the order of the index's `shard` column."""
        return [self.path / SHARDS / shard.name for shard in self.manifest.shards]

    def read(self, number: int) -> bytes:
        """The canonical JPEG of sample `number`."""
        if not 0 <= number < self.manifest.kept:
            raise ValueError(f"sample {number} is not in {self.path}, which holds 0..{self.manifest.kept - 1}")
        shard, offset, length = (self.index[name][number].as_py() for name in ("shard", "offset", "length"))
        path = self.shard_paths[shard]
        with path.open("rb") as file:
            file.seek(offset)
            jpeg = file.read(length)
        if len(jpeg) != length:
            raise ValueError(
                f"{path} ends before sample {number} (byte {offset + length}): the shard was cut; restore it"
            )
        return jpeg

    def select(self, split: Split) -> np.ndarray:
        """Numbers (n,) int64 of the samples of a split, ascending."""
        if split not in ("train", "test"):
            raise ValueError(f"split {split!r} is unknown: use 'train' or 'test'")
        return np.flatnonzero(pc.equal(self.index["split"], split).to_numpy(zero_copy_only=False)).astype(np.int64)


def read_manifest(path: Path) -> Manifest:
    """The manifest of the sealed store at `path`.

    Raises:
        ValueError: nothing there, not sealed, or a manifest that this version cannot read.
    """
    if not path.is_dir():
        raise ValueError(f"no store at {path}: make one with `feral curate SOURCE --to {path}`")
    try:
        text = (path / MANIFEST).read_text()
    except FileNotFoundError:
        raise ValueError(
            f"{path} is not a sealed store (no {MANIFEST}): either an interrupted curate, then run it again, or not a "
            "store at all"
        ) from None
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path / MANIFEST} cannot be used: {where}: {first['msg']}") from error
