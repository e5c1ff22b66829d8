"""How fast curation is, stage by stage against its floor and as a whole against a plain loop; and that memory is flat.

The floor of a stage is the least that any implementation must do: read the bytes, hash them, decode them with Pillow.
The plain loop is what a download tool does to each picture, without any care: it shows what guards and measures cost.
"""

import hashlib
import io
import json
import math
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from pydantic import Field

from jobs.bench import Cell, Table
from pipeline.cluster import connected
from pipeline.curate import curate
from pipeline.ingest.decode import canonical, decoded
from pipeline.ingest.guard import DecodeLimits, GuardedDecoder
from pipeline.ingest.language import language_of
from pipeline.ingest.measures import measure, perceptual_hash
from pipeline.ingest.places import place_of
from pipeline.ingest.running import Progress
from pipeline.ingest.store import INDEX, SHARDS, Manifest, Store
from pipeline.ingest.units import Unit, read
from pipeline.ingest.write import ShardWriter
from pipeline.select.duplicates import MAX_DISTANCE, near_duplicates
from pipeline.select.policy import PRESETS, Funnel, Inputs, apply
from tests.benchmarks.processes import KINDS, Cost, Watch, cost, costs
from tests.benchmarks.scenes import pictures

SIDE, QUALITY = 288, 90
READ = ["id", "pixels", "split", "original_width", "original_height", "std", "entropy", "sharpness", "phash", "thumb"]
PER_TAR = 10_000  # images, at most
CAPTIONS = ("a dog runs over the wet sand of a beach", "zwei Männer sitzen auf einer Bank", "IMG_2041", "le marché")


def main(
    images: Annotated[int, Field(ge=16)] = 1000,
    side: Annotated[int, Field(ge=8, le=1024)] = 500,
    data: Path | None = None,
    repeats: Annotated[int, Field(ge=1)] = 3,
    stage_images: Annotated[int, Field(ge=16)] = 150,
    hashes: Annotated[int, Field(ge=1000)] = 1_000_000,
) -> list[Table]:
    """Speed of each stage of curation against its floor, of the whole against a plain loop, and memory over time.

    With data=FOLDER on its JPEGs, else on generated ones, `side` pixels wide. images=200000 side=32 repeats=1 shows
    that memory is flat.
    """
    with tempfile.TemporaryDirectory(prefix="bench") as temporary:
        folder = Path(temporary)
        tars, count = write_tars(folder / "source", pictures(images, side, data), images)
        whole, memory, manifest = _whole(folder, tars, count, repeats)
        raws = list(pictures(stage_images, side, data))
        stages = _stages(folder, raws, repeats) + _decisions(folder, manifest, hashes, repeats)
    columns = ("stage", "per s and core", "CPU ms each", "its floor", "floor CPU ms", "× floor")
    mean = np.mean([len(raw) for raw in raws]) / 1000
    note = f"medians of {repeats} on {len(raws)} JPEGs of {mean:.0f} KB; CPU time of parent and child"
    return [Table("stages", columns, stages, note), whole, memory]


def write_tars(folder: Path, raws: Iterable[bytes], images: int, tars: int = 8) -> tuple[list[Path], int]:
    """WebDataset tars, `tars` or more if there are as many as `images`; and how many images there are."""
    folder.mkdir()
    per_tar = min(PER_TAR, math.ceil(images / tars))
    for number, raw in enumerate(raws):
        if number % per_tar == 0:
            path = folder / f"{number // per_tar:05d}.tar"
            archive = tarfile.open(path, "w")  # noqa: SIM115
        _add(archive, f"{number:08d}.jpg", raw)
        if (number + 1) % per_tar == 0:
            archive.close()
    archive.close()
    return sorted(folder.iterdir()), number + 1


def plain_loop(tars: list[Path], to: Path) -> None:
    """Opens, converts, shrinks, encodes, hashes, writes each picture: one process, no guard, no measure, no index."""
    to.mkdir(exist_ok=True)
    for path in tars:
        with tarfile.open(path) as source, tarfile.open(to / path.name, "w") as out:
            for member in source:
                file = source.extractfile(member)
                assert file is not None
                raw = file.read()
                image = shrunk(Image.open(io.BytesIO(raw)).convert("RGB"))
                buffer = io.BytesIO()
                image.save(buffer, "JPEG", quality=QUALITY)
                _add(out, member.name, buffer.getvalue())
                notes = {"sha256": hashlib.sha256(raw).hexdigest(), "width": image.width, "height": image.height}
                _add(out, member.name.replace(".jpg", ".json"), json.dumps(notes).encode())


