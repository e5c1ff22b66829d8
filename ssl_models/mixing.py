"""Mixup and CutMix: two labelled images in one, and how much of each."""

from functools import lru_cache

import torch
from torch import Tensor

from ssl_models.batch import Step, uniform

_CELLS = 4096  # of the table of quantiles


def mixed(
    images: Tensor, labels: Tensor, ids: Tensor, step: Step, mixup: float, cutmix: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Mixes each image with its neighbour in the batch: the first with the second, the third with the fourth, ….

    A sample's own share λ is Beta(α, α)-distributed. Mixup (Zhang et al. 2018, arXiv 1710.09412) adds the images,
    λ x + (1 − λ) x'; CutMix (Yun et al. 2019, arXiv 1905.04899) puts a box of the neighbour's over 1 − λ of the image,
    anywhere, cut off at the border. Where both are on, either is chosen with probability ½.

    Ranks hold consecutive parts of the global batch, whose order is shuffled: with an even number of samples each, the
    neighbours do not depend on how many ranks there are, and nothing is sent between them.

    Args:
        images: (B, 3, H, W), B even; labels: (B,) int64, -1 = unlabelled, which leaves both of a pair as they are.
        mixup, cutmix: α of each; 0: off.

    Returns:
        Images, the neighbours' labels (B,), and the samples' own shares (B,) in [0, 1].
    """
    assert len(images) % 2 == 0, "pairs need an even number of samples"
    neighbour = torch.arange(len(images), device=images.device) ^ 1
    draws = uniform(step.seed, step.number, ids, 4, "mixing")  # (B, 4)
    cuts = draws[:, 0] < (0.5 if mixup and cutmix else float(cutmix > 0))
    own = torch.where(cuts, beta(draws[:, 1], cutmix or 1), beta(draws[:, 1], mixup or 1))
    own = own.where((labels >= 0) & (labels[neighbour] >= 0), 1.0)
    covered = torch.where(
        cuts[:, None, None], box(1 - own, draws[:, 2:], *images.shape[2:]).double(), (1 - own)[:, None, None]
    ).to(images.dtype)  # (B, H, W): the neighbour's share of each pixel
    own = 1 - covered.mean((1, 2))
    return torch.lerp(images, images[neighbour], covered[:, None]), labels[neighbour], own


def box(area: Tensor, centres: Tensor, height: int, width: int) -> Tensor:
    """Boxes of the image's shape that cover a share `area` (B,) of it, before they are cut off at its border; (B, H, W)
    bool. centres: (B, 2) uniform draws, of row and column."""
    inside = []
    for side, centre in zip((height, width), centres.unbind(1), strict=True):
        half = (side * area.sqrt()).long() // 2
        middle, places = (side * centre).long(), torch.arange(side, device=area.device)
        inside.append((places >= (middle - half)[:, None]) & (places < (middle + half)[:, None]))
    rows, columns = inside
    return rows[:, :, None] & columns[:, None, :]


def beta(draws: Tensor, alpha: float) -> Tensor:
    """Uniform draws in [0, 1) → the quantiles of Beta(α, α) there, from a table."""
    table = _quantiles(alpha).to(draws.device)
    cell = (draws * _CELLS).long()
    return torch.lerp(table[cell], table[cell + 1], draws * _CELLS - cell)


@lru_cache(maxsize=8)
def _quantiles(alpha: float) -> Tensor:
    import numpy as np
    from scipy.special import betaincinv

    return torch.from_numpy(betaincinv(alpha, alpha, np.linspace(0, 1, _CELLS + 1)))
