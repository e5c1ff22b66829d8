"""The guarded decoder: untrusted image bytes in, one canonical RGB picture out, or a refusal with its reason.

The only place that opens foreign images. What is let in is bounded before it is decoded (format, header, pixels), and
what comes out is new: upright, opaque, 8-bit RGB, without metadata. `pipeline.ingest.guard` runs this in a child
process that may die; only tests and readers of a sealed index call it in their own.
"""

import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

# Imported for their registration: with all six known, Image.open never loads the parsers of the other formats.
from PIL import BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin
from PIL import Image as images

from pipeline.ingest.measures import Measures, measure
from pipeline.ingest.refusals import Refusal

FORMATS = tuple(
    plugin.format
    for plugin in (
        JpegImagePlugin.JpegImageFile,
        PngImagePlugin.PngImageFile,
        WebPImagePlugin.WebPImageFile,
        GifImagePlugin.GifImageFile,
        BmpImagePlugin.BmpImageFile,
        TiffImagePlugin.TiffImageFile,
    )
)
FLAGS = ("alpha", "cmyk", "multi_frame", "rotated", "icc", "gray", "gray16", "float", "palette")
MAX_PIXELS = 50_000_000
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ORIENTATION = 0x0112  # EXIF tag
_UPRIGHT = {
    2: images.Transpose.FLIP_LEFT_RIGHT,
    3: images.Transpose.ROTATE_180,
    4: images.Transpose.FLIP_TOP_BOTTOM,
    5: images.Transpose.TRANSPOSE,
    6: images.Transpose.ROTATE_270,
    7: images.Transpose.TRANSVERSE,
    8: images.Transpose.ROTATE_90,
}
_JPEG_LONGEST = 65_500  # pixels; libjpeg's limit
_STRIP = 2**22  # pixels that are worked on at once where numbers are wider than 8 bits: bounds the memory


@dataclass(frozen=True)
class Picture:
    """A canonical picture. `rgb` is upright 8-bit RGB; `width` and `height` are natural, upright; `flags` of FLAGS."""

    rgb: images.Image
    width: int
    height: int
    format: str
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Decoded:
    """What is kept of an image file.

    `width` and `height` are of the JPEG, or natural where none is made (`jpeg` is then empty); `pixels` is the sha256
    (hex) of the canonical picture's size and RGB bytes.
    """

    jpeg: bytes
    width: int
    height: int
    original_width: int
    original_height: int
    format: str
    flags: tuple[str, ...]
    pixels: str
    measures: Measures


def canonical(
    raw: bytes, side: int, quality: int, *, min_side: int = 8, max_pixels: int = MAX_PIXELS, encode: bool = True
) -> Decoded:
    """Decodes `raw` fully, measures it and, with `encode`, encodes it anew as a JPEG with its short side ≤ `side`.

    Raises:
        Refusal: the bytes are no image of an allowed format, exceed a bound, or cannot be decoded to the end.
    """
    picture = decoded(raw, side, min_side=min_side, max_pixels=max_pixels)
    rgb = picture.rgb
    jpeg = _encoded(rgb, quality) if encode else b""
    pixels = hashlib.sha256(b"%d %d " % rgb.size)
    pixels.update(rgb.tobytes())
    return Decoded(
        jpeg=jpeg,
        width=rgb.width if encode else picture.width,
        height=rgb.height if encode else picture.height,
        original_width=picture.width,
        original_height=picture.height,
        format=picture.format,
        flags=picture.flags,
        pixels=pixels.hexdigest(),
        measures=measure(rgb),
    )


