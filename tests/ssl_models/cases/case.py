"""What a case says of its objective, and the encoders that cases share."""

from dataclasses import dataclass

from ssl_models.config import Config
from ssl_models.encoders import EncoderConfig, TextConfig

RESNET = EncoderConfig(
    name="resnet18", image_size=16, stem="small_stride2", arguments={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
)
VIT = EncoderConfig(
    name="vit_tiny_patch16_224",
    image_size=16,
    patch_size=4,
    pool="mean",
    arguments={"embed_dim": 24, "depth": 2, "num_heads": 2},
)
TEXT = TextConfig(width=16, layers=1, heads=2, context_length=8)
SAMPLES, CLASSES = 128, 4  # sample ids of a case's batch are below the one, its labels below the other


@dataclass(frozen=True)
class Case:
    """A tiny configuration and what its loss does on noise, batch 16. `start` and `floor` are of the loss that all
    phases log together (their sum, where there are several)."""

    config: Config
    encoder: EncoderConfig
    start: tuple[float, float]  # bounds of a fresh model's loss
    floor: float  # 150 steps on one batch bring the loss below it; above it at the start. Say why in a comment
    rate: float = 1e-2  # of AdamW, for those steps
    after: int = 0  # the step whose loss is above the floor: a queue that begins at random is easy until it has filled
    alone: str | None = None  # the one phase that those steps train, of a game: its losses cannot fall together
    local_crops: int = 0  # smaller views after the first ones
    unmoved: tuple[str, ...] = ()  # beginnings of names of trainable parameters that two steps may leave as they are
    golden: float = 5e-4  # how far other processors may be after 20 steps
