"""Recipes of self-distillation for 32-pixel images."""

from jobs.recipes.sizes import ASYMMETRIC, SGD, small
from pipeline.experiment import Experiment
from ssl_models.objectives import BYOL, DINO, SimSiam


def byol_32px() -> Experiment:
    """BYOL for 32-pixel images: the encoder, batch and budget of simclr_32px.

    Paper: Grill et al. 2020, arXiv 2006.07733; it has LARS, batches of 4,096 and a momentum from 0.996.
    Result: k-NN 35.5 %, linear probe 40.5 % (random encoder 27.1, 31.2) with a quarter of the width on 10,000 images of
    CIFAR-10; in the README's comparison, 100,000 images, 26.2 %, 28.4 %.
    Cost: 400,000 images, both views encoded with gradient and both without.
    Command: feral pretrain byol_32px data.store=STORE
    """
    return small(BYOL.Config(), SGD.model_copy(update={"learning_rate": 0.1}), views=ASYMMETRIC)


def simsiam_32px() -> Experiment:
    """SimSiam for 32-pixel images: the encoder, batch and budget of simclr_32px, its own decay and rate.

    Paper: Chen and He 2020, arXiv 2011.10566, appendix D: no warm-up, all parameters decay; its rate on CIFAR-10, 0.03,
    is for 800 epochs. With 0.06 in 100,000 images: 18.8 %, 22.1 %.
    Result: k-NN 36.9 %, linear probe 41.8 % (random encoder 27.1, 31.2) with a quarter of the width on 10,000 images of
    CIFAR-10; in the README's comparison, 100,000 images, 29.6 %, 32.1 %.
    Cost: 400,000 images, both views encoded once.
    Command: feral pretrain simsiam_32px data.store=STORE
    """
    return small(SimSiam.Config(), SGD.model_copy(update={"learning_rate": 0.2, "warmup": 0.0, "decay_all": True}))


def dino_32px() -> Experiment:
    """DINO with the ResNet of simclr_32px, and four local crops of 16 pixels.

    Paper: Caron et al. 2021, arXiv 2104.14294; eight local crops of 96 pixels beside two of 224, 65,536 prototypes.
    Result: k-NN 34.9 %, linear probe 37.9 % (random encoder 27.1, 31.2) with a quarter of the width on 10,000 images of
    CIFAR-10; in the README's comparison, 100,000 images, 26.9 %, 28.6 %.
    Cost: 400,000 images, both global views encoded with gradient and both without, the local crops as one more.
    Command: feral pretrain dino_32px data.store=STORE
    """
    local = {"local_crops": 4, "local_size": 16, "local_scale": (0.1, 0.4)}
    views = ASYMMETRIC.model_copy(update={"crop_scale": (0.4, 1.0), "solarize": (0.0, 0.2, 0.0), **local})
    return small(DINO.Config(batchnorm=True), SGD.model_copy(update={"learning_rate": 0.12}), views=views)
