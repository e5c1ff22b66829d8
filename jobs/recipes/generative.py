"""Recipes for generative objectives and for colour: small images, crops and flips only."""

from jobs.recipes.sizes import CROP_ONLY, RESNET_32PX, small
from pipeline.experiment import Experiment
from ssl_models.objectives.adversarial import BiGAN
from ssl_models.objectives.colour import Colorization, SplitBrain
from ssl_models.objectives.generative import VAE, Autoencoder
from ssl_models.optimizers import OptimizerConfig

ADAM = OptimizerConfig(name="adamw", learning_rate=2e-3, weight_decay=0.01, betas=(0.9, 0.99), warmup=0.05)


def autoencoder_32px() -> Experiment:
    """A plain autoencoder of 128 numbers an image, for 32-pixel images such as CIFAR-10.

    Paper: Hinton and Salakhutdinov 2006, Science 313, "Reducing the dimensionality of data with neural networks".
    Result: k-NN 35.6 ± 0.1 %, linear probe 36.0 ± 1.1 % (random encoder 25.9, 29.8) in the README's
    comparison: a quarter of the width, 100,000 images, 2 seeds.
    Cost: 6 minutes of training there, 1,456 MB (2 CPU cores, shared by two).
    Command: feral pretrain autoencoder_32px data.store=STORE
    """
    return small(Autoencoder.Config(), ADAM, views=CROP_ONLY)


def denoising_autoencoder_32px() -> Experiment:
    """A denoising autoencoder for 32-pixel images such as CIFAR-10: a quarter of the pixels black, and Gaussian noise.

    Paper: Vincent et al. 2010, JMLR 11.
    Result: k-NN 35.5 ± 0.4 %, linear probe 34.9 ± 1.5 % (random encoder 25.9, 29.8) in the README's
    comparison: a quarter of the width, 100,000 images, 2 seeds.
    Cost: 6 minutes of training there, 1,475 MB (2 CPU cores, shared by two).
    Command: feral pretrain denoising_autoencoder_32px data.store=STORE
    """
    return small(Autoencoder.Config(masking=0.25, gaussian=0.1), ADAM, views=CROP_ONLY)


def sparse_autoencoder_32px() -> Experiment:
    """A sparse autoencoder for 32-pixel images such as CIFAR-10: 256 units, each active a twentieth of the time.

    Paper: Ng 2011, CS294A lecture notes; Lee et al. 2007, "Sparse deep belief net model for visual area V2".
    Result: k-NN 32.7 ± 0.3 %, linear probe 35.9 ± 0.5 % (random encoder 25.9, 29.8) in the README's
    comparison: a quarter of the width, 100,000 images, 2 seeds.
    Cost: 10 minutes of training there, 1,443 MB (2 CPU cores, shared by two).
    Command: feral pretrain sparse_autoencoder_32px data.store=STORE
    """
    return small(Autoencoder.Config(code_dim=256, sparsity=0.001), ADAM, views=CROP_ONLY)


def vae_32px() -> Experiment:
    """A variational autoencoder for 32-pixel images such as CIFAR-10, with 128 latents.

    Paper: Kingma and Welling 2013, arXiv 1312.6114.
    Result: k-NN 35.6 ± 0.1 %, linear probe 36.3 ± 0.7 % (random encoder 25.9, 29.8) in the README's
    comparison: a quarter of the width, 100,000 images, 2 seeds.
    Cost: 9 minutes of training there, 1,445 MB (2 CPU cores, shared by two).
    Command: feral pretrain vae_32px data.store=STORE
    """
    return small(VAE.Config(), ADAM, views=CROP_ONLY)


def bigan_32px() -> Experiment:
    """BiGAN for 32-pixel images such as CIFAR-10.

    Paper: Donahue et al. 2016, arXiv 1605.09782.
    Result: k-NN 25.4 %, linear probe 31.3 % (random encoder 27.1, 31.2) with a quarter of the width on 10,000 images of
    CIFAR-10; in the README's comparison, 100,000 images, 25.4 %, 27.0 %.
    Cost: 19 minutes of training there, 1,697 MB (2 CPU cores, shared by two).
    Command: feral pretrain bigan_32px data.store=STORE
    """
    adam = OptimizerConfig(
        name="adamw", learning_rate=4e-4, weight_decay=2.5e-5, betas=(0.5, 0.999), warmup=0.0, schedule="constant"
    )
    return small(BiGAN.Config(), adam, views=CROP_ONLY)


def colorization_32px() -> Experiment:
    """Colorization for 32-pixel images such as CIFAR-10; the encoder sees lightness only.

    Paper: Zhang et al. 2016, arXiv 1603.08511.
    Result: k-NN 33.0 ± 1.3 %, linear probe 37.8 ± 0.3 % (random encoder 24.5, 29.2) in the README's
    comparison: a quarter of the width, 100,000 images, 2 seeds.
    Cost: 6 minutes of training there, 1,432 MB (2 CPU cores, shared by two).
    Command: feral pretrain colorization_32px data.store=STORE
    """
    return small(Colorization.Config(), ADAM, views=CROP_ONLY)


def split_brain_32px() -> Experiment:
    """A split-brain autoencoder for 32-pixel images such as CIFAR-10: two encoders of half the others' width.

    Paper: Zhang et al. 2017, arXiv 1611.09842.
    Result: k-NN 37.3 ± 0.4 %, linear probe 42.9 ± 0.1 % (random encoder 28.0, 37.0) in the README's
    comparison: a quarter of the width, 100,000 images, 2 seeds.
    Cost: 9 minutes of training there, 1,603 MB (2 CPU cores, shared by two).
    Command: feral pretrain split_brain_32px data.store=STORE
    """
    arguments = RESNET_32PX.arguments | {"channels": [width // 2 for width in RESNET_32PX.arguments["channels"]]}
    half = RESNET_32PX.model_copy(update={"arguments": arguments})
    return small(SplitBrain.Config(), ADAM, encoder=half, views=CROP_ONLY)
