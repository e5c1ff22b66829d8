"""The sealed store: what a source holds, decoded once and measured. Everything after `feral curate` reads only this.

STORE/shards/00000.tar ...     plain WebDataset tars: {key}.jpg, {key}.txt (first caption), {key}.json
STORE/index.parquet            one row a decoded sample, with what was measured; the row is the sample's stable number
STORE/places.arrow             what the stream reads of each row, and captions.arrow: mapped, so that N costs no memory
STORE/refused.parquet          source, reason, detail of every sample that was seen and could not be let in
STORE/selections/NAME/         which samples a policy keeps, and why it drops each of the others
STORE/manifest.json            counts and digests; written last: a folder without it is not a store
STORE/data_card.html, .json    all of this for a person to read
STORE/blocklist.txt            hashes never to be read again; the operator's, and it may change

STORE/quarantine.jsonl         what `feral verify` found to be damaged and put on the block-list, and why

An index in place has no shards: `files.arrow` lists the source's own files, which the index refers to.
"""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError, field_validator

from pipeline.ingest.refusals import Reason
from ssl_models.config import Config

if TYPE_CHECKING:
    from pipeline.ingest.places import Place

FORMAT = 3
MANIFEST, INDEX, REFUSED, SHARDS = "manifest.json", "index.parquet", "refused.parquet", "shards"
PLACES, CAPTIONS, FILES = "places.arrow", "captions.arrow", "files.arrow"
SELECTIONS, BLOCKLIST, QUARANTINE = "selections", "blocklist.txt", "quarantine.jsonl"
DATA_CARD, DATA_CARD_JSON = "data_card.html", "data_card.json"
DEFAULT = "default"  # the selection that curate makes
Split = Literal["train", "test"]
SPLITS: dict[str, Split] = {"train": "train", "test": "test", "val": "test", "valid": "test", "validation": "test"}

MEASURED = [
    ("original_width", pa.int32()),  # upright, as the source has it
    ("original_height", pa.int32()),
    ("bytes", pa.int64()),  # of the source's image file
    ("format", pa.string()),  # JPEG, PNG, ...
    ("flags", pa.list_(pa.string())),  # alpha, cmyk, rotated, ...: what was done to show it rightly
    ("mean", pa.float32()),  # of luminance, 0..255
    ("std", pa.float32()),
    ("entropy", pa.float32()),  # bits
    ("sharpness", pa.float32()),  # variance of the Laplacian
    ("phash", pa.uint64()),
    ("thumb", pa.binary(48)),  # 4×4 RGB
    ("languages", pa.list_(pa.string())),  # of each caption; "und": cannot be told
    ("origin", pa.string()),  # host of its URL, else the container or folder that holds it
]
INDEX_SCHEMA = pa.schema(
    [
        ("number", pa.int64()),  # 0..N-1, the row
        ("id", pa.string()),  # sha256 of the source's bytes
        ("shard", pa.int32()),  # index into Store.paths
        ("offset", pa.int64()),  # of the image inside that file, in bytes
        ("length", pa.int32()),
        ("checksum", pa.uint32()),  # zlib.crc32 of those bytes
        ("width", pa.int32()),  # as stored; in place: as the source has it, upright
        ("height", pa.int32()),
        ("captions", pa.list_(pa.string())),
        ("label", pa.int32()),  # index into manifest.classes; -1: none
        ("split", pa.string()),
        ("pixels", pa.string()),  # sha256 of the canonical pixels
        ("source", pa.string()),  # path in the source, shard.tar#key or file.parquet#row
        *MEASURED,
    ]
)
PLACED = ("shard", "offset", "length", "checksum", "width", "height", "label")
CAPTIONS_SCHEMA = pa.schema([("captions", pa.large_list(pa.large_string()))])
FILES_SCHEMA = pa.schema([("path", pa.large_string())])
REFUSED_SCHEMA = pa.schema([("source", pa.string()), ("reason", pa.string()), ("detail", pa.string())])
SELECTION_SCHEMA = pa.schema(
    [
        ("reason", pa.string()),  # null: kept
        ("because", pa.int64()),  # number of the sample that is kept in its stead; null: none
        ("weight", pa.float32()),  # entries that an epoch has of it, for training; null: one
    ]
)  # one row a sample of the index, in its order


