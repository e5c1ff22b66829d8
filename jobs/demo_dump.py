"""Generate the demo's data set: an uncurated dump of small images in class folders, with caption sidecars and mess.

Every picture shows three or four copies of one shape; the shape names the folder. Colours, texture, background, places,
size, tilt and picture size are drawn independently of the shape, so raw pixels say little about the label. A dump also
holds what a stranger's disk holds: exact and near duplicates, truncated JPEGs, and files that are no images at all.
"""

import hashlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

COLOURS = {
    "white": (246, 246, 246), "yellow": (250, 222, 70), "pink": (252, 160, 196), "orange": (252, 160, 70),
    "cyan": (110, 224, 232), "lime": (160, 232, 90), "lavender": (188, 168, 252), "beige": (236, 212, 170),
    "mint": (150, 240, 200), "silver": (196, 200, 208),
}  # fmt: skip
TEXTURES = ("plain", "striped", "dotted", "checkered", "noisy")
BACKGROUNDS = ("plain", "gradient", "striped", "blotchy", "checkered", "noisy")
FIELD_CELLS = {"blotchy": (3, 6), "noisy": (16, 25)}  # from .. below: blobs per side of a random pattern
COPIES = {"three": (3, 0.50), "four": (4, 0.44)}  # how many, and the largest side of one as a share of the shorter side
MAX_TILT = 0.4  # radians either way
WRONG_FORMATS = {"html": ".jpg", "empty": ".jpg", "pdf": ".jpg", "text": ".png", "binary": ".bmp"}
EXACT_DUPLICATE_SHARE, NEAR_DUPLICATE_SHARE, TRUNCATED_SHARE, WRONG_FORMAT_SHARE = 0.03, 0.03, 0.01, 0.01
SMALLEST_DUMP = 20  # files; below, a dump could not hold every kind of mess
SUPERSAMPLING = 3  # outlines are drawn this many times larger, then averaged down
STORED_TURNS = {3: 2, 6: 1, 8: 3}  # EXIF orientation: the quarter turns (np.rot90) that make its stored pixels


@dataclass(frozen=True)
class DumpSummary:
    """Numbers of files by kind, captions not counted; a duplicate counts as the copy that it is, never as an image."""

    images: int
    exact_duplicates: int
    near_duplicates: int
    truncated: int
    wrong_format: int

    @property
    def total(self) -> int:
        """All files of the dump except captions."""
        return self.images + self.exact_duplicates + self.near_duplicates + self.truncated + self.wrong_format


def _polar(radius: Callable[[np.ndarray], np.ndarray], points: int = 72) -> np.ndarray:
    """Closed outline (points, 2) whose distance from the centre is radius(angle in radians); angle 0 points up."""
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return radius(angles)[:, None] * np.stack([np.sin(angles), -np.cos(angles)], axis=1)


