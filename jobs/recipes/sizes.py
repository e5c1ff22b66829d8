"""The encoders and budgets that recipes share, so that methods differ in nothing but the method."""

from pipeline.evaluate.protocol import EvaluationConfig
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
# The views differ (Grill et al. 2020, BYOL, table 6), but for blur, which 32 pixels do not survive.
ASYMMETRIC = ViewsConfig(crop_scale=(0.2, 1.0), jitter=(0.4, 0.4, 0.2, 0.1), solarize=(0.0, 0.2))
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


CIFAR10_RESNET18 = EncoderConfig(name="resnet18", image_size=32, stem="small", arguments={"zero_init_last": False})
CIFAR10_VIEWS = ViewsConfig(crop_scale=(0.08, 1.0), jitter=(0.4, 0.4, 0.4, 0.1), jitter_probability=0.8, grayscale=0.2)
CIFAR10_SGD = OptimizerConfig(name="sgd", learning_rate=0.12, weight_decay=5e-4, decay_all=True, warmup=0.0)


def cifar10_resnet18(
    objective: ObjectiveConfig, optimizer: OptimizerConfig = CIFAR10_SGD, views: ViewsConfig = CIFAR10_VIEWS
) -> Experiment:
    """CIFAR-10 as lightly's `cifar10_benchmark.py` has it: a whole ResNet-18 with a 3×3 stem, batches of
    512, 200 epochs, rate 0.06 per 128 by a cosine without warm-up, 200 neighbours.

    Theirs differs in four things: its momentum is not Nesterov's, it has no bf16, its rate is constant within an epoch,
    and it reports the best epoch on the test split; ours is the last.
    """
    return Experiment(
        data=DataConfig(batch_size=512),
        views=views,
        encoder=CIFAR10_RESNET18,
        objective=objective,
        optimizer=optimizer,
        training=TrainingConfig(images_seen=10_000_000),
        evaluation=EvaluationConfig(neighbours=200, neighbour_temperature=0.1),
    )
