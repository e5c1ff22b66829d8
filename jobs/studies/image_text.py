"""Batch and scale of image-text contrast."""

from jobs.recipes.image_text import clip_small
from pipeline.tune.study import Point, Study


def clip_batch() -> Study:
    """How large must CLIP's batch be, and where must its scale start?"""
    return Study(
        name="clip_batch",
        question="how large must CLIP's batch be, and where must its temperature start?",
        axes=("batch", "first temperature"),
        points=tuple(
            Point((size, start), clip_small(), {"data.batch_size": size, "objective.temperature": start})
            for start in (0.07, 0.5)
            for size in (64, 128, 256)
        ),
        found="larger batches are better at the same number of images; the scale is learned, and starts at 1/0.07",
        source="Radford et al. 2021, arXiv 2103.00020 (CLIP), section 2.5: batches of 32,768",
        scores={"image→text R@10": "retrieval_image_to_text_r10", "text→image R@10": "retrieval_text_to_image_r10"},
    )
