"""How many planted duplicates each stage of the search finds, and how many different pictures it takes for one."""

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image, ImageDraw
from pydantic import Field

from jobs.bench import Cell, Table
from pipeline.ingest.blocklist import NEAR
from pipeline.ingest.decode import canonical, decoded
from pipeline.ingest.refusals import Refusal
from pipeline.select.duplicates import MAX_DISTANCE, THUMB_DISTANCE, near_duplicates, near_pairs, thumb_distance
from pipeline.select.kmeans import kmeans
from pipeline.select.semantic import closest_earlier
from tests.benchmarks.planted import KINDS, planted
from tests.benchmarks.scenes import pictures

SIDE, QUALITY = 288, 90
ORIGINAL = -1  # as a kind
FINDABLE = ("JPEG", "resize", "letters", "logo", "brighter", "contrast")  # what a perceptual hash is made for
THUMB_LIMITS = (None, 24.0, 16.0, 12.0, 8.0, 6.0, 4.0)
DISTANCES = (0, 2, 4, 6, 8)  # of two hashes with 32 set bits each, as all have but for ties: always even
EPSILONS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
SHOWN, ACROSS, PIXELS = 96, 8, 80  # of the drawing: pairs, pairs in a row, pixels a side of a picture


@dataclass(frozen=True)
class Pool:
    """Originals, then their copies; all arrays have a row a picture."""

    original: np.ndarray  # (n,) number of the original
    kind: np.ndarray  # (n,) ORIGINAL, or a number in KINDS
    files: np.ndarray  # (n,) sha256 of the file, as numbers
    pixels: np.ndarray  # (n,) the same of the pixels
    hashes: np.ndarray  # (n,) uint64
    thumbs: np.ndarray  # (n, 48) uint8

    @property
    def copies(self) -> np.ndarray:
        """(n,) bool"""
        return self.kind != ORIGINAL


REAL = "which may be duplicates after all in real data: pairs=FILE.png draws them"


def main(
    images: Annotated[int, Field(ge=2)] = 500,
    copied: Annotated[int, Field(ge=1)] = 200,
    side: Annotated[int, Field(ge=8, le=1024)] = 300,
    data: Path | None = None,
    encoder: Path | None = None,
    pairs: Path | None = None,
) -> list[Table]:
    """What the search for duplicates finds of planted ones, by kind, and what it takes for a duplicate by mistake.

    With data=FOLDER on its JPEGs, else on generated ones, `side` pixels wide; encoder=RUN adds the semantic search;
    pairs=FILE.png draws pairs of different originals that are taken for one.
    """
    if encoder is not None:
        _checkpoint(encoder)
    if pairs is not None and not pairs.absolute().parent.is_dir():
        raise ValueError(f"pairs={pairs}: there is no folder {pairs.absolute().parent}")
    raws = list(pictures(images, side, data))
    chosen = np.unique(np.linspace(0, len(raws) - 1, min(copied, len(raws))).astype(int)).tolist()
    copies = [(number, KINDS.index(kind), raw) for number in chosen for kind, raw in planted(raws[number])]
    pool, refused = pooled([(number, ORIGINAL, raw) for number, raw in enumerate(raws)] + copies)
    near = _Near.of(pool)
    title = f"{(~pool.copies).sum():,} originals, {pool.copies.sum():,} copies of {len(chosen):,} of them"
    title += f", {refused} refused" if refused else ""
    tables = [_recall(pool, near, title), _limits(pool, near), _dropped(pool)]
    if pairs is not None:
        draw_pairs(pool, near, raws, pairs)
    return [*tables, semantic(raws, copies, encoder)] if encoder else tables


def pooled(pictures: list[tuple[int, int, bytes]]) -> tuple[Pool, int]:
    """Measures (original, kind, file) as curation does; what it refuses is left out and counted."""
    rows, refused = [], 0
    for original, kind, raw in pictures:
        try:
            found = canonical(raw, SIDE, QUALITY, encode=False)
        except Refusal:
            refused += 1
            continue
        file = hashlib.sha256(raw).hexdigest()
        rows.append((original, kind, int(file[:15], 16), int(found.pixels[:15], 16), found.measures))
    original_of, kinds, files, pixels = np.array([row[:4] for row in rows], np.int64).T
    thumbs = np.frombuffer(b"".join(row[4].thumb for row in rows), np.uint8).reshape(-1, 48)
    hashes = np.array([row[4].phash for row in rows], np.uint64)
    return Pool(original_of, kinds, files, pixels, hashes, thumbs), refused


