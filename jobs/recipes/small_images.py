"""Recipes for small images, which a workstation without GPU can train."""

from jobs.recipes.sizes import small
from pipeline.experiment import Experiment
from pipeline.stream.batches import DataConfig
from pipeline.stream.views import ViewsConfig
from pipeline.train.loop import TrainingConfig
from ssl_models.encoders import EncoderConfig
from ssl_models.objectives import MAE, SimCLR
from ssl_models.optimizers import OptimizerConfig


def demo() -> Experiment:
    """SimCLR on the generated dump of `feral demo`: shapes on cluttered backgrounds, 32 px.

    Paper: Chen et al. 2020, arXiv 2002.05709.
    Result: k-NN 86.2 % (random encoder 22.3, raw pixels 34.4), linear probe 93.8 % (27.4, 35.7) on AMD cores; on
    Intel's 82.7 %, 88.9 %.
    Cost: 1 min 45 s on 2 CPU cores; five to eleven minutes where they are shared with other work.
    Command: feral demo
    """
    return Experiment(
        data=DataConfig(batch_size=128),
        encoder=EncoderConfig(
            name="resnet18",
            image_size=32,
            stem="small_stride2",
            arguments={"layers": [1, 1, 1, 1], "channels": [32, 64, 128, 256], "zero_init_last": False},
        ),
        objective=SimCLR.Config(temperature=0.2, projector_dims=(256, 128)),
        optimizer=OptimizerConfig(name="sgd", learning_rate=0.4, weight_decay=5e-4, warmup=0.05),
        training=TrainingConfig(images_seen=52_000, checkpoint_every=100),
    )


def simclr_32px() -> Experiment:
    """SimCLR for 32-pixel images such as CIFAR-10: a half-width ResNet-18 with a 3×3 stem.

    Paper: Chen et al. 2020, arXiv 2002.05709, appendix B.9; at 1,000 epochs of a larger batch it reports about 91 %.
    Result: CIFAR-10 (as JPEG), 400,000 images seen: k-NN 58.6 % (random encoder 34.2, raw pixels 46.3), linear probe
    61.9 % (36.6, 42.0).
    Cost: 9 minutes on 2 CPU cores.
    Command: feral pretrain simclr_32px data.store=STORE
    """
    return small(SimCLR.Config(temperature=0.2, projector_dims=(512, 128)))


def mae_64px() -> Experiment:
    """MAE for 64-pixel images such as Tiny-ImageNet: a ViT-Ti of six blocks, 8-pixel patches, three quarters hidden.

    Paper: He et al. 2021, arXiv 2111.06377.
    Result: 50 classes of Tiny-ImageNet, 150,000 images seen: linear probe 28.0 % (random encoder 13.5, raw pixels
    17.9), k-NN 17.7 % (10.5, 13.6).
    Cost: 5 minutes on 2 CPU cores.
    Command: feral pretrain mae_64px data.store=STORE
    """
    return Experiment(
        data=DataConfig(batch_size=128),
        views=ViewsConfig(crop_scale=(0.2, 1.0), jitter=(0, 0, 0, 0), jitter_probability=0, grayscale=0),
        encoder=EncoderConfig(
            name="vit_tiny_patch16_224", image_size=64, patch_size=8, pool="mean", arguments={"depth": 6}
        ),
        objective=MAE.Config(decoder_dim=128, decoder_depth=2, decoder_heads=4),
        optimizer=OptimizerConfig(
            name="adamw", learning_rate=1.5e-3, weight_decay=0.05, betas=(0.9, 0.95), warmup=0.1, clip_gradient=3.0
        ),
        training=TrainingConfig(images_seen=150_000),
    )
