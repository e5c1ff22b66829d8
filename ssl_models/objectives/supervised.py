"""The labelled baseline: what the same encoder learns in the same budget when it is told."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_models.batch import Batch, Step
from ssl_models.collectives import weighted_mean
from ssl_models.config import Config
from ssl_models.encoders import EncoderConfig
from ssl_models.mixing import mixed
from ssl_models.objectives.objective import Objective
from ssl_models.precision import single


def labelled_cross_entropy(
    logits: Tensor, labels: Tensor, smoothing: float, mix: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Cross entropy with smoothed labels (Szegedy et al. 2016, arXiv 1512.00567, section 7), averaged over the labelled
    samples of the global batch, and their accuracy; 0 where there are none.

    The target is 1 − ε for the class and ε/K more for each of the K classes. Of a mixed image it is the sum of both
    classes' targets by their shares; the accuracy is that of the class with the greater one.

    Args:
        logits: (n, K); labels: (n,) int64, -1 = unlabelled; smoothing: ε.
        mix: the other labels (n,), and the shares of `labels` (n,), 1 where the other is unlabelled.
    """
    logits = single(logits)
    labelled = (labels >= 0).to(logits.dtype)

    def entropies(labels: Tensor) -> Tensor:  # (n,)
        return F.cross_entropy(logits, labels, ignore_index=-1, label_smoothing=smoothing, reduction="none")

    entropy, leading = entropies(labels), labels
    if mix is not None:
        other, share = mix
        share = share.to(logits.dtype)
        entropy = share * entropy + (1 - share) * entropies(other)
        leading = torch.where(share >= 0.5, labels, other)
    right = (logits.detach().argmax(1) == leading).to(logits.dtype)
    return weighted_mean(entropy, labelled), weighted_mean(right, labelled)


class Supervised(Objective):
    """Classification of labelled images; unlabelled ones of the store are left out of the mean."""

    class Config(Config):
        name: Literal["supervised"] = "supervised"
        num_classes: int | None = Field(None, description="of the store; filled in from it")
        label_smoothing: float = Field(0.0, ge=0, lt=1, description="ε; 0.1 is usual on ImageNet")
        mixup: float = Field(0.0, ge=0, description="α of mixup, 0.8 is usual for ViTs; 0: off")
        cutmix: float = Field(0.0, ge=0, description="α of CutMix, 1 is usual for ViTs; 0: off; with mixup: half each")

    def __init__(self, config: Config, encoder: EncoderConfig) -> None:
        super().__init__(config, encoder)
        self.config = config
        self.classify = nn.Linear(self.encoder.dim, config.num_classes or 1)

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        assert batch.labels is not None
        images, mix, config = batch.views[0], None, self.config
        if config.mixup or config.cutmix:
            images, other, share = mixed(images, batch.labels, batch.ids, step, config.mixup, config.cutmix)
            mix = other, share
        logits = self.classify(self.encoder(images))
        loss, accuracy = labelled_cross_entropy(logits, batch.labels, config.label_smoothing, mix)
        return {"loss": loss, "accuracy": accuracy}
