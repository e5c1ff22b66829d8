"""Geometry on the CPU: which boxes of an image its views show, and those boxes at a fixed size."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.stream.views import ViewsConfig, between
from ssl_models.batch import uniform

# Of a photo decoded to 1.25 pixels for one of a view, the view differs from that of all its pixels by about as much as
# bicubic and bilinear shrinking do from each other: 1 to 1.5 of 255 on average (26 photos of 1.2 to 3.9 megapixels).
SPARE = 1.25


@dataclass(frozen=True)
class RandomCrops:
    """`num_views` random resized crops an image (Inception's augmentation, as used by SimCLR and MAE).

    `local` ones have the areas of `local_scale` and other draws (multi-crop, as used by SwAV and DINO).
    """

    config: ViewsConfig
    size: int
    num_views: int
    seed: int
    local: bool = False

    def boxes(self, visits: int | Tensor, ids: Tensor, heights: Tensor, widths: Tensor) -> Tensor:
        """(B, num_views, 4) int64: top, left, height, width. A box that does not fit is clipped to the image."""
        purpose = "local" if self.local else "crop"
        scale = self.config.local_scale if self.local else self.config.crop_scale
        draws = uniform(self.seed, visits, ids, 4 * self.num_views, purpose).reshape(len(ids), self.num_views, 4)
        area = (heights * widths)[:, None] * between(draws[..., 0], *scale)
        ratio = between(draws[..., 1], *map(math.log, self.config.crop_ratio)).exp()
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

    def boxes(self, visits: int | Tensor, ids: Tensor, heights: Tensor, widths: Tensor) -> Tensor:
        side = torch.minimum(heights, widths)
        box = torch.stack([(heights - side) // 2, (widths - side) // 2, side, side], dim=-1)
        return box[:, None].long()


Geometry = RandomCrops | CenterCrop


def reductions(boxes: Tensor, size: int) -> Tensor:
    """(B, V, 4) boxes of views of `size` pixels → (B,) int64: by how much a picture may be decoded smaller, 1, 2, 4 or
    8, so that all its boxes keep `SPARE` pixels a side for one of their views."""
    spare = boxes[..., 2:].amin(dim=(1, 2)) / (SPARE * size)
    return 2 ** spare.clamp(1, 8).log2().floor().long()


def reduced(boxes: Tensor, by: Tensor) -> Tensor:
    """(B, V, 4) boxes → those of the same views in pictures decoded smaller, (B,)."""
    by = by[:, None, None]
    start, end = boxes[..., :2], boxes[..., :2] + boxes[..., 2:]
    start, end = (start / by).round().long(), (end / by).round().long()
    return torch.cat([start, end - start], dim=-1)


def crop(image: Tensor, boxes: Tensor, size: int) -> Tensor:
    """(3, H, W) uint8 and (V, 4) boxes → (V, size, size, 3) uint8, antialiased.

    A box is made dense with its channels last: interpolate takes its fast uint8 kernel for either dense order, but of a
    mere slice it makes planes, at twice the cost.
    """
    views = torch.empty(len(boxes), size, size, 3, dtype=torch.uint8)
    for view, (top, left, height, width) in zip(views, boxes.tolist(), strict=True):
        region = image[None, :, top : top + height, left : left + width]
        if (height, width) != (size, size):
            region = region.contiguous(memory_format=torch.channels_last)
            region = F.interpolate(region, (size, size), mode="bilinear", antialias=True)
        view.copy_(region[0].permute(1, 2, 0))
    return views
