"""The data of the stream's benchmark: the same JPEG files in the form that each loader reads, written once."""

import importlib.util
import io
import json
import math
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cluster import connected
from pipeline.curate import curate
from pipeline.ingest.config import CurateConfig
from pipeline.ingest.store import Store
from tests.benchmarks.scenes import pictures

# Folders and a file of the data.
PHOTOS, TARS, LITDATA, MOSAIC, STORE, INDEX = "photos", "tars", "litdata", "mosaic", "store", "index"
CAPTIONS = "captions.json"

CLASSES = 10  # folders of photos, as ImageFolder wants them
MIN_TARS = 8
CHUNK_BYTES = 16 * 2**20  # of LitData and MosaicML: several a process
SENTENCE = "a dog runs over the wet sand of a beach while two old men sit on a wooden bench by the river"


@dataclass(frozen=True)
class Written:
    """What there is to read."""

    images: int  # those that curation kept: every loader reads these
    dropped: int  # by curation
    photo_bytes: float  # mean
    stored_bytes: float  # mean of the canonical store's JPEGs
    missing: dict[str, str]  # format → why it was not written


def write_data(folder: Path, images: int, side: int, source: Path | None, cpus: int) -> Written:
    """Writes all formats below `folder`. What curation refuses or drops is taken from all of them.

    Raises:
        ValueError: no JPEG in `source`, or all were refused.
    """
    written = write_photos(folder, images, side, source)
    with connected():
        curate(folder / PHOTOS, folder / STORE, CurateConfig(holdout=0))
        store = Store(folder / STORE)
        kept = store.columns("source", "length").take(store.select("train"))
        names = set(kept["source"].to_pylist())
        for path in photos(folder):
            if str(path.relative_to(folder / PHOTOS)) not in names:
                path.unlink()
                path.with_suffix(".txt").unlink()
        curate(folder / PHOTOS, folder / INDEX, CurateConfig(holdout=0, in_place=True))
    return Written(
        images=len(kept),
        dropped=written - len(kept),
        photo_bytes=float(np.mean([path.stat().st_size for path in photos(folder)])),
        stored_bytes=float(np.mean(kept["length"].to_numpy())),
        missing=write_formats(folder, cpus),
    )


def write_photos(folder: Path, images: int, side: int, source: Path | None = None) -> int:
    """JPEGs in class folders, each with a caption beside it; how many there are."""
    number = -1
    for number, (raw, caption) in enumerate(zip(pictures(images, side, source), sentences(), strict=False)):
        path = folder / PHOTOS / f"{number % CLASSES:02d}" / f"{number:08d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
        path.with_suffix(".txt").write_text(caption)
    return number + 1


def write_formats(folder: Path, cpus: int) -> dict[str, str]:
    """The photos as other packages have them; which packages are missing: format → why."""
    captions = {int(path.stem): path.with_suffix(".txt").read_text() for path in photos(folder)}
    (folder / CAPTIONS).write_text(json.dumps(captions))
    _write_tars(folder / TARS, list(samples(folder)), max(MIN_TARS, 2 * cpus))
    missing = {}
    for name, module, write in ((LITDATA, "litdata", _write_litdata), (MOSAIC, "streaming", _write_mosaic)):
        if importlib.util.find_spec(module) is None:
            missing[name] = "not installed"
        else:
            write(folder / name, samples(folder))
    return missing


def sentences(seed: int = 0) -> Iterator[str]:
    """Captions of about ten words, without end."""
    generator, words = np.random.default_rng(seed), SENTENCE.split()
    while True:
        yield " ".join(generator.permutation(words)[: generator.integers(5, 16)].tolist())


def photos(folder: Path) -> list[Path]:
    return sorted((folder / PHOTOS).rglob("*.jpg"))


def read_captions(folder: Path) -> dict[int, str]:
    """By number."""
    return {int(number): caption for number, caption in json.loads((folder / CAPTIONS).read_text()).items()}


def samples(folder: Path) -> Iterator[dict[str, Any]]:
    """Number, bytes of the JPEG file, caption."""
    captions = read_captions(folder)
    for path in sorted(photos(folder), key=lambda path: path.stem):
        yield {"number": int(path.stem), "raw": path.read_bytes(), "caption": captions[int(path.stem)]}


def _write_tars(folder: Path, samples: list[dict[str, Any]], tars: int) -> None:
    """WebDataset tars: {key}.jpg, {key}.txt."""
    folder.mkdir()
    share = math.ceil(len(samples) / tars)
    for number, first in enumerate(range(0, len(samples), share)):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as archive:
            for sample in samples[first : first + share]:
                for suffix, content in (("jpg", sample["raw"]), ("txt", sample["caption"].encode())):
                    info = tarfile.TarInfo(f"{sample['number']:08d}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))


def _write_litdata(folder: Path, samples: Iterator[dict[str, Any]]) -> None:
    from litdata.streaming import Cache

    folder.mkdir()
    cache = Cache(str(folder), chunk_bytes=CHUNK_BYTES)
    for place, sample in enumerate(samples):
        cache[place] = sample
    cache.done()
    cache.merge()


def _write_mosaic(folder: Path, samples: Iterator[dict[str, Any]]) -> None:
    from streaming import MDSWriter

    columns = {"number": "int", "raw": "bytes", "caption": "str"}
    with MDSWriter(out=str(folder), columns=columns, size_limit=CHUNK_BYTES) as writer:
        for sample in samples:
            writer.write(sample)