@dataclass(frozen=True)
class _Near:
    """All pairs within the largest of DISTANCES, whatever their thumbnails, by comparing all with all."""

    rows: np.ndarray  # (m, 2), first < second
    bits: np.ndarray  # (m,)
    thumb: np.ndarray  # (m,) mean absolute difference

    @classmethod
    def of(cls, pool: Pool) -> "_Near":
        found = []
        for row in range(len(pool.hashes) - 1):
            bits = np.bitwise_count(pool.hashes[row + 1 :] ^ pool.hashes[row])
            others = np.flatnonzero(bits <= DISTANCES[-1])
            found.append(np.stack([np.full(len(others), row), others + row + 1], 1))
        rows = np.concatenate(found)
        first, second = rows.T
        bits = np.bitwise_count(pool.hashes[first] ^ pool.hashes[second]).astype(int)
        near = cls(rows, bits, thumb_distance(pool.thumbs, first, second))
        quick = near_pairs(pool.hashes, pool.thumbs, MAX_DISTANCE)
        slow = rows[near.within(MAX_DISTANCE, THUMB_DISTANCE)]
        assert quick.skipped or np.array_equal(quick.rows, slow[np.lexsort(slow.T)]), "near_pairs misses or invents"
        return near

    def within(self, distance: int, limit: float | None) -> np.ndarray:
        """(m,) bool"""
        return (self.bits <= distance) & (self.thumb <= (256 if limit is None else limit))

    def found(self, pool: Pool) -> np.ndarray:
        """Pairs of an original and its copy."""
        first, second = self.rows.T
        same = pool.original[first] == pool.original[second]
        return same & ~pool.copies[first] & pool.copies[second]

    def others(self, pool: Pool) -> np.ndarray:
        """Pairs of two originals that differ in pixels; in real data some of them are duplicates all the same."""
        first, second = self.rows.T
        originals = ~pool.copies[first] & ~pool.copies[second]
        return originals & (pool.pixels[first] != pool.pixels[second])


def _recall(pool: Pool, near: _Near, title: str) -> Table:
    rows_of = {number: row for row, number in enumerate(pool.original.tolist()) if not pool.copies[row]}
    own = np.array([rows_of.get(number, -1) for number in pool.original.tolist()])  # row of the original of each row
    true = near.found(pool)
    settings = [(distance, limit) for limit in (THUMB_DISTANCE, None) for distance in DISTANCES[:-1]]
    hits = [set(near.rows[true & near.within(*setting), 1].tolist()) for setting in settings]
    rows: list[tuple[Cell, ...]] = []
    for number, kind in enumerate(KINDS):
        mine = np.flatnonzero((pool.kind == number) & (own >= 0))
        if not len(mine):
            continue
        bits = np.bitwise_count(pool.hashes[mine] ^ pool.hashes[own[mine]])
        thumb = thumb_distance(pool.thumbs, mine, own[mine])
        rows.append((
            kind, len(mine), _percent(pool.files[mine] == pool.files[own[mine]]),
            _percent(pool.pixels[mine] == pool.pixels[own[mine]]),
            *(_percent(np.isin(mine, list(hit))) for hit in hits), float(np.median(bits)),
            float(np.percentile(thumb, 95)),
        ))  # fmt: skip
    columns = (
        "found, %", "copies", "bytes", "pixels", *(f"d {distance}" for distance in DISTANCES[:-1]),
        *(f"d {distance}*" for distance in DISTANCES[:-1]), "bits (median)", "thumb (95 %)",
    )  # fmt: skip
    note = f"d: bits that hashes may differ in, thumbnails within {THUMB_DISTANCE:g}; *: whatever the thumbnails"
    return Table(title, columns, rows, note)


def _limits(pool: Pool, near: _Near) -> Table:
    """Recall of what can be found, against different originals taken for one."""
    findable = [number for number, kind in enumerate(KINDS) if kind.startswith(FINDABLE)]
    count = int(np.isin(pool.kind, findable).sum())
    true = near.found(pool) & np.isin(pool.kind[near.rows[:, 1]], findable)
    others = near.others(pool)
    rows: list[tuple[Cell, ...]] = []
    for limit in THUMB_LIMITS:
        within = [near.within(distance, limit) for distance in DISTANCES]
        found = [100 * float((true & pairs).sum()) / count for pairs in within]
        taken = [int((others & pairs).sum()) for pairs in within]
        rows.append(("any" if limit is None else f"{limit:g}", *found, *taken))
    columns = ("thumb limit", *(f"found d {distance}" for distance in DISTANCES),
               *(f"others d {distance}" for distance in DISTANCES))  # fmt: skip
    note = f"found: % of {count:,} copies ({', '.join(FINDABLE)}); others: pairs of different originals, {REAL}"
    return Table("distance and thumbnail limit", columns, rows, note)


