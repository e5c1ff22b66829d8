"""Recipes of clustering."""

from jobs.recipes.sizes import TWO_VIEWS, small
from pipeline.experiment import Experiment
from ssl_models.objectives import IIC, DeepClusterV2, SwAV
from ssl_models.optimizers import OptimizerConfig


def iic_32px() -> Experiment:
    """IIC for 32-pixel images, of which the encoder sees edges only: ten clusters, and seventy beside them.

    The first view is cropped only, the second one distorted, as in the paper.

    Paper: Ji et al. 2018, arXiv 1807.06653.
    Result: k-NN 25.2 ± 2.4 %, linear probe 31.1 ± 0.7 % (random encoder 18.5, 27.0) in the README's
    comparison: a quarter of the width, 100,000 images, 2 seeds.
    Cost: that of simclr_32px.
    Command: feral pretrain iic_32px data.store=STORE
    """
    return small(
        IIC.Config(num_clusters=10, over_clusters=(70,)),
        OptimizerConfig(name="adamw", learning_rate=2e-3, weight_decay=0, betas=(0.9, 0.999), warmup=0.05),
        views=TWO_VIEWS.model_copy(
            update={
                "crop_scale": (0.3, 1.0),
                "flip": (0.0, 0.5),
                "jitter": (0.4, 0.4, 0.4, 0.125),
                "jitter_probability": (0.0, 1.0),
                "grayscale": 0.0,
            }
        ),
    )


def swav_32px() -> Experiment:
    """SwAV for 32-pixel images: 128 prototypes, two views and no local crops.

    Paper: Caron et al. 2020, arXiv 2006.09882.
    Result: k-NN 38.7 ± 1.7 %, linear probe 43.8 ± 1.7 % (random encoder 25.9, 29.8) in the README's
    comparison: a quarter of the width, 100,000 images, 2 seeds.
    Cost: that of simclr_32px.
    Command: feral pretrain swav_32px data.store=STORE
    """
    # At the paper's ε of 0.05 the codes of a fresh encoder are so soft that the loss stayed at ln K for 50 steps.
    return small(SwAV.Config(num_prototypes=128, epsilon=0.025, freeze_prototypes=0.2))


def deepcluster_32px() -> Experiment:
    """DeepCluster-v2 for 32-pixel images: three times 128 clusters, made anew every 50,000 images.

    Paper: Caron et al. 2020, arXiv 2006.09882, appendix.
    Result: k-NN 37.0 ± 0.4 %, linear probe 41.0 ± 1.7 % (random encoder 25.9, 29.8) in the README's
    comparison: a quarter of the width, 100,000 images, 2 seeds.
    Cost: that of simclr_32px.
    Command: feral pretrain deepcluster_32px data.store=STORE
    """
    return small(DeepClusterV2.Config(num_prototypes=128, assign_every=195))
