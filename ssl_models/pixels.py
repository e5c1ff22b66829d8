"""The operations on pixels: each on a whole batch, with its own parameter for each sample.

Images are (B, 3, H, W) floating point in [0, 1], in planes (contiguous): what an operation needs of one channel then
lies together. Each function returns new images and leaves its input as it is.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601, rounded as torchvision does
_TILE = 16  # pixels of a row or column that one product of the blur makes; 8 to 32 cost about the same


def flip(images: Tensor) -> Tensor:
    """Left and right exchanged."""
    return images.flip(3)


def rotate(images: Tensor, quarters: int) -> Tensor:
    """Counter-clockwise by `quarters` right angles, for square images; no pixel is interpolated."""
    return images.rot90(quarters, (2, 3)).contiguous()


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Blends with black: factor (B,) of at least 0, where 1 changes nothing."""
    return (images * _column(factor)).clamp_(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blends with the mean gray value of each image: factor (B,)."""
    mean = luma(images.mean((2, 3), keepdim=True)).view(-1)  # (B,): the mean of the luma is the luma of the means
    return (images * _column(factor)).add_(_column(mean * (1 - factor))).clamp_(0, 1)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blends with the gray image: factor (B,)."""
    return (images * _column(factor)).add_(luma(images).mul_(_column(1 - factor))).clamp_(0, 1)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turns the hue by `shift` (B,) ∈ [-½, ½] of the colour circle, with value and saturation of HSV as they are.

    HSV's formula has a case for each channel that may be the highest. Without cases: in sixths of the circle, a hue is
    1 + (g + b - r - lowest) / (highest - lowest) away from red, on green's side where g > b. Then a channel is
    lowest + (highest - lowest) · clamp(2 - distance to its own hue, 0, 1).
    """
    red, green, blue = images.unbind(1)  # (B, H, W) each
    highest = torch.maximum(red, green).clamp_(min=blue)
    lowest = torch.minimum(red, green).clamp_(max=blue)
    spread = highest.sub_(lowest)
    away = (green + blue).sub_(red).sub_(lowest)
    away.div_(spread.clamp(min=torch.finfo(images.dtype).tiny)).add_(1)  # ∈ [0, 3]; any number where all are equal
    hue = torch.copysign(away, green - blue, out=away).add_(6 * shift[:, None, None])
    hue.sub_((hue / 6).floor_(), alpha=6)  # ∈ [0, 6]
    turned = torch.empty_like(images)
    for channel, centre in enumerate((3, 2, 4)):  # opposite to red (its own hue is both ends), at green, at blue
        near = torch.sub(hue, centre, out=turned[:, channel]).abs_()
        near = near.sub_(1) if channel == 0 else near.neg_().add_(2)
        near.clamp_(0, 1).mul_(spread).add_(lowest)
    return turned


def grayscale(images: Tensor) -> Tensor:
    """Each channel the luma."""
    return luma(images).expand(-1, 3, -1, -1).contiguous()


def luma(images: Tensor) -> Tensor:
    """(B, 1, H, W)."""
    return _weighted(images, LUMA)


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Separable blur with one σ (B,) in pixels a sample; the kernel spans a tenth of the side, as SimCLR's.

    Each direction is cut into tiles, and a tile is a product with a banded matrix: some times faster on a CPU than a
    convolution with one kernel for each channel.
    """
    batch, channels, height, width = images.shape
    size = max(3, width // 10 // 2 * 2 + 1)
    reach = torch.arange(size, device=images.device, dtype=images.dtype) - size // 2
    taps = torch.exp(-0.5 * (reach / sigma[:, None]) ** 2)
    taps = F.threshold(taps, 1e-9, 0)  # products with less are denormal, a hundred times slower on Intel's processors
    taps = taps / taps.sum(1, keepdim=True)  # (B, size)
    tile = min(_TILE, height, width)
    window, edge = tile + size - 1, size // 2
    band = F.pad(taps, (tile - 1, tile - 1)).unfold(1, tile, 1).flip(2)  # (B, window, tile): taps[i - j]
    images = F.pad(images, (edge, edge + -width % tile, edge, edge + -height % tile), mode="reflect")
    rows = images.flatten(1, 2).unfold(2, window, tile).transpose(1, 2)  # (B, tiles, 3 · rows, window)
    images = (rows @ band[:, None]).transpose(1, 2).reshape(*images.shape[:3], -1)
    columns = images.unfold(2, window, tile).transpose(3, 4)  # (B, 3, tiles, window, columns)
    images = band.mT[:, None, None] @ columns  # (B, 3, tiles, tile, columns)
    return images.reshape(batch, channels, -1, images.shape[-1])[:, :, :height, :width].contiguous()


def solarize(images: Tensor) -> Tensor:
    """Inverts the values above one half."""
    return torch.minimum(images, 1 - images)


def sobel(images: Tensor) -> Tensor:
    """Length of the gradient of the luma, in each channel: √(gx² + gy²). The definition of kornia.filters.sobel."""
    across, down = sobel_gradient(images).split(1, dim=1)
    return torch.hypot(down, across).expand(-1, 3, -1, -1).contiguous()


def sobel_gradient(images: Tensor) -> Tensor:
    """(B, 2, H, W): how the luma changes across and down, by Sobel's 3 × 3 kernels over 8, so that it is a change per
    pixel; border pixels repeat."""
    padded = F.pad(luma(images), (1, 1, 1, 1), mode="replicate")
    rows = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    columns = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    across, down = rows[..., 2:] - rows[..., :-2], columns[:, :, 2:] - columns[:, :, :-2]
    return torch.cat([across, down], dim=1).div_(8)


def add_noise(images: Tensor, noise: Tensor) -> Tensor:
    """noise (B, 3, H, W)."""
    return (images + noise).clamp_(0, 1)


def cutout(images: Tensor, top: Tensor, left: Tensor, side: int, fill: tuple[float, float, float]) -> Tensor:
    """Fills a square of `side` pixels at top, left (B,) int64."""
    place = torch.arange(images.shape[-1], device=images.device)
    rows, columns = (((place >= first[:, None]) & (place < first[:, None] + side)).float() for first in (top, left))
    hidden = (rows[:, :, None] * columns[:, None, :])[:, None]  # (B, 1, S, S) of 0 and 1; `where` takes 3× as long
    filled = torch.cat([hidden * level for level in fill], dim=1)
    return (images * (1 - hidden)).add_(filled)


def rgb_to_lab(images: Tensor) -> Tensor:
    """sRGB → CIE L*a*b* (CIE 15) under D65 and the 2° observer: L in [0, 100], a and b from about -108 to 98.

    Written out channel by channel: as a product of matrices, autocast would take it in half precision.
    """
    linear = torch.where(images <= 0.04045, images / 12.92, ((images.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4)
    x, y, z = (_lab_root(_weighted(linear, weights)) for weights in _XYZ)  # of each channel over that of white
    return torch.cat([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


# Linear sRGB → XYZ (IEC 61966-2-1), each row divided by the white of D65.
_XYZ = (
    (0.412453 / 0.95047, 0.357580 / 0.95047, 0.180423 / 0.95047),
    (0.212671, 0.715160, 0.072169),
    (0.019334 / 1.08883, 0.119193 / 1.08883, 0.950227 / 1.08883),
)


def _lab_root(ratio: Tensor) -> Tensor:
    """The cube root, with CIE's straight line below (6/29)³."""
    least = (6 / 29) ** 3
    return torch.where(ratio > least, ratio.clamp(min=least) ** (1 / 3), ratio / (3 * (6 / 29) ** 2) + 4 / 29)


def _weighted(images: Tensor, weights: tuple[float, float, float]) -> Tensor:
    red, green, blue = images.split(1, dim=1)
    return (red * weights[0]).add_(green, alpha=weights[1]).add_(blue, alpha=weights[2])


def _column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
