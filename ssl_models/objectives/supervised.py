"""The labelled baseline: what the same encoder learns in the same budget when it is told."""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_models.batch import Batch, Step
from ssl_models.collectives import weighted_mean
from ssl_models.config import Config
from ssl_models.encoders import EncoderConfig
from ssl_models.objectives.objective import Objective
from ssl_models.precision import single


def labelled_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Cross entropy with smoothed labels (Szegedy et al. 2016, arXiv 1512.00567, section 7), averaged over the labelled
    samples of the global batch, and their accuracy; 0 where there are none.

    The target is 1 − ε for the class and ε/K more for each of the K classes.

    Args:
        logits: (n, K); labels: (n,) int64, -1 = unlabelled; smoothing: ε.
    """
    logits = single(logits)
    labelled = (labels >= 0).to(logits.dtype)
    entropy = F.cross_entropy(logits, labels, ignore_index=-1, label_smoothing=smoothing, reduction="none")  # (n,)
    right = (logits.detach().argmax(1) == labels).to(logits.dtype)
    return weighted_mean(entropy, labelled), weighted_mean(right, labelled)


class Supervised(Objective):
    """Classification of labelled images; unlabelled ones of the store are left out of the mean."""

    class Config(Config):
        name: Literal["supervised"] = "supervised"
        num_classes: int | None = Field(None, description="of the store; filled in from it")
        label_smoothing: float = Field(0.0, ge=0, lt=1, description="ε; 0.1 is usual on ImageNet")

    def __init__(self, config: Config, encoder: EncoderConfig) -> None:
        super().__init__(config, encoder)
        self.label_smoothing = config.label_smoothing
        self.classify = nn.Linear(self.encoder.dim, config.num_classes or 1)

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        assert batch.labels is not None
        logits = self.classify(self.encoder(batch.views[0]))
        loss, accuracy = labelled_cross_entropy(logits, batch.labels, self.label_smoothing)
        return {"loss": loss, "accuracy": accuracy}
