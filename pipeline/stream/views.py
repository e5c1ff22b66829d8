"""Views: geometry on the CPU (decode, crop, resize to fixed uint8), everything per-pixel on the device, batched.

All parameters come from (seed, epoch, sample id), so the views of sample i in epoch e are the same on every machine.
"""

import math
from dataclasses import dataclass

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from ssl_models.batch import uniform
from ssl_models.config import Config


class ViewsConfig(Config):
    """How a view is made of an image. A strength or probability of 0 turns an operation off."""

    crop_scale: tuple[float, float] = Field((0.2, 1.0), description="share of the image's area")
    crop_ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="width : height of the crop")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    jitter: tuple[float, float, float, float] = Field(
        (0.4, 0.4, 0.4, 0.1), description="strength of brightness, contrast, saturation, hue (at most 0.5)"
    )
    jitter_probability: float = Field(0.8, ge=0, le=1)
    grayscale: float = Field(0.2, ge=0, le=1, description="probability")
    blur: float = Field(0.0, ge=0, le=1, description="probability of a Gaussian blur")
    blur_sigma: tuple[float, float] = Field((0.1, 2.0), description="range in pixels")
    solarize: float = Field(0.0, ge=0, le=1, description="probability of inverting the values above one half")
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @model_validator(mode="after")
    def _check(self) -> "ViewsConfig":
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"views.crop_scale={self.crop_scale} must be 0 < low <= high <= 1")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"views.crop_ratio={self.crop_ratio} must be 0 < low <= high")
        if min(self.jitter) < 0 or max(self.jitter[:3]) > 1 or self.jitter[3] > 0.5:
            raise ValueError(f"views.jitter={self.jitter} must be in [0, 1], and hue in [0, 0.5]")
        return self


# ---- geometry, on the CPU ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RandomCrops:
    """`num_views` random resized crops an image (Inception's augmentation, as used by SimCLR and MAE)."""

    config: ViewsConfig
    size: int
    num_views: int
    seed: int

    def boxes(self, epoch: int, ids: Tensor, heights: Tensor, widths: Tensor) -> Tensor:
        """(B, num_views, 4) int64: top, left, height, width. A box that does not fit is clipped to the image."""
        draws = uniform(self.seed, epoch, ids, 4 * self.num_views, "crop").reshape(len(ids), self.num_views, 4)
        area = (heights * widths)[:, None] * _between(draws[..., 0], *self.config.crop_scale)
        ratio = _between(draws[..., 1], *map(math.log, self.config.crop_ratio)).exp()
        height = torch.minimum((area / ratio).sqrt().round(), heights[:, None]).clamp(min=1)
        width = torch.minimum((area * ratio).sqrt().round(), widths[:, None]).clamp(min=1)
        top = (draws[..., 2] * (heights[:, None] - height + 1)).floor()
        left = (draws[..., 3] * (widths[:, None] - width + 1)).floor()
        return torch.stack([top, left, height, width], dim=-1).long()


