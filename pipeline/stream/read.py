"""From sample references to crops: what a data task does, with Ray or without."""

import os
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.ingest.store import Store
from pipeline.stream.views import Geometry, crop
from ssl_models.batch import uniform

Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Reader:
    """Reads, decodes and crops samples of a store. It is sent to data tasks, so it holds only small things."""

    shard_paths: tuple[str, ...]
    geometry: Geometry
    seed: int = 0
    context_length: int | None = None  # tokens of a caption; None: no text

    def references(self, store: Store, numbers: np.ndarray, epochs: np.ndarray) -> pa.Table:
        """What tasks need to know of each sample, one row a sample, in the order given."""
        columns = ["number", "shard", "offset", "length", "width", "height", "label"]
        if self.context_length is not None:
            columns.append("captions")
        table = store.index.select(columns).take(pa.array(numbers))
        return table.append_column("epoch", pa.array(epochs.astype(np.int32))).combine_chunks()

    def read(self, references: pa.Table) -> Columns:
        """Crops (B, V, S, S, 3) uint8 with number, epoch, label (B,) and tokens (B, L) of the referred samples.

        Raises:
            ValueError: a sealed image is missing or damaged; says which.
        """
        rows = {name: references[name].to_numpy() for name in references.column_names if name != "captions"}
        ids, epochs = torch.from_numpy(rows["number"].copy()), rows["epoch"]
        heights, widths = (torch.from_numpy(rows[name].astype(np.int64)) for name in ("height", "width"))
        boxes = torch.empty(len(ids), self.geometry.num_views, 4, dtype=torch.int64)
        for epoch in np.unique(epochs):
            chosen = torch.from_numpy(epochs == epoch)
            boxes[chosen] = self.geometry.boxes(int(epoch), ids[chosen], heights[chosen], widths[chosen])
        size = self.geometry.size
        crops = np.empty((len(ids), self.geometry.num_views, size, size, 3), dtype=np.uint8)
        out = torch.from_numpy(crops)
        for i, (shard, offset, length) in enumerate(zip(rows["shard"], rows["offset"], rows["length"], strict=True)):
            image = decode(self.shard_paths[shard], int(offset), int(length), int(ids[i]))
            out[i] = crop(image, boxes[i], size)
        columns = {"crops": crops, "number": rows["number"], "epoch": epochs, "label": rows["label"].astype(np.int64)}
        if self.context_length is not None:
            columns["tokens"] = self._tokens(references["captions"].to_pylist(), ids, epochs)
        return columns

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


def decode(path: str, offset: int, length: int, number: int) -> Tensor:
    """(3, H, W) uint8, with the decoder's channels-last strides."""
    from torchvision.io import ImageReadMode, decode_jpeg

    try:
        data = os.pread(_descriptor(path), length, offset)
        buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return decode_jpeg(buffer, mode=ImageReadMode.RGB)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"sample {number} of the sealed store is damaged: {path} at byte {offset}: {error}. The shard changed "
            "after it was sealed; curate the source again (--overwrite)"
        ) from error


@lru_cache(maxsize=512)
def _descriptor(path: str) -> int:
    return os.open(path, os.O_RDONLY)
