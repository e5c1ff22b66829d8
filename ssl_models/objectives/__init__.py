"""The table of objectives: one line a method, family by family."""

from typing import TYPE_CHECKING, Any, Union

from ssl_models.encoders import EncoderConfig
from ssl_models.objectives.banks import PIRL, Exemplar, InstDisc
from ssl_models.objectives.contrastive import SimCLR
from ssl_models.objectives.image_text import CLIP
from ssl_models.objectives.masked import MAE
from ssl_models.objectives.metric import Siamese
from ssl_models.objectives.objective import Objective

OBJECTIVES: dict[str, type[Objective]] = {
    # contrastive
    "simclr": SimCLR,
    "siamese": Siamese,
    "instdisc": InstDisc,
    "pirl": PIRL,
    "exemplar": Exemplar,
    # masked
    "mae": MAE,
    # image_text
    "clip": CLIP,
}

if TYPE_CHECKING:
    ObjectiveConfig = Any
else:
    ObjectiveConfig = Union[tuple(objective.Config for objective in OBJECTIVES.values())]  # noqa: UP007


def build_objective(config: ObjectiveConfig, encoder: EncoderConfig) -> Objective:
    """The objective that `config.name` stands for, freshly initialised from torch's global generator."""
    return OBJECTIVES[config.name](config, encoder)
