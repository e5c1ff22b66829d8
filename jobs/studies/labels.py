"""What methods are worth with few labels, and where in the network."""

from jobs.recipes.banks import instdisc_32px
from jobs.recipes.clustering import deepcluster_32px
from jobs.recipes.moco import moco_32px
from jobs.recipes.pretext import relative_patch_32px, rotation_32px
from pipeline.experiment import Experiment
from pipeline.tune.study import Point, Study

SOURCE = "OpenSelfSup's benchmark: ResNet-50, ImageNet, {}"


def _methods(published: dict[str, dict[str, float]]) -> tuple[Point, ...]:
    recipes: dict[str, Experiment] = {
        "relative patch": relative_patch_32px(),
        "rotation": rotation_32px(),
        "DeepCluster": deepcluster_32px(),
        "instance discrimination": instdisc_32px(),
        "MoCo v2": moco_32px(),
    }
    return tuple(Point((name,), recipe, published=published[name]) for name, recipe in recipes.items())


def few_labels() -> Study:
    """What are methods worth with 1 %, 10 % and all labels?"""
    published = {
        "relative patch": {"1 in 100 labels": 16.48, "1 in 10 labels": 53.86},
        "rotation": {"1 in 100 labels": 18.98, "1 in 10 labels": 54.75},
        "DeepCluster": {"1 in 100 labels": 33.44, "1 in 10 labels": 52.94},
        "instance discrimination": {"1 in 100 labels": 27.95, "1 in 10 labels": 57.22},
        "MoCo v2": {"1 in 100 labels": 39.07, "1 in 10 labels": 61.80},
    }
    return Study(
        name="few_labels",
        question="what are methods worth with 1 %, 10 % and all labels?",
        axes=("method",),
        figure="profiles",
        points=_methods(published),
        found="contrast is worth twice as much as pretext tasks with 1 % of the labels; with 10 % they are close",
        source=SOURCE.format("fine-tuned, where ours is a linear probe (fine-tuning: `feral finetune`)"),
        scores={"all labels": "linear_top1", "1 in 10 labels": "linear_10pct", "1 in 100 labels": "linear_1pct"},
    )


def depth() -> Study:
    """Where in the network is the embedding best?"""
    published = {
        "relative patch": {"stage 3": 49.31, "stage 4": 40.20},
        "rotation": {"stage 3": 54.99, "stage 4": 49.09},
        "DeepCluster": {"stage 3": 57.71, "stage 4": 51.68},
        "instance discrimination": {"stage 3": 54.46, "stage 4": 56.61},
        "MoCo v2": {"stage 3": 61.61, "stage 4": 66.73},
    }
    return Study(
        name="depth",
        question="where in the network is the embedding best?",
        axes=("method",),
        figure="profiles",
        points=_methods(published),
        found="pretext tasks are best before the last stage, contrast at the last",
        source=SOURCE.format("linear probe of res4 and res5"),
        scores={
            "stage 4": "linear_top1_depth5",
            "stage 3": "linear_top1_depth4",
            "stage 2": "linear_top1_depth3",
            "stage 1": "linear_top1_depth2",
        },
        also=("depths",),
    )
