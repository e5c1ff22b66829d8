"""Recipes of contrast and self-distillation with the ViT of mae_32px, so that they can be compared with masking."""

from jobs.recipes.sizes import ASYMMETRIC, CROP_ONLY, TWO_VIEWS, VIT_32PX, small
from pipeline.experiment import Experiment
from ssl_models.objectives import DINO, MoCoV3, SimCLR
from ssl_models.objectives.supervised import Supervised
from ssl_models.optimizers import OptimizerConfig

# As MoCo v3's for ViTs (arXiv 2104.02057, section 4.1), but for a rate that fits some hundred steps, and the clipping,
# which theirs does without.
_ADAM = OptimizerConfig(
    name="adamw", learning_rate=5e-4, weight_decay=0.1, betas=(0.9, 0.999), warmup=0.1, clip_gradient=3.0
)


def supervised_vit_32px() -> Experiment:
    """Supervised classification with the ViT of mae_32px: what labels give in the same budget.

    Paper: Dosovitskiy et al. 2020, arXiv 2010.11929.
    Result: k-NN 45.9 %, linear probe 49.6 % (random encoder 27.9, 40.2) in docs/comparison.md: 100,000 images.
    Cost: 8 minutes of training there, 2,588 MB (2 CPU cores, shared with other work).
    Command: feral pretrain supervised_vit_32px data.store=STORE
    """
    return small(Supervised.Config(), _ADAM, encoder=VIT_32PX, views=CROP_ONLY)


def simclr_vit_32px() -> Experiment:
    """SimCLR with the ViT of mae_32px.

    Paper: Chen et al. 2020, arXiv 2002.05709; with ViTs Chen, Xie, He 2021, arXiv 2104.02057, table 4.
    Result: k-NN 40.6 %, linear probe 48.9 % (random encoder 27.9, 40.4) in docs/comparison.md: 100,000 images.
    Cost: 31 minutes of training there, 4,545 MB (2 CPU cores, shared with other work).
    Command: feral pretrain simclr_vit_32px data.store=STORE
    """
    return small(SimCLR.Config(temperature=0.2, projector_dims=(512, 128)), _ADAM, encoder=VIT_32PX, views=TWO_VIEWS)


def moco_v3_vit_32px() -> Experiment:
    """MoCo v3 with the ViT of mae_32px, what it was made for.

    Paper: Chen, Xie, He 2021, arXiv 2104.02057; all parameters decay; it has batches of 4,096 and a frozen patch
    embedding.
    Result: k-NN 35.0 %, linear probe 42.6 % (random encoder 27.9, 40.2) in docs/comparison.md: 100,000 images.
    Cost: 23 minutes of training there, 3,732 MB (2 CPU cores, shared with other work).
    Command: feral pretrain moco_v3_vit_32px data.store=STORE
    """
    optimizer = _ADAM.model_copy(update={"decay_all": True})
    return small(MoCoV3.Config(temperature=0.2), optimizer, encoder=VIT_32PX, views=ASYMMETRIC)


def dino_vit_32px() -> Experiment:
    """DINO with the ViT of mae_32px, and two local crops, which are as large as the others: the ViT knows one size.

    Paper: Caron et al. 2021, arXiv 2104.14294; eight local crops of 96 pixels beside two of 224, 65,536 prototypes.
    Result: k-NN 31.7 %, linear probe 42.6 % (random encoder 27.9, 40.2) in docs/comparison.md: 100,000 images.
    Cost: 36 minutes of training there, 6,203 MB (2 CPU cores, shared with other work).
    Command: feral pretrain dino_vit_32px data.store=STORE
    """
    local = {"local_crops": 2, "local_size": 32, "local_scale": (0.1, 0.4)}
    views = ASYMMETRIC.model_copy(update={"crop_scale": (0.4, 1.0), "solarize": (0.0, 0.2, 0.0), **local})
    return small(DINO.Config(), _ADAM, encoder=VIT_32PX, views=views)
