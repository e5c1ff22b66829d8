"""Recipes of predictive objectives."""

from jobs.recipes.sizes import ADAM, CROP_ONLY, RESNET_32PX, small
from pipeline.experiment import Experiment
from ssl_models.objectives import CPC


def cpc_32px() -> Experiment:
    """CPC on 5 × 5 patches of 8 pixels, read in four directions; the encoder of the others with a norm inside a patch.

    Paper: van den Oord et al. 2018, arXiv 1807.03748; Hénaff et al. 2019, arXiv 1905.09272.
    Result: not yet measured.
    Cost: not yet measured.
    Command: feral pretrain cpc_32px data.store=STORE
    """
    encoder = RESNET_32PX.model_copy(update={"arguments": RESNET_32PX.arguments | {"norm_layer": "groupnorm1"}})
    objective = CPC.Config(patch_size=8, stride=6, furthest=3, directions=("down", "up", "left", "right"))
    return small(objective, ADAM, encoder=encoder, views=CROP_ONLY)
