"""Contrastive objectives: two views of an image attract, all other images repel."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ssl_models.batch import Batch, Step
from ssl_models.chunks import Chunk, cross_entropy_sums, similarities, sums_over_rows
from ssl_models.collectives import gather, rank
from ssl_models.config import Config
from ssl_models.encoders import EncoderConfig
from ssl_models.heads import Projector
from ssl_models.objectives.objective import SeparableObjective
from ssl_models.precision import normalize, single


def nt_xent(
    first: Tensor, second: Tensor, temperature: float, chunk: int | None = None, *, unit_length: bool = True
) -> tuple[Tensor, Tensor]:
    """NT-Xent, the normalised temperature-scaled cross entropy (Chen et al. 2020, arXiv 2002.05709, eq. 1).

    ℓ(i) = −log( exp(cos(i, j)/τ) / Σ_{k≠i} exp(cos(i, k)/τ) ), j the other view of i, averaged over all 2N rows of
    the *global* batch: anchors are this rank's rows, keys those of all ranks, gathered with gradient. Only the anchor
    itself is left out of the denominator. Equals ln(2N − 1) when all rows are equal.

    Args:
        first, second: (n, D), this rank's projections of the two views.
        chunk: anchors whose logits, (chunk, 2N), are in memory at a time; None: all.
        unit_length: normalise rows; else inner products stand for cosines (their table 5).

    Returns:
        The loss, and the share of anchors whose positive is strictly nearest (a collapsed model scores 0).
    """
    local = len(first)
    scaled = normalize if unit_length else single
    anchors = torch.cat([scaled(first), scaled(second)])  # (2n, D)
    keys = torch.cat([gather(anchors[:local]), gather(anchors[local:])])  # (2N, D): all first views, then all second
    total = len(keys) // 2
    row = torch.arange(local, device=keys.device) + rank() * local
    itself = torch.cat([row, row + total])[:, None]  # (2n, 1), the anchor's own column
    positive = torch.cat([row + total, row])[:, None]  # (2n, 1)

    def sums(anchors: Tensor, itself: Tensor, positive: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        logits = (similarities(anchors, keys) / temperature).scatter(1, itself, -torch.inf)
        return cross_entropy_sums(logits, positive)

    loss, nearest = sums_over_rows(sums, (anchors, itself, positive), (keys,), chunk)
    return loss / len(anchors), nearest / len(anchors)


class SimCLR(SeparableObjective):
    """A simple framework for contrastive learning of visual representations (Chen et al. 2020)."""

    class Config(Config):
        name: Literal["simclr"] = "simclr"
        temperature: float = Field(0.2, gt=0, le=1000, description="τ of NT-Xent; small values weigh hard negatives")
        normalize: bool = Field(True, description="rows of length 1 before the loss; without, τ is 10 to 100")
        projector_dims: tuple[int, ...] = Field(
            (512, 128), description="widths; the last is the output; one: a linear head; none, []: no head"
        )
        projector_norm: Literal["batch", "layer"] = Field(
            "batch",
            description="of its hidden layers; the paper's is batch, gradient caching (micro_batch) needs layer",
        )
        chunk: Chunk = None

    num_views: ClassVar[int] = 2

    def __init__(self, config: Config, encoder: EncoderConfig) -> None:
        super().__init__(config, encoder)
        self.temperature, self.chunk, self.unit_length = config.temperature, config.chunk, config.normalize
        norm = nn.BatchNorm1d if config.projector_norm == "batch" else nn.LayerNorm
        self.projector = Projector(self.encoder.dim, config.projector_dims, norm)

    def encode(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        embeddings = self.encoder(torch.cat(batch.views[:2]))  # one pass: both views share BatchNorm statistics
        first, second = self.projector(embeddings).chunk(2)
        return {"first": first, "second": second}

    def loss(self, encoded: dict[str, Tensor], step: Step) -> dict[str, Tensor]:
        loss, accuracy = nt_xent(
            encoded["first"], encoded["second"], self.temperature, self.chunk, unit_length=self.unit_length
        )
        return {"loss": loss, "contrastive_accuracy": accuracy}
