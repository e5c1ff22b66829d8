"""Fine-tuning against training from scratch, by how many labels there are. Both are runs of the one loop with the
supervised objective, equal in all but the weights that the encoder begins with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.evaluate.encoders import RunEncoders
from pipeline.experiment import Experiment
from pipeline.ingest.store import DEFAULT, Store
from pipeline.run import Run
from pipeline.supervised import BATCH, supervised_experiment
from pipeline.tune.compare import Contender
from ssl_models.encoders import ImageEncoder

FOLDER = "finetune"  # of the run
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
    base = supervised_experiment(there)
    if base.optimizer.name == "sgd":
        own: dict[str, Any] = {"optimizer.weight_decay": 0.0, "optimizer.warmup": 0.0}
    else:
        with torch.device("meta"):
            layers = max(ImageEncoder(there.encoder).layers_below_head().values())
        own = {"optimizer.layer_decay": 0.65 if layers <= 13 else 0.75}  # up to ViT-B, above
    own |= {"data.labels": None, "data.shots": None, "data.labels_draw": 0, "data.replay": [], "training.seed": 0}
    if store is not None:
        own |= {"data.store": store, "data.selection": DEFAULT}
    return base.override({**own, "training.images_seen": MIN_STEPS * BATCH, **changes})


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