def _bar(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """Outline (4, 2) of an upright rectangle."""
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def _heart() -> np.ndarray:
    """Heart outline (72, 2), tip down."""
    t = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([16 * np.sin(t) ** 3, y - 2.5], axis=1) / 16


_CIRCLE = _polar(np.ones_like)
# Each shape: the outlines to fill, then the outlines to cut out, in units where the shape spans about -1..1 (y down).
SHAPES: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {
    "circle": ([_CIRCLE * 0.92], []),
    "square": ([_bar(-0.8, -0.8, 0.8, 0.8)], []),
    "triangle": ([_polar(np.ones_like, 3) * 1.08 + (0, 0.2)], []),
    "star": ([_polar(lambda angles: np.where(np.arange(10) % 2 == 0, 1.1, 0.44), 10)], []),
    "ring": ([_CIRCLE], [_CIRCLE * 0.56]),
    "cross": ([_bar(-0.26, -1, 0.26, 1), _bar(-1, -0.26, 1, 0.26)], []),
    "crescent": ([_CIRCLE], [_CIRCLE * 0.82 + (0.45, 0)]),
    "heart": ([_heart()], []),
    "arrow": ([np.array([(-1, -0.25), (0.1, -0.25), (0.1, -0.75), (1, 0), (0.1, 0.75), (0.1, 0.25), (-1, 0.25)])], []),
    "ladder": ([_bar(x - 0.14, -0.95, x + 0.14, 0.95) for x in (-0.5, 0.5)]
               + [_bar(-0.5, y - 0.13, 0.5, y + 0.13) for y in (-0.56, 0.0, 0.56)], []),
}  # fmt: skip
LABELS = tuple(SHAPES)
MIRRORED_SHAPES = ("arrow", "crescent")  # drawn facing either way


def _smooth_field(height: int, width: int, cells: int, rng: np.random.Generator) -> np.ndarray:
    """Random field (height, width) float32 of about -1..1 with `cells` blobs per side."""
    coarse = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def _pattern(kind: str, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Lightness pattern (height, width, 1) of about -1..1 for a texture or background; plain is all zero."""
    if kind in FIELD_CELLS:
        return _smooth_field(height, width, int(rng.integers(*FIELD_CELLS[kind])), rng)[..., None]
    angle, period, (phase_u, phase_v) = rng.uniform(0, math.pi), rng.uniform(0.1, 0.2), rng.uniform(0, 2 * math.pi, 2)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / max(height, width) - np.float32(0.5)
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    u = np.sin(along * (2 * math.pi / period) + np.float32(phase_u))
    v = np.sin(across * (2 * math.pi / period) + np.float32(phase_v))
    values = {
        "plain": 0 * x,
        "gradient": (2 if phase_u < math.pi else -2) * along,
        "striped": 2.5 * u,
        "checkered": 4 * u * v,
        "dotted": 4 * (u * v - 0.5),
    }[kind]
    return np.clip(values, -1, 1)[..., None]


def _paint(label: str, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """Paint one picture of the shape `label`: upright pixels (H, W, 3) uint8, and its caption."""
    side = rng.uniform(55, 97)
    height, width = (int(side * factor) for factor in rng.uniform(0.88, 1.0, 2))
    count_word = str(rng.choice(list(COPIES)))
    count, largest = COPIES[count_word]
    scale = rng.uniform(0.70, 1.0)
    centres, extents = np.zeros((count, 2)), np.zeros(count)  # pixels; x before y
    canvas = Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING), 0)
    pen = ImageDraw.Draw(canvas)
    for copy in range(count):
        extent = largest * min(height, width) * scale * rng.uniform(0.92, 1.0)
        centre = rng.uniform(extent / 2, np.array([width, height]) - extent / 2)
        while (np.hypot(*(centres[:copy] - centre).T) < 0.51 * (extents[:copy] + extent)).any():
            extent *= 0.98  # so that a free place is found in the end
            centre = rng.uniform(extent / 2, np.array([width, height]) - extent / 2)
        centres[copy], extents[copy] = centre, extent
        tilt = rng.uniform(-MAX_TILT, MAX_TILT)
        turn = np.array([[math.cos(tilt), math.sin(tilt)], [-math.sin(tilt), math.cos(tilt)]])
        facing = np.array([-1 if label in MIRRORED_SHAPES and rng.random() < 0.5 else 1, 1])
        for outlines, fill in zip(SHAPES[label], (255, 0), strict=True):
            for outline in outlines:
                corners = (((outline * facing) @ turn) * (extent / 2) + centre) * SUPERSAMPLING
                pen.polygon([(float(x), float(y)) for x, y in corners], fill=fill)
    mask = np.asarray(canvas.reduce(SUPERSAMPLING), np.float32)[..., None] / 255

    colours = [str(name) for name in rng.choice(list(COLOURS), count)]  # one for each copy
    texture, background = str(rng.choice(TEXTURES)), str(rng.choice(BACKGROUNDS))
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    nearest_copy = np.argmin([(x - cx) ** 2 + (y - cy) ** 2 for cx, cy in centres.tolist()], axis=0)
    paints = np.array([COLOURS[colour] for colour in colours]) + rng.normal(0, 10, 3)  # (count, RGB)
    shapes = paints.astype(np.float32)[nearest_copy] + 13 * _pattern(texture, height, width, rng)
    tint = np.stack([_smooth_field(height, width, int(rng.integers(2, 5)), rng) for _ in range(3)], axis=2)
    tint -= 0.299 * tint[..., :1] + 0.587 * tint[..., 1:2] + 0.114 * tint[..., 2:]  # colour only, no lightness
    ground = rng.uniform(50, 85) + 70 * tint + 13 * _pattern(background, height, width, rng)
    pixels = ground * (1 - mask) + shapes * mask
    pixels += np.float32(rng.uniform(1, 5)) * rng.standard_normal(pixels.shape, np.float32)  # the sensor

    size = "small " if scale < 0.8 else "big " if scale > 0.9 else ""
    look = "" if texture == "plain" else f"{texture} "
    named = list(dict.fromkeys(colours))
    several = f"{', '.join(named[:-1])} and {named[-1]}" if len(named) > 1 else named[0]
    things = f"{size}{look}{label}{'es' if label.endswith('s') else 's'}"
    scene = "dark background" if background == "plain" else f"dark {background} background"
    captions = (
        f"{count_word} {things} in {several} on a {scene}",
        f"{count_word} {things}, {several}, in front of a {scene}",
        f"a picture of {count_word} {things}, {several}, with a {scene}",
        f"a {scene} with {count_word} {things} in {several}",
    )
    return np.clip(pixels, 0, 255).astype(np.uint8), captions[int(rng.integers(len(captions)))]


def _encode(pixels: np.ndarray, rng: np.random.Generator) -> tuple[bytes, str]:
    """Encode pixels (H, W, 3) uint8 as a stranger's tools might: the file's bytes and its extension."""
    out = io.BytesIO()
    kind = str(rng.choice(["jpeg", "jpeg turned", "RGB", "RGBA", "P", "L"], p=[0.80, 0.03, 0.08, 0.03, 0.03, 0.03]))
    if kind.startswith("jpeg"):
        exif = Image.Exif()
        if kind == "jpeg turned":
            exif[0x0112] = int(rng.choice(list(STORED_TURNS)))
            pixels = np.ascontiguousarray(np.rot90(pixels, STORED_TURNS[exif[0x0112]]))
        Image.fromarray(pixels).save(out, "JPEG", quality=int(rng.integers(70, 96)), exif=exif)
        return out.getvalue(), ".jpg"
    image = Image.fromarray(pixels)
    if kind == "RGBA":  # rounded, see-through corners
        alpha = Image.new("L", image.size, 0)
        corner = min(image.size) // 10
        ImageDraw.Draw(alpha).rounded_rectangle((0, 0, image.width - 1, image.height - 1), corner, fill=255)
        image.putalpha(alpha)
    elif kind != "RGB":
        image = image.convert(kind)
    image.save(out, "PNG")
    return out.getvalue(), ".png"


def _near_copy(data: bytes, rng: np.random.Generator) -> bytes:
    """Re-encode an image file's bytes as a JPEG: at the same size or resized to 75-130 % of it."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    if rng.random() < 0.5:
        factor = rng.uniform(0.75, 0.9) if rng.random() < 0.5 else rng.uniform(1.1, 1.3)
        image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=int(rng.integers(60, 80)))
    return out.getvalue()


def _wrong_bytes(kind: str, rng: np.random.Generator) -> bytes:
    """Bytes that no image reader accepts, for one kind of WRONG_FORMATS."""
    number = int(rng.integers(10**9))
    return {
        "html": f"<!DOCTYPE html><html><body>404: no picture {number} here.</body></html>\n".encode(),
        "empty": b"",
        "pdf": f"%PDF-1.4\n1 0 obj << /Type /Catalog /Number {number} >> endobj\n%%EOF\n".encode(),
        "text": f"Picture {number} was moved, see the archive.\n".encode(),
        "binary": b"\x00\x01" + rng.bytes(512),
    }[kind]


def generate_dump(to: Path, num_images: int = 5000, seed: int = 0) -> DumpSummary:
    """Write a dump of `num_images` files (mess included) and as many captions; the same seed gives the same bytes.

    The layout is `to/<label>/<stem>.<jpg|png|bmp>` with the caption in `to/<label>/<stem>.txt`. Raises ValueError
    for fewer than SMALLEST_DUMP files, and FileExistsError where `to` already holds something.
    """
    if num_images < SMALLEST_DUMP:
        raise ValueError(f"a dump needs at least {SMALLEST_DUMP} files, not {num_images}")
    if to.exists() and any(to.iterdir()):
        raise FileExistsError(f"{to} already holds files; name an empty or new folder")
    shares = (EXACT_DUPLICATE_SHARE, NEAR_DUPLICATE_SHARE, TRUNCATED_SHARE, WRONG_FORMAT_SHARE)
    exact, near, truncated, wrong = (max(1, round(share * num_images)) for share in shares)
    summary = DumpSummary(num_images - exact - near - truncated - wrong, exact, near, truncated, wrong)
    for label in LABELS:
        (to / label).mkdir(parents=True, exist_ok=True)

    def write(kind: str, index: int, label: str, extension: str, data: bytes, caption: str) -> Path:
        stem = hashlib.blake2b(f"{seed} {kind} {index}".encode(), digest_size=6).hexdigest()
        path = to / label / f"{stem}{extension}"
        path.write_bytes(data)
        path.with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")
        return path

    paths = []
    for index in range(summary.images):
        rng = np.random.default_rng([seed, 0, index])
        label = LABELS[int(rng.integers(len(LABELS)))]
        pixels, caption = _paint(label, rng)
        data, extension = _encode(pixels, rng)
        paths.append(write("image", index, label, extension, data, caption))
    copied = np.random.default_rng([seed, 1]).permutation(summary.images)[: exact + near]  # each at most once
    for index, source in enumerate(paths[i] for i in copied):
        data, extension = source.read_bytes(), source.suffix
        if index >= exact:
            data, extension = _near_copy(data, np.random.default_rng([seed, 2, index])), ".jpg"
        write("copy", index, source.parent.name, extension, data, source.with_suffix(".txt").read_text("utf-8").strip())
    for index in range(truncated + wrong):
        rng = np.random.default_rng([seed, 3, index])
        label = LABELS[int(rng.integers(len(LABELS)))]
        pixels, caption = _paint(label, rng)
        if index < truncated:
            out = io.BytesIO()
            Image.fromarray(pixels).save(out, "JPEG", quality=90)
            data, extension = out.getvalue()[: int(out.tell() * rng.uniform(0.4, 0.8))], ".jpg"
        else:
            kind, extension = list(WRONG_FORMATS.items())[(index - truncated) % len(WRONG_FORMATS)]
            data = _wrong_bytes(kind, rng)
        write("broken", index, label, extension, data, caption)
    return summary
