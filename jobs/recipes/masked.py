"""Recipes of masked objectives."""

from jobs.recipes.sizes import ADAM, CROP_ONLY, VIT_32PX, small
from pipeline.experiment import Experiment
from ssl_models.objectives import MAE, AdversarialContextEncoder, ContextEncoder, SimMIM
from ssl_models.optimizers import OptimizerConfig

# MAE's, but for the length of the warm-up, the clipping, and a rate ten times as high, for some hundred steps of 256
# images instead of a million of 4,096. SimMIM's has a second beta of 0.999.
_ADAM_VIT = OptimizerConfig(
    name="adamw", learning_rate=1.5e-3, weight_decay=0.05, betas=(0.9, 0.95), warmup=0.1, clip_gradient=3.0
)


def mae_32px() -> Experiment:
    """MAE for 32-pixel images: a ViT-Ti of six blocks, 4-pixel patches, three quarters hidden.

    Paper: He et al. 2021, arXiv 2111.06377.
    Result: k-NN 34.9 %, linear probe 50.1 % (random encoder 27.3, 42.9) in docs/comparison.md: 100,000 images.
    Cost: 8 minutes of training there, 2,067 MB (2 CPU cores, shared with other work).
    Command: feral pretrain mae_32px data.store=STORE
    """
    return small(MAE.Config(), _ADAM_VIT, encoder=VIT_32PX, views=CROP_ONLY)


def simmim_32px() -> Experiment:
    """SimMIM for 32-pixel images: the encoder of mae_32px, six tenths hidden in squares of 8 pixels.

    Paper: Xie et al. 2021, arXiv 2111.09886.
    Result: k-NN 28.0 %, linear probe 41.9 % (random encoder 27.9, 40.4) in docs/comparison.md: 100,000 images.
    Cost: 14 minutes of training there, 2,724 MB (2 CPU cores, shared with other work).
    Command: feral pretrain simmim_32px data.store=STORE
    """
    return small(SimMIM.Config(), _ADAM_VIT, encoder=VIT_32PX, views=CROP_ONLY)


def context_encoder_32px() -> Experiment:
    """A context encoder that fills random holes of a quarter of the image by squared error.

    Paper: Pathak et al. 2016, arXiv 1604.07379.
    Result: k-NN 30.6 %, linear probe 36.4 % (random encoder 27.1, 31.2) with a quarter of the width on 10,000 images of
    CIFAR-10; in the README's comparison, 100,000 images, 29.1 %, 32.1 %.
    Cost: 5 minutes of training there, 1,372 MB (2 CPU cores, shared by two).
    Command: feral pretrain context_encoder_32px data.store=STORE
    """
    return small(ContextEncoder.Config(), ADAM, views=CROP_ONLY)


def context_encoder_adversarial_32px() -> Experiment:
    """A context encoder whose central hole of 16 pixels must fool a discriminator, too.

    Paper: Pathak et al. 2016, arXiv 1604.07379; the rate and β₁ of DCGAN.
    Result: k-NN 28.4 %, linear probe 33.5 % (random encoder 27.1, 31.2) with a quarter of the width on 10,000 images of
    CIFAR-10; in the README's comparison, 100,000 images, 27.0 %, 31.1 %.
    Cost: 7 minutes of training there, 1,363 MB (2 CPU cores, shared by two).
    Command: feral pretrain context_encoder_adversarial_32px data.store=STORE
    """
    optimizer = OptimizerConfig(name="adamw", learning_rate=5e-4, weight_decay=1e-4, betas=(0.5, 0.999))
    return small(AdversarialContextEncoder.Config(), optimizer, views=CROP_ONLY)
