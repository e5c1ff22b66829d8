"""Colour objectives: in CIE Lab, colours are predicted from lightness, and the other way round.

Both split what the stream's images hold; a jitter of colours would be a false target, so views are only cropped and
flipped. Targets are means over the cells of a map of a quarter of the image's side.
"""

from functools import cache
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ssl_models.batch import Batch, Step
from ssl_models.collectives import mean_over_ranks, weighted_mean
from ssl_models.config import Config
from ssl_models.encoders import EncoderConfig, ImageEncoder
from ssl_models.heads import MapDecoder
from ssl_models.objectives.objective import Objective
from ssl_models.pixels import rgb_to_lab
from ssl_models.precision import single

GRID = 10.0  # side of a bin, in a and b
NEIGHBOURS = 5  # bins that share a soft target
SPREAD = 5.0  # σ of the share of a bin, and of the smoothing of how often each occurs
GREY = 5.0  # an image whose |a| and |b| stay below it has no colour to learn from
AB_SCALE = 25.0  # brings a and b of photographs near unit variance, for an encoder's input

ColourWidth = Field(64, ge=1, description="channels of the decoder from the encoder's map to a quarter of the side")


@cache
def ab_bins() -> Tensor:
    """(Q, 2) float64: centres (a, b) of the bins of side 10 that hold a colour of 8-bit sRGB, sorted. Q is 261.

    The list of Zhang et al. has 313 bins, for another gamut. A line of constant a and b leaves the cube of colours
    through a face, so its faces hold every pair; each third level finds the same bins as all 256³ colours.
    """
    levels = torch.linspace(0, 1, 86, dtype=torch.float64, device="cpu")
    face = torch.cartesian_prod(levels, levels)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64, device="cpu").repeat_interleave(len(face))[:, None]
    third = torch.cat([ends, face.repeat(2, 1)], dim=1)  # red is 0 or 1
    colours = torch.cat([third.roll(channel, 1) for channel in range(3)])  # (6 · 86², 3)
    ab = rgb_to_lab(colours[:, :, None, None])[:, 1:, 0, 0]
    return (ab / GRID).round().unique(dim=0) * GRID


def soft_bins(ab: Tensor, bins: Tensor) -> tuple[Tensor, Tensor]:
    """The soft target of a colour: its five nearest bins, with shares ∝ exp(−d²/2σ²), σ = 5 (Zhang et al. 2016, arXiv
    1603.08511, section 2.1).

    Args:
        ab: (…, 2); bins: (Q, 2).

    Returns:
        Shares (…, 5), whose sum is 1, and places (…, 5) of the bins, nearest first.
    """
    squared = (ab[..., :1] - bins[:, 0]).square() + (ab[..., 1:] - bins[:, 1]).square()  # (…, Q)
    nearest = squared.topk(NEIGHBOURS, largest=False)
    return (-nearest.values / (2 * SPREAD**2)).softmax(-1), nearest.indices


def soft_cross_entropy(logits: Tensor, shares: Tensor, places: Tensor) -> Tensor:
    """−Σ_q Z_q ln softmax(logits)_q of each colour (eq. 2 without the weight): (…, Q), shares and places (…, 5) → (…).
    Equals ln Q where all bins are predicted alike."""
    return -(shares * logits.log_softmax(-1).gather(-1, places)).sum(-1)


def rebalancing(frequency: Tensor, bins: Tensor, uniform_share: float) -> Tensor:
    """The weight of each bin: w ∝ ((1 − λ) p̃ + λ/Q)⁻¹ with Σ p̃ w = 1, p̃ the frequency (Q,) smoothed by a Gaussian of
    σ = 5 (eq. 4)."""
    squared = (bins[:, None] - bins).square().sum(-1)
    kernel = (-squared / (2 * SPREAD**2)).exp()
    smoothed = (kernel / kernel.sum(0) * frequency).sum(1)
    weights = 1 / ((1 - uniform_share) * smoothed + uniform_share / len(bins))
    return weights / (smoothed * weights).sum()


def lightness_image(encoder: ImageEncoder, images: Tensor) -> Tensor:
    """What an encoder sees of (B, 3, H, W): L in each channel, mapped from [0, 100] as pixels are from [0, 1]."""
    return encoder.normalized(rgb_to_lab(encoder.pixels(images))[:, :1].expand(-1, 3, -1, -1) / 100)


def ab_image(encoder: ImageEncoder, images: Tensor) -> Tensor:
    """a and b in the first two channels over `AB_SCALE`, the third empty."""
    ab = rgb_to_lab(encoder.pixels(images))[:, 1:] / AB_SCALE
    return torch.cat([ab, torch.zeros_like(ab[:, :1])], dim=1)


def lab_cells(encoder: ImageEncoder, images: Tensor, side: int) -> Tensor:
    """(B, side, side, 3): the mean L, a, b of each cell."""
    return F.adaptive_avg_pool2d(rgb_to_lab(encoder.pixels(images)), side).permute(0, 2, 3, 1)


