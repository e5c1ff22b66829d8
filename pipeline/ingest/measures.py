"""What is measured of a canonical picture: brightness, contrast, entropy, sharpness, and two signatures of its content.

A policy reads these numbers; nothing here refuses anything. Sums are of integers: a picture has the same numbers on
every machine, though linear algebra adds in another order on each kind of processor.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image as images

_GRID, _LOW = 32, 8  # side of the picture that is transformed, and of the low frequencies that are kept
THUMB_SIDE = 4
_LEVELS = np.arange(256)


@dataclass(frozen=True)
class Measures:
    """`mean` and `std` of the luminance (0..255); `entropy` of its 256-bin histogram (bits, 0..8); `sharpness`, the
    variance of its 4-neighbour Laplacian; `phash`, 64 bits; `thumb`, 4×4 RGB by rows (48 bytes), to confirm in colour
    what `phash` finds alike.
    """

    mean: float
    std: float
    entropy: float
    sharpness: float
    phash: int
    thumb: bytes


def measure(rgb: images.Image) -> Measures:
    """Measures an RGB picture. Luminance is Pillow's mode L (ITU-R 601: 0.299 R + 0.587 G + 0.114 B)."""
    gray = rgb.convert("L")
    counts, pixels = np.array(gray.histogram()), gray.width * gray.height  # (256,)
    total, squares = int(counts @ _LEVELS), int(counts @ _LEVELS**2)
    share = counts[counts > 0] / pixels
    return Measures(
        mean=total / pixels,
        std=math.sqrt(pixels * squares - total**2) / pixels,
        entropy=round(abs(float(share @ np.log2(share))), 9),  # abs: the sum is never above 0; rounded: machines differ
        sharpness=_sharpness(np.asarray(gray)),
        phash=perceptual_hash(gray),
        thumb=rgb.resize((THUMB_SIDE, THUMB_SIDE), images.Resampling.BOX).tobytes(),
    )


def perceptual_hash(gray: images.Image) -> int:
    """64-bit DCT hash, that of ImageHash's `phash` (hash_size 8): 32×32 by Lanczos, DCT-II over both axes, the 8×8
    lowest frequencies, each compared with the median of all 64, the constant term among them. The first coefficient
    is the highest bit. Cosines are rounded to 2⁻²⁰: what is exactly equal stays so, where floats would compare noise.
    """
    small = np.asarray(gray.resize((_GRID, _GRID), images.Resampling.LANCZOS), np.int64)
    low = _COSINES @ small @ _COSINES.T  # (8, 8), below 2⁶⁰
    bits = low > np.median(low)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _cosines() -> np.ndarray:
    """The first 8 rows (8, 32) of the DCT-II, 2 cos(π k (2 n + 1) / 2 N), in units of 2⁻²⁰."""
    k, n = np.arange(_LOW)[:, None], np.arange(_GRID)[None, :]
    return np.rint(2**20 * 2 * np.cos(np.pi * k * (2 * n + 1) / (2 * _GRID))).astype(np.int64)


_COSINES = _cosines()


def _sharpness(gray: np.ndarray) -> float:
    """Variance of the 4-neighbour Laplacian over all inner pixels; 0 where there are none."""
    if min(gray.shape) < 3:
        return 0.0
    wide = gray.astype(np.int16)
    laplacian = wide[1:-1, 1:-1] * np.int16(-4)
    for neighbour in (wide[:-2, 1:-1], wide[2:, 1:-1], wide[1:-1, :-2], wide[1:-1, 2:]):
        laplacian += neighbour
    values = laplacian.ravel().astype(np.float64)  # integers: the sums are exact, in any order
    return float(values @ values / values.size - (values.sum() / values.size) ** 2)
