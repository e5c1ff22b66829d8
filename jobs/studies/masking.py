"""How much to hide."""

from jobs.recipes.masked import mae_32px
from jobs.studies.contrast import LINEAR
from pipeline.tune.study import Point, Study


def mask_ratio() -> Study:
    """How much of an image must MAE hide?"""
    return Study(
        name="mask_ratio",
        question="how much of an image must MAE hide?",
        axes=("hidden share",),
        points=tuple(
            Point((ratio,), mae_32px(), {"objective.mask_ratio": ratio}) for ratio in (0.25, 0.5, 0.625, 0.75, 0.875)
        ),
        found="three quarters: the linear probe rises steadily up to there, and falls after it",
        source="He et al. 2021, arXiv 2111.06377 (MAE), figure 5: ViT-L, ImageNet",
        scores=LINEAR,
    )
