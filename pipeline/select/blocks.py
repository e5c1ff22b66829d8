"""Embeddings in files, and work done block by block: on Ray when it is connected, in this process otherwise.

Both ways give the same bits. The boundaries of blocks are those of the files, results come back in the order of the
blocks, and the numerical libraries use one thread, so neither the number of workers nor their speed can be seen in a
result. (Another type of CPU can: its BLAS may add in another order.)
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from pipeline.placement import data_nodes

Result = TypeVar("Result")

ROWS = 65_536  # a block, unless the files were written by someone else


@dataclass(frozen=True)
class EmbeddingBlocks:
    """Embeddings (N, D) as .npy files of float16 or float32 in a folder that all nodes see. Row numbers run through.

    With `unit` (the default) rows are scaled to length 1 whenever they are read; rows of zeros stay zeros.
    """

    paths: tuple[str, ...]
    counts: tuple[int, ...]  # rows of each file
    dim: int
    unit: bool = True

    @classmethod
    def open(cls, folder: str | Path, *, unit: bool = True) -> "EmbeddingBlocks":
        """All .npy files of `folder`, in the order of their names.

        Raises:
            ValueError: no file, or files that are not (n, D) float16 or float32 of one D.
        """
        paths = sorted(str(path) for path in Path(folder).absolute().glob("*.npy"))
        if not paths:
            raise ValueError(f"{folder} holds no .npy file: write the embeddings there first")
        arrays = [np.load(path, mmap_mode="r") for path in paths]
        dim = arrays[0].shape[-1]
        for path, array in zip(paths, arrays, strict=True):
            if array.ndim != 2 or array.shape[1] != dim or array.dtype not in (np.float16, np.float32):
                raise ValueError(
                    f"{path} holds {array.dtype} {array.shape}, but blocks are float16 or float32 (rows, {dim}): "
                    "write all embeddings of one encoder anew"
                )
        return cls(tuple(paths), tuple(len(array) for array in arrays), dim, unit)

    @classmethod
    def write(
        cls, folder: str | Path, parts: Iterable[np.ndarray], *, rows: int = ROWS, unit: bool = True
    ) -> "EmbeddingBlocks":
        """Writes arrays (n, D) to `folder`, cut into blocks of `rows` rows wherever the parts end.

        Raises:
            ValueError: the folder holds blocks already; or nothing was written.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.glob("*.npy")):
            raise ValueError(f"{folder} holds .npy files already, which would be taken for blocks: use an empty folder")
        held: list[np.ndarray] = []
        number = 0
        for part in parts:
            held.append(part)
            while sum(map(len, held)) >= rows:
                joined = np.concatenate(held)
                np.save(folder / f"{number:06d}.npy", joined[:rows])
                number, held = number + 1, [joined[rows:]]
        if sum(map(len, held)):
            np.save(folder / f"{number:06d}.npy", np.concatenate(held))
        return cls.open(folder, unit=unit)

    def __len__(self) -> int:
        return sum(self.counts)

    @property
    def starts(self) -> np.ndarray:
        """First row of each block, and N: (blocks + 1,) int64."""
        return np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int64)

    def load(self, number: int) -> np.ndarray:
        """Block `number` as float32 (n, D)."""
        return self._ready(np.load(self.paths[number], mmap_mode="r"), number)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Rows by number, in the order asked for: float32 (len(rows), D)."""
        starts = self.starts
        block_of = np.searchsorted(starts, rows, side="right") - 1
        out = np.empty((len(rows), self.dim), dtype=np.float32)
        for number in np.unique(block_of):
            where = np.flatnonzero(block_of == number)
            where = where[np.argsort(rows[where], kind="stable")]  # a file is read forwards
            out[where] = self._ready(np.load(self.paths[number], mmap_mode="r")[rows[where] - starts[number]], number)
        return out

    def subset(self, folder: str | Path, rows: np.ndarray) -> "EmbeddingBlocks":
        """Writes some rows as blocks of their own."""
        parts = (self.take(rows[start : start + ROWS]) for start in range(0, len(rows), ROWS))
        return EmbeddingBlocks.write(folder, parts, unit=self.unit)

    def _ready(self, values: np.ndarray, number: int) -> np.ndarray:
        values = np.array(values, dtype=np.float32)
        if not np.isfinite(values).all():
            raise ValueError(f"{self.paths[number]} holds embeddings that are not finite: embed these samples anew")
        if self.unit:
            lengths = np.linalg.norm(values, axis=1, keepdims=True)
            values /= np.where(lengths > 0, lengths, 1)
        return values


def in_order(function: Callable[..., Result], items: Sequence[Any], *shared: Any) -> Iterator[Result]:
    """`function(item, *shared)` for every item, yielded in the order of `items`.

    Runs as Ray tasks of one CPU each if Ray is connected and there is more than one item, at most twice as many under
    way as the cluster has CPUs, so that finished results wait in bounded memory.
    """
    import ray  # here, not above: one block needs no Ray

    if len(items) < 2 or not ray.is_initialized():  # a remote call would start or join a cluster by itself
        for item in items:
            yield _alone(function, item, *shared)
        return
    window = max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))
    task = ray.remote(num_cpus=1, label_selector=data_nodes())(_alone)
    references = [ray.put(value) for value in shared]
    waiting: deque[Any] = deque()
    for item in items:
        if len(waiting) == window:
            yield ray.get(waiting.popleft())
        waiting.append(task.remote(function, item, *references))
    while waiting:
        yield ray.get(waiting.popleft())


def _alone(function: Callable[..., Result], item: Any, *shared: Any) -> Result:
    with threadpool_limits(1):
        return function(item, *shared)
