"""What is measured of a canonical picture: brightness, contrast, entropy, sharpness, and two signatures of its content.

A policy reads these numbers; nothing here refuses anything.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image as images

_GRID, _LOW = 32, 8  # side of the picture that is transformed, and of the low frequencies that are kept
THUMB_SIDE = 4
_LEVELS = np.arange(256.0)


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
    share = np.array(gray.histogram()) / (gray.width * gray.height)  # (256,)
    mean = float(share @ _LEVELS)
    seen = share[share > 0]
    return Measures(
        mean=mean,
        std=float(share @ (_LEVELS - mean) ** 2) ** 0.5,
        entropy=abs(float(seen @ np.log2(seen))),  # abs: the sum is never above 0
        sharpness=_sharpness(np.asarray(gray)),
        phash=perceptual_hash(gray),
        thumb=rgb.resize((THUMB_SIDE, THUMB_SIDE), images.Resampling.BOX).tobytes(),
    )


def perceptual_hash(gray: images.Image) -> int:
    """64-bit DCT hash, bit for bit that of ImageHash's `phash` (hash_size 8): 32×32 by Lanczos, DCT-II over both axes,
    the 8×8 lowest frequencies, each compared with the median of all 64, the constant term among them. The first
    coefficient is the highest bit.
    """
    small = np.asarray(gray.resize((_GRID, _GRID), images.Resampling.LANCZOS), np.float64)
    low = _COSINES @ small @ _COSINES.T  # (8, 8)
    bits = low > np.median(low)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _cosines() -> np.ndarray:
    """The first 8 rows (8, 32) of the DCT-II: 2 cos(π k (2 n + 1) / 2 N)."""
    k, n = np.arange(_LOW)[:, None], np.arange(_GRID)[None, :]
    return 2 * np.cos(np.pi * k * (2 * n + 1) / (2 * _GRID))


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
