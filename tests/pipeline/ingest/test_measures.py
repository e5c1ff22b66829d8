"""What is measured of a picture, against slow loops; and that the perceptual hash survives what copies go through."""

import io
import math
import os
import statistics
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline.ingest.measures import measure, perceptual_hash
from tests.test_architecture import ROOT

RNG = np.random.default_rng(0)


def photo(seed: int, size: tuple[int, int] = (400, 300)) -> Image.Image:
    """Smooth noise at two scales with shapes on it: many low frequencies, some edges."""
    rng = np.random.default_rng(seed)
    layers = [
        Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
        for cells in (5, 17)
    ]
    image = Image.blend(*layers, 0.4)
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y, width, height = rng.integers(0, 300), rng.integers(0, 220), rng.integers(20, 90), rng.integers(20, 70)
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((x, y, x + width, y + height), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image


def recoded(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def distance(one: Image.Image, other: Image.Image) -> int:
    return (measure(one).phash ^ measure(other).phash).bit_count()


@pytest.mark.parametrize("size", [(9, 7), (3, 3), (40, 1), (2, 30)])
def test_numbers_are_those_of_their_definitions(size: tuple[int, int]) -> None:
    image = Image.fromarray(RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    gray = np.asarray(image.convert("L"), np.float64)
    got = measure(image)
    assert got.mean == pytest.approx(gray.mean())
    assert got.std == pytest.approx(gray.std())
    shares = [float((gray == level).mean()) for level in range(256)]
    assert got.entropy == pytest.approx(-sum(share * math.log2(share) for share in shares if share))
    laplacian = [
        gray[y - 1, x] + gray[y + 1, x] + gray[y, x - 1] + gray[y, x + 1] - 4 * gray[y, x]
        for y in range(1, size[1] - 1)
        for x in range(1, size[0] - 1)
    ]
    assert got.sharpness == pytest.approx(np.var(laplacian) if laplacian else 0.0)


def test_a_flat_picture_has_no_contrast_no_entropy_and_no_edges() -> None:
    flat = measure(Image.new("RGB", (30, 20), (10, 200, 90)))
    assert (flat.std, flat.entropy, flat.sharpness) == (0, 0, 0)
    assert flat.thumb == bytes((10, 200, 90)) * 16


def test_the_hash_is_the_dct_of_its_definition() -> None:
    """By the double sum of DCT-II over the 32×32 picture."""
    gray = photo(1).convert("L")
    small = np.asarray(gray.resize((32, 32), Image.Resampling.LANCZOS), np.float64)
    angles = np.pi * (2 * np.arange(32) + 1) / 64
    low = [
        sum(small[y, x] * math.cos(u * angles[y]) * math.cos(v * angles[x]) * 4 for y in range(32) for x in range(32))
        for u in range(8)
        for v in range(8)
    ]
    middle = statistics.median(low)
    bits = "".join("1" if value > middle else "0" for value in low)
    assert perceptual_hash(gray) == int(bits, 2)
    assert bits.count("1") == 32


def test_the_hash_survives_encoding_and_resizing() -> None:
    distances = []
    for seed in range(12):
        image = photo(seed)
        distances += [distance(image, recoded(image, quality)) for quality in (30, 50, 75, 95)]
        for scale in (0.25, 0.5, 0.8, 1.5, 2.0):
            size = (round(image.width * scale), round(image.height * scale))
            distances.append(distance(image, image.resize(size, Image.Resampling.BICUBIC)))
    assert statistics.median(distances) <= 3
    assert max(distances) <= 8


def test_the_hash_and_the_thumb_tell_pictures_apart() -> None:
    images = [photo(seed) for seed in range(12)]
    apart = [distance(one, other) for place, one in enumerate(images) for other in images[:place]]
    assert min(apart) > 8
    red, blue = Image.new("RGB", (64, 64), (200, 0, 0)), Image.new("RGB", (64, 64), (0, 68, 174))
    for image in (red, blue):
        image.paste("white", (0, 0, 32, 32))
    assert distance(red, blue) <= 3  # of like luminance
    colours = [np.frombuffer(measure(image).thumb, np.uint8).astype(int) for image in (red, blue)]
    assert np.abs(colours[0] - colours[1]).max() > 100


def test_the_thumb_is_the_mean_of_each_sixteenth() -> None:
    pixels = RNG.integers(0, 256, (40, 80, 3), dtype=np.uint8)
    means = pixels.reshape(4, 10, 4, 20, 3).mean((1, 3))
    thumb = np.frombuffer(measure(Image.fromarray(pixels)).thumb, np.uint8).reshape(4, 4, 3)
    assert np.abs(thumb - means).max() <= 1


@pytest.mark.parametrize("processor", ["Haswell", "SkylakeX", "Sandybridge"])
def test_numbers_do_not_depend_on_the_processor(processor: str) -> None:
    """Nor may a store: OpenBLAS adds in another order on each; and the decoder child has its own environment."""
    code = (
        "from tests.pipeline.ingest.test_measures import measure, photo\n"
        "print([measure(photo(seed, (97 + seed, 61))) for seed in range(20)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"OPENBLAS_CORETYPE": processor},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str([measure(photo(seed, (97 + seed, 61))) for seed in range(20)])
