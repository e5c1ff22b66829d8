"""The picture of a comparison, for a README."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.tune.comparison import Row, groups, scores_of

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
