"""The table of recipes. A recipe is a function that returns an Experiment; its docstring gives the paper, the result
that was measured (or "not yet measured"), the cost, and the command."""

import difflib
from collections.abc import Callable

from jobs.recipes.banks import exemplar_32px, instdisc_32px, pirl_32px
from jobs.recipes.cifar10 import barlow_cifar10, byol_cifar10, moco_cifar10, simclr_cifar10, simsiam_cifar10
from jobs.recipes.clustering import deepcluster_32px, iic_32px, swav_32px
from jobs.recipes.distillation import byol_32px, dino_32px, simsiam_32px
from jobs.recipes.generative import (
    autoencoder_32px,
    bigan_32px,
    colorization_32px,
    denoising_autoencoder_32px,
    sparse_autoencoder_32px,
    split_brain_32px,
    vae_32px,
)
from jobs.recipes.image_text import captioning_small, clip_small, siglip_small
from jobs.recipes.masked import context_encoder_32px, context_encoder_adversarial_32px, mae_32px, simmim_32px
from jobs.recipes.metric import lifted_32px, n_pair_32px, nt_logistic_32px, siamese_margin_32px, triplet_32px
from jobs.recipes.moco import moco_32px, moco_v1_32px, moco_v3_32px
from jobs.recipes.predictive import cpc_32px
from jobs.recipes.pretext import jigsaw_32px, relative_patch_32px, rotation_32px
from jobs.recipes.redundancy import barlow_32px, vicreg_32px
from jobs.recipes.small_images import demo, mae_64px, simclr_32px
from jobs.recipes.supervised import supervised_32px
from jobs.recipes.vit import dino_vit_32px, moco_v3_vit_32px, simclr_vit_32px, supervised_vit_32px
from pipeline.experiment import Experiment

_TABLE = (
    demo,
    simclr_32px,
    mae_64px,
    moco_32px,
    moco_v1_32px,
    moco_v3_32px,
    exemplar_32px,
    instdisc_32px,
    pirl_32px,
    lifted_32px,
    n_pair_32px,
    nt_logistic_32px,
    siamese_margin_32px,
    triplet_32px,
    byol_32px,
    dino_32px,
    simsiam_32px,
    barlow_32px,
    vicreg_32px,
    deepcluster_32px,
    iic_32px,
    swav_32px,
    cpc_32px,
    context_encoder_32px,
    context_encoder_adversarial_32px,
    mae_32px,
    simmim_32px,
    jigsaw_32px,
    relative_patch_32px,
    rotation_32px,
    autoencoder_32px,
    bigan_32px,
    colorization_32px,
    denoising_autoencoder_32px,
    sparse_autoencoder_32px,
    split_brain_32px,
    vae_32px,
    supervised_32px,
    dino_vit_32px,
    moco_v3_vit_32px,
    simclr_vit_32px,
    supervised_vit_32px,
    captioning_small,
    clip_small,
    siglip_small,
    barlow_cifar10,
    byol_cifar10,
    moco_cifar10,
    simclr_cifar10,
    simsiam_cifar10,
)
RECIPES: dict[str, Callable[[], Experiment]] = {recipe.__name__: recipe for recipe in _TABLE}


def find_recipe(name: str) -> Callable[[], Experiment]:
    """The recipe called `name`.

    Raises:
        ValueError: there is none; names the nearest.
    """
    if name not in RECIPES:
        close = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.3)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ValueError(f"{name!r} is no recipe; {hint}there are {', '.join(RECIPES)} (`feral recipes`)")
    return RECIPES[name]
