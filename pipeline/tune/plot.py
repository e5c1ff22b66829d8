"""The pictures of a sweep and of a comparison."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.tune.comparison import Row, groups, scores_of


def plot_sweep(found: dict[str, Any], path: Path) -> Path:
    """One panel a varied setting: the score of every trial of a search (`sweep.json`) over the setting's value."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    varied = list(found["space"])
    scored = [trial for trial in found["trials"] if trial["score"] is not None and trial["repeat"] is None]
    scored.sort(key=lambda trial: trial["score"], reverse=True)
    figure, axes = plt.subplots(1, len(varied), figsize=(4.2 * len(varied), 3.6), squeeze=False, layout="constrained")
    for axis, key in zip(axes[0], varied, strict=True):
        values = [trial["changes"][key] for trial in scored]
        scores = [100 * trial["score"] for trial in scored]
        numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        axis.scatter(values if numeric else [str(value) for value in values], scores, color="#2a6f97", zorder=3)
        if scored:
            axis.scatter(
                values[:1] if numeric else [str(values[0])], scores[:1], color="#d1495b", zorder=4, label="highest"
            )
        if numeric and values and min(values) > 0 and max(values) / min(values) >= 10:
            axis.set_xscale("log")
        axis.set(xlabel=key)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel(f"{found['metric']} on held-back training images, %")
    if scored:
        axes[0][0].legend(frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


COLOURS = ("#2a6f97", "#c8553d")


def plot_comparison(rows: Sequence[Row], path: Path) -> Path:
    """A panel an encoder: every method's scores on the test split, mean and standard deviation over seeds, the best
    first; the random encoder and raw pixels as lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = list(groups([row for row in rows if row.measures])) or [[]]
    heights = [len(panel) + 1.6 for panel in panels]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(8, 0.45 * sum(heights) + 0.6), squeeze=False, sharex=True, layout="constrained",
        height_ratios=heights,
    )  # fmt: skip
    for axis, panel in zip(axes[:, 0], panels, strict=True):
        for shift, (name, title), colour in zip((-0.13, 0.13), scores_of(rows).items(), COLOURS, strict=True):
            measured = [(place, row.measures[name]) for place, row in enumerate(panel) if name in row.measures]
            if not measured:
                continue
            axis.errorbar(
                [100 * measure.trained.mean for _, measure in measured],
                [place + shift for place, _ in measured],
                xerr=[100 * (measure.trained.std or 0.0) for _, measure in measured],
                fmt="o", color=colour, capsize=3, markersize=5, label=title, zorder=3,
            )  # fmt: skip
            for style, of, what in (("--", "random", "random encoder"), (":", "pixels", "raw pixels")):
                values = [measure.random.mean if of == "random" else measure.pixels for _, measure in measured]
                axis.axvline(100 * sum(values) / len(values), color=colour, ls=style, lw=1, label=f"{title}, {what}")
        axis.set_yticks(range(len(panel)), [row.recipe for row in panel])
        axis.set_ylim(max(1, len(panel)) - 0.5, -0.5)
        axis.grid(axis="x", alpha=0.3)
        axis.set_title(panel[0].encoder if panel else "no trial has ended", fontsize=10, loc="left")
    axes[-1][0].set_xlabel("score on the test split, %")
    if panels[0]:
        figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path
