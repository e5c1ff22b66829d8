"""Recipes of predictive objectives."""

from jobs.recipes.sizes import ADAM, CROP_ONLY, RESNET_32PX, small
from pipeline.experiment import Experiment
from ssl_models.objectives import CPC


def cpc_32px() -> Experiment:
    """CPC on 5 × 5 patches of 8 pixels, read in four directions; the encoder of the others with a norm inside a patch.

    Paper: van den Oord et al. 2018, arXiv 1807.03748; Hénaff et al. 2019, arXiv 1905.09272.
    Result: k-NN 30.5 ± 0.3 %, linear probe 36.0 ± 0.5 % (random encoder 25.8, 29.5; SimCLR with this encoder 37.2,
    39.6) in docs/comparison.md: a quarter of the width, 100,000 images, 2 seeds.
    Cost: 12 minutes of training there, 3,323 MB (2 CPU cores, shared by two); a picture is 25 passes of the encoder.
    Command: feral pretrain cpc_32px data.store=STORE
    """
    encoder = RESNET_32PX.model_copy(update={"arguments": RESNET_32PX.arguments | {"norm_layer": "groupnorm1"}})
    objective = CPC.Config(patch_size=8, stride=6, furthest=3, directions=("down", "up", "left", "right"))
    return small(objective, ADAM, encoder=encoder, views=CROP_ONLY)
