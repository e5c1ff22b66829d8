"""Embeddings of a store's samples: by the trained encoder, by the same encoder before training, and raw pixels."""

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.cluster import ClusterConfig, keep_freed_memory
from pipeline.evaluate.cache import cached
from pipeline.evaluate.encoders import ENCODERS, Encoders
from pipeline.evaluate.outputs import OUTPUTS, PAIRS
from pipeline.ingest.store import Store
from pipeline.placement import data_nodes, training_nodes
from pipeline.stream.batches import to_batch
from pipeline.stream.crops import CenterCrop, Geometry, RandomCrops
from pipeline.stream.ray_reading import reading_dataset
from pipeline.stream.read import Columns, Reader

BATCH = 256


@dataclass(frozen=True)
class Embeddings:
    """Rows of equal order. "trained", "random" (B, dim), "pixels" (B, 432); with text also the projections into the
    shared space, "trained_projection" and "random_projection" (B, D)."""

    numbers: np.ndarray  # (B,) sample numbers
    labels: np.ndarray  # (B,) -1 = unlabelled
    features: dict[str, np.ndarray]

    def rows(self, which: slice | np.ndarray) -> "Embeddings":
        features = {name: values[which] for name, values in self.features.items()}
        return Embeddings(self.numbers[which], self.labels[which], features)


class Embedder:
    """Embeds blocks of crops; lives in a process of its own, on a GPU if it was given one."""

    def __init__(self, encoders: Encoders, threads: int, names: tuple[str, ...], output: str) -> None:
        torch.set_num_threads(threads)
        keep_freed_memory()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.views = encoders.sees.views_of(encoders.augmentation if output == PAIRS else None)
        self.outputs = OUTPUTS[output]
        loaded = encoders.load()
        self.encoders = {name: loaded[name].to(self.device) for name in names}

    @torch.inference_mode()
    def __call__(self, columns: Columns) -> Columns:
        batch = to_batch(columns, self.views, self.device)
        found: dict[str, Tensor] = {}
        for number, images in enumerate(batch.views, 1):
            of_view = f"_view{number}" if number > 1 else ""
            for name, encoder in self.encoders.items():
                found |= {
                    f"{name}{suffix}{of_view}": values
                    for suffix, values in self.outputs(encoder, images, batch.ids, self.views).items()
                }
        rows = {name: values.float().cpu().numpy() for name, values in found.items()}
        return {"number": columns["number"], "label": columns["label"], **rows}


@dataclass(frozen=True)
class Embedding:
    """How samples are embedded: where, with how many threads, and where the results are kept for the next time."""

    cluster: ClusterConfig
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)  # of one process
    cache: Path | None = None

    def samples(
        self, encoders: Encoders, store: Store, numbers: np.ndarray, names: tuple[str, ...] = ENCODERS, output: str = ""
    ) -> Embeddings:
        """Embeds samples in the order of `numbers`, or reads what was found before by an encoder with these weights, of
        these samples, seen this way. With a cache the rows lie in files, and cost no memory. Ray must be connected."""

        def blocks() -> Iterator[Columns]:
            return self.blocks(encoders, store, numbers, names, output)

        if self.cache is None:
            parts = list(blocks())
            columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        else:
            asked = {
                "encoder": encoders.digest,
                "sees": repr(encoders.sees) + (repr(encoders.augmentation) if output == PAIRS else ""),
                "store": store.manifest.digest,
                "samples": sha256(np.ascontiguousarray(numbers, dtype="<i8").tobytes()).hexdigest(),
                "encoders": names,
                "output": output,
            }
            columns = cached(self.cache, asked, len(numbers), blocks)
        assert np.array_equal(columns["number"], numbers)
        return Embeddings(columns.pop("number"), columns.pop("label"), columns)

    def here(
        self, encoders: Encoders, store: Store, numbers: np.ndarray, names: tuple[str, ...] = ENCODERS, output: str = ""
    ) -> Columns:
        """The same in this process, without Ray and without a cache."""
        reader, embedder = (
            Reader(_geometry(encoders, output), place=store.place),
            Embedder(encoders, self.threads, names, output),
        )
        references = reader.references(store, numbers, np.zeros(len(numbers), dtype=np.int64))
        parts = [
            embedder(reader.read(references.slice(first, BATCH))) for first in range(0, max(1, len(numbers)), BATCH)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def blocks(
        self, encoders: Encoders, store: Store, numbers: np.ndarray, names: tuple[str, ...] = ENCODERS, output: str = ""
    ) -> Iterator[Columns]:
        """Embeds samples in the order of `numbers`, block by block: decoding on CPUs, encoding in one process a
        training worker, on the nodes for data; if GPUs encode, also where those are, for Ray Data reckons with one kind
        of nodes only. Ray must be connected."""
        from ray.data import ActorPoolStrategy

        reader = Reader(_geometry(encoders, output), place=store.place)
        references = reader.references(store, numbers, np.zeros(len(numbers), dtype=np.int64))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")  # the only way to max_restarts in 2.60
            nodes = training_nodes(self.cluster) if self.cluster.use_gpu else data_nodes()
            data = reading_dataset(reader, references, nodes, _at_once(len(numbers))).map_batches(
                Embedder,
                fn_constructor_args=(encoders, self.threads, names, output),
                batch_size=BATCH,
                batch_format="numpy",
                compute=ActorPoolStrategy(size=self.cluster.workers),
                num_gpus=1 if self.cluster.use_gpu else 0,
                max_restarts=0,  # the stage fails as a whole, and the same command does it again
            )
        yield from data.iter_batches(batch_size=None, batch_format="numpy")


def _at_once(samples: int) -> int:
    """How many of them a data task hands over in one block. Ray's loop needs about 30 ms for each block of an actor: as
    many as fit, but of few samples every CPU is to have a part."""
    return min(8 * BATCH, max(BATCH, samples // 16))


def _geometry(encoders: Encoders, output: str) -> Geometry:
    size = encoders.sees.image_size
    return RandomCrops(encoders.augmentation, size, num_views=2, seed=0) if output == PAIRS else CenterCrop(size)