def shrunk(image: Image.Image) -> Image.Image:
    """With its shorter side SIDE at most."""
    scale = min(1, SIDE / min(image.size))
    size = round(image.width * scale), round(image.height * scale)
    return image if scale == 1 else image.resize(size, Image.Resampling.HAMMING)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def _whole(folder: Path, tars: list[Path], images: int, repeats: int) -> tuple[Table, Table, Manifest]:
    """`curate` on Ray and the plain loop, in turns; the memory of the first curation."""
    watches, curations, loops = list[Watch](), list[Cost](), list[Cost]()
    with connected():
        for number in range(repeats):
            with Watch() as watch:
                found = cost(partial(_curate, folder, number, images, watch))
            watches.append(watch)
            curations.append(Cost(watch.seconds, found.wall))
            loops.append(cost(partial(plain_loop, tars, folder / "plain")))
    manifest = Store(folder / "store0").manifest
    seen = manifest.seen
    cpu, wall = np.median([curations, loops], axis=1).T  # (2,) each
    ours, plain = np.stack([seen / cpu, cpu / seen * 1000, seen / wall, wall], axis=1).tolist()
    ratios = [one / other for one, other in zip(ours, plain, strict=True)]
    rows: list[tuple[Cell, ...]] = [
        ("curate on Ray", *ours),
        ("plain loop, 1 process", *plain),
        ("curate ÷ plain loop", *ratios),
    ]
    columns = ("whole", "images/s/core", "CPU ms an image", "images/s", "seconds")
    title = f"whole: {seen:,} images in {len(tars)} tars, {manifest.kept:,} kept"
    note = f"medians of {repeats}; CPU time of all processes, Ray's own among them; Ray was started before"
    memory = [
        (phase, *(peaks[kind] / 2**20 if peaks[kind] else None for kind in KINDS))
        for phase, peaks in watches[0].peaks.items()
    ]
    return (
        Table(title, columns, rows, note),
        Table("memory: largest process of each kind, MB resident", ("until", *KINDS), memory),
        manifest,
    )


def _curate(folder: Path, number: int, images: int, watch: Watch) -> None:
    def tell(progress: Progress) -> None:
        quarter = f"{25 * min(4, 1 + 4 * progress.seen // images)} %"
        watch.phase = quarter if progress.stage == "decoding" else progress.stage

    curate(folder / "source", folder / f"store{number}", on_progress=tell)


