"""The images of an embedded source that are nearest to an image or to a sentence."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import torch

from pipeline.evaluate.encoders import ComparesText, Encoders
from pipeline.evaluate.foreign import find_encoders
from pipeline.ingest.decode import full_pixels
from pipeline.ingest.refusals import Refusal
from pipeline.search.vectors import read_vectors
from pipeline.stream.crops import CenterCrop, crop
from pipeline.stream.read import tokenize

ROWS = 8192  # that are in memory at a time


@dataclass(frozen=True)
class Hit:
    similarity: float  # cosine
    number: int
    source: str
    label: str | None
    captions: tuple[str, ...]


def search(folder: Path, *, image: Path | None = None, text: str | None = None, count: int = 10) -> list[Hit]:
    """The `count` nearest by cosine, nearest first: of an image by embeddings, of a sentence in the space that images
    and texts share. It reads the dataset once, a few thousand rows at a time.

    Raises:
        ValueError: no embeddings there, an encoder that was trained on since or knows no text, or an image that cannot
            be decoded.
    """
    about = read_vectors(folder)
    encoders = find_encoders(about.encoder)
    if encoders.digest != about.encoder_digest:
        raise ValueError(
            f"{about.encoder} is not as it was when {folder} was written (step {encoders.step} now): embed the source "
            "again, into another folder"
        )
    if text is not None:
        return _nearest(folder, "projection", embed_text(encoders, about.encoder, text), count)
    assert image is not None
    return _nearest(folder, "embedding", embed_image(encoders, image), count)


@torch.inference_mode()
def embed_image(encoders: Encoders, path: Path) -> np.ndarray:
    """(dim,)"""
    try:
        pixels = torch.from_numpy(full_pixels(path.read_bytes())).permute(2, 0, 1)  # (3, H, W)
    except (OSError, Refusal) as error:
        raise ValueError(f"{path} cannot be used as an image: {error}") from None
    sees, (height, width) = encoders.sees, (torch.tensor([side]) for side in pixels.shape[1:])
    boxes = CenterCrop(sees.image_size).boxes(0, torch.zeros(1), height, width)[0]
    seen = sees.views(crop(pixels, boxes, sees.image_size)[None], torch.zeros(1, dtype=torch.int64), 0)[0]
    return encoders.load()["trained"].embed(seen)[0].float().numpy()


@torch.inference_mode()
def embed_text(encoders: Encoders, named: str, text: str) -> np.ndarray:
    """(D,)"""
    encoder = encoders.load()["trained"]
    if not isinstance(encoder, ComparesText) or encoders.context_length is None:
        raise ValueError(f"{named} was not trained with text, so it cannot look for a sentence: search with --image")
    return encoder.project_text(torch.from_numpy(tokenize([text], encoders.context_length)))[0].float().numpy()


def _nearest(folder: Path, column: str, query: np.ndarray, count: int) -> list[Hit]:
    query = query / max(float(np.linalg.norm(query)), 1e-12)
    dataset = ds.dataset(folder, format="parquet")  # files that begin with _ are no part of it
    best: list[tuple[float, int]] = []  # cosine, −number: of equal ones the lower number comes first
    for batch in dataset.to_batches(columns=["number", column], batch_size=ROWS):
        if not batch.num_rows:
            continue
        rows = batch[column].flatten().to_numpy(zero_copy_only=False).reshape(batch.num_rows, -1)
        cosines = rows @ query / np.maximum(np.linalg.norm(rows, axis=1), 1e-12)
        top = np.argpartition(-cosines, min(count, len(cosines)) - 1)[:count]
        numbers = batch["number"].to_numpy()[top]
        best = sorted([*best, *zip(cosines[top].tolist(), (-numbers).tolist(), strict=True)], reverse=True)[:count]
    found = {-negative: cosine for cosine, negative in best}
    wanted = dataset.to_table(
        columns=["number", "source", "label", "captions"], filter=ds.field("number").isin(list(found))
    )
    rows_of = {row["number"]: row for row in wanted.to_pylist()}
    return [
        Hit(
            cosine,
            number,
            rows_of[number]["source"],
            rows_of[number]["label"],
            tuple(rows_of[number]["captions"] or ()),
        )
        for number, cosine in found.items()
    ]
