"""Masked objectives: most of an image is hidden and predicted from the rest."""

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ssl_models.batch import Batch, Step, uniform
from ssl_models.config import Config
from ssl_models.encoders import EncoderConfig
from ssl_models.heads import MaskedDecoder
from ssl_models.objectives.objective import Objective


def patchify(images: Tensor, patch: int) -> Tensor:
    """(B, 3, H, W) → (B, H/p · W/p, p · p · 3), patches in row-major order."""
    batch, channels, height, width = images.shape
    grid = images.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, patch: int, rows: int) -> Tensor:
    """The inverse of `patchify`: (B, L, p · p · 3) → (B, 3, H, W) with `rows` rows of patches."""
    batch, length, _ = patches.shape
    grid = patches.reshape(batch, rows, length // rows, patch, patch, 3)
    return grid.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def masked_loss(prediction: Tensor, target: Tensor, masked: Tensor) -> Tensor:
    """Mean squared error over the hidden patches only (He et al. 2021, arXiv 2111.06377).

    Args:
        prediction, target: (B, L, patch_dim).
        masked: (B, L), 1 where a patch was hidden; every sample hides equally many.
    """
    error = (prediction.to(target.dtype) - target).square().mean(-1)  # (B, L)
    return (error * masked).sum() / masked.sum()


def masked_l1(prediction: Tensor, target: Tensor, masked: Tensor) -> Tensor:
    """Mean absolute error over the hidden pixels only (Xie et al. 2021, arXiv 2111.09886, section 3.4).

    Args: as `masked_loss`.
    """
    error = (prediction.to(target.dtype) - target).abs().mean(-1)  # (B, L)
    return (error * masked).sum() / masked.sum()


def block_mask(draws: Tensor, ratio: float, rows: int, times: int) -> Tensor:
    """A mask of whole blocks: (B, rows²) uniform draws → (B, (rows · times)²) bool, row-major, True where hidden.

    Every sample hides the blocks of its ⌈ratio · rows²⌉ smallest draws; a block is `times` × `times` patches.
    """
    blocks = draws.argsort(1).argsort(1) < math.ceil(ratio * rows**2)
    blocks = blocks.view(-1, rows, rows).repeat_interleave(times, 1).repeat_interleave(times, 2)
    return blocks.flatten(1)


def normalize_patches(patches: Tensor) -> Tensor:
    """Each patch with its own mean 0 and (unbiased) variance 1: MAE's better target."""
    mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


class MAE(Objective):
    """Masked autoencoders are scalable vision learners (He et al. 2021): only visible patches are encoded."""

    class Config(Config):
        name: Literal["mae"] = "mae"
        mask_ratio: float = Field(0.75, gt=0, lt=1, description="share of patches that are hidden")
        normalize_target: bool = Field(True, description="predict patches normalised to mean 0 and variance 1")
        decoder_dim: int = Field(128, ge=8, description="divisible by 4 and by decoder_heads")
        decoder_depth: int = Field(2, ge=1)
        decoder_heads: int = Field(4, ge=1)

    num_views: ClassVar[int] = 1

    def __init__(self, config: Config, encoder: EncoderConfig) -> None:
        super().__init__(config, encoder)
        self.encoder.fix_positions()
        self.mask_ratio, self.normalize_target = config.mask_ratio, config.normalize_target
        embed = self.encoder.model.patch_embed
        self.patch_size: int = embed.patch_size[0]
        self.grid: tuple[int, int] = embed.grid_size
        if config.decoder_dim % config.decoder_heads:
            raise ValueError(
                f"objective.decoder_dim={config.decoder_dim} is not divisible by decoder_heads={config.decoder_heads}"
            )
        # Xavier on the flattened kernel, as a linear layer over patch pixels (MAE's initialisation).
        torch.nn.init.xavier_uniform_(embed.proj.weight.view(embed.proj.weight.shape[0], -1))
        self.decoder = MaskedDecoder(
            self.encoder.dim,
            self.grid,
            3 * self.patch_size**2,
            config.decoder_dim,
            config.decoder_depth,
            config.decoder_heads,
        )

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        images = batch.views[0]
        prediction, masked = self.predict(images, batch.ids, step)
        target = patchify(images, self.patch_size)
        if self.normalize_target:
            target = normalize_patches(target)
        return {"loss": masked_loss(prediction, target, masked)}

    def predict(self, images: Tensor, ids: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Predicted patches (B, L, patch_dim) and the mask (B, L), 1 where hidden. The mask is a function of
        (seed, step, sample id)."""
        length = self.grid[0] * self.grid[1]
        num_kept = max(1, int(length * (1 - self.mask_ratio)))
        order = uniform(step.seed, step.number, ids, length, "mask").argsort(1)  # (B, L)
        keep, restore = order[:, :num_kept], order.argsort(1)
        tokens = self.encoder.visible_tokens(images, keep)
        return self.decoder(tokens, restore), (restore >= num_kept).to(images.dtype)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, ids: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """For people to look at: the images with hidden patches grey, and with hidden patches predicted (B, 3, H, W).

        With a normalised target the mean and variance of each true patch are put back, as in the paper's figures.
        """
        prediction, masked = self.predict(images, ids, step)
        true = patchify(images, self.patch_size)
        prediction = prediction.to(true.dtype)
        if self.normalize_target:
            prediction = prediction * (true.var(-1, keepdim=True) + 1e-6).sqrt() + true.mean(-1, keepdim=True)
        hidden = masked[..., None]
        pictures = (true * (1 - hidden), true * (1 - hidden) + prediction * hidden)
        grey, filled = (unpatchify(picture, self.patch_size, self.grid[0]) for picture in pictures)
        return grey, filled


class SimMIM(Objective):
    """SimMIM: a simple framework for masked image modeling (Xie et al. 2021, arXiv 2111.09886): hidden patches enter
    the encoder as a mask token, and one linear layer predicts their pixels."""

    class Config(Config):
        name: Literal["simmim"] = "simmim"
        mask_ratio: float = Field(0.6, gt=0, lt=1, description="share of the image that is hidden")
        mask_size: int = Field(
            8,
            ge=1,
            description="pixels a side of what is hidden together; the paper's 32 at 224 pixels",
        )

    def __init__(self, config: Config, encoder: EncoderConfig) -> None:
        super().__init__(config, encoder)
        from timm.models import VisionTransformer

        if not isinstance(self.encoder.model, VisionTransformer):
            raise ValueError(
                f"objective simmim needs a plain ViT as encoder, got {type(self.encoder.model).__name__}: choose for "
                "example encoder.name=vit_tiny_patch16_224"
            )
        self.encoder.refuse_class_token()
        self.mask_ratio = config.mask_ratio
        self.patch_size: int = self.encoder.model.patch_embed.patch_size[0]
        if config.mask_size % self.patch_size or encoder.image_size % config.mask_size:
            raise ValueError(
                f"objective.mask_size={config.mask_size} must be a multiple of the encoder's patch of "
                f"{self.patch_size} pixels and divide encoder.image_size={encoder.image_size}"
            )
        self.blocks, self.patches_a_block = encoder.image_size // config.mask_size, config.mask_size // self.patch_size
        if math.ceil(config.mask_ratio * self.blocks**2) == self.blocks**2:
            raise ValueError(
                f"objective.mask_ratio={config.mask_ratio} hides all {self.blocks**2} blocks of an image: lower it, or "
                "objective.mask_size"
            )
        self.mask_token = nn.Parameter(torch.zeros(self.encoder.dim))
        nn.init.normal_(self.mask_token, std=0.02)
        self.predict = nn.Linear(self.encoder.dim, 3 * self.patch_size**2)

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        images = batch.views[0]
        draws = uniform(step.seed, step.number, batch.ids, self.blocks**2, "mask")
        masked = block_mask(draws, self.mask_ratio, self.blocks, self.patches_a_block)
        prediction = self.predict(self.encoder.masked_tokens(images, masked, self.mask_token))  # (B, L, patch_dim)
        return {"loss": masked_l1(prediction, patchify(images, self.patch_size), masked)}
