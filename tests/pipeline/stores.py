"""Small sealed stores for tests."""

import colorsys
import io
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.ingest.curate import CurateConfig, curate


def write_dump(root: Path, count: int, side: int = 24, classes: tuple[str, ...] = ("red", "green", "blue")) -> Path:
    """Class folders of noisy pictures whose hue tells the class, each with a caption beside it."""
    generator = np.random.default_rng(0)
    for i in range(count):
        label = i % len(classes)
        colour = 200 * np.array(colorsys.hsv_to_rgb(label / len(classes), 0.8, 1.0))
        pixels = (colour + generator.integers(0, 55, (side, side + i % 3, 3))).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        path = root / classes[label] / f"{i:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getvalue())
        path.with_suffix(".txt").write_text(f"a {classes[label]} square, number {i}")
    return root


def make_store(folder: Path, count: int = 300, samples_per_shard: int = 50, holdout: float = 0.2) -> Path:
    """Curates such a dump (Ray must be connected); returns the store."""
    source = write_dump(folder / "dump", count)
    curate(source, folder / "store", CurateConfig(samples_per_shard=samples_per_shard, holdout=holdout))
    return folder / "store"
