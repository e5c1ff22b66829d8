"""The table of objectives: one line a method, family by family."""

from typing import TYPE_CHECKING, Any, Union

from ssl_models.encoders import EncoderConfig
from ssl_models.objectives.adversarial import BiGAN
from ssl_models.objectives.banks import PIRL, Exemplar, InstDisc
from ssl_models.objectives.captioning import Captioning
from ssl_models.objectives.clustering import IIC, SwAV
from ssl_models.objectives.colour import Colorization, SplitBrain
from ssl_models.objectives.contrastive import SimCLR
from ssl_models.objectives.deep_cluster import DeepClusterV2
from ssl_models.objectives.distillation import BYOL, DINO, SimSiam
from ssl_models.objectives.generative import VAE, Autoencoder
from ssl_models.objectives.image_text import CLIP, SigLIP
from ssl_models.objectives.inpainting import AdversarialContextEncoder, ContextEncoder
from ssl_models.objectives.masked import MAE, SimMIM
from ssl_models.objectives.metric import Siamese
from ssl_models.objectives.moco import MoCo, MoCoV3
from ssl_models.objectives.objective import Objective
from ssl_models.objectives.predictive import CPC
from ssl_models.objectives.pretext import Jigsaw, RelativePatch, Rotation
from ssl_models.objectives.redundancy import BarlowTwins, VICReg
from ssl_models.objectives.supervised import Supervised

OBJECTIVES: dict[str, type[Objective]] = {
    # contrastive
    "simclr": SimCLR,
    "moco": MoCo,
    "moco_v3": MoCoV3,
    # distillation
    "byol": BYOL,
    "simsiam": SimSiam,
    "dino": DINO,
    # predictive
    "cpc": CPC,
    "siamese": Siamese,
    "instdisc": InstDisc,
    "pirl": PIRL,
    "exemplar": Exemplar,
    # redundancy
    "barlow_twins": BarlowTwins,
    "vicreg": VICReg,
    # clustering
    "iic": IIC,
    "swav": SwAV,
    "deepcluster_v2": DeepClusterV2,
    # masked
    "mae": MAE,
    "simmim": SimMIM,
    "context_encoder": ContextEncoder,
    "context_encoder_adversarial": AdversarialContextEncoder,
    # pretext
    "rotation": Rotation,
    "relative_patch": RelativePatch,
    "jigsaw": Jigsaw,
    "colorization": Colorization,
    # generative
    "autoencoder": Autoencoder,
    "vae": VAE,
    "bigan": BiGAN,
    "split_brain": SplitBrain,
    # supervised
    "supervised": Supervised,
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
