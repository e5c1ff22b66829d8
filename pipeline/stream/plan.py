"""The order of samples is a function: of (seed, epoch, selection), for any number of workers and after any restart."""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Plan:
    """Lays out the epochs of a selection.

    *Runs* are stretches of consecutive samples of one shard. Each epoch permutes the runs, joins `runs_per_chunk` of
    them to a *chunk*, and shuffles inside chunks: mixing is good, and reading stays near-sequential. The resulting
    order is cut into `lanes` equal stretches; each global batch takes an equal share from every lane, and a worker
    serves `lanes / world_size` of them. So the content of global batch n does not depend on the number of workers.
    A rest smaller than one global batch is left out of the epoch (another one in each epoch).
    """

    shards: Rows  # (N,) the shard of each sample of the selection, in storage order
    batch_size: int  # global
    lanes: int
    seed: int
    run_length: int = 64
    runs_per_chunk: int = 16

    def __post_init__(self) -> None:
        if self.batch_size % self.lanes:
            raise ValueError(
                f"data.batch_size={self.batch_size} is not a multiple of data.lanes={self.lanes}: each lane gives an "
                "equal share of every batch; change one of them"
            )
        if len(self.shards) < self.batch_size:
            raise ValueError(
                f"the selection has {len(self.shards)} samples, fewer than one batch of data.batch_size="
                f"{self.batch_size}: lower data.batch_size, or curate more images"
            )

    @property
    def steps_per_epoch(self) -> int:
        return len(self.shards) // self.batch_size

    def rank_rows(self, step: int, stop: int, rank: int, world_size: int) -> tuple[Rows, Rows]:
        """The samples of one rank for the steps [step, stop) of the run, in the order of training.

        Returns:
            Positions in the selection and epochs, each (stop - step, batch_size / world_size).

        Raises:
            ValueError: the world size does not divide the lanes.
        """
        if self.lanes % world_size:
            raise ValueError(
                f"cluster.workers={world_size} does not divide data.lanes={self.lanes}: a worker serves whole lanes; "
                f"choose a divisor of {self.lanes}, or other data.lanes"
            )
        share, own = self.batch_size // self.lanes, self.lanes // world_size
        steps = np.arange(step, stop)
        epochs, within = np.divmod(steps, self.steps_per_epoch)
        lanes = np.arange(rank * own, (rank + 1) * own)
        # (steps, own, share): a lane is a stretch of steps_per_epoch · share places of the epoch's order
        places = (
            (lanes * self.steps_per_epoch * share)[None, :, None]
            + (within * share)[:, None, None]
            + np.arange(share)[None, None, :]
        ).reshape(len(steps), own * share)
        rows = np.empty_like(places)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            rows[chosen] = self._order(int(epoch))[places[chosen]]
        return rows, np.broadcast_to(epochs[:, None], rows.shape)

    @lru_cache(maxsize=2)  # noqa: B019 - a plan lives as long as its run
    def _order(self, epoch: int) -> Rows:
        starts, lengths = self._runs()
        generator = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
        runs = generator.permutation(len(starts))
        chunk = np.repeat(np.arange(len(runs)) // self.runs_per_chunk, lengths[runs])  # (N,) of each place
        begin = np.repeat(starts[runs], lengths[runs])
        offset = np.arange(len(chunk)) - np.repeat(np.cumsum(lengths[runs]) - lengths[runs], lengths[runs])
        # Sorting by (chunk, noise) shuffles inside each chunk.
        return (begin + offset)[np.lexsort((generator.random(len(chunk)), chunk))]

    @lru_cache(maxsize=1)  # noqa: B019
    def _runs(self) -> tuple[Rows, Rows]:
        """First position and length of each run."""
        new_shard = np.flatnonzero(np.diff(self.shards)) + 1
        bounds = np.concatenate([[0], new_shard, [len(self.shards)]])
        starts = np.concatenate([np.arange(first, end, self.run_length) for first, end in pairwise(bounds)])
        return starts, np.diff(np.append(starts, len(self.shards)))
