"""The table of objectives: one line a method, family by family."""

from typing import TYPE_CHECKING, Any, Union

from ssl_models.encoders import EncoderConfig
from ssl_models.objectives.captioning import Captioning
from ssl_models.objectives.contrastive import SimCLR
from ssl_models.objectives.image_text import CLIP, SigLIP
from ssl_models.objectives.masked import MAE
from ssl_models.objectives.objective import Objective

OBJECTIVES: dict[str, type[Objective]] = {
    # contrastive
    "simclr": SimCLR,
    # masked
    "mae": MAE,
    # image_text
    "clip": CLIP,
    "siglip": SigLIP,
    "captioning": Captioning,
}

if TYPE_CHECKING:
    ObjectiveConfig = Any
else:
    ObjectiveConfig = Union[tuple(objective.Config for objective in OBJECTIVES.values())]  # noqa: UP007


def build_objective(config: ObjectiveConfig, encoder: EncoderConfig) -> Objective:
    """The objective that `config.name` stands for, freshly initialised from torch's global generator."""
    return OBJECTIVES[config.name](config, encoder)
