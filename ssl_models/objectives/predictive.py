"""Predictive objectives: from a part of an image, which features does another part have?"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_models.batch import Batch, Step, uniform
from ssl_models.collectives import gather, rank
from ssl_models.config import Config
from ssl_models.encoders import EncoderConfig
from ssl_models.objectives.objective import Objective
from ssl_models.precision import single
from ssl_models.tiles import cut_grid, keep_one_channel, refuse_unfit

Direction = Literal["down", "left", "up", "right"]
_TURNS: dict[Direction, int] = {"down": 0, "left": 1, "up": 2, "right": 3}  # quarters that make it "down"


def patch_nce(predictions: Tensor, targets: Tensor, offset: int) -> tuple[Tensor, Tensor]:
    """InfoNCE over patches (van den Oord et al. 2018, arXiv 1807.03748, eq. 4), averaged over this rank's predictions:
    −log( exp⟨p, z⁺⟩ / Σ exp⟨p, z⟩ ), z all patches of the *global* batch, of the same image and of others, z⁺ the one
    `offset` rows below p. ln(number of patches) when all are equal.

    Args:
        predictions: (n, h, w, D) of this rank; the last `offset` rows have nothing below them and are not read.
        targets: (N, h, w, D) of all ranks, gathered with gradient.

    Returns:
        The loss, and the share of predictions to which z⁺ is strictly nearest.
    """
    local, rows, columns, _ = predictions.shape
    number = torch.arange(targets[..., 0].numel(), device=targets.device).view(-1, rows, columns)
    positive = number[rank() * local : (rank() + 1) * local, offset:].flatten()
    logits = predictions[:, : rows - offset].flatten(0, 2) @ targets.flatten(0, 2).T
    loss = F.cross_entropy(logits, positive)
    own = logits.detach().gather(1, positive[:, None])
    others = logits.detach().scatter(1, positive[:, None], -torch.inf).amax(1)
    return loss, (own[:, 0] > others).float().mean()


class RowContext(nn.Module):
    """A masked convolutional network (van den Oord et al. 2016, PixelCNN): (B, dim, h, w) → the same, where a row sees
    itself and the rows above it. Residual blocks as in CPC v2, without normalisation."""

    def __init__(self, dim: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(dim, hidden, 1),
                nn.ReLU(),
                nn.Conv2d(hidden, hidden, (1, 3), padding=(0, 1)),
                nn.ZeroPad2d((0, 0, 1, 0)),  # one row above, so that the next kernel ends at its own row
                nn.Conv2d(hidden, hidden, (2, 1)),
                nn.ReLU(),
                nn.Conv2d(hidden, dim, 1),
            )
            for _ in range(depth)
        )

    def forward(self, grid: Tensor) -> Tensor:
        for block in self.blocks:
            grid = grid + block(grid)
        return F.relu(grid)


class CPC(Objective):
    """Contrastive predictive coding on a grid of overlapping patches (van den Oord et al. 2018, arXiv 1807.03748), with
    the scaled prediction of version 2 and its directions and colour dropping as options (Hénaff et al. 2019, arXiv
    1905.09272).

    Rows that share pixels with the context are never predicted. Probes judge the mean of the patches' features, which
    is what was trained; the context network is dropped.
    """

    class Config(Config):
        name: Literal["cpc"] = "cpc"
        patch_size: int = Field(8, ge=4, description="pixels a side; a quarter of the image in the papers")
        stride: int = Field(4, ge=1, description="pixels between two patches; half a patch in the papers")
        furthest: int = Field(5, ge=1, description="rows from the context to the last one that is predicted")
        directions: tuple[Direction, ...] = Field(
            ("down",), min_length=1, description="in which the image is read; version 2: all four"
        )
        colour_dropping: float = Field(0.0, ge=0, le=1, description="share of patches that keep one colour channel")
        context_dim: int = Field(128, ge=1, description="width of the context network; the paper's 256")
        context_depth: int = Field(3, ge=1, description="its blocks, each of which sees a row more; the paper's 5")
        target_dim: int = Field(64, ge=1, description="width in which predictions meet patches")
        prediction_scale: float = Field(0.1, gt=0, description="factor of the predictions, one over a temperature")

    def __init__(self, config: Config, encoder: EncoderConfig) -> None:
        super().__init__(config, encoder)
        self.config = config
        if any(isinstance(module, _BatchNorm) for module in self.encoder.modules()):
            raise ValueError(
                f"encoder.name={encoder.name!r} has BatchNorm, through whose statistics a patch sees the others, and "
                'the task is solved without looking: use encoder.arguments={"norm_layer": "groupnorm1"} with a ResNet '
                "(LayerNorm over channels and places), or a ViT"
            )
        refuse_unfit(self.encoder, config.patch_size)
        rows = (encoder.image_size - config.patch_size) // config.stride + 1
        nearest = -(-config.patch_size // config.stride)  # the first row without a pixel of the context
        self.offsets = range(nearest, min(config.furthest, rows - 1) + 1)
        if not self.offsets:
            raise ValueError(
                f"{max(rows, 0)} rows of patches (objective.patch_size={config.patch_size}, stride={config.stride}, "
                f"encoder.image_size={encoder.image_size}), of which the next {nearest - 1} share pixels with the "
                f"context and objective.furthest={config.furthest} is the last: none is left to predict; use smaller "
                f"patches, or furthest of at least {nearest}"
            )
        dim = self.encoder.dim
        self.target = nn.Conv2d(dim, config.target_dim, 1)
        self.contexts = nn.ModuleList(
            RowContext(dim, config.context_dim, config.context_depth) for _ in config.directions
        )
        self.predictors = nn.ModuleList(
            nn.Conv2d(dim, config.target_dim * len(self.offsets), 1) for _ in config.directions
        )

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        patches = cut_grid(batch.views[0], self.config.patch_size, self.config.stride)
        if self.config.colour_dropping:
            patches = self._drop_colours(patches, batch.ids, step)
        grid = self.encode(patches)  # (B, dim, h, w)
        targets = gather(single(self.target(grid)))  # (N, D, h, w)
        losses, accuracies = [], []
        for direction, context, predictor in zip(self.config.directions, self.contexts, self.predictors, strict=True):
            turns = _TURNS[direction]
            predicted = single(predictor(context(grid.rot90(turns, (2, 3))))) * self.config.prediction_scale
            theirs = targets.rot90(turns, (2, 3)).permute(0, 2, 3, 1)
            for offset, mine in zip(self.offsets, predicted.chunk(len(self.offsets), 1), strict=True):
                with torch.autocast(mine.device.type, enabled=False):  # logits in single precision
                    loss, accuracy = patch_nce(mine.permute(0, 2, 3, 1), theirs, offset)
                losses.append(loss)
                accuracies.append(accuracy)
        return {"loss": torch.stack(losses).mean(), "contrastive_accuracy": torch.stack(accuracies).mean()}

    def encode(self, patches: Tensor) -> Tensor:
        """Each patch alone: (B, h, w, 3, p, p) → (B, dim, h, w)."""
        features = self.encoder(patches.flatten(0, 2))
        return features.unflatten(0, patches.shape[:3]).permute(0, 3, 1, 2)

    def embed(self, images: Tensor) -> Tensor:
        return self.encode(cut_grid(images, self.config.patch_size, self.config.stride)).mean((2, 3))

    def _drop_colours(self, patches: Tensor, ids: Tensor, step: Step) -> Tensor:
        rows, columns = patches.shape[1:3]
        draws = uniform(step.seed, step.number, ids, 2 * rows * columns, "colour dropping")
        drops, channel = draws.unflatten(1, (2, rows, columns)).unbind(1)  # (B, h, w) each
        kept = torch.where(drops < self.config.colour_dropping, (3 * channel).long(), -1)
        return keep_one_channel(patches, kept)