def decoded(raw: bytes, side: int, *, min_side: int = 8, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decodes `raw` fully: frame 0, upright, RGB on white, short side at most `side` (smaller ones keep their size).

    Raises:
        Refusal: as `canonical`.
    """
    with refusing():
        image = opened(raw, min_side, max_pixels)
        return _picture(image, side)


def full_pixels(raw: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Pixels (H, W, 3) uint8 of `raw` at its natural size, by the same rules.

    Raises:
        Refusal: as `canonical`.
    """
    with refusing():
        image = opened(raw, 1, max_pixels)
        return np.array(_picture(image, max(image.size)).rgb)


@contextmanager
def refusing() -> Iterator[None]:
    """Turns whatever hostile bytes raise (OSError, SyntaxError, IndexError, struct.error ...) into a refusal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # complaints about odd metadata, which is dropped anyway
        warnings.simplefilter("error", images.DecompressionBombWarning)
        try:
            yield
        except Refusal:
            raise
        except MemoryError as error:
            raise Refusal("decode_oom", "does not fit in memory") from error
        except Exception as error:
            raise Refusal("decode_failed", f"{type(error).__name__}: {error}") from error


def opened(raw: bytes, min_side: int, max_pixels: int) -> images.Image:
    """The image with only its header read, within bounds."""
    if not raw:
        raise Refusal("header_bad", "empty file")
    try:
        image = images.open(io.BytesIO(raw), formats=FORMATS)
    except (images.DecompressionBombWarning, images.DecompressionBombError) as error:
        raise Refusal("pixels_over_cap", str(error)) from error
    except MemoryError:
        raise
    except Exception as error:
        if raw.startswith(_SIGNATURES) or (raw[:4] == b"RIFF" and raw[8:12] == b"WEBP"):
            unknown = isinstance(error, images.UnidentifiedImageError)  # its text holds a memory address
            why = "a variant that Pillow cannot read" if unknown else f"{type(error).__name__}: {error}"
            raise Refusal("header_bad", why) from error
        raise Refusal("format_forbidden", f"not {', '.join(FORMATS)}; starts with {raw[:12]!r}") from error
    width, height = image.size
    if width * height > max_pixels:
        raise Refusal("pixels_over_cap", f"{width}×{height} pixels; the most is {max_pixels / 1e6:g} million")
    if min(width, height) < min_side:
        raise Refusal("side_under_min", f"{width}×{height} pixels; the shorter side must have {min_side}")
    return image


def _picture(image: images.Image, side: int) -> Picture:
    """Decodes to the last byte; upright RGB with the short side at most `side`."""
    size = image.size  # of a TIFF it is upright already, and load() turns the pixels
    format = "JPEG" if image.format == "MPO" else str(image.format)  # MPO: a JPEG with more JPEGs behind it
    if format == "JPEG" and min(size) > 4 * side:
        image.draft(None, (2 * side, 2 * side))  # libjpeg decodes to a half, quarter or eighth; never under 2 × side
    turned = format == "TIFF" and _orientation(image) in _UPRIGHT
    if format == "PNG":
        _forgive_the_end(image)
    drawn = image.tile[0].extents if format == "GIF" and image.tile else None  # type: ignore[attr-defined]
    image.load()  # once: after a failure, a second load() would pass
    if format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        image = image.convert("RGB")  # a fourth byte that was never filled in, as every viewer takes it
    orientation = _orientation(image)  # of a TIFF, load() has done and removed it
    flags = {
        "alpha": image.has_transparency_data,
        "cmyk": image.mode == "CMYK",
        "rotated": turned or orientation in _UPRIGHT,
        "icc": bool(image.info.get("icc_profile")),
        "gray": image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16"),
        "gray16": image.mode.startswith("I;16"),
        "float": image.mode == "F",
        "palette": image.mode in ("P", "PA"),
    }
    rgb = _opaque(image)
    flags["multi_frame"] = _is_animated(image)
    if drawn not in (None, (0, 0, *rgb.size)):  # the frame leaves a part of the canvas bare
        canvas = images.new("RGB", rgb.size, "white")
        canvas.paste(rgb.crop(drawn), drawn)
        rgb, flags["alpha"] = canvas, True
    if min(rgb.size) > side:
        scale = side / min(rgb.size)
        shrunk = (max(side, round(rgb.width * scale)), max(side, round(rgb.height * scale)))
        # sharper than bilinear, which training uses, at its price; Lanczos would take longer than decoding
        rgb = rgb.resize(shrunk, images.Resampling.HAMMING, reducing_gap=3.0)
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
        size = size[::-1] if orientation >= 5 else size
    return Picture(rgb, *size, format, tuple(flag for flag in FLAGS if flags[flag]))


def _forgive_the_end(image: images.Image) -> None:
    """Lets a PNG pass whose damage lies behind its pixels; load() still refuses unless it decoded every row."""
    end = image.load_end  # type: ignore[attr-defined]

    def forgiving() -> None:
        try:
            end()
        except MemoryError:
            raise
        except Exception:  # a broken end marker or text: what follows the pixels may be anything
            return

    image.load_end = forgiving  # type: ignore[attr-defined]


def _is_animated(image: images.Image) -> bool:
    """Whether there is a second frame, without decoding or counting: asked last, for it moves on in the file."""
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # a broken second frame; the first is whole
        return False


def _orientation(image: images.Image) -> int:
    """EXIF orientation 1-8; 1 if there is none, or none that can be read."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # metadata may be anything; the pixels are whole
        return 1


def _opaque(image: images.Image) -> images.Image:
    """8-bit RGB of any mode, by rules that keep what is visible: `convert("RGB")` alone clips and ignores alpha."""
    if image.mode.startswith("I;16"):
        rgb = _eight_bits(image, 0, 65535).convert("RGB")
        if isinstance(clear := image.info.get("transparency"), int):  # the one value of a PNG that is not seen
            rgb.paste("white", mask=images.fromarray(np.asarray(image) == clear))
        return rgb
    if image.mode in ("I", "F"):
        values = np.asarray(image)
        low, high = np.inf, -np.inf
        for strip in _strips(values):
            finite = strip[np.isfinite(strip)]
            if finite.size:
                low, high = min(low, float(finite.min())), max(high, float(finite.max()))
        if not high > low:
            raise Refusal("blank", f"mode {image.mode} with the one value {low:g}, so there is no range to show")
        return _eight_bits(image, low, high).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = images.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        return white.convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: images.Image, low: float, high: float) -> images.Image:
    """A one-channel image of wide numbers as mode L: `low` is black, `high` is white; not-a-number is black."""
    values = np.asarray(image)
    result = np.empty(values.shape, np.uint8)
    for strip, place in zip(_strips(values), _strips(result), strict=True):
        scaled = (strip.astype(np.float64) - low) / (high - low)
        place[:] = np.round(np.nan_to_num(scaled, nan=0.0, posinf=1.0, neginf=0.0) * 255)
    return images.fromarray(result)


def _strips(values: np.ndarray) -> Iterator[np.ndarray]:
    """Views of whole rows, about _STRIP pixels each."""
    rows = max(1, _STRIP // values.shape[1])
    for top in range(0, len(values), rows):
        yield values[top : top + rows]


def _encoded(rgb: images.Image, quality: int) -> bytes:
    """A JPEG without metadata."""
    if max(rgb.size) > _JPEG_LONGEST:
        raise Refusal("aspect_over_max", f"{rgb.width}×{rgb.height} pixels; a JPEG has at most {_JPEG_LONGEST} a side")
    rgb.info.clear()  # else Pillow writes a comment found in the source
    buffer = io.BytesIO()
    subsampling = 0 if min(rgb.size) < 128 else 2  # 4:4:4 for small pictures, where half the colours would show; 4:2:0
    rgb.save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    return buffer.getvalue()