@dataclass(frozen=True)
class CenterCrop:
    """The evaluation view: the largest central square."""

    size: int
    num_views: int = 1

    def boxes(self, epoch: int, ids: Tensor, heights: Tensor, widths: Tensor) -> Tensor:
        side = torch.minimum(heights, widths)
        box = torch.stack([(heights - side) // 2, (widths - side) // 2, side, side], dim=-1)
        return box[:, None].long()


Geometry = RandomCrops | CenterCrop


def crop(image: Tensor, boxes: Tensor, size: int) -> Tensor:
    """(3, H, W) uint8 and (V, 4) boxes → (V, size, size, 3) uint8, antialiased."""
    views = []
    for top, left, height, width in boxes.tolist():
        region = image[:, top : top + height, left : left + width]
        if (height, width) != (size, size):
            region = F.interpolate(region[None], (size, size), mode="bilinear", antialias=True)[0]
        views.append(region.permute(1, 2, 0))
    return torch.stack(views)


# ---- colour, on the device -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DeviceViews:
    """Turns uint8 crops into what the encoder sees: flip, colour jitter, grayscale, blur, solarize, normalise.

    The operations and their parameters are those of torchvision's RandomHorizontalFlip, ColorJitter (its four
    operations in a random order for each view), RandomGrayscale, GaussianBlur and RandomSolarize, applied to a whole
    batch with one parameter a sample.
    """

    config: ViewsConfig
    seed: int
    plain: bool = False  # only normalise: evaluation

    def __call__(self, crops: Tensor, ids: Tensor, epoch: int) -> tuple[Tensor, ...]:
        """(B, V, S, S, 3) uint8 → V tensors (B, 3, S, S) float32, normalised, channels last in memory."""
        views = []
        for index in range(crops.shape[1]):
            images = crops[:, index].permute(0, 3, 1, 2).float() / 255  # channels last, as stored
            if not self.plain:
                images = self._distort(images, uniform(self.seed, epoch, ids, 16, f"colour{index}").float())
            views.append(self._normalize(images))
        return tuple(views)

    def _distort(self, images: Tensor, draws: Tensor) -> Tensor:
        config = self.config
        images = torch.where(_column(draws[:, 0] < config.flip), images.flip(3), images)
        if config.jitter_probability and any(config.jitter):
            images = self._jitter(images, draws[:, 1], draws[:, 2:6], draws[:, 6:10])
        if config.grayscale:
            images = torch.where(_column(draws[:, 10] < config.grayscale), _gray(images), images)
        if config.blur:
            images = _on(images, draws[:, 11] < config.blur, gaussian_blur, _between(draws[:, 12], *config.blur_sigma))
        if config.solarize:
            inverted = torch.where(images >= 0.5, 1 - images, images)
            images = torch.where(_column(draws[:, 13] < config.solarize), inverted, images)
        return images

    def _jitter(self, images: Tensor, gate: Tensor, factors: Tensor, order: Tensor) -> Tensor:
        """Each sample applies the four operations in its own order: `order` (B, 4), read by rank."""
        brightness, contrast, saturation, hue = self.config.jitter
        operations = (
            (adjust_brightness, _between(factors[:, 0], 1 - brightness, 1 + brightness), brightness),
            (adjust_contrast, _between(factors[:, 1], 1 - contrast, 1 + contrast), contrast),
            (adjust_saturation, _between(factors[:, 2], 1 - saturation, 1 + saturation), saturation),
            (adjust_hue, _between(factors[:, 3], -hue, hue), hue),
        )
        active = gate < self.config.jitter_probability
        turn = order.argsort(1)  # (B, 4): which operation comes at each turn
        for place in range(4):
            for number, (operation, amount, strength) in enumerate(operations):
                if strength:
                    images = _on(images, active & (turn[:, place] == number), operation, amount)
        return images

    def _normalize(self, images: Tensor) -> Tensor:
        mean = images.new_tensor(self.config.mean).view(1, 3, 1, 1)
        std = images.new_tensor(self.config.std).view(1, 3, 1, 1)
        return ((images - mean) / std).contiguous(memory_format=torch.channels_last)

    def denormalize(self, images: Tensor) -> Tensor:
        """For people to look at: (B, 3, S, S) normalised → values in [0, 1]."""
        mean = images.new_tensor(self.config.mean).view(1, 3, 1, 1)
        std = images.new_tensor(self.config.std).view(1, 3, 1, 1)
        return (images * std + mean).clamp(0, 1)


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    return (images * _column(factor)).clamp(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blends with the mean gray value of each image."""
    mean = _gray(images).mean(dim=(1, 2, 3), keepdim=True)
    return torch.lerp(mean, images, _column(factor)).clamp(0, 1)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blends with the gray image."""
    return torch.lerp(_gray(images).expand_as(images), images, _column(factor)).clamp(0, 1)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turns the hue by `shift` ∈ [-½, ½] of the colour circle, through HSV."""
    highest, which = images.max(1)
    lowest = images.amin(1)
    spread = highest - lowest
    safe = torch.where(spread == 0, torch.ones_like(spread), spread)
    red, green, blue = images.unbind(1)
    hue = torch.where(
        which == 0, (green - blue) / safe, torch.where(which == 1, (blue - red) / safe + 2, (red - green) / safe + 4)
    )
    hue = (hue / 6 + shift[:, None, None]) % 1.0
    saturation = spread / torch.where(highest == 0, torch.ones_like(highest), highest)
    # HSV → RGB: value · (1 - saturation · clamp(min(k, 4 - k), 0, 1)), k = (n + 6 · hue) mod 6 for n = 5, 3, 1
    k = (torch.tensor([5.0, 3.0, 1.0], device=images.device).view(1, 3, 1, 1) + 6 * hue[:, None]) % 6
    return highest[:, None] * (1 - saturation[:, None] * torch.minimum(k, 4 - k).clamp(0, 1))


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Separable blur with one σ (pixels) a sample; the kernel spans a tenth of the side, as SimCLR's."""
    size = max(3, images.shape[-1] // 10 // 2 * 2 + 1)
    reach = torch.arange(size, device=images.device, dtype=images.dtype) - size // 2
    kernel = torch.exp(-0.5 * (reach[None] / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, dim=0)  # (B · 3, size)
    batch, channels, height, width = images.shape
    flat = images.reshape(1, batch * channels, height, width)
    flat = F.pad(flat, [size // 2] * 4, mode="reflect")
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=batch * channels)
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=batch * channels)
    return flat.reshape(batch, channels, height, width)


def _gray(images: Tensor) -> Tensor:
    """(B, 1, S, S): luma of ITU-R 601, rounded as torchvision does."""
    weights = images.new_tensor([0.2989, 0.587, 0.114]).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def _on(images: Tensor, chosen: Tensor, operation, amount: Tensor) -> Tensor:
    """Applies an operation to the chosen samples (B,) only."""
    rows = chosen.nonzero()[:, 0]
    if len(rows) == 0:
        return images
    return images.index_copy(0, rows, operation(images[rows], amount[rows]))


def _between(draws: Tensor, low: float, high: float) -> Tensor:
    return low + draws * (high - low)


def _column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
