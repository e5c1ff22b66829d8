"""Embeddings in this process: the same reader and encoder in a plain loop, for tests that need no Ray."""

from collections.abc import Iterator

import numpy as np
import pytest

from pipeline.cluster import ClusterConfig
from pipeline.evaluate.embed import Embedder, Embedding
from pipeline.evaluate.encoders import ENCODERS
from pipeline.stream.crops import CenterCrop
from pipeline.stream.read import Columns, Reader

HERE = Embedding(ClusterConfig(), threads=1)


def embed_here(patch: pytest.MonkeyPatch, block: int = 70) -> list[int]:
    """Lets `Embedding` work in this process from now on; returns a list that counts the samples of each call."""
    embedded: list[int] = []

    def blocks(self, encoders, store, numbers, names=ENCODERS, output="") -> Iterator[Columns]:
        embedded.append(len(numbers))
        reader, embedder = Reader(CenterCrop(encoders.sees.image_size)), Embedder(encoders, 1, names, output)
        references = reader.references(store, numbers, np.zeros(len(numbers), dtype=np.int64))
        for first in range(0, len(numbers), block):
            yield embedder(reader.read(references.slice(first, block)))

    patch.setattr(Embedding, "blocks", blocks)
    return embedded
