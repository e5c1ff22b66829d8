"""The scores of a run as its report shows them: what they amount to in words, and a line for each."""

from collections.abc import Collection
from typing import Any

from pipeline.evaluate.protocol import Evaluation, Score

SCORE_TITLES = {
    "knn_top1": "k-NN",
    "linear_top1": "linear probe",
    "linear_top5": "linear probe, top-5",
    "linear_sgd_bn_top1": "linear probe as MAE's",
    "knn_top1_projection": "k-NN, after the projector",
    "linear_top1_projection": "linear probe, after the projector",
    "classifier_top1": "classifier",
    "classifier_top5": "classifier, top-5",
    "mean_1shot": "1 label a class",
    "mean_5shot": "5 labels a class",
    "linear_1pct": "linear probe, 1 % of labels",
    "linear_10pct": "linear probe, 10 % of labels",
    "cluster_top1": "clusters as classes",
    "nmi": "clusters, mutual information",
    "ari": "clusters, adjusted Rand",
    "zero_shot_top1": "zero-shot",
    "segmentation_miou": "mean IoU",
    "segmentation_pixel_accuracy": "pixel accuracy",
    "segmentation_miou_4_layers": "mean IoU, four layers",
    "segmentation_pixel_accuracy_4_layers": "pixel accuracy, four layers",
    **{f"linear_top1_depth{part}": f"linear probe after part {part}" for part in range(1, 6)},
    **{f"knows_{what}_h": f"knows {what}" for what in ("colour", "rotation", "corruption", "sobel")},
    **{
        f"knows_{what}_z": f"knows {what}, after the projector"
        for what in ("colour", "rotation", "corruption", "sobel")
    },
    **{f"retrieval_text_to_image_r{k}": f"text → image R@{k}" for k in (1, 5, 10)},
    **{f"retrieval_image_to_text_r{k}": f"image → text R@{k}" for k in (1, 5, 10)},
}
GROUPS = {  # of scores, by how their names begin; the first that fits
    "With few labels": ("mean_", "linear_1pct", "linear_10pct"),
    "Clusters, found without labels": ("cluster_", "nmi", "ari", "silhouette"),
    "Segmentation by one linear layer": ("segmentation_",),
    "After each part of the network": ("linear_top1_depth",),
    "Of the projection, which the loss sees": ("knn_top1_projection", "linear_top1_projection"),
    "What the embedding, and the projection, still know of what was done to an image": ("knows_",),
    "": ("",),
}


def score_table(evaluation: Evaluation) -> dict[str, list[dict[str, Any]]]:
    """Lines by group, the one without a title first."""
    rows: dict[str, list[dict[str, Any]]] = {"": []}
    for score in evaluation.scores:
        group = next(title for title, starts in GROUPS.items() if score.name.startswith(starts))
        rows.setdefault(group, []).append(score_row(score, evaluation.columns))
    return rows


def score_row(score: Score, columns: Collection[str]) -> dict[str, Any]:
    """A line of the table: values with their bars (percent of the widest), and the interval of the trained one. The
    best is that of those without labels."""
    values = {name: getattr(score, name) for name in columns}
    interval = score.reach
    without_labels = {name: value for name, value in values.items() if name != "supervised"}
    best = max(without_labels.values())
    widest = max(*(value for value in values.values() if value is not None), interval[1], 1e-9)

    def wide(value: float | None) -> float:
        return 100 * max(value or 0, 0) / widest  # an index may be below 0

    return {
        "title": _title(score),
        "score": score,
        "cells": {
            name: (score.shown(value), wide(value), without_labels.get(name) == best) for name, value in values.items()
        },
        "interval": tuple(map(score.shown, interval)),
        "whisker": (wide(interval[0]), wide(interval[1]) - wide(interval[0])),
    }


def verdict(evaluation: Evaluation | None) -> dict[str, str]:
    """In words: does the encoder beat what costs nothing? Judged by the first score, then counted over all."""
    if evaluation is None:
        return {
            "tone": "none",
            "title": "Not evaluated yet.",
            "more": "The command of this run, given again, resumes and evaluates it.",
        }
    if not evaluation.scores:
        return {"tone": "none", "title": "No score could be computed.", "more": "; ".join(evaluation.skipped)}
    score = evaluation.scores[0]
    low, _ = score.reach
    baselines = {"the random encoder": score.random_encoder, "raw pixels": score.raw_pixels}
    if score.chance >= low:
        baselines["chance"] = score.chance
    lost = [name for name, value in baselines.items() if score.trained <= value]
    close = [name for name, value in baselines.items() if low <= value < score.trained]
    ending = "."
    if lost:
        ending = f". It does NOT beat {' or '.join(lost)}."
    elif close:
        ending = f". Too close to {' and '.join(close)} to tell apart with {score.num_queries:,} test images."
    wins = sum(s.trained > max(s.random_encoder, s.raw_pixels) for s in evaluation.scores)
    count = len(evaluation.scores)
    more = f"Above both baselines: {wins} of {count} scores." if count > 1 else ""
    if score.supervised is not None:
        more = f"With labels, the same encoder reaches {100 * score.supervised:.1f} %. {more}".strip()
    title = f"{_title(score)} {100 * score.trained:.1f} %: {_gaps(score.trained, baselines)}{ending}"
    return {"tone": "bad" if lost else "close" if close else "good", "title": title, "more": more}


def _gaps(trained: float, baselines: dict[str, float]) -> str:
    """As in: 14.3 points above the random encoder, 9.0 above raw pixels."""
    words, before = "", None
    for name, value in baselines.items():
        side = "above" if trained > value else "below"
        joint = "" if before is None else ", " if side == before else ", but "
        words += f"{joint}{100 * abs(trained - value):.1f}{' points' if before is None else ''} {side} {name}"
        before = side
    return words


def _title(score: Score) -> str:
    return SCORE_TITLES.get(score.name, score.name.replace("_", " "))