def _stages(folder: Path, raws: list[bytes], repeats: int) -> list[tuple[Cell, ...]]:
    """Reading to writing."""
    (tar,), _ = write_tars(folder / "few", raws, len(raws), tars=1)
    unit, place = Unit(kind="tar", path=tar.name), place_of(tar.parent)[0]
    joined = b"".join(raws)
    kept = [canonical(raw, SIDE, QUALITY) for raw in raws]
    rgbs = [decoded(raw, SIDE).rgb for raw in raws]
    grays = [rgb.convert("L") for rgb in rgbs]

    def each(function: Callable[..., object], items: Iterable[object]) -> Callable[[], object]:
        return lambda: [function(item) for item in items]

    def decode(raw: bytes) -> None:
        Image.open(io.BytesIO(raw)).load()

    def shrink(raw: bytes) -> Image.Image:
        return shrunk(Image.open(io.BytesIO(raw)).convert("RGB"))

    def shards() -> None:
        with ShardWriter(folder, 0, len(raws)) as writer:
            for position, one in enumerate(kept):
                writer.add(position, one.jpeg, [], {"id": one.pixels, "captions": [], "label": None, "source": "a"})
            writer.close()

    def bytes_only() -> None:
        with (folder / "bytes").open("wb") as file:
            for one in kept:
                file.write(one.jpeg)
            file.flush()
            os.fsync(file.fileno())

    (folder / SHARDS).mkdir()
    captions = [CAPTIONS[number % len(CAPTIONS)] for number in range(len(raws) * 10)]
    each(language_of, captions)()  # loads the model
    rows = []
    with GuardedDecoder(DecodeLimits(side=SIDE, quality=QUALITY)) as decoder:

        def guarded() -> object:
            return [0 for _ in decoder.decode((None, raw) for raw in raws)]

        guarded()  # starts the child
        for stage, work, floor_name, floor, count in (
            ("tar to samples", lambda: list(read(unit, place)), "read the file", tar.read_bytes, len(raws)),
            ("sha256 of the file", each(lambda raw: hashlib.sha256(raw).hexdigest(), raws), "of one buffer",
             lambda: hashlib.sha256(joined), len(raws)),
            ("decode, measure, encode, in process", each(lambda raw: canonical(raw, SIDE, QUALITY), raws),
             "Pillow's decode", each(decode, raws), len(raws)),
            ("· decode, RGB, resize", each(lambda raw: decoded(raw, SIDE), raws), "Pillow's alone",
             each(shrink, raws), len(raws)),
            ("· measures and signatures", each(measure, rgbs), None, None, len(raws)),
            ("· · perceptual hash of them", each(perceptual_hash, grays), None, None, len(raws)),
            ("· sha256 of the pixels", each(lambda rgb: hashlib.sha256(rgb.tobytes()), rgbs), None, None, len(raws)),
            ("· encode JPEG", each(lambda rgb: rgb.save(io.BytesIO(), "JPEG", quality=QUALITY), rgbs), None, None,
             len(raws)),
            ("the same, guarded child", guarded, "in process", each(lambda raw: canonical(raw, SIDE, QUALITY), raws),
             len(raws)),
            ("write shard", shards, "write the bytes", bytes_only, len(raws)),
            ("language of a caption", each(language_of, captions), None, None, len(captions)),
        ):  # fmt: skip
            rows.append(_row(stage, work, floor_name, floor, count, repeats))
    return rows


def _decisions(folder: Path, manifest: Manifest, hashes: int, repeats: int) -> list[tuple[Cell, ...]]:
    """Index, policy and near duplicates."""
    path = folder / "store0" / INDEX
    policy = _row(
        "policy clean over the index",
        lambda: apply(PRESETS["clean"][0], Inputs(), Funnel.over(path)),
        "read its columns",
        lambda: pq.read_table(path, columns=READ),
        manifest.admitted,
        repeats,
    )
    rows = [policy]
    again = costs(repeats, lambda: pq.write_table(pq.read_table(path), folder / "again.parquet", compression="zstd"))
    seconds, floor = manifest.seconds["index"] / manifest.admitted, again[0].cpu / manifest.admitted
    rows.append(("write the index (wall)", 1 / seconds, 1000 * seconds, "read and write it", 1000 * floor,
                 seconds / floor))  # fmt: skip
    for count in sorted({hashes // 10, hashes}):
        values, thumbs = planted_hashes(count)
        search = partial(near_duplicates, values, thumbs, MAX_DISTANCE, np.ones(count, np.int64))
        rows.append(
            _row(f"near duplicates of {count:,}", search, "sort the hashes", partial(np.sort, values), count, 1)
        )
    return rows


def planted_hashes(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Random hashes (n,) uint64 and thumbnails (n, 48) uint8; one in a hundred is near to another."""
    generator = np.random.default_rng(0)
    values = generator.integers(0, 2**64, count, np.uint64)
    thumbs = generator.integers(0, 256, (count, 48), np.uint8)
    copies = count // 100
    values[-copies:] = values[:copies] ^ np.uint64(5)
    thumbs[-copies:] = thumbs[:copies]
    return values, thumbs


def _row(
    stage: str, work: Callable[[], object], floor_name: str | None, floor: Callable[[], object] | None, count: int,
    repeats: int,
) -> tuple[Cell, ...]:  # fmt: skip
    found = costs(repeats, work, *([floor] if floor else []))
    each, least = (1000 * one.cpu / count for one in (found[0], found[-1]))
    if floor is None:
        return stage, 1000 / each, each, None, None, None
    return stage, 1000 / each, each, floor_name, least, each / least
