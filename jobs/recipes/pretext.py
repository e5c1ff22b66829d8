"""Recipes of pretext tasks."""

from jobs.recipes.sizes import CROP_ONLY, SGD, small
from pipeline.experiment import Experiment
from ssl_models.objectives import Jigsaw, RelativePatch, Rotation

# A stretched crop leaves a blur with a direction; a small one shows textures, which have neither top nor neighbours.
_SQUARE = CROP_ONLY.model_copy(update={"crop_scale": (0.5, 1.0), "crop_ratio": (1.0, 1.0)})
_RATE = SGD.model_copy(update={"learning_rate": 0.1})


def rotation_32px() -> Experiment:
    """Rotation: each image in all four turns, so that a step costs twice SimCLR's.

    Paper: Gidaris et al. 2018, arXiv 1803.07728.
    Result: k-NN 34.9 ± 1.9 %, linear probe 38.9 ± 3.1 % (random encoder 25.9, 29.8) in the README's
    comparison: a quarter of the width, 100,000 images, 2 seeds.
    Cost: 11 minutes of training there, 2,005 MB (2 CPU cores, shared by two).
    Command: feral pretrain rotation_32px data.store=STORE
    """
    return small(Rotation.Config(), _RATE, views=_SQUARE)


def relative_patch_32px() -> Experiment:
    """Relative patch location with pairs of 8-pixel patches: a smoke test, there is little to see in so few pixels.

    Paper: Doersch et al. 2015, arXiv 1505.05192.
    Result: k-NN 23.4 %, linear probe 26.6 % (random encoder 26.1, 29.8) with a quarter of the width on 10,000 images of
    CIFAR-10; in the README's comparison, 100,000 images, 21.3 %, 25.0 %.
    Cost: 6 minutes of training there, 1,295 MB (2 CPU cores, shared by two).
    Command: feral pretrain relative_patch_32px data.store=STORE
    """
    return small(RelativePatch.Config(), _RATE, views=_SQUARE)


def jigsaw_32px() -> Experiment:
    """Jigsaw puzzles of nine 8-pixel tiles, a third of the images without colours.

    Paper: Noroozi and Favaro 2016, arXiv 1603.09246.
    Result: k-NN 28.7 %, linear probe 32.6 % (random encoder 26.1, 29.8) with a quarter of the width on 10,000 images of
    CIFAR-10; in the README's comparison, 100,000 images, 27.2 %, 29.1 %.
    Cost: 7 minutes of training there, 1,276 MB (2 CPU cores, shared by two).
    Command: feral pretrain jigsaw_32px data.store=STORE
    """
    return small(Jigsaw.Config(), _RATE, views=_SQUARE.model_copy(update={"grayscale": 0.3}))
