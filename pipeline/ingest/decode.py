"""The guarded decoder: untrusted image bytes in, one canonical RGB JPEG out, or a refusal with its reason.

The only place that opens foreign images. What is let in is bounded before it is decoded (format, header, pixels), and
what comes out is new: upright, opaque, 8-bit RGB, without metadata.
"""

import hashlib
import io
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np

# Imported for their registration: with all six known, Image.open never loads the parsers of the other formats.
from PIL import BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin
from PIL import Image as images

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

Reason = Literal[
    "tar_truncated", "tar_trailing", "tar_sparse", "tar_nonregular", "tar_member_too_big", "tar_too_many_members",
    "key_invalid", "key_duplicate", "ext_forbidden", "count_mismatch", "parquet_unsafe", "bytes_over_cap",
    "format_forbidden", "header_bad", "pixels_over_cap", "side_under_min", "aspect_over_max", "decode_failed",
    "decode_oom", "blank", "dup_exact",
]  # fmt: skip


class Refusal(Exception):
    """A sample that is not let in: `reason` from the closed set, `detail` for a person (300 characters at most)."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail[:300]


@dataclass(frozen=True)
class Decoded:
    """A canonical image: JPEG bytes, size in pixels, sha256 (hex) of size and RGB pixels before they were encoded."""

    jpeg: bytes
    width: int
    height: int
    pixels: str


def canonical(raw: bytes, side: int, quality: int, *, min_side: int = 8, max_pixels: int = 50_000_000) -> Decoded:
    """Decodes `raw` fully and encodes it anew: frame 0, upright, RGB on white, short side at most `side` (pixels).

    Smaller pictures keep their size.

    Raises:
        Refusal: the bytes are no image of an allowed format, exceed a bound, or cannot be decoded to the end.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # complaints about odd metadata, which is dropped anyway
        warnings.simplefilter("error", images.DecompressionBombWarning)
        image = _opened(raw, min_side, max_pixels)
        try:
            rgb = _rgb(image, side)
        except Refusal:
            raise
        except MemoryError as error:
            raise Refusal("decode_oom", f"{image.width}×{image.height} pixels do not fit in memory") from error
        except Exception as error:  # hostile bytes raise anything: OSError, SyntaxError, IndexError, struct.error ...
            raise Refusal("decode_failed", f"{type(error).__name__}: {error}") from error
    return _encoded(rgb, side, quality)


def _opened(raw: bytes, min_side: int, max_pixels: int) -> images.Image:
    """The image with only its header read, within bounds."""
    if not raw:
        raise Refusal("header_bad", "empty file")
    try:
        image = images.open(io.BytesIO(raw), formats=FORMATS)
    except (images.DecompressionBombWarning, images.DecompressionBombError) as error:
        raise Refusal("pixels_over_cap", str(error)) from error
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


def _rgb(image: images.Image, side: int) -> images.Image:
    """Decodes to the last byte; upright RGB with the short side at most `side`."""
    if image.format == "JPEG" and min(image.size) > 4 * side:
        image.draft(None, (2 * side, 2 * side))  # libjpeg decodes to a half, quarter or eighth; never under 2 × side
    image.load()  # once: after a failure, a second load() would pass
    turn = _UPRIGHT.get(_orientation(image))
    image = _opaque(image)
    if min(image.size) > side:
        scale = side / min(image.size)
        size = (max(side, round(image.width * scale)), max(side, round(image.height * scale)))
        image = image.resize(size, images.Resampling.LANCZOS, reducing_gap=3.0)
    if max(image.size) > _JPEG_LONGEST:
        raise Refusal(
            "aspect_over_max", f"{image.width}×{image.height} pixels; a JPEG has at most {_JPEG_LONGEST} a side"
        )
    return image if turn is None else image.transpose(turn)


def _orientation(image: images.Image) -> int:
    """EXIF orientation 1-8; 1 if there is none, or none that can be read. TIFF is turned by Pillow's load() already."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # metadata may be anything; the pixels are whole
        return 1


def _opaque(image: images.Image) -> images.Image:
    """8-bit RGB of any mode, by rules that keep what is visible: `convert("RGB")` alone clips and ignores alpha."""
    if image.mode.startswith("I;16"):
        return images.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        values = np.asarray(image, np.float64)
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        if high <= low:
            raise Refusal("blank", f"mode {image.mode} with the one value {low:g}, so there is no range to show")
        scaled = np.nan_to_num((values - low) / (high - low), nan=0.0, posinf=1.0, neginf=0.0)
        return images.fromarray(np.round(scaled * 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = images.new("RGBA", image.size, "white")
        return images.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _encoded(rgb: images.Image, side: int, quality: int) -> Decoded:
    rgb.info.clear()  # else Pillow writes a comment found in the source
    buffer = io.BytesIO()
    subsampling = 0 if min(rgb.size) < 128 else 2  # 4:4:4 for small pictures, where half the colours would show; 4:2:0
    rgb.save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    pixels = hashlib.sha256(b"%d %d " % rgb.size)
    pixels.update(rgb.tobytes())
    return Decoded(buffer.getvalue(), rgb.width, rgb.height, pixels.hexdigest())
