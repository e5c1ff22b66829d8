"""SimCLR's studies of batch size, head and augmentation."""

from itertools import combinations_with_replacement
from typing import Any

from jobs.recipes.small_images import simclr_32px
from jobs.studies.contrast import LINEAR, SIMCLR
from pipeline.tune.study import Point, Study

WIDTHS = (32, 128, 512)  # of the projection


def batch_size() -> Study:
    """Do larger batches help, and does longer training make up for small ones?"""
    return Study(
        name="batch_size",
        question="do larger batches help, and does longer training make up for small ones?",
        axes=("share of the images", "batch"),
        points=tuple(
            Point((length, size), simclr_32px(), {"data.batch_size": size}, length=length)
            for size in (64, 128, 256, 512)
            for length in (0.25, 0.5, 1.0)
        ),
        found="larger batches are much better in short training; the longer it is, the less they matter",
        source=SIMCLR.format("figure 9; batches of 256 to 8,192"),
        scores=LINEAR,
    )


def projection_head() -> Study:
    """Which head, how wide, and what is it worth to probe before it?"""
    heads = [(head, width, [*hidden, width]) for head, hidden in (("linear", []), ("MLP", [512])) for width in WIDTHS]
    heads.append(("none", 256, []))  # g(h) is h
    return Study(
        name="projection_head",
        question="which head between encoder and loss, how wide, and what is it worth to take h from before it?",
        axes=("output dims", "head"),
        points=tuple(
            Point((width, head), simclr_32px(), {"objective.projector_dims": dims}) for head, width, dims in heads
        ),
        found="an MLP is better than a linear head by 3 points and than none by over 10, whatever the width; h is "
        "better than g(h) by over 10",
        source=SIMCLR.format("figure 8 and section 4.2"),
        scores={"h, linear probe": "linear_top1", "g(h), linear probe": "linear_top1_projection"},
        also=("projection",),
    )


_NOTHING: dict[str, Any] = {
    "views.crop_scale": [1.0, 1.0],
    "views.crop_ratio": [1.0, 1.0],
    "views.flip": 0.0,
    "views.jitter_probability": 0.0,
    "views.grayscale": 0.0,
    "views.blur": 0.0,
    "views.cutout": 0.0,
    "views.noise": 0.0,
    "views.rotate": 0.0,
    "views.sobel": 0.0,
}
AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "crop": {"views.crop_scale": [0.2, 1.0], "views.crop_ratio": [0.75, 4 / 3], "views.flip": 0.5},
    "colour": {"views.jitter_probability": 0.8, "views.grayscale": 0.2},
    "cutout": {"views.cutout": 0.5},
    "blur": {"views.blur": 0.5},
    "noise": {"views.noise": 0.5},
    "rotate": {"views.rotate": 0.75},
    "sobel": {"views.sobel": 0.5},
}


def augmentations() -> Study:
    """Which augmentation, alone and in pairs?"""
    return Study(
        name="augmentations",
        question="which augmentations must be composed?",
        axes=("first", "second"),
        figure="matrix",
        points=tuple(
            Point((first, second), simclr_32px(), _NOTHING | AUGMENTATIONS[first] | AUGMENTATIONS[second])
            for first, second in combinations_with_replacement(AUGMENTATIONS, 2)
        ),
        found="none is enough alone; crop with colour stands out, for crops of an image share their colours",
        source=SIMCLR.format("figure 5, where one view of a pair is changed and all are cropped; here both are"),
        scores=LINEAR,
    )
