"""The picture of a sweep."""

from pathlib import Path

from pipeline.tune.sweep import Trial


def plot_sweep(trials: list[Trial], varied: list[str], path: Path) -> Path:
    """One panel a varied setting: k-NN accuracy of every trial over the setting's value."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    scored = [trial for trial in trials if trial.knn is not None]
    figure, axes = plt.subplots(1, len(varied), figsize=(4.2 * len(varied), 3.6), squeeze=False, layout="constrained")
    for axis, key in zip(axes[0], varied, strict=True):
        values = [trial.changes[key] for trial in scored]
        scores = [100 * (trial.knn or 0.0) for trial in scored]
        numeric = all(isinstance(value, int | float) for value in values)
        axis.scatter(values if numeric else [str(value) for value in values], scores, color="#2a6f97", zorder=3)
        if scored:  # trials come best first
            axis.scatter(
                values[:1] if numeric else [str(values[0])], scores[:1], color="#d1495b", zorder=4, label="best"
            )
        if numeric and values and min(values) > 0 and max(values) / min(values) >= 10:
            axis.set_xscale("log")
        axis.set(xlabel=key)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("k-NN on held-out training images, %")
    if scored:
        axes[0][0].legend(frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path
