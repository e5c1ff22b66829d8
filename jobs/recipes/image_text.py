"""Recipes for images with captions."""

from pipeline.experiment import Experiment
from pipeline.stream.batches import DataConfig
from pipeline.stream.views import ViewsConfig
from pipeline.train.loop import TrainingConfig
from ssl_models.encoders import EncoderConfig, TextConfig
from ssl_models.objectives import CLIP, Captioning, ObjectiveConfig, SigLIP
from ssl_models.optimizers import OptimizerConfig

TEXT = TextConfig(width=128, layers=3, heads=4, context_length=24)


def clip_small() -> Experiment:
    """CLIP at the size of a few thousand pairs, such as Flickr8k: half-width ResNet-18 at 64 px, 3-layer text tower.

    Paper: Radford et al. 2021, arXiv 2103.00020.
    Result: Flickr8k, 2,710 pairs, 289 held back, 2 seeds: image→text R@10 22.8 ± 2.4 %, text→image R@10 18.8 ± 0.6 %
    (chance 3.4; raw pixels 6.6 and 10.1).
    Cost: 6 minutes, two at a time on 2 CPU cores.
    Command: feral pretrain clip_small data.store=STORE
    """
    return _small_pairs(CLIP.Config(text=TEXT, dim=128))


def siglip_small() -> Experiment:
    """SigLIP in the place of CLIP: the same towers, batch and budget as `clip_small`.

    Paper: Zhai et al. 2023, arXiv 2303.15343.
    Result: Flickr8k, as `clip_small`: image→text R@10 21.6 ± 1.7 %, text→image R@10 19.3 ± 0.0 %.
    Cost: that of `clip_small`.
    Command: feral pretrain siglip_small data.store=STORE
    """
    return _small_pairs(SigLIP.Config(text=TEXT, dim=128))


def captioning_small() -> Experiment:
    """VirTex's captioning on the encoder, batch and budget of `clip_small`: one decoder layer forwards, one backwards.

    Images are not mirrored: a mirrored picture would belie every "left" and "right" in its caption.

    Paper: Desai and Johnson 2020, arXiv 2006.06666.
    Result: Flickr8k, as `clip_small`; a linear probe on 10,000 images of CIFAR-10 47.3 % (random encoder 36.7;
    CLIP 49.4).
    Cost: 15 minutes on 2 CPU cores: each word is one of 49,408, twice.
    Command: feral pretrain captioning_small data.store=STORE
    """
    text = TextConfig(width=128, layers=1, heads=4, context_length=24)
    return _small_pairs(Captioning.Config(text=text, chunk=512), flip=0)


def _small_pairs(objective: ObjectiveConfig, flip: float = 0.5) -> Experiment:
    return Experiment(
        data=DataConfig(batch_size=128),
        views=ViewsConfig(crop_scale=(0.4, 1.0), flip=flip, jitter=(0.4, 0.4, 0.4, 0.1), grayscale=0.1),
        encoder=EncoderConfig(
            name="resnet18",
            image_size=64,
            stem="imagenet",
            arguments={"channels": [32, 64, 128, 256], "zero_init_last": False},
        ),
        objective=objective,
        optimizer=OptimizerConfig(name="adamw", learning_rate=2e-3, weight_decay=0.1, betas=(0.9, 0.98), warmup=0.05),
        training=TrainingConfig(images_seen=150_000),
    )
