"""Metric learning: one objective, with the losses that the field has used between similar and different pairs."""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ssl_models.batch import Batch, Step
from ssl_models.config import Config
from ssl_models.encoders import EncoderConfig
from ssl_models.heads import Projector
from ssl_models.objectives.metric_losses import (
    lifted_structure,
    margin_contrastive,
    n_pair,
    nearest_is_positive,
    nt_logistic,
    pair_up,
    triplet,
)
from ssl_models.objectives.objective import Objective

# Each loss, and the settings that it has, with their values where a configuration leaves them open.
LOSSES: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
    "margin": (margin_contrastive, {"normalize": True, "margin": 1.0}),
    "triplet": (triplet, {"normalize": True, "margin": 0.2, "mining": "semi_hard", "average": "active"}),
    "n_pair": (n_pair, {"norm_weight": 0.002}),
    "lifted": (lifted_structure, {"normalize": True, "margin": 1.0}),
    "nt_logistic": (nt_logistic, {"normalize": True, "temperature": 0.2, "mining": "semi_hard"}),
}
SETTINGS = sorted({name for _, settings in LOSSES.values() for name in settings})


class Siamese(Objective):
    """A siamese network: one encoder for both views, which are near each other and far from other images (Bromley et
    al. 1993; Hadsell, Chopra, LeCun 2006). With the triplet loss this is also Exemplar-CNN for data too large for a
    class an image (Kolesnikov et al. 2019, arXiv 1901.09005).
    """

    class Config(Config):
        name: Literal["siamese"] = "siamese"
        loss: Literal["margin", "triplet", "n_pair", "lifted", "nt_logistic"] = Field(
            "triplet",
            description="the settings below belong to some of them; left out (null), a loss has its own value",
        )
        margin: float | None = Field(
            None, gt=0, description="of margin and lifted: a distance (1); of triplet: a squared distance (0.2)"
        )
        mining: Literal["all", "hard", "semi_hard"] | None = Field(
            None, description="which negatives of triplet and nt_logistic (not hard) count (semi_hard)"
        )
        average: Literal["active", "all"] | None = Field(
            None, description="of triplet: over those with a loss above zero (active), or over all"
        )
        temperature: float | None = Field(None, gt=0, le=10, description="of nt_logistic (0.2)")
        norm_weight: float | None = Field(
            None, ge=0, description="of n_pair, whose rows are never normalised: weight of their squared length (0.002)"
        )
        normalize: bool | None = Field(None, description="rows of length 1 before the loss (true); not for n_pair")
        projector_dims: tuple[int, ...] = Field((512, 128), min_length=1, description="widths; the last is the output")

        @model_validator(mode="after")
        def _settings_fit_the_loss(self) -> "Siamese.Config":
            known = LOSSES[self.loss][1]
            for name in SETTINGS:
                if getattr(self, name) is not None and name not in known:
                    takers = ", ".join(loss for loss, (_, settings) in LOSSES.items() if name in settings)
                    raise ValueError(
                        f"objective.{name}={getattr(self, name)} means nothing to objective.loss={self.loss}, which "
                        f"has {', '.join(known)}: leave it out (null), or choose one of the losses {takers}"
                    )
            if self.loss == "nt_logistic" and self.mining == "hard":
                raise ValueError(
                    "objective.mining=hard is not for objective.loss=nt_logistic: use semi_hard or all, or loss=triplet"
                )
            return self

    num_views: ClassVar[int] = 2

    def __init__(self, config: Config, encoder: EncoderConfig) -> None:
        super().__init__(config, encoder)
        self.loss, settings = LOSSES[config.loss]
        given = {name: getattr(config, name) for name in settings}
        self.settings = {name: settings[name] if value is None else value for name, value in given.items()}
        self.normalize: bool = self.settings.pop("normalize", False)
        self.projector = Projector(self.encoder.dim, config.projector_dims)

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        embeddings = self.encoder(torch.cat(batch.views[:2]))  # one pass: both views share BatchNorm statistics
        first, second = self.projector(embeddings).chunk(2)
        with torch.autocast(first.device.type, enabled=False):  # in bf16, a distance has an error of 1 % of the margin
            pairs = pair_up(first, second, self.normalize)
            values = {"loss": self.loss(pairs, **self.settings), "contrastive_accuracy": nearest_is_positive(pairs)}
        if not self.normalize:
            values["row_length"] = pairs.anchors.detach().norm(dim=1).mean()
        return values
