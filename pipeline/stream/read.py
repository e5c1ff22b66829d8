"""From sample references to crops: what a data task does, with Ray or without."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.ingest.decode import full_pixels
from pipeline.ingest.places import Place
from pipeline.ingest.store import Store
from pipeline.stream.views import Geometry, crop
from ssl_models.batch import uniform

Columns = dict[str, np.ndarray]
_NUMBERS = ("number", "width", "height", "label", "epoch")
_PLACES = ("number", "path", "offset", "length", "id", "flags", "format")


@dataclass(frozen=True)
class Reader:
    """Reads, decodes and crops samples of a store. It is sent to data tasks, so it holds only small things."""

    geometry: Geometry
    seed: int = 0
    context_length: int | None = None  # tokens of a caption; None: no text
    place: Place | None = None  # where the files of an index in place lie; None: canonical shards

    def references(self, store: Store, numbers: np.ndarray, epochs: np.ndarray) -> pa.Table:
        """What tasks need to know of each sample, one row a sample, in the order given."""
        columns = ["number", "shard", "offset", "length", "width", "height", "label"]
        if self.context_length is not None:
            columns.append("captions")
        if self.place is not None:
            columns += ["id", "flags", "format"]
        table = store.columns(*columns).take(pa.array(numbers))
        table = table.set_column(1, "path", store.paths.take(table["shard"].combine_chunks()))
        return table.append_column("epoch", pa.array(epochs.astype(np.int32))).combine_chunks()

    def read(self, references: pa.Table) -> Columns:
        """Crops (B, V, S, S, 3) uint8 with number, epoch, label (B,) and tokens (B, L) of the referred samples.

        Raises:
            ValueError: a sealed image is missing or damaged; says which.
        """
        rows = {name: references[name].to_numpy() for name in _NUMBERS}
        ids, epochs = torch.from_numpy(rows["number"].copy()), rows["epoch"]
        heights, widths = (torch.from_numpy(rows[name].astype(np.int64)) for name in ("height", "width"))
        boxes = torch.empty(len(ids), self.geometry.num_views, 4, dtype=torch.int64)
        for epoch in np.unique(epochs):
            chosen = torch.from_numpy(epochs == epoch)
            boxes[chosen] = self.geometry.boxes(int(epoch), ids[chosen], heights[chosen], widths[chosen])
        size = self.geometry.size
        crops = np.empty((len(ids), self.geometry.num_views, size, size, 3), dtype=np.uint8)
        out = torch.from_numpy(crops)
        for i, image in enumerate(self._images(references)):
            out[i] = crop(image, boxes[i], size)
        columns = {"crops": crops, "number": rows["number"], "epoch": epochs, "label": rows["label"].astype(np.int64)}
        if self.context_length is not None:
            columns["tokens"] = self._tokens(references["captions"].to_pylist(), ids, epochs)
        return columns

    def _images(self, references: pa.Table) -> Iterator[Tensor]:
        """Each referred image (3, H, W) uint8."""
        for row in references.select([name for name in _PLACES if name in references.column_names]).to_pylist():
            yield decode(**row) if self.place is None else decode_foreign(self.place, **row)

    def _tokens(self, captions: list[list[str]], ids: Tensor, epochs: np.ndarray) -> np.ndarray:
        """One caption a sample and epoch, chosen by (seed, epoch, id); (B, context_length) int64."""
        assert self.context_length is not None
        draws = np.empty(len(ids))
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            draws[chosen] = uniform(self.seed, int(epoch), ids[torch.from_numpy(chosen)], 1, "caption")[:, 0].numpy()
        texts = [texts[int(draw * len(texts))] for texts, draw in zip(captions, draws, strict=True)]
        return tokenize(texts, self.context_length)


def tokenize(texts: list[str], context_length: int) -> np.ndarray:
    """CLIP's byte-pair tokens (B, context_length) int64; a long text is cut, its last token stays the end token."""
    return _tokenizer()(texts, context_length).numpy()


@lru_cache(maxsize=1)
def _tokenizer():
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def decode_foreign(
    place: Place, number: int, path: str, offset: int, length: int, id: str, flags: list[str], format: str
) -> Tensor:
    """(3, H, W) uint8 of an image that lies where the source left it. Its bytes are decoded only if they are those that
    were curated, in a guarded process: by their sha256.

    Raises:
        ValueError: the file is missing or not what it was.
    """
    try:
        with place.open(path) as file:
            file.seek(offset)
            raw = file.read(length)
    except OSError as error:
        raise ValueError(_changed(number, path, offset, str(error))) from error
    if hashlib.sha256(raw).hexdigest() != id:
        raise ValueError(_changed(number, path, offset, "other bytes than those that were curated"))
    if format == "JPEG" and not set(flags) - {"gray", "icc"}:
        return _decode_jpeg(raw)  # 2× as fast, the same pixels
    # Its size was within the bound of its curation, which may be above the usual one.
    return torch.from_numpy(full_pixels(raw, max_pixels=2**31)).permute(2, 0, 1)


def _changed(number: int, path: str, offset: int, why: str) -> str:
    return (
        f"sample {number} of the index in place cannot be read: {path} at byte {offset}: {why}. The source changed "
        "after it was curated: restore the file, or curate again (--overwrite)"
    )


def decode(number: int, path: str, offset: int, length: int) -> Tensor:
    """(3, H, W) uint8, with the decoder's channels-last strides."""
    try:
        return _decode_jpeg(os.pread(_descriptor(path), length, offset))
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"sample {number} of the sealed store is damaged: {path} at byte {offset}: {error}. The shard changed "
            "after it was sealed; curate the source again (--overwrite)"
        ) from error


def _decode_jpeg(data: bytes) -> Tensor:
    from torchvision.io import ImageReadMode, decode_jpeg

    return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)


@lru_cache(maxsize=512)
def _descriptor(path: str) -> int:
    return os.open(path, os.O_RDONLY)
