"""Pictures to measure with: those of a folder, or generated ones with the statistics of photos."""

import io
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

FIELD = 1024  # pixels a side of the random field that scenes are cut from
SUFFIXES = (".jpg", ".jpeg")


def pictures(images: int, side: int, data: Path | None = None) -> Iterator[bytes]:
    """JPEG files: up to `images` of the folder `data`, evenly over its sorted paths, or generated, `side` pixels wide.

    Raises:
        ValueError: the folder holds no JPEG.
    """
    if data is None:
        generator = np.random.default_rng(0)
        for _ in range(images):
            yield encoded(scene(generator, side, max(8, side * 3 // 4)), 85)
        return
    paths = sorted(path for path in data.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f"data={data} holds no {' or '.join(SUFFIXES)}: name a folder of photos")
    for place in np.unique(np.linspace(0, len(paths) - 1, min(images, len(paths))).astype(int)):
        yield paths[place].read_bytes()


def scene(generator: np.random.Generator, width: int, height: int) -> Image.Image:
    """An RGB picture with the spectrum of photos (power ∝ 1/f², Field 1987), hard edges and some sensor noise."""
    gray, red, blue = (_cut(generator, width, height) for _ in range(3))
    contrast, light = generator.uniform(25, 60), generator.uniform(70, 185, 3)
    rgb = np.stack([gray + 0.5 * red, gray - 0.25 * red - 0.25 * blue, gray + 0.5 * blue], axis=2) * contrast + light
    rgb += generator.normal(0, 2, (height, width, 1))
    image = Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(3):
        corners = generator.uniform(-0.1, 1.1, (4, 2)) * (width, height)
        draw.polygon([tuple(corner) for corner in corners.tolist()], tuple(generator.integers(0, 256, 3).tolist()))
    return image


def encoded(image: Image.Image, quality: int = 90) -> bytes:
    """A JPEG, with full colour where it is small."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=0 if min(image.size) < 128 else 2)
    return buffer.getvalue()


def _cut(generator: np.random.Generator, width: int, height: int) -> np.ndarray:
    """A piece (height, width) of the field, of mean 0 and spread 1."""
    top, left = generator.integers(0, FIELD, 2)
    rows, columns = (top + np.arange(height)) % FIELD, (left + np.arange(width)) % FIELD
    piece = _field()[np.ix_(rows, columns)]
    if generator.random() < 0.5:
        piece = piece[:, ::-1]
    return (piece - piece.mean()) / max(float(piece.std()), 1e-6)


@cache
def _field() -> np.ndarray:
    """Periodic noise (FIELD, FIELD) float32 with amplitudes ∝ 1/f."""
    frequencies = np.hypot(np.fft.fftfreq(FIELD)[:, None], np.fft.rfftfreq(FIELD)[None, :])
    frequencies[0, 0] = 1
    noise = np.fft.rfft2(np.random.default_rng(1).normal(size=(FIELD, FIELD)))
    return np.fft.irfft2(noise / frequencies, (FIELD, FIELD)).astype(np.float32)
