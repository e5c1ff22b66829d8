"""Recipes in which every image is a class of its own."""

from jobs.recipes.sizes import small
from pipeline.experiment import Experiment
from ssl_models.objectives import PIRL, Exemplar, InstDisc
from ssl_models.optimizers import OptimizerConfig

# At the rate of the other recipes (0.4) the loss stays above that of chance: rows of the bank are as old as an epoch,
# and random before that. The papers use 0.03.
SLOW_SGD = OptimizerConfig(name="sgd", learning_rate=0.05, weight_decay=5e-4, warmup=0.05)


def instdisc_32px() -> Experiment:
    """Instance discrimination for 32-pixel images: the exact softmax over a bank with a row an image.

    Paper: Wu et al. 2018, arXiv 1805.01978; k-NN 80.8 % on CIFAR-10 after 200 epochs.
    Result: k-NN 30.2 ± 2.1 %, linear probe 33.6 ± 2.0 % (random encoder 25.9, 29.8) in the README's
    comparison: a quarter of the width, 100,000 images, 2 seeds.
    Cost: about half of simclr_32px.
    Command: feral pretrain instdisc_32px data.store=STORE
    """
    return small(InstDisc.Config(), SLOW_SGD)


def pirl_32px() -> Experiment:
    """PIRL for 32-pixel images: an image and the jigsaw of it share a row of the bank.

    Paper: Misra and van der Maaten 2019, arXiv 1912.01991.
    Result: k-NN 30.0 ± 0.5 %, linear probe 34.1 ± 1.7 % (random encoder 25.9, 29.8) in the README's
    comparison: a quarter of the width, 100,000 images, 2 seeds.
    Cost: that of simclr_32px.
    Command: feral pretrain pirl_32px data.store=STORE
    """
    return small(PIRL.Config(), SLOW_SGD)


def exemplar_32px() -> Experiment:
    """Exemplar-CNN for 32-pixel images: a linear classifier tells which image a view shows.

    The transformations are the stream's: crops of another scale and ratio, flips, colour. The paper also turns images
    by up to 20 degrees, and takes patches with high gradients from larger images.

    Paper: Dosovitskiy et al. 2014, arXiv 1406.6909.
    Result: k-NN 47.0 %, linear probe 49.4 % (random encoder 27.1, 31.2) with a quarter of the width on 10,000 images of
    CIFAR-10; in the README's comparison, 100,000 images, 24.1 %, 28.4 %.
    Cost: about half of simclr_32px.
    Command: feral pretrain exemplar_32px data.store=STORE
    """
    return small(Exemplar.Config())
