"""Embeddings on disk, under the digest of all that they depend on: weights, samples, and how these are seen.

FOLDER/<digest>/<column>.npy, and asked.json, which says what was asked for. A folder is of one encoder: what other
weights of it gave is removed. The arrays are mapped, so that a million rows cost no memory.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluate.encoders import digest_of
from pipeline.stream.read import Columns

ASKED = "asked.json"


def cached(
    folder: Path, asked: dict[str, Any], total: int, compute: Callable[[], Iterator[Columns]]
) -> dict[str, np.ndarray]:
    """What `compute` gives, `total` rows in blocks; or what it gave before, when the same was asked for."""
    place = folder / digest_of(asked)[:16]
    with suppress(OSError, ValueError):  # not there, cut, or of another make: computed anew
        return _read(place, total)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as scratch:
        written = Path(scratch) / "columns"
        written.mkdir()
        _write(written, total, compute())
        (written / ASKED).write_text(json.dumps(asked, indent=1))
        shutil.rmtree(place, ignore_errors=True)
        written.rename(place)
    _remove_of_other_weights(folder, asked["encoder"])
    return _read(place, total)


def _write(folder: Path, total: int, blocks: Iterator[Columns]) -> None:
    arrays: dict[str, np.memmap] = {}
    start = 0
    for block in blocks:
        for name, values in block.items():
            if name not in arrays:
                shape = (total, *values.shape[1:])
                arrays[name] = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", values.dtype, shape)
            arrays[name][start : start + len(values)] = values
        start += len(block["number"])
    assert start == total, (start, total)
    for array in arrays.values():
        array.flush()


def _read(place: Path, total: int) -> dict[str, np.ndarray]:
    (place / ASKED).read_bytes()
    # copy on write: torch warns of arrays that cannot be written to
    columns = {path.stem: np.load(path, mmap_mode="c", allow_pickle=False) for path in sorted(place.glob("*.npy"))}
    if {len(values) for values in columns.values()} != {total}:
        raise ValueError(f"{place} holds other rows")
    return columns


def _remove_of_other_weights(folder: Path, encoder: str) -> None:
    for place in folder.iterdir():
        with suppress(OSError, ValueError, KeyError):
            if json.loads((place / ASKED).read_text())["encoder"] != encoder:
                shutil.rmtree(place)
