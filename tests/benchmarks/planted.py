"""Duplicates planted on purpose: what happens to a picture on its way through the web, and its name."""

import io
from collections.abc import Callable, Iterator

from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from tests.benchmarks.scenes import encoded

Edit = Callable[[Image.Image], Image.Image]
MIN_SIDE = 8  # pixels; curation refuses smaller pictures


def _resized(factor: float) -> Edit:
    def edit(image: Image.Image) -> Image.Image:
        size = round(image.width * factor), round(image.height * factor)
        return image.resize(size, Image.Resampling.LANCZOS) if min(size) >= MIN_SIDE else image

    return edit


def _cropped(share: float) -> Edit:
    """Without `share` of the width and height at each side, one pixel at least."""

    def edit(image: Image.Image) -> Image.Image:
        x, y = max(1, round(image.width * share)), max(1, round(image.height * share))
        return image.crop((x, y, image.width - x, image.height - y))

    return edit


def _lettered(image: Image.Image) -> Image.Image:
    """Letters of a tenth of the height along the lower edge, as photo agencies set them."""
    marked = image.copy()
    size = max(6, image.height // 10)
    place = image.width // 20, image.height - size - image.height // 20
    ImageDraw.Draw(marked).text(place, "© STOCK PHOTO", fill="white", font_size=size, stroke_width=size // 12,
                                stroke_fill="black")  # fmt: skip
    return marked


def _logo(image: Image.Image) -> Image.Image:
    """A sign in the corner, of a sixth of the shorter side."""
    marked = image.copy()
    side, gap = max(3, min(image.size) // 6), min(image.size) // 30
    box = (image.width - side - gap, gap, image.width - gap, gap + side)
    ImageDraw.Draw(marked).ellipse(box, fill=(220, 30, 30), outline="white", width=max(1, side // 8))
    return marked


EDITS: dict[str, Edit] = {
    "resize 0.5×": _resized(0.5),
    "resize 0.25×": _resized(0.25),
    "resize 1.5×": _resized(1.5),
    "crop 2 %": _cropped(0.02),
    "crop 5 %": _cropped(0.05),
    "crop 10 %": _cropped(0.1),
    "letters": _lettered,
    "logo": _logo,
    "brighter 10 %": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "contrast +15 %": lambda image: ImageEnhance.Contrast(image).enhance(1.15),
    "grayscale": lambda image: image.convert("L").convert("RGB"),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "turned 90°": lambda image: image.transpose(Image.Transpose.ROTATE_90),
}
QUALITIES = (90, 70, 50, 30)
KINDS = ("same file", "other comment", "as PNG", *(f"JPEG {quality}" for quality in QUALITIES), *EDITS)


def planted(raw: bytes) -> Iterator[tuple[str, bytes]]:
    """(kind, file) of each planted duplicate of a JPEG. Raises: OSError, if it cannot be decoded."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(raw))).convert("RGB")
    yield "same file", raw
    yield "other comment", raw[:2] + b"\xff\xfe\x00\x07found" + raw[2:]  # SOI, COM, the rest
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    yield "as PNG", buffer.getvalue()
    for quality in QUALITIES:
        yield f"JPEG {quality}", encoded(image, quality)
    for kind, edit in EDITS.items():
        edited = edit(image)
        if edited is not image:  # too small for it
            yield kind, encoded(edited)
