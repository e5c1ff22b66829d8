"""The order of samples is a function: of (seed, epoch, selection), for any number of workers and after any restart.

Any part of it is computed on its own. Nothing is ever made for all samples of an epoch (but a table of coarse sums, if
there are weights), so that a plan for a billion samples costs what a plan for a thousand costs, at any step.
"""

import math
import zlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
Bits = NDArray[np.uint64]

MAX_WEIGHT = 100  # times an epoch
_BITS = 24
_UNIT = 2**_BITS  # weights are counted in 1/_UNIT, in integers: sums are then the same on every machine
_BLOCK, _TABLE, _SLAB = 2**10, 2**21, 2**18  # samples a coarse sum, at least; sums, about; weights at a time


@dataclass(frozen=True, eq=False)
class Plan:
    """Lays out the epochs of a selection.

    An epoch has `entries`: each sample once, or as often as its weight says. They stand on a circle in storage order,
    are read off from a point that is drawn for each epoch, and cut in *runs* of `run_length`; a run may straddle two
    shards. Each epoch permutes the runs, joins `runs_per_chunk` of them to a *chunk*, and shuffles inside chunks:
    mixing is good, and reading stays near-sequential. The resulting order is cut into `lanes` equal stretches; each
    global batch takes an equal share from every lane (or the given `shares`), and a worker serves `lanes / world_size`
    of them. So the content of global batch n does not depend on the number of workers. A rest smaller than one global
    batch is left out of the epoch, another one in each epoch: every entry is left out, and stands at every place, with
    the same probability.

    A sample of weight w has ⌊w⌋ or ⌈w⌉ entries in each epoch, less what falls in the rest, and in the long run a share
    of all entries proportional to w (systematic sampling: W. G. Madow 1949, "On the theory of systematic sampling,
    II"). Its copies are in different runs, if those who have as many fill more than a run: then two copies meet in one
    batch as often as any two entries would in an epoch that is shuffled whole, and no more.

    Raises:
        ValueError: a batch that the lanes cannot share, too few entries for one batch, or weights out of bounds.
    """

    samples: int
    batch_size: int  # global
    lanes: int
    seed: int
    run_length: int = 16
    runs_per_chunk: int = 64
    weights: NDArray[np.float32] | None = None  # (samples,) entries of each an epoch, 0..MAX_WEIGHT; a memmap will do
    shares: tuple[int, ...] | None = None  # of each lane in a batch, where they are not equal

    def __post_init__(self) -> None:
        assert self.shares is None or (len(self.shares), sum(self.shares)) == (self.lanes, self.batch_size)
        if self.shares is None and self.batch_size % self.lanes:
            raise ValueError(
                f"data.batch_size={self.batch_size} is not a multiple of data.lanes={self.lanes}: each lane gives an "
                "equal share of every batch; change one of them"
            )
        if self.weights is not None and len(self.weights) != self.samples:
            raise ValueError(
                f"{len(self.weights)} weights for {self.samples} samples: there must be one weight a sample; make the "
                "selection anew"
            )
        if self.entries < self.batch_size:
            weighted = "" if self.weights is None else f", by their weights {self.entries} entries an epoch"
            raise ValueError(
                f"the selection has {self.samples} samples{weighted}, fewer than one batch of data.batch_size="
                f"{self.batch_size}: lower data.batch_size, or curate more images"
            )

    @property
    def entries(self) -> int:
        """Samples in an epoch, each as often as its weight says."""
        return self.samples if self._line is None else self._line.total // _UNIT

    @property
    def steps_per_epoch(self) -> int:
        return self.entries // self.batch_size

    @property
    def lane_shares(self) -> Numbers:
        """(lanes,) samples of a batch that each lane gives."""
        return np.array(self.shares or [self.batch_size // self.lanes] * self.lanes)

    def rank_rows(self, step: int, stop: int, rank: int, world_size: int) -> tuple[Numbers, Numbers]:
        """The samples of one rank for the steps [step, stop) of the run, in the order of training.

        Returns:
            Positions in the selection and epochs, each (stop - step, batch_size / world_size); with other `shares` as
            many as the rank's lanes have.

        Raises:
            ValueError: the world size does not divide the lanes.
        """
        return self.rank_entries(step, stop, rank, world_size)[:2]

    def rank_entries(self, step: int, stop: int, rank: int, world_size: int) -> tuple[Numbers, Numbers, Numbers]:
        """As `rank_rows`, and which copy of its sample in the epoch each entry is: 0, without weights.

        (sample, epoch, copy) is unique in a run, so that what is drawn from it differs between copies.
        """
        if self.lanes % world_size:
            raise ValueError(
                f"cluster.workers={world_size} does not divide data.lanes={self.lanes}: a worker serves whole lanes; "
                f"choose a divisor of {self.lanes}, or other data.lanes"
            )
        own = self.lanes // world_size
        epochs, within = np.divmod(np.arange(step, stop), self.steps_per_epoch)
        shares = self.lane_shares
        lanes = np.arange(rank * own, (rank + 1) * own).repeat(shares[rank * own : (rank + 1) * own])  # of each sample
        first = np.cumsum(shares) - shares  # of the lane's samples in the batch
        inside = first[rank * own] + np.arange(len(lanes)) - first[lanes]
        # (steps, rank's samples): a lane is a stretch of steps_per_epoch · share places of the epoch's order
        places = first[lanes] * self.steps_per_epoch + within[:, None] * shares[lanes] + inside
        rows, copies = np.empty_like(places), np.zeros_like(places)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            wanted = places[chosen]
            points = self._points(int(epoch), wanted.ravel())
            if self._line is not None:
                points, copies[chosen] = (part.reshape(wanted.shape) for part in self._line.find(points))
            rows[chosen] = points.reshape(wanted.shape)
        return rows, np.broadcast_to(epochs[:, None], rows.shape), copies

    def _points(self, epoch: int, places: Numbers) -> Numbers:
        """Where on the circle the entries at some places (n,) of an epoch's order stand: samples, or `_UNIT`s."""
        chunks, chunk = np.unique(places // self._chunk_size, return_inverse=True)
        slots = chunks[:, None] * self._chunk_size + np.arange(self._chunk_size)  # (chunks, chunk_size)
        noise = _hash(_key(self.seed, "shuffle", epoch), slots)
        noise[slots >= self.entries] = 2**64 - 1  # the last chunk is short: what is not there is sorted to its end
        slot = np.argsort(noise, axis=1, kind="stable")[chunk, places % self._chunk_size]
        turn, offset = np.divmod(slot, self.run_length)
        turns = chunks[:, None] * self.runs_per_chunk + np.arange(self.runs_per_chunk)  # (chunks, runs_per_chunk)
        whole = self.entries // self.run_length  # a shorter run stays the last
        runs = np.where(turns < whole, permuted(turns % max(1, whole), whole, _key(self.seed, "runs", epoch)), turns)
        entries = runs[chunk, turn] * self.run_length + offset
        unit, total = (1, self.samples) if self._line is None else (_UNIT, self._line.total)
        return (entries * unit + _draw(_key(self.seed, "start", epoch), total)) % total

    @property
    def _chunk_size(self) -> int:
        return self.run_length * self.runs_per_chunk

    @cached_property
    def _line(self) -> "_Line | None":
        return None if self.weights is None else _Line(self.weights)


class _Line:
    """Weights laid end to end, in layers: layer c holds what of each weight lies between c and c + 1.

    Points that are a unit apart hit a sample once in every layer that it fills, never twice in a layer. Layers follow
    one another, so the copies of a sample are far apart. Only the sums of blocks are kept, `_TABLE` or few more.
    """

    def __init__(self, weights: NDArray[np.float32]) -> None:
        self._weights = weights
        least, most = (float(bound) for bound in (weights.min(initial=MAX_WEIGHT), weights.max(initial=0)))
        if not (least >= 0 and most <= MAX_WEIGHT):  # NaN passes neither
            raise ValueError(f"weights from {least:g} to {most:g}: a weight must be between 0 and {MAX_WEIGHT}")
        layers = max(1, math.ceil(most))
        self._block = _BLOCK
        while len(weights) * layers > _TABLE * self._block:
            self._block *= 2
        self._blocks = -(-len(weights) // self._block)
        sums = np.zeros((layers, self._blocks), np.int64)
        slab = max(_SLAB, self._block)  # both are powers of two
        for start in range(0, len(weights), slab):
            units = _units(weights[start : start + slab])
            first = start // self._block
            bounds = np.arange(0, len(units), self._block)
            sums[0, first : first + len(bounds)] = np.add.reduceat(np.minimum(units, _UNIT), bounds)
            high = np.flatnonzero(units > _UNIT)  # how many of them fill how many layers, and what is left of each
            filled, left = units[high] >> _BITS, units[high] & (_UNIT - 1)  # as divmod, in a fifth of the time
            cell, shape = high // self._block * (layers + 1) + filled, (len(bounds), layers + 1)
            count = np.bincount(cell, minlength=math.prod(shape)).reshape(shape)
            rest = np.bincount(cell, left, math.prod(shape)).reshape(shape)  # float64, exact: far below 2**53
            above = np.cumsum(count[:, ::-1], axis=1)[:, ::-1]  # that fill so many layers or more
            found = above[:, 2:] * _UNIT + rest[:, 1:-1].astype(np.int64)
            sums[1:, first : first + len(bounds)] = found.T
        self._starts = np.concatenate([[0], np.cumsum(sums)])  # of each block of each layer, and the end
        self.total = int(self._starts[-1])  # in units

    def find(self, points: Numbers) -> tuple[Numbers, Numbers]:
        """The samples at some points (n,), and the layers, which tell the copies of a sample apart; each (n,)."""
        order = np.argsort(points)  # each block is read once, forwards
        points = points[order]
        cells = np.searchsorted(self._starts, points, side="right") - 1
        layers, blocks = np.divmod(cells, self._blocks)
        samples, copies = np.empty_like(points), np.empty_like(points)
        copies[order] = layers
        distinct, begins = np.unique(cells, return_index=True)
        begins = np.append(begins, len(points))
        step = max(1, _SLAB // self._block)
        for first in range(0, len(distinct), step):
            part = slice(begins[first], begins[min(first + step, len(distinct))])
            ends = self._ends(distinct[first : first + step])
            hit = np.searchsorted(ends.ravel(), points[part], side="right")  # who weighs nothing is passed over
            samples[order[part]] = blocks[part] * self._block + hit % self._block
        return samples, copies

    def _ends(self, cells: Numbers) -> Numbers:
        """Where the stretch of each sample ends, for some blocks of some layers: (cells, block), ascending."""
        layers, blocks = np.divmod(cells, self._blocks)
        samples = blocks[:, None] * self._block + np.arange(self._block)
        units = _units(self._weights[np.minimum(samples, len(self._weights) - 1)])
        units[samples >= len(self._weights)] = 0  # the last block is short
        inside = np.clip(units - layers[:, None] * _UNIT, 0, _UNIT)
        return self._starts[cells][:, None] + np.cumsum(inside, axis=1)


def _units(weights: NDArray[np.float32]) -> Numbers:
    """Rounded up, so that no weight above 0 becomes 0. Exact in float32: the scale is a power of two."""
    return np.ceil(np.asarray(weights, np.float32) * np.float32(_UNIT)).astype(np.int64)


def permuted(numbers: Numbers, size: int, key: Bits) -> Numbers:
    """Where the bijection of 0..size-1 that `key` names sends `numbers`, of any shape.

    A generalised Feistel network on a × b cells, a · b ≥ size; what lands outside walks on until it is inside
    (J. Black, P. Rogaway 2002, "Ciphers with arbitrary finite domains", methods 2 and 3).
    """
    if size <= 1:
        return numbers
    a = math.isqrt(size - 1) + 1
    b = -(-size // a)
    moved = numbers.astype(np.uint64)
    outside = np.ones(moved.shape, bool)
    while outside.any():
        moved[outside] = _feistel(moved[outside], a, b, key)
        outside = moved >= size
    return moved.astype(np.int64)


_ROUNDS = 4  # pairs of rounds: four single ones are the least for a pseudo-random permutation (Luby, Rackoff 1988)


def _feistel(numbers: Bits, a: int, b: int, key: Bits) -> Bits:
    left, right = np.divmod(numbers, np.uint64(b))  # of Z_a and Z_b
    for turn in range(_ROUNDS):
        left = (left + _below(a, _hash(_mix(key + np.uint64(2 * turn)), right))) % np.uint64(a)
        right = (right + _below(b, _hash(_mix(key + np.uint64(2 * turn + 1)), left))) % np.uint64(b)
    return left * np.uint64(b) + right


def _below(bound: int, bits: Bits) -> Bits:
    """Uniform in 0..bound-1, for bounds up to 2**32."""
    return ((bits >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32)


# ---- SplitMix64, as in ssl_models/batch.py (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators")

_GOLDEN, _FIRST, _SECOND = (np.uint64(one) for one in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _key(seed: int, purpose: str, epoch: int) -> Bits:
    """(1,): separates the draws of each seed, purpose and epoch."""
    key = np.array([seed % 2**64], np.uint64)
    for part in (zlib.crc32(purpose.encode()), epoch):
        key = _mix(key + np.uint64(part) + _GOLDEN)
    return key


def _hash(key: Bits, numbers: NDArray[np.integer]) -> Bits:
    """64 random bits for each number ≥ 0, of its shape."""
    return _mix(key + (numbers.astype(np.uint64) + np.uint64(1)) * _GOLDEN)


def _draw(key: Bits, bound: int) -> int:
    """Uniform in 0..bound-1: from 128 bits, so that no bound is near enough to bias it."""
    high, low = (int(bits) for bits in _hash(key, np.arange(2)))
    return ((high << 64) | low) % bound


def _mix(bits: Bits) -> Bits:
    bits = (bits ^ (bits >> np.uint64(30))) * _FIRST
    bits = (bits ^ (bits >> np.uint64(27))) * _SECOND
    return bits ^ (bits >> np.uint64(31))
