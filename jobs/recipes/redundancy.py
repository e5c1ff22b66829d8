"""Recipes of redundancy reduction."""

from jobs.recipes.sizes import small
from pipeline.experiment import Experiment
from ssl_models.objectives import BarlowTwins, VICReg
from ssl_models.optimizers import OptimizerConfig

# These losses ask for adapted steps; the papers use LARS. With SGD at a rate of 0.1, Barlow Twins fell below the random
# encoder in its first 78 steps.
ADAMW = OptimizerConfig(name="adamw", learning_rate=2e-3, weight_decay=1e-4, betas=(0.9, 0.999), warmup=0.05)


def barlow_32px() -> Experiment:
    """Barlow Twins for 32-pixel images: two views correlate dimension by dimension, and in nothing else.

    Paper: Zbontar et al. 2021, arXiv 2103.03230.
    Result: k-NN 36.6 ± 2.2 %, linear probe 41.0 ± 2.5 % (random encoder 25.9, 29.8) in the README's
    comparison: a quarter of the width, 100,000 images, 2 seeds.
    Cost: that of simclr_32px, and a projector twice as wide.
    Command: feral pretrain barlow_32px data.store=STORE
    """
    return small(
        BarlowTwins.Config(loss_scale=0.1, projector_dims=(1024, 1024)),
        ADAMW,
    )


def vicreg_32px() -> Experiment:
    """VICReg for 32-pixel images: views are near, dimensions vary, and do not covary.

    Paper: Bardes et al. 2021, arXiv 2105.04906.
    Result: k-NN 40.2 ± 0.6 %, linear probe 44.5 ± 0.6 % (random encoder 25.9, 29.8) in the README's
    comparison: a quarter of the width, 100,000 images, 2 seeds.
    Cost: that of simclr_32px, and a projector twice as wide.
    Command: feral pretrain vicreg_32px data.store=STORE
    """
    return small(
        VICReg.Config(loss_scale=0.1, projector_dims=(1024, 1024)),
        ADAMW,
    )