def places_schema(in_place: bool) -> pa.Schema:
    """What the stream reads of each sample. In place that includes what its bytes must be, and whether they may go
    straight to the JPEG decoder: `digest`, the 32 bytes of the index's `id`, and `plain`, 1 or 0."""
    columns = [INDEX_SCHEMA.field(name) for name in PLACED]
    more = [pa.field("digest", pa.binary(32)), pa.field("plain", pa.uint8())]
    return pa.schema(columns + more if in_place else columns)


class SealedFile(Config):
    """One file of a store."""

    name: str
    bytes: int
    sha256: str


class Damage(Config):
    """A part of the source that could not be read as declared: why, how many samples were read, and how many lost.

    `lost` is None where nothing tells how many samples were there.
    """

    shard: str
    reason: Reason
    saved: int
    lost: int | None = None
    why: str


class Manifest(Config):
    """What a store holds and where it came from. Always: `seen == kept + sum(refused.values())`, where `kept` are the
    samples of the default selection; and `lost == declared - seen` where the source declares how many it has (else
    `lost` counts those that are known to have been there)."""

    format: int = FORMAT
    source: str  # without credentials
    in_place: bool
    listing: str  # digest of the source's paths, sizes and times: has it changed since?
    declared: int | None
    seen: int
    lost: int
    admitted: int  # rows of the index: decoded and measured
    kept: int
    refused: dict[str, int]
    captioned: int  # kept samples with at least one caption
    captions_dropped: int  # captions over the size limit; their images are kept
    classes: tuple[str, ...]
    splits: dict[Split, int]  # of the default selection
    shards: tuple[SealedFile, ...]
    files: tuple[SealedFile, ...]  # the index and what lies beside it
    damaged: tuple[Damage, ...]
    config: dict[str, Any]
    policy: dict[str, Any]  # of the default selection
    inputs: dict[str, str]  # digests of what else decided
    digest: str  # of all admitted samples (id, split, label, captions) and the config
    selection: str  # digest of the default selection
    index_sha256: str
    seconds: dict[str, float]  # wall clock of each stage; "tasks: ..." is summed over parallel tasks
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
    """A sealed store, open for reading through one of its selections. The index is loaded when first used.

    Opening it compares sizes only, so that it takes no time that grows with the store; `feral verify` compares all.

    Raises:
        ValueError: nothing at `path`, not sealed, unknown format, or an index that is not the sealed one.
    """

    def __init__(self, path: str | Path, selection: str = DEFAULT) -> None:
        self.path, self.selection = Path(path).absolute(), selection
        self._loaded: dict[str, pa.ChunkedArray] = {}
        self.manifest = read_manifest(self.path)
        for sealed in self.manifest.files:
            file = self.path / sealed.name
            size = file.stat().st_size if file.is_file() else None
            if size != sealed.bytes:
                is_now = "missing" if size is None else f"not the one that was sealed ({size:,} bytes)"
                raise ValueError(
                    f"{file} is {is_now}; it had {sealed.bytes:,} bytes: restore the file, or write the store anew "
                    f"with `feral curate {self.manifest.source} --to {path} --overwrite`"
                )

    @property
    def index(self) -> pa.Table:
        """One row a sample, with all columns of `INDEX_SCHEMA`: about 400 bytes a sample in memory."""
        return self.columns(*INDEX_SCHEMA.names)

    def columns(self, *names: str) -> pa.Table:
        """Some columns of the index. Those that the stream needs (`PLACED`) are mapped and cost no memory; each of the
        others is loaded when it is first asked for, and kept."""
        self._loaded.update({name: self.places[name] for name in names if name in PLACED})
        missing = [name for name in names if name not in self._loaded]
        if missing:
            table = pq.read_table(self.path / INDEX, columns=missing)
            self._loaded.update({name: table[name] for name in missing})
        return pa.table({name: self._loaded[name] for name in names})

    def column(self, name: str) -> pa.ChunkedArray:
        """One column of the index."""
        return self.columns(name)[name]

    @cached_property
    def places(self) -> pa.Table:
        """One row a sample (`places_schema`), mapped: contiguous columns that cost no memory."""
        return self._mapped(PLACES)

    @cached_property
    def captions(self) -> pa.LargeListArray:
        """The captions of each sample, mapped: taking some rows reads only those."""
        return self._mapped(CAPTIONS)["captions"].chunk(0)

    def _mapped(self, name: str) -> pa.Table:
        from pipeline.ingest.mapped import read_mapped  # it writes such files, too, as write.py does

        return read_mapped(self.path / name)

    @cached_property
    def refused(self) -> pa.Table:
        """One row a sample that was not let in: source, reason, detail. What a policy dropped is in its selection."""
        return pq.read_table(self.path / REFUSED, schema=REFUSED_SCHEMA)

    @cached_property
    def paths(self) -> pa.Array:
        """The files that the index's `shard` column counts: absolute paths of shards; in place, paths in the source."""
        if self.manifest.in_place:
            return self._mapped(FILES)["path"].chunk(0)
        return pa.array([str(self.path / SHARDS / shard.name) for shard in self.manifest.shards], pa.string())

    def read(self, number: int) -> bytes:
        """The image file of sample `number`: a canonical JPEG; in place, the source's own bytes."""
        if not 0 <= number < self.manifest.admitted:
            raise ValueError(f"sample {number} is not in {self.path}, which holds 0..{self.manifest.admitted - 1}")
        place = self.columns("shard", "offset", "length").slice(number, 1).to_pylist()[0]
        shard, offset, length = place["shard"], place["offset"], place["length"]
        path = self.paths[shard].as_py()
        with self.open(path) as file:
            file.seek(offset)
            content = file.read(length)
        if len(content) != length:
            raise ValueError(
                f"{path} ends before sample {number} (byte {offset + length}): the file was cut; restore it"
            )
        return content

    def open(self, path: str) -> Any:
        """One of `paths`, for random access."""
        return Path(path).open("rb") if self.place is None else self.place.open(path)

    @cached_property
    def place(self) -> "Place | None":
        """Where the files of an index in place lie; None for a store with shards of its own."""
        if not self.manifest.in_place:
            return None
        from pipeline.ingest.places import place_of  # here: a store with shards needs no other file system

        return place_of(self.manifest.source)[0]

    def select(self, split: Split, *, with_blocked: bool = False) -> np.ndarray:
        """Numbers (n,) int64 of the selection's samples of a split, ascending; those that the block-list names by now
        are left out. Mapped from a file and read-only, unless some are.

        Raises:
            ValueError: no such split or selection, or a selection that was changed after it was made.
        """
        from pipeline.ingest.selection import kept_numbers  # selection.py reads stores

        if split not in ("train", "test"):
            raise ValueError(f"split {split!r} is unknown: use 'train' or 'test'")
        numbers = kept_numbers(self, self.selection, split)
        blocked = np.array([], np.int64) if with_blocked else self.blocked
        first, last = (np.searchsorted(numbers, blocked, side) for side in ("left", "right"))
        return np.delete(numbers, first[first < last]) if (first < last).any() else numbers

    def weights(self, split: Split) -> np.ndarray | None:
        """Entries (n,) float32 that an epoch has of each of `select(split, with_blocked=True)`, mapped and read-only;
        None: one of each.

        Raises:
            ValueError: as `select`.
        """
        from pipeline.ingest.selection import kept_weights

        return kept_weights(self, self.selection, split)

    @property
    def blocked(self) -> np.ndarray:
        """Numbers (n,) int64 of the samples that the block-list names now."""
        from pipeline.ingest.blocklist import blocked_numbers  # blocklist.py reads stores

        return blocked_numbers(self)

    @property
    def selected_digest(self) -> str:
        """Names the samples that are used, with their numbers and weights."""
        from pipeline.ingest.selection import read_selection

        selection = read_selection(self, self.selection)
        return hashlib.sha256(f"{self.manifest.index_sha256} {selection.digest}".encode()).hexdigest()

    def count(self, split: Split) -> int:
        """How many samples of a split the selection keeps, by its card."""
        from pipeline.ingest.selection import read_selection

        return read_selection(self, self.selection).splits.get(split, 0)


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
        errors = error.errors()
        first = next((fault for fault in errors if fault["loc"] == ("format",)), errors[0])
        where = ".".join(str(part) for part in first["loc"])
        hint = (
            f": {first['msg']}; curate the source again with --overwrite" if where == "format" else f": {first['msg']}"
        )
        raise ValueError(f"{path / MANIFEST} cannot be used: {where}{hint}") from error
