"""Embeddings in this process: the same reader and encoder in a plain loop, for tests that need no Ray."""

from collections.abc import Iterator

import pytest

from pipeline.cluster import ClusterConfig
from pipeline.evaluate.embed import Embedding
from pipeline.evaluate.encoders import ENCODERS
from pipeline.stream.read import Columns

HERE = Embedding(ClusterConfig(), threads=1)


def embed_here(patch: pytest.MonkeyPatch, block: int = 70) -> list[int]:
    """Lets `Embedding` work in this process from now on; returns a list that counts the samples of each call."""
    embedded: list[int] = []

    def blocks(self, encoders, store, numbers, names=ENCODERS, output="") -> Iterator[Columns]:
        embedded.append(len(numbers))
        whole = HERE.here(encoders, store, numbers, names, output)
        for first in range(0, len(numbers), block):
            yield {name: values[first : first + block] for name, values in whole.items()}

    patch.setattr(Embedding, "blocks", blocks)
    return embedded
