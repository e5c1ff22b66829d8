"""Image-text objectives: a picture and its caption are two views of one thing."""

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_models.batch import Batch, Step
from ssl_models.chunks import Chunk, cross_entropy_sums, num_nearest, similarities, sums_over_rows
from ssl_models.collectives import gather, rank
from ssl_models.config import Config
from ssl_models.encoders import EncoderConfig, TextConfig, TextEncoder
from ssl_models.objectives.objective import SeparableObjective
from ssl_models.precision import normalize

MAX_LOG_SCALE = math.log(100)


def clip_loss(image: Tensor, text: Tensor, scale: Tensor, chunk: int | None = None) -> tuple[Tensor, Tensor]:
    """Symmetric cross entropy over all pairs of the global batch (Radford et al. 2021, arXiv 2103.00020, fig. 3).

    ½(CE over rows + CE over columns) of scale · cos(image_i, text_j); this rank's rows are the anchors, the other
    modality is gathered from all ranks with gradient. Equals ln N when nothing is learned.

    Args:
        image, text: (n, D), this rank's projections; scale: 0-dim, already exponentiated.
        chunk: anchors whose logits, (chunk, N), are in memory at a time; None: all.

    Returns:
        The loss, and the share of images whose own caption is strictly nearest.
    """
    image, text = normalize(image), normalize(text)
    images, texts, target = gather(image), gather(text), _own_columns(image)

    def sums(anchors: Tensor, target: Tensor, keys: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        return cross_entropy_sums(similarities(scale * anchors, keys), target)

    by_image, nearest = sums_over_rows(sums, (image, target), (texts, scale), chunk)
    by_text, _ = sums_over_rows(sums, (text, target), (images, scale), chunk)
    return (by_image + by_text) / 2 / len(image), nearest / len(image)


def siglip_loss(
    image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """Every pair of the global batch is a yes-or-no question (Zhai et al. 2023, arXiv 2303.15343, eq. 1 and alg. 1).

    −1/N Σ_i Σ_j log σ( y_ij (scale · cos(image_i, text_j) + bias) ), y = 1 where image and text are of one sample, else
    −1. This rank's images against the texts of all ranks, gathered with gradient: the mean over ranks is the global
    loss. With scale 10, bias −10 and cos = 0 it starts at 10.0 + (N − 1) · 4.54e-5.

    Args, returns: as `clip_loss`; bias: 0-dim.
    """
    image, text = normalize(image), normalize(text)
    texts, target = gather(text), _own_columns(image)

    def sums(anchors: Tensor, target: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        logits = similarities(scale * anchors, texts) + bias  # (n, N)
        signed = (-logits).scatter(1, target, logits.gather(1, target))  # y · logit
        return -F.logsigmoid(signed).sum(), num_nearest(logits, target)

    loss, nearest = sums_over_rows(sums, (image, target), (texts, scale, bias), chunk)
    return loss / len(image), nearest / len(image)


def _own_columns(rows: Tensor) -> Tensor:
    """(n, 1): where this rank's rows stand among those of all ranks."""
    return (torch.arange(len(rows), device=rows.device) + rank() * len(rows))[:, None]


class ImageTextObjective(SeparableObjective):
    """An objective whose images and captions meet in one space, where they can be compared: an encoder and a linear
    projection for the image, a transformer for the text (CLIP's two towers)."""

    needs_text: ClassVar[bool] = True

    def __init__(self, config: Config, encoder: EncoderConfig, text: TextConfig, dim: int) -> None:
        super().__init__(config, encoder)
        self.text_encoder = TextEncoder(text, dim)
        self.projection = nn.Linear(self.encoder.dim, dim, bias=False)
        nn.init.normal_(self.projection.weight, std=self.encoder.dim**-0.5)

    def encode(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        assert batch.tokens is not None
        return {"image": self.projection(self.encoder(batch.views[0])), "text": self.text_encoder(batch.tokens)}

    def project_image(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, D), L2-normalised."""
        return normalize(self.projection(self.encoder(images)))

    def project_text(self, tokens: Tensor) -> Tensor:
        """(B, L) → (B, D), L2-normalised."""
        return normalize(self.text_encoder(tokens))


class CLIP(ImageTextObjective):
    """Learning transferable visual models from natural language supervision (Radford et al. 2021)."""

    class Config(Config):
        name: Literal["clip"] = "clip"
        text: TextConfig = TextConfig()
        dim: int = Field(256, ge=2, description="width of the shared space")
        temperature: float = Field(0.07, gt=0.01, le=1, description="initial temperature; it is learned")
        chunk: Chunk = None

    def __init__(self, config: Config, encoder: EncoderConfig) -> None:
        super().__init__(config, encoder, config.text, config.dim)
        self.chunk = config.chunk
        self.log_scale = nn.Parameter(torch.tensor(-math.log(config.temperature)))

    def loss(self, encoded: dict[str, Tensor], step: Step) -> dict[str, Tensor]:
        loss, accuracy = clip_loss(encoded["image"], encoded["text"], self.log_scale.exp(), self.chunk)
        return {"loss": loss, "contrastive_accuracy": accuracy, "scale": self.log_scale.detach().exp()}

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        self.log_scale.clamp_(0, MAX_LOG_SCALE)  # after the optimizer's step, as the paper's training did


class SigLIP(ImageTextObjective):
    """Sigmoid loss for language image pre-training (Zhai et al. 2023), on CLIP's towers and tokens: the paper's text
    tower sees both ways and its tokens are SentencePiece's, but here the two methods differ in nothing but the loss."""

    class Config(Config):
        name: Literal["siglip"] = "siglip"
        text: TextConfig = TextConfig()
        dim: int = Field(256, ge=2, description="width of the shared space")
        temperature: float = Field(0.1, gt=0.01, le=1, description="initial temperature; it is learned")
        bias: float = Field(
            -5.0,
            description="initial bias of the logits; it is learned. About −ln(batch), so that the many pairs that do "
            "not belong together do not rule the first steps: the paper's −10 is for batches of 32,768",
        )
        chunk: Chunk = None

    def __init__(self, config: Config, encoder: EncoderConfig) -> None:
        super().__init__(config, encoder, config.text, config.dim)
        self.chunk = config.chunk
        self.log_scale = nn.Parameter(torch.tensor(-math.log(config.temperature)))
        self.bias = nn.Parameter(torch.tensor(config.bias))

    def loss(self, encoded: dict[str, Tensor], step: Step) -> dict[str, Tensor]:
        scale = self.log_scale.exp()
        loss, accuracy = siglip_loss(encoded["image"], encoded["text"], scale, self.bias, self.chunk)
        return {
            "loss": loss,
            "contrastive_accuracy": accuracy,
            "scale": scale.detach(),
            "bias": self.bias.detach().clone(),
        }
