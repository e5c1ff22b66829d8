"""Recipes of momentum contrast for 32-pixel images."""

from jobs.recipes.sizes import ASYMMETRIC, SGD, small
from pipeline.experiment import Experiment
from pipeline.stream.views import ViewsConfig
from ssl_models.objectives import MoCo, MoCoV3


def moco_32px() -> Experiment:
    """MoCo v2 for 32-pixel images: the encoder, batch and budget of simclr_32px, a queue of 4,096 keys.

    Paper: Chen et al. 2020, arXiv 2003.04297; its head is 2048 wide, its queue 65,536 long, its momentum 0.999.
    Result: k-NN 32.9 ± 1.5 %, linear probe 34.6 ± 0.7 % (random encoder 25.9, 29.8) in the README's
    comparison: a quarter of the width, 100,000 images, 2 seeds.
    Cost: 400,000 images, each encoded once with gradient and once without.
    Command: feral pretrain moco_32px data.store=STORE
    """
    return small(
        MoCo.Config(temperature=0.2, projector_dims=(512, 128)), SGD.model_copy(update={"learning_rate": 0.12})
    )


def moco_v1_32px() -> Experiment:
    """MoCo v1 for 32-pixel images: a linear head, τ 0.07, and the views of instance discrimination.

    Paper: He et al. 2019, arXiv 1911.05722; its rate falls in steps, ours by the cosine.
    Result: k-NN 31.2 ± 1.3 %, linear probe 34.9 ± 0.1 % (random encoder 25.9, 29.8) in the README's
    comparison: a quarter of the width, 100,000 images, 2 seeds.
    Cost: as moco_32px.
    Command: feral pretrain moco_v1_32px data.store=STORE
    """
    views = ViewsConfig(crop_scale=(0.2, 1.0), jitter=(0.4, 0.4, 0.4, 0.4), jitter_probability=1.0)
    return small(
        MoCo.Config(temperature=0.07, projector_dims=(128,)),
        SGD.model_copy(update={"learning_rate": 0.12}),
        views=views,
    )


def moco_v3_32px() -> Experiment:
    """MoCo v3 with the ResNet of simclr_32px: no queue, a predictor, both directions.

    Paper: Chen, Xie, He 2021, arXiv 2104.02057; it has LARS, batches of 4,096 and heads 4,096 wide.
    Result: k-NN 38.6 ± 0.5 %, linear probe 43.4 ± 1.3 % (random encoder 25.9, 29.8) in the README's
    comparison: a quarter of the width, 100,000 images, 2 seeds.
    Cost: 400,000 images, both views encoded with gradient and both without.
    Command: feral pretrain moco_v3_32px data.store=STORE
    """
    return small(MoCoV3.Config(temperature=0.2), SGD.model_copy(update={"learning_rate": 0.4}), views=ASYMMETRIC)
