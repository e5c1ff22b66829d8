"""`feral compare`: which method is best, when everything else is equal."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from jobs.pretrain import Address, absolute_paths
from pipeline.redaction import typed_command

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.ingest.store import Store
    from pipeline.tune.compare import Contender, Trial
    from pipeline.tune.comparison import Row


def compare(
    recipes: Annotated[
        list[str],
        typer.Argument(metavar="RECIPE… [key=value …]", help="two or more of `feral recipes`; settings of all"),
    ],
    seeds: Annotated[int, typer.Option(min=1, help="training.seed of each recipe: 0 … N − 1")] = 3,
    views: Annotated[
        Literal["own", "same"], typer.Option(help="augmentation: of each recipe, or that of the first for all")
    ] = "own",
    at_once: Annotated[
        int, typer.Option(min=1, help="trials at the same time; more than 1, and speeds do not compare")
    ] = 1,
    to: Annotated[Path | None, typer.Option(help="directory; default: runs/compare-DIGEST")] = None,
    address: Address = None,
) -> None:
    """Compares methods fairly: same encoder, data, images seen, batch size and evaluation, several seeds.

    The same command again resumes; more seeds add to those that are there.

    Example: feral compare simclr_32px byol_32px data.store=stores/cifar10 training.images_seen=200000 --seeds 3
    """
    from pipeline.lock import locked
    from pipeline.tune.compare import comparison_name

    found, store = _fitted(recipes, same_views=views == "same")
    directory = (to or Path("runs") / comparison_name(found, store)).absolute()
    with locked(directory, "the comparison"):
        directory.mkdir(parents=True, exist_ok=True)
        images = found[0].experiment.training.images_seen
        typer.echo(f"{len(found)} recipes × {seeds} seeds, {images} images seen each, in {directory}")
        trials, at_once = train_missing(
            found, seeds, directory, store, at_once, address,
            lambda ended, at_once: _write(found, ended, seeds, at_once, directory),
        )  # fmt: skip
        _show(found, trials, seeds, at_once, directory)
    tell_missing(trials)


def train_missing(
    found: "Sequence[Contender]",
    seeds: int,
    directory: Path,
    store: "Store",
    at_once: int,
    address: str | None,
    record: "Callable[[Sequence[Trial], int], object]",
    also: "Sequence[str]" = (),
    curves: bool = False,
) -> "tuple[list[Trial], int]":
    """Trains and judges the trials that `directory` does not hold yet, on a Ray that is started if there are any.

    `record` receives all trials, whenever one has ended, and how many run at the same time: `at_once`, or as many as
    fit. `also`, `curves`: see `pipeline.tune.compare.compare`. Returns the same two.
    """
    from pipeline.cluster import connected
    from pipeline.tune.compare import compare, read_trials
    from pipeline.tune.trials import concurrent_trials

    trials = read_trials(found, seeds, directory, store, also)
    if all(trial.evaluation for trial in trials):
        return trials, at_once
    cluster = found[0].experiment.cluster
    with connected(address, cpus=cluster.cpus, offer=at_once * cluster.cpus):
        import ray

        at_once = min(at_once, concurrent_trials(cluster, ray.cluster_resources()))
        trials = compare(
            found, seeds, directory, store, at_once, typer.echo, lambda ended: record(ended, at_once), also,
            curves,
        )  # fmt: skip
    return trials, at_once


def tell_missing(trials: "Sequence[Trial]") -> None:
    """Ends the command with status 1 where trials failed."""
    missing = sum(trial.evaluation is None for trial in trials)
    if missing:
        typer.secho(
            f"{missing} of {len(trials)} trials failed or did not end: the same command tries them again", err=True
        )
        raise typer.Exit(1)


def _fitted(arguments: list[str], same_views: bool) -> "tuple[list[Contender], Store]":
    """The contenders of a command line, checked against their store."""
    from jobs.recipes import find_recipe
    from pipeline.settings import parse_overrides
    from pipeline.stream.batches import check_files
    from pipeline.tune.compare import contenders, refuse_unjudged

    names = [argument for argument in arguments if "=" not in argument]
    changes = absolute_paths(parse_overrides([argument for argument in arguments if "=" in argument]))
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(
            f"a comparison needs two or more different recipes, got {' '.join(names) or 'none'} (for settings of one "
            "recipe: `feral sweep`)"
        )
    found = contenders({name: find_recipe(name)() for name in names}, changes, same_views=same_views)
    data = found[0].experiment.data
    if not data.store:
        raise ValueError("data.store is not set: make one with `feral curate SOURCE --to STORE`, then data.store=STORE")
    store = data.open()
    refuse_unjudged(found, store)
    check_files(store)
    return [contender.fitted(store) for contender in found], store


def _write(
    found: "Sequence[Contender]", trials: "Sequence[Trial]", seeds: int, at_once: int, directory: Path
) -> "tuple[list[Row], str]":
    """All files of the comparison, of the trials that have ended: what is in them."""
    from pipeline.report.comparison import explanation, write_comparison
    from pipeline.report.comparison_page import write_comparison_page
    from pipeline.tune.comparison import table
    from pipeline.tune.plot import plot_comparison

    rows = table(found, trials)
    explained = explanation(found, seeds, at_once)
    write_comparison(directory, rows, trials, found, explained, shlex.join(typed_command()))
    plot_comparison(rows, directory / "compare.png")
    write_comparison_page(directory)
    return rows, explained


def _show(found: "list[Contender]", trials: "list[Trial]", seeds: int, at_once: int, directory: Path) -> None:
    """The table on the terminal, and all files of the comparison."""
    from rich.console import Console
    from rich.table import Table

    from pipeline.report.comparison import cells, columns
    from pipeline.tune.comparison import conclusions

    rows, explained = _write(found, trials, seeds, at_once, directory)
    shown = Table(*columns(rows))
    for line in cells(rows):
        shown.add_row(*line)
    console = Console()
    console = Console(width=max(console.width, 150))  # narrower, numbers are cut
    console.print(shown)
    typer.echo(explained)
    typer.echo(f"{directory / 'compare.html'}, compare.md, compare.json, compare.png")
    for conclusion in conclusions(rows):
        typer.echo(str(conclusion))
