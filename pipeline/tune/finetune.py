"""Fine-tuning against training from scratch, by how many labels there are. Both are runs of the one loop with the
supervised objective, equal in all but the weights that the encoder begins with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.evaluate.encoders import RunEncoders
from pipeline.experiment import Experiment, build_experiment
from pipeline.ingest.store import DEFAULT, Store
from pipeline.run import Run
from pipeline.stream.views import ViewsConfig
from pipeline.train.continuing import ALONE
from pipeline.tune.compare import Contender
from ssl_models.encoders import ImageEncoder
from ssl_models.objectives.supervised import Supervised
from ssl_models.optimizers import OptimizerConfig

FOLDER = "finetune"  # of the run
BATCH = 256  # at most: few labels would fill no larger one
MIN_STEPS = 200  # a share of the labels may be less than a batch
# What the command itself varies, with the option that does it.
VARIED = {
    "data.labels": "--labels",
    "data.shots": "--shots",
    "data.labels_draw": "--draws",
    "training.seed": "--draws",
    "training.start_from": "RUN",
    "training.start_digest": "RUN",
    "data.store": "--on",
    "objective.name": "feral pretrain … training.start_from=RUN",
}


@dataclass(frozen=True)
class Budget:
    """How many of the labels are used: a share of each class, or some of each."""

    share: float | None = None
    shots: int | None = None

    def __str__(self) -> str:
        return f"{self.shots} a class" if self.share is None else f"{100 * self.share:g} %"


@dataclass(frozen=True, eq=False)
class Arm(Contender):
    """One budget, from the run or from scratch; its seed is the draw of labels, too."""

    budget: Budget
    images: int  # labelled ones that it learns from
    starts: bool  # from the run

    def trial(self, seed: int) -> Experiment:
        return self.experiment.override({"training.seed": seed, "data.labels_draw": seed})


def base_experiment(there: Experiment, store: str | None, changes: Mapping[str, Any]) -> Experiment:
    """The supervised experiment for the encoder of another one, on its store unless told otherwise.

    With BatchNorm: SGD without decay, as SimCLR (arXiv 2002.05709, appendix B.5). Without: AdamW, layer decay,
    stochastic depth, mixup and CutMix, as MAE (arXiv 2111.06377, appendix A.1).

    Raises:
        ValueError: a change that is refused, or that the command makes itself.
    """
    for key in changes.keys() & VARIED.keys():
        raise ValueError(f"{key} is what fine-tuning varies: leave it out, and see {VARIED[key]}")
    with torch.device("meta"):
        encoder = ImageEncoder(there.encoder)
    content = there.model_dump(mode="json")
    content["views"] = ViewsConfig(
        crop_scale=there.views.crop_scale, flip=there.views.flip, jitter_probability=0, grayscale=0
    ).model_dump(mode="json")
    if any(isinstance(module, _BatchNorm) for module in encoder.modules()):
        objective = Supervised.Config()
        optimizer = OptimizerConfig(name="sgd", learning_rate=0.05, weight_decay=0.0, warmup=0.0)
    else:
        objective = Supervised.Config(label_smoothing=0.1, mixup=0.8, cutmix=1.0)
        decay = 0.65 if max(encoder.layers_below_head().values()) <= 13 else 0.75  # up to ViT-B, above
        optimizer = OptimizerConfig(
            name="adamw", learning_rate=5e-4, weight_decay=0.05, betas=(0.9, 0.999), layer_decay=decay
        )
        content["encoder"]["arguments"] |= {"drop_path_rate": 0.1}
    content |= {"objective": objective.model_dump(mode="json"), "optimizer": optimizer.model_dump(mode="json")}
    lanes = content["data"]["lanes"]
    content["data"] |= {"labels": None, "shots": None, "labels_draw": 0, "replay": []}
    content["data"]["batch_size"] = min(there.data.batch_size, lanes * max(1, BATCH // lanes))
    if store is not None:
        content["data"] |= {"store": store, "selection": DEFAULT}
    content["training"] |= {"micro_batch": None, "seed": 0}
    content["training"]["images_seen"] = MIN_STEPS * BATCH
    return build_experiment(content).override({**ALONE, **changes})


def usual_epochs(base: Experiment) -> int:
    """As long as the sources of `base_experiment` train on all labels."""
    return 30 if base.optimizer.name == "sgd" else 100


def arms(
    base: Experiment, run: Run, store: Store, budgets: Sequence[Budget], epochs: int | None, draws: int = 1
) -> list[Arm]:
    """Two of each budget. Length: `epochs` over the labelled images, but at least 200 steps; None: as `base` has it.

    Raises:
        ValueError: a budget that the store has not, or an encoder that is not the run's.
    """
    weights = RunEncoders.of(run).checkpoint.digest
    start = {"training.start_from": str(run.path), "training.start_digest": weights}
    found = []
    for budget in budgets:
        experiment = base.override({"data.labels": budget.share, "data.shots": budget.shots}).fitted(store)
        images = len(experiment.training_samples(store)[0])
        if epochs is not None:
            seen = max(epochs * images, MIN_STEPS * base.data.batch_size)
            experiment = experiment.override({"training.images_seen": seen})
        for starts in (True, False):
            name = f"{budget} of the labels, {'from ' + run.path.name if starts else 'from scratch'}"
            arm = Arm(name, experiment.override(start) if starts else experiment, budget, images, starts)
            arm.trial(draws - 1).check(store)
            found.append(arm)
    return found
