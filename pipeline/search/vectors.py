"""Embeddings of a source as a Parquet dataset that any reader takes: FOLDER/part-00000.parquet …, a row an image.

number   int64, in the order of the source          captions  list of strings
id       sha256 of the image file's bytes           embedding  fixed-size list of float32, as the encoder gives it
source   path in the source, shard.tar#key or file.parquet#row
label    its class, or null                         projection  of image-text encoders: in the space of texts, length 1

FOLDER/_vectors.json says by which encoder, and of what; FOLDER/_index is the index of a source that was no store.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.curate import curate
from pipeline.evaluate.embed import Embedding
from pipeline.evaluate.encoders import Encoders
from pipeline.ingest.config import CurateConfig
from pipeline.ingest.running import Progress
from pipeline.ingest.store import MANIFEST, Store
from pipeline.ingest.write import replaced
from pipeline.select.policy import PRESETS
from pipeline.stream.read import Columns
from ssl_models.config import Config

ABOUT, INDEX = "_vectors.json", "_index"
PART_SAMPLES = 8192


class Vectors(Config):
    """`_vectors.json`."""

    encoder: str  # as a person names it: see `find_encoders`
    encoder_digest: str
    source: str
    store: str  # that holds the index of the source
    store_digest: str
    images: int
    seen: int
    refused: dict[str, int]


def opened(source: str, folder: Path, tell: Callable[[Progress], None], address: str | None = None) -> Store:
    """The sealed store at `source`; or an index of the source, made beside the embeddings: nothing is copied, and no
    image is dropped that can be decoded. Uses the Ray that is connected, else as `curate`."""
    if Path(source, MANIFEST).exists():
        return Store(source)
    config = CurateConfig(in_place=True, holdout=0)
    curate(source, folder / INDEX, config, policy=PRESETS["none"][0], on_progress=tell, address=address)
    return Store(folder / INDEX)


def embed_source(
    spec: str,
    encoders: Encoders,
    store: Store,
    source: str,
    folder: Path,
    embedding: Embedding,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Vectors:
    """Writes the parts that are not there yet; the same call after an interruption goes on. Ray must be connected.

    Raises:
        ValueError: the folder holds embeddings of another encoder or of other data.
    """
    numbers = np.sort(np.concatenate([store.select("train"), store.select("test")]))
    manifest = store.manifest
    about = Vectors(
        encoder=spec,
        encoder_digest=encoders.digest,
        source=source,
        store=str(store.path),
        store_digest=manifest.digest,
        images=len(numbers),
        seen=manifest.seen,
        refused=manifest.refused,
    )
    _refuse_other(folder, about)
    folder.mkdir(parents=True, exist_ok=True)
    with replaced(folder / ABOUT) as file:
        file.write(about.model_dump_json(indent=1).encode())
    parts = [numbers[first : first + PART_SAMPLES] for first in range(0, len(numbers), PART_SAMPLES)]
    left = [place for place in range(len(parts)) if not (folder / _name(place)).exists()]
    done = len(numbers) - sum(len(parts[place]) for place in left)
    tell(done, len(numbers))
    if left:
        asked = np.concatenate([parts[place] for place in left])
        blocks = embedding.blocks(encoders, store, asked, names=("trained",))
        for place, columns in zip(left, _in_parts(blocks, [len(parts[place]) for place in left]), strict=True):
            with replaced(folder / _name(place)) as file:
                pq.write_table(_table(store, columns), file)
            done += len(parts[place])
            tell(done, len(numbers))
    return about


def read_vectors(folder: Path) -> Vectors:
    """
    Raises:
        ValueError: `folder` holds no embeddings.
    """
    with suppress(OSError, ValueError):
        return Vectors.model_validate_json((folder / ABOUT).read_text())
    raise ValueError(f"{folder} holds no embeddings: make them with `feral embed ENCODER SOURCE --to {folder}`")


def _refuse_other(folder: Path, about: Vectors) -> None:
    if not (folder / ABOUT).exists():
        return
    there = read_vectors(folder)
    for name, what in (("encoder_digest", there.encoder), ("store_digest", there.source)):
        if getattr(there, name) != getattr(about, name):
            raise ValueError(
                f"{folder} holds embeddings of {what}, as it was then: give --to another folder, or remove this one"
            )


def _name(place: int) -> str:
    return f"part-{place:05d}.parquet"


def _in_parts(blocks: Iterator[Columns], sizes: list[int]) -> Iterator[Columns]:
    """Blocks of any length as parts of the wanted ones."""
    waiting: list[Columns] = []
    held = 0
    for size in sizes:
        while held < size:
            waiting.append(next(blocks))
            held += len(waiting[-1]["number"])
        joined = {name: np.concatenate([block[name] for block in waiting]) for name in waiting[0]}
        yield {name: values[:size] for name, values in joined.items()}
        waiting, held = [{name: values[size:] for name, values in joined.items()}], held - size


def _table(store: Store, columns: Columns) -> pa.Table:
    rows = pa.array(columns["number"])
    told = store.columns("id", "source", "label", "captions").take(rows)
    classes = pa.array([*store.manifest.classes, None], pa.string())  # the last, -1, is no class
    label = told["label"].combine_chunks()
    place = pa.array(np.where(label.to_numpy() < 0, len(classes) - 1, label.to_numpy()))
    table = {
        "number": rows,
        "id": told["id"],
        "source": told["source"],
        "label": classes.take(place),
        "captions": told["captions"],
        "embedding": _lists(columns["trained"]),
    }
    if "trained_projection" in columns:
        table["projection"] = _lists(columns["trained_projection"])
    return pa.table(table)


def _lists(rows: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.astype(np.float32).ravel()), rows.shape[1])
