"""The table of objectives: one line a method."""

from ssl_models.encoders import EncoderConfig
from ssl_models.objectives.contrastive import SimCLR
from ssl_models.objectives.image_text import CLIP
from ssl_models.objectives.masked import MAE
from ssl_models.objectives.objective import Objective

OBJECTIVES: dict[str, type[Objective]] = {
    "simclr": SimCLR,
    "mae": MAE,
    "clip": CLIP,
}

ObjectiveConfig = SimCLR.Config | MAE.Config | CLIP.Config


def build_objective(config: ObjectiveConfig, encoder: EncoderConfig) -> Objective:
    """The objective that `config.name` stands for, freshly initialised from torch's global generator."""
    return OBJECTIVES[config.name](config, encoder)
