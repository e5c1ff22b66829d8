"""The encoders and budgets that recipes share, so that methods differ in nothing but the method."""

from pipeline.experiment import Experiment
from pipeline.stream.batches import DataConfig
from pipeline.stream.views import ViewsConfig
from pipeline.train.loop import TrainingConfig
from ssl_models.encoders import EncoderConfig
from ssl_models.objectives import ObjectiveConfig
from ssl_models.optimizers import OptimizerConfig

# A half-width ResNet-18 with a 3×3 stem. Residual branches that start at zero (timm's default) barely learn within a
# few passes.
RESNET_32PX = EncoderConfig(
    name="resnet18",
    image_size=32,
    stem="small_stride2",
    arguments={"channels": [32, 64, 128, 256], "zero_init_last": False},
)
VIT_32PX = EncoderConfig(name="vit_tiny_patch16_224", image_size=32, patch_size=4, pool="mean", arguments={"depth": 6})
TWO_VIEWS = ViewsConfig(crop_scale=(0.2, 1.0), jitter=(0.4, 0.4, 0.4, 0.1))
CROP_ONLY = ViewsConfig(crop_scale=(0.2, 1.0), jitter=(0, 0, 0, 0), jitter_probability=0, grayscale=0)
ADAM = OptimizerConfig(name="adamw", learning_rate=1e-3, weight_decay=1e-4, betas=(0.9, 0.999), warmup=0.05)
SGD = OptimizerConfig(name="sgd", learning_rate=0.4, weight_decay=5e-4, warmup=0.05)


def small(
    objective: ObjectiveConfig,
    optimizer: OptimizerConfig = SGD,
    *,
    encoder: EncoderConfig = RESNET_32PX,
    views: ViewsConfig = TWO_VIEWS,
    batch_size: int = 256,
    images_seen: int = 400_000,
) -> Experiment:
    """32-pixel images, 400,000 of them seen: half an hour on two CPU cores for SimCLR."""
    return Experiment(
        data=DataConfig(batch_size=batch_size),
        views=views,
        encoder=encoder,
        objective=objective,
        optimizer=optimizer,
        training=TrainingConfig(images_seen=images_seen),
    )
