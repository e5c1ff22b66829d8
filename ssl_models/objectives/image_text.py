"""Image-text objectives: a picture and its caption are two views of one thing."""

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_models.batch import Batch, Step
from ssl_models.collectives import gather, rank
from ssl_models.config import Config
from ssl_models.encoders import EncoderConfig, TextConfig, TextEncoder
from ssl_models.objectives.objective import Objective
from ssl_models.precision import normalize, outside_autocast

MAX_LOG_SCALE = math.log(100)


@outside_autocast
def clip_loss(image: Tensor, text: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric cross entropy over all pairs of the global batch (Radford et al. 2021, arXiv 2103.00020, fig. 3).

    ½(CE over rows + CE over columns) of scale · cos(image_i, text_j); this rank's rows are the anchors, the other
    modality is gathered from all ranks with gradient. Equals ln N when nothing is learned.

    Args:
        image, text: (n, D), this rank's projections; scale: 0-dim, already exponentiated.

    Returns:
        The loss, and the share of images whose own caption is strictly nearest.
    """
    image, text = normalize(image), normalize(text)
    target = torch.arange(len(image), device=image.device) + rank() * len(image)
    by_image = scale * image @ gather(text).T  # (n, N)
    by_text = scale * text @ gather(image).T  # (n, N)
    loss = (F.cross_entropy(by_image, target) + F.cross_entropy(by_text, target)) / 2
    logits = by_image.detach()
    others = logits.scatter(1, target[:, None], -torch.inf)
    accuracy = (logits.gather(1, target[:, None])[:, 0] > others.amax(1)).float().mean()
    return loss, accuracy


class ImageTextObjective(Objective):
    """An objective whose images and captions meet in one space, where they can be compared."""

    needs_text: ClassVar[bool] = True

    def project_image(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, D), L2-normalised."""
        raise NotImplementedError

    def project_text(self, tokens: Tensor) -> Tensor:
        """(B, L) → (B, D), L2-normalised."""
        raise NotImplementedError


class CLIP(ImageTextObjective):
    """Learning transferable visual models from natural language supervision (Radford et al. 2021)."""

    class Config(Config):
        name: Literal["clip"] = "clip"
        text: TextConfig = TextConfig()
        dim: int = Field(256, ge=2, description="width of the shared space")
        temperature: float = Field(0.07, gt=0.01, le=1, description="initial temperature; it is learned")

    def __init__(self, config: Config, encoder: EncoderConfig) -> None:
        super().__init__(config, encoder)
        self.text_encoder = TextEncoder(config.text, config.dim)
        self.projection = nn.Linear(self.encoder.dim, config.dim, bias=False)
        nn.init.normal_(self.projection.weight, std=self.encoder.dim**-0.5)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(config.temperature)))

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        assert batch.tokens is not None
        image = self.projection(self.encoder(batch.views[0]))
        text = self.text_encoder(batch.tokens)
        loss, accuracy = clip_loss(image, text, self.log_scale.exp())
        return {"loss": loss, "contrastive_accuracy": accuracy, "scale": self.log_scale.detach().exp()}

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        self.log_scale.clamp_(0, MAX_LOG_SCALE)  # after the optimizer's step, as the paper's training did

    def project_image(self, images: Tensor) -> Tensor:
        return normalize(self.projection(self.encoder(images)))

    def project_text(self, tokens: Tensor) -> Tensor:
        return normalize(self.text_encoder(tokens))