def _dropped(pool: Pool) -> Table:
    """What the policy's stage does to the pool, where originals come first."""
    rows: list[tuple[Cell, ...]] = []
    for thumbs, name in ((pool.thumbs, f"{THUMB_DISTANCE:g}"), (np.zeros_like(pool.thumbs), "any")):
        for distance in (0, NEAR, MAX_DISTANCE):
            stands, _ = near_duplicates(pool.hashes, thumbs, distance, pool.copies.astype(np.int64))
            gone = stands != np.arange(len(stands))
            right = pool.original[stands] == pool.original
            copies, lost = gone & pool.copies, int((gone & ~pool.copies).sum())
            precision = 100 * float((copies & right).sum()) / max(1, int(gone.sum()))
            rows.append((distance, name, int((copies & right).sum()), int((copies & ~right).sum()), lost, precision,
                         100 * lost / int((~pool.copies).sum())))  # fmt: skip
    columns = ("distance", "thumb limit", "copies", "copies of others", "originals", "precision, %",
               "originals dropped, %")  # fmt: skip
    note = f"dropped for another picture: 'copies of others' and 'originals', {REAL}"
    return Table("what `near_distance` drops", columns, rows, note)


def draw_pairs(pool: Pool, near: _Near, raws: list[bytes], path: Path) -> None:
    """Draws pairs of different originals with similar thumbnails, evenly from the nearest to the farthest: a person
    must say which are duplicates after all. Above each pair: bits, difference of the thumbnails."""
    rows = np.flatnonzero(near.others(pool) & near.within(DISTANCES[-1], THUMB_DISTANCE))
    rows = rows[np.lexsort((near.thumb[rows], near.bits[rows]))]
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(SHOWN, len(rows))).astype(int))]
    wide, high = 2 * PIXELS + 8, PIXELS + 16
    page = Image.new("RGB", (ACROSS * wide, max(1, -(-len(rows) // ACROSS)) * high), "white")
    for place, row in enumerate(rows):
        x, y = place % ACROSS * wide, place // ACROSS * high
        ImageDraw.Draw(page).text((x, y), f"{near.bits[row]}, {near.thumb[row]:.1f}", fill="black")
        for half, number in enumerate(pool.original[near.rows[row]]):
            picture = decoded(raws[number], SIDE).rgb.resize((PIXELS, PIXELS))
            page.paste(picture, (x + half * PIXELS, y + 14))
    page.save(path)


def _checkpoint(run: Path) -> Any:
    """Raises ValueError where there is none."""
    from pipeline.run import Run  # here: the rest needs no torch

    checkpoint = Run.open(run).newest_checkpoint()
    if checkpoint is None:
        raise ValueError(f"encoder={run} has no whole checkpoint: name the directory of a trained run")
    return checkpoint


def semantic(raws: list[bytes], copies: list[tuple[int, int, bytes]], run: Path) -> Table:
    """Recall and false merges of the semantic search with the encoder of a run."""
    from pipeline.cluster import connected
    from pipeline.curate import curate
    from pipeline.evaluate.embed import Embedding
    from pipeline.evaluate.encoders import RunEncoders
    from pipeline.ingest.config import CurateConfig
    from pipeline.ingest.store import Store
    from pipeline.run import Run
    from pipeline.select.blocks import EmbeddingBlocks
    from pipeline.select.policy import PRESETS

    opened = Run.open(run)
    with tempfile.TemporaryDirectory(prefix="bench") as temporary, connected(cpus=opened.experiment.cluster.cpus):
        source = Path(temporary, "source")
        source.mkdir()
        for original, kind, raw in [(number, ORIGINAL, raw) for number, raw in enumerate(raws)] + copies:
            (source / f"{original:07d}_{kind}.jpg").write_bytes(raw)
        curate(source, Path(temporary, "store"), CurateConfig(holdout=0), policy=PRESETS["none"][0])
        store = Store(Path(temporary, "store"))
        names = [name.removesuffix(".jpg").split("_") for name in store.columns("source")["source"].to_pylist()]
        original, kind = np.array(names).astype(int).T
        numbers = np.arange(len(names))
        embedding = Embedding(opened.experiment.cluster, threads=1)
        parts = embedding.blocks(RunEncoders.of(opened), store, numbers, names=("trained",))
        blocks = EmbeddingBlocks.write(Path(temporary, "blocks"), (part["trained"] for part in parts))
        clusters = max(1, len(names) // 1000)
        closest = closest_earlier(
            blocks, kmeans(blocks, clusters, seed=0), priority=(kind != ORIGINAL).astype(int),
            probes=min(2, clusters),
        )  # fmt: skip
    right = original[closest.rows] == original
    copy, rows = kind != ORIGINAL, list[tuple[Cell, ...]]()
    for name, of, which in (
        *((name, right, kind == number) for number, name in enumerate(KINDS)),
        ("copies taken for another's", ~right, copy),
        ("originals dropped", right | ~right, ~copy),
    ):
        if which.any():
            rows.append((name, *(_percent((of & (closest.similarity > 1 - epsilon))[which]) for epsilon in EPSILONS)))
    columns = ("semantic: found, %", *(f"ε {epsilon:g}" for epsilon in EPSILONS))
    return Table(f"semantic duplicates, encoder {opened.path.name}", columns, rows)


def _percent(values: np.ndarray) -> float:
    return 100 * float(np.mean(values))
