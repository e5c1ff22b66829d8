"""The table of objectives: one line a method, family by family."""

from typing import TYPE_CHECKING, Any, Union

from ssl_models.encoders import EncoderConfig
from ssl_models.objectives.clustering import IIC, SwAV
from ssl_models.objectives.contrastive import SimCLR
from ssl_models.objectives.deep_cluster import DeepClusterV2
from ssl_models.objectives.image_text import CLIP
from ssl_models.objectives.masked import MAE
from ssl_models.objectives.objective import Objective
from ssl_models.objectives.redundancy import BarlowTwins, VICReg

OBJECTIVES: dict[str, type[Objective]] = {
    # contrastive
    "simclr": SimCLR,
    # redundancy
    "barlow_twins": BarlowTwins,
    "vicreg": VICReg,
    # clustering
    "iic": IIC,
    "swav": SwAV,
    "deepcluster_v2": DeepClusterV2,
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
