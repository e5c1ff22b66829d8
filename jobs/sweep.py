"""`feral sweep`: the same recipe under many settings, judged by k-NN."""

import hashlib
import json
from pathlib import Path
from typing import Annotated

import typer

from jobs.pretrain import Address, absolute_paths


def sweep(
    recipe: Annotated[str, typer.Argument(help="one of `feral recipes`")],
    settings: Annotated[
        list[str], typer.Argument(metavar="key=v1,v2 …", help="lists, ranges as loguniform(1e-4,1e-2), or one value")
    ],
    trials: Annotated[
        int | None, typer.Option(min=1, help="how many draws of the ranges; lists are tried whole")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="directory; default: runs/sweep-RECIPE-DIGEST")] = None,
    address: Address = None,
) -> None:
    """Tries settings of a recipe: Ray Tune starts one Ray Train run a trial. The same command again resumes.

    Example: feral sweep simclr_32px data.store=stores/cifar10 training.images_seen=50000
    objective.temperature=0.1,0.2,0.5 data.batch_size=128,256 'objective.projector_dims=[256,64],[512,128]'
    """
    from jobs.recipes import find_recipe
    from pipeline.cluster import connected
    from pipeline.evaluate.validation import labelled
    from pipeline.tune.plot import plot_sweep
    from pipeline.tune.space import parse_space
    from pipeline.tune.sweep import sweep as run_sweep
    from pipeline.tune.trials import concurrent_trials

    space = parse_space(settings)
    if bool(space.ranges) != (trials is not None):
        raise ValueError(
            "--trials N says how many draws to make of ranges: give it with a range, and only then (lists are tried in "
            "every combination; for repeats vary training.seed=0,1,2)"
        )
    absolute_paths(space.fixed)
    base = find_recipe(recipe)()
    space.check(base)
    experiment = base.override(space.fixed)
    if not experiment.data.store:
        raise ValueError("data.store is not set: make one with `feral curate SOURCE --to STORE`, then data.store=STORE")
    store = experiment.data.open()
    experiment = experiment.fitted(store)
    labelled(store)
    for combination in space.combinations():
        experiment.override(combination).check(store)
    name = hashlib.sha256(json.dumps(sorted(settings)).encode()).hexdigest()[:8]
    directory = to or Path("runs") / f"sweep-{recipe}-{name}"
    directory.mkdir(parents=True, exist_ok=True)
    count = trials or len(space.combinations())
    typer.echo(f"{count} trials of {experiment.training.images_seen} images seen, in {directory.absolute()}")
    with connected(address, cpus=experiment.cluster.cpus + 1):
        import ray

        at_once = concurrent_trials(experiment.cluster, ray.cluster_resources().get("CPU", 0))
        found = run_sweep(experiment, space, directory, trials or 1, at_once, typer.echo)
    _print(found, space.varied)
    typer.echo(f"plot {plot_sweep(found, space.varied, directory / 'sweep.png').absolute()}")
    best = found[0]
    if best.knn is None:
        raise ValueError(f"every trial failed; the first: {best.error}")
    chosen = " ".join(f"'{key}={json.dumps(value)}'" for key, value in best.changes.items())
    typer.echo(f"best, for a longer run: feral pretrain {recipe} data.store={experiment.data.store} {chosen}")


def _print(trials: list, varied: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("k-NN", *varied, "loss", "images/s", "run")
    for trial in trials:
        values = [json.dumps(trial.changes[key]) for key in varied]
        if trial.knn is None:
            table.add_row("failed", *values, "", "", trial.error)
        else:
            table.add_row(
                f"{trial.knn:.1%}", *values, f"{trial.loss:.3f}", f"{trial.images_per_second:.0f}", Path(trial.run).name
            )
    Console().print(table)
    typer.echo("k-NN on a tenth of the training images, held out of the bank; losses at other settings do not compare")
