"""Studies of the contrastive loss: its temperature, its rivals, its negatives."""

from typing import Any

from jobs.recipes.metric import nt_logistic_32px, triplet_32px
from jobs.recipes.moco import moco_32px
from jobs.recipes.small_images import simclr_32px
from pipeline.experiment import Experiment
from pipeline.tune.study import Point, Study

LINEAR = {"linear probe": "linear_top1", "k-NN": "knn_top1"}
SIMCLR = "Chen et al. 2020, arXiv 2002.05709 (SimCLR), {}: ResNet-50, ImageNet, linear probe"
MOCO = "He et al. 2019, arXiv 1911.05722 (MoCo v1), {}: ResNet-50, ImageNet, linear probe"


def temperature() -> Study:
    """Which temperature, and must rows have length 1?"""
    published = {
        ("normalised", 0.05): 59.7,
        ("normalised", 0.1): 64.4,
        ("normalised", 0.5): 60.7,
        ("normalised", 1.0): 58.0,
        ("not normalised", 10.0): 57.2,
        ("not normalised", 100.0): 57.0,
    }
    # The paper's LARS bounds what rows of any length do to the weights; SGD at temperature 10 ends in NaN.
    bounded = {"normalised": {}, "not normalised": {"optimizer.clip_gradient": 1.0}}
    points = tuple(
        Point(
            place=(value, rows),
            experiment=simclr_32px(),
            changes={"objective.temperature": value, "objective.normalize": rows == "normalised", **bounded[rows]},
            published={"linear probe": top1},
        )
        for (rows, value), top1 in published.items()
    )
    return Study(
        name="temperature",
        question="which temperature of NT-Xent, and must its rows have length 1?",
        axes=("temperature", "rows"),
        points=points,
        found="normalised rows at the right temperature; without normalisation contrast is easy, the encoder worse",
        source=SIMCLR.format("table 5"),
        scores=LINEAR,
    )


def losses() -> Study:
    """NT-Xent against the losses of metric learning."""
    rivals: tuple[tuple[str, Experiment, dict[str, Any], float], ...] = (
        ("margin, all", triplet_32px(), {"objective.mining": "all"}, 50.9),
        ("NT-Logistic, all", nt_logistic_32px(), {"objective.mining": "all"}, 51.6),
        ("margin, semi-hard", triplet_32px(), {"objective.mining": "semi_hard"}, 57.5),
        ("NT-Logistic, semi-hard", nt_logistic_32px(), {"objective.mining": "semi_hard"}, 57.9),
        ("NT-Xent", simclr_32px(), {}, 63.9),
    )
    return Study(
        name="losses",
        question="is NT-Xent better than the margin (triplet) and logistic losses?",
        axes=("loss",),
        figure="bars",
        points=tuple(
            Point((name,), experiment, changes, {"linear probe": top1}) for name, experiment, changes, top1 in rivals
        ),
        found="NT-Xent leads by 6 points; semi-hard negatives help the others by 6 to 7",
        source=SIMCLR.format("table 4"),
        scores=LINEAR,
    )


def moco_queue() -> Study:
    """Does a longer queue help MoCo, and is it worth what SimCLR's batch is?"""
    points = [
        Point(
            (size, "MoCo v2"),
            moco_32px(),
            {"objective.queue_size": size},
            {"linear probe": 67.5} if size == 4096 else {},
        )
        for size in (256, 1024, 4096)
    ]
    simclr = (  # a batch of N has 2N − 2 negatives; 128 need the memory that MoCo needs for 256
        Point((254, "SimCLR"), simclr_32px(), {"data.batch_size": 128}),
        Point((510, "SimCLR"), simclr_32px(), published={"linear probe": 61.9}),
    )
    return Study(
        name="moco_queue",
        question="how long must MoCo's queue be to reach SimCLR at the same batch, or in the same memory?",
        axes=("negatives", "method"),
        points=(*points, *simclr),
        found="longer queues are better, with less and less to gain; at a batch of 256 MoCo v2 is ahead of SimCLR",
        source=MOCO.format("figure 3")
        + "; numbers of Chen et al. 2020, arXiv 2003.04297 (MoCo v2), table 2: a queue of "
        "65,536, both at a batch of 256 and 200 epochs",
        scores=LINEAR,
    )


def moco_momentum() -> Study:
    """How slowly must MoCo's key encoder follow?"""
    published = {0.0: None, 0.9: 55.2, 0.99: 57.8, 0.999: 59.0, 0.9999: 58.9}
    return Study(
        name="moco_momentum",
        question="how slowly must MoCo's key encoder follow?",
        axes=("momentum",),
        figure="bars",
        points=tuple(
            Point(
                (momentum,),
                moco_32px(),
                {"objective.momentum": momentum},
                {} if top1 is None else {"linear probe": top1},
            )
            for momentum, top1 in published.items()
        ),
        found="slowly, 0.99 to 0.9999 over its 5,000 steps an epoch; without momentum training fails",
        source=MOCO.format("section 4.1, queue of 4,096"),
        scores=LINEAR,
    )
