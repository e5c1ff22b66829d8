"""Tiles of images: what the objectives of spatial context show their encoder, without the cues that give a tile's place
away though they say nothing about the scene (Doersch et al. 2015, arXiv 1505.05192, section 3.1)."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_models.encoders import ImageEncoder

Colours = Literal["keep", "drop", "project"]
_GREEN_MAGENTA = (-1.0, 2.0, -1.0)


def cut(images: Tensor, top: Tensor, left: Tensor, side: int) -> Tensor:
    """Squares of `side` pixels: (B, 3, H, W) → (B, T, 3, side, side).

    Args:
        top, left: (B, T, 1) int64, or (B, T, 3) with a place of its own for each channel.
    """
    reach = torch.arange(side, device=images.device)
    rows, columns = top[..., None] + reach, left[..., None] + reach  # (B, T, 1 or 3, side)
    sample = torch.arange(len(images), device=images.device).view(-1, 1, 1, 1, 1)
    channel = torch.arange(3, device=images.device).view(3, 1, 1)
    return images[sample, channel, rows[..., :, None], columns[..., None, :]]


def cut_grid(images: Tensor, side: int, stride: int) -> Tensor:
    """All squares of an overlapping grid: (B, 3, H, W) → (B, rows, columns, 3, side, side)."""
    return images.unfold(2, side, stride).unfold(3, side, stride).permute(0, 2, 3, 1, 4, 5)


def standardize(tiles: Tensor) -> Tensor:
    """Each tile with mean 0 in each channel and variance 1 over all: (…, 3, S, S). Neighbours share brightness and
    contrast. The floor of the variance is half a grey level: a flat tile shows no enlarged noise."""
    centred = tiles - tiles.mean((-2, -1), keepdim=True)
    return centred * (centred.square().mean((-3, -2, -1), keepdim=True) + 1e-4).rsqrt()


def keep_one_channel(tiles: Tensor, kept: Tensor, noise: Tensor | float = 0.0) -> Tensor:
    """All channels but one become noise of a hundredth of its deviation: the colour fringes of a lens cannot be seen.

    Args:
        tiles: (…, 3, S, S).
        kept: (…), 0 to 2, or −1 for a tile that keeps all three.
        noise: standard normal, as `tiles`; 0 leaves the channels empty.
    """
    channel = torch.arange(3, device=tiles.device)
    stays = (kept[..., None] == channel) | (kept[..., None] < 0)  # (…, 3)
    deviation = (tiles.std((-2, -1)) * stays).amax(-1)  # (…)
    return torch.where(stays[..., None, None], tiles, noise * (deviation / 100)[..., None, None, None])


def project_colours(pixels: Tensor) -> Tensor:
    """Without the green–magenta axis a = (−1, 2, −1), along which lenses err: x − a⟨a, x⟩/⟨a, a⟩; (…, 3, H, W)."""
    axis = pixels.new_tensor(_GREEN_MAGENTA)
    along = torch.einsum("...chw,c->...hw", pixels, axis / axis.square().sum())
    return pixels - along[..., None, :, :] * axis[:, None, None]


def blurring(side: int, smallest: int) -> Tensor:
    """Matrices (side − smallest + 1, side, side) float32: number i shrinks a row of pixels to smallest + i and enlarges
    it again; the last one changes nothing. For `resample`."""
    rows = torch.eye(side)[None]  # as `side` channels
    shrunk = (F.adaptive_avg_pool1d(rows, size) for size in range(smallest, side + 1))
    return torch.cat([F.interpolate(small, size=side, mode="linear") for small in shrunk]).mT


def resample(tiles: Tensor, matrices: Tensor) -> Tensor:
    """Each tile with its own matrix (…, S, S) of `blurring`, in both directions: (…, 3, S, S)."""
    matrices = matrices[..., None, :, :].to(tiles.dtype)
    return matrices @ tiles @ matrices.mT


@torch.no_grad()
def refuse_unfit(encoder: ImageEncoder, side: int) -> None:
    """Tries the encoder on tiles of `side` pixels.

    Raises:
        ValueError: it does not take them.
    """
    encoder.eval()
    try:
        encoder(torch.zeros(2, 3, side, side, device=next(encoder.parameters()).device))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(
            f"encoder {type(encoder.model).__name__} does not take tiles of {side} pixels ({error}): use a ResNet, or "
            "a ViT with encoder.arguments.dynamic_img_size=true whose encoder.patch_size divides the side of a tile"
        ) from error
    finally:
        encoder.train()