def last(logits: Tensor) -> Tensor:
    """(B, Q, h, w) → (B, h, w, Q), in single precision or better."""
    return single(logits).permute(0, 2, 3, 1)


class Colorization(Objective):
    """Colorful image colorization (Zhang et al. 2016): which colour has each place of a grey image?

    The encoder sees lightness alone, also in `embed`. How often each colour occurs is a running mean over the global
    batches; images without colour count nowhere.
    """

    class Config(Config):
        name: Literal["colorization"] = "colorization"
        uniform_share: float = Field(
            0.5, gt=0, le=1, description="λ: at 1 all colours weigh alike, near 0 rare ones most"
        )
        momentum: float = Field(0.99, ge=0, lt=1, description="of the running mean of how often each colour occurs")
        decoder_width: int = ColourWidth

    bins: Tensor  # (Q, 2), saved with the weights: other bins would be other classes
    frequency: Tensor  # (Q,), sums to 1

    def __init__(self, config: Config, encoder: EncoderConfig) -> None:
        super().__init__(config, encoder)
        self.encoder.refuse_class_token()
        self.config, self.side = config, encoder.image_size // 4
        bins = ab_bins().float()
        self.register_buffer("bins", bins)
        self.register_buffer("frequency", torch.full((len(bins),), 1 / len(bins)))
        self.decoder = MapDecoder(self.encoder.dim, config.decoder_width, len(bins), self.side)

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        images = batch.views[0]
        ab = lab_cells(self.encoder, images, self.side)[..., 1:]  # (B, side, side, 2)
        shares, places = soft_bins(ab, self.bins)
        logits = last(self.decoder(self.encoder.features(lightness_image(self.encoder, images))))
        coloured = (ab.abs().amax((1, 2, 3)) >= GREY).to(ab.dtype)[:, None, None].expand_as(places[..., 0])
        nearest = places[..., 0]
        weights = rebalancing(self.frequency, self.bins, self.config.uniform_share)[nearest] * coloured
        self.counted = torch.zeros_like(self.frequency).scatter_add_(0, nearest.flatten(), coloured.flatten())
        right = (logits.detach().argmax(-1) == nearest).to(ab.dtype)
        return {
            "loss": weighted_mean(soft_cross_entropy(logits, shares, places), weights),
            "accuracy": weighted_mean(right, coloured),
            "coloured": coloured.mean(),
        }

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        counts = mean_over_ranks(self.counted)
        found = torch.where(counts.sum() > 0, counts / counts.sum(), self.frequency)
        self.frequency.lerp_(found, 1 - self.config.momentum)

    def embed(self, images: Tensor) -> Tensor:
        return self.encoder(lightness_image(self.encoder, images))


class SplitBrain(Objective):
    """Split-brain autoencoders (Zhang et al. 2017, arXiv 1611.09842): one encoder predicts colour from lightness,
    another lightness from colour; together they see all.

    The configured encoder is that of *one half*: give it half the width. The halves share nothing. Both predict classes
    (section 3.1): a soft one of colour as colorization does, one of `lightness_bins` of lightness; without rebalancing.
    Probes judge both embeddings, side by side: (B, 2 · dim).
    """

    class Config(Config):
        name: Literal["split_brain"] = "split_brain"
        lightness_bins: int = Field(100, ge=2, description="equal parts of L in [0, 100]")
        decoder_width: int = ColourWidth

    bins: Tensor  # (Q, 2), saved with the weights

    def __init__(self, config: Config, encoder: EncoderConfig) -> None:
        super().__init__(config, encoder)
        self.encoder.refuse_class_token()
        self.other = ImageEncoder(encoder)
        self.side, self.lightness_bins = encoder.image_size // 4, config.lightness_bins
        bins = ab_bins().float()
        self.register_buffer("bins", bins)
        self.to_colour = MapDecoder(self.encoder.dim, config.decoder_width, len(bins), self.side)
        self.to_lightness = MapDecoder(self.encoder.dim, config.decoder_width, config.lightness_bins, self.side)

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        images = batch.views[0]
        cells = lab_cells(self.encoder, images, self.side)  # (B, side, side, 3)
        shares, places = soft_bins(cells[..., 1:], self.bins)
        level = (cells[..., 0] / 100 * self.lightness_bins).long().clamp(0, self.lightness_bins - 1)
        colours = last(self.to_colour(self.encoder.features(lightness_image(self.encoder, images))))
        levels = last(self.to_lightness(self.other.features(ab_image(self.encoder, images))))
        colour = soft_cross_entropy(colours, shares, places).mean()
        lightness = F.cross_entropy(levels.flatten(0, 2), level.flatten())
        return {"loss": colour + lightness, "colour": colour, "lightness": lightness}

    def embed(self, images: Tensor) -> Tensor:
        lightness, ab = lightness_image(self.encoder, images), ab_image(self.encoder, images)
        return torch.cat([self.encoder(lightness), self.other(ab)], dim=1)
