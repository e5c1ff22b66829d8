"""`feral sweep`: the same recipe under many settings, judged on held-back training images."""

import json
import shlex
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from jobs.pretrain import Address, absolute_paths

if TYPE_CHECKING:
    from pipeline.ingest.store import Store
    from pipeline.tune.sweep import Plan

NO_PBT = (
    "--stop pbt: population based training changes settings while it trains. What it finds is a schedule, which "
    "no recipe can hold and fresh seeds cannot repeat, and its trials, Ray Train runs, hold no checkpoint for Ray Tune "
    "to hand on: use --stop asha, and sweep the settings of the curves (optimizer.warmup, optimizer.schedule, "
    "optimizer.final_weight_decay)"
)


def sweep(
    recipe: Annotated[str, typer.Argument(help="one of `feral recipes`")],
    settings: Annotated[
        list[str],
        typer.Argument(
            metavar="key=values …",
            help="v1,v2 or grid(v1,v2): every combination; choice(v1,v2), uniform(low,high), loguniform, randint, "
            "lograndint: drawn; one value: of all trials",
        ),
    ],
    trials: Annotated[int | None, typer.Option(min=1, help="how many to draw")] = None,
    search: Annotated[
        Literal["auto", "grid", "random", "tpe"], typer.Option(help="auto: grid for lists alone, else Optuna's TPE")
    ] = "auto",
    stop: Annotated[
        str, typer.Option(metavar="none|asha|median", help="end bad trials early, by k-NN after some of the images")
    ] = "none",
    metric: Annotated[Literal["knn", "linear"], typer.Option(help="score on held-back training images")] = "knn",
    cost: Annotated[
        Literal["seconds", "memory"] | None, typer.Option(help="minimise it beside the score; shows the Pareto front")
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="budget of the search: images seen in all trials")] = None,
    hours: Annotated[float | None, typer.Option(min=0, help="no trial of the search starts later")] = None,
    worker_hours: Annotated[float | None, typer.Option(min=0, help="hours × workers of all trials together")] = None,
    seeds: Annotated[
        int, typer.Option(min=0, help="fresh ones: the best is trained again beside the recipe's own settings")
    ] = 3,
    at_once: Annotated[int | None, typer.Option(min=1, help="trials at the same time; default: as many as fit")] = None,
    to: Annotated[Path | None, typer.Option(help="directory; default: runs/sweep-RECIPE-DIGEST")] = None,
    address: Address = None,
) -> None:
    """Searches settings of a recipe: Ray Tune starts one Ray Train run a trial. The same command again resumes.

    The best is trained again with fresh seeds before it is called so, and written to best.json, for `feral pretrain
    RECIPE --override best.json`.

    Example: feral sweep simclr_32px data.store=stores/cifar10 training.images_seen=50000
    'optimizer.learning_rate=loguniform(0.01,1)' 'objective.projector_dims=choice([256,64],[512,128])' --trials 20
    --stop asha
    """
    from pipeline.cluster import connected
    from pipeline.lock import locked
    from pipeline.report.sweep_page import write_sweep_page
    from pipeline.stream.batches import check_files
    from pipeline.tune.sources import Budget
    from pipeline.tune.sweep import Interrupted
    from pipeline.tune.sweep import sweep as run_sweep
    from pipeline.tune.trials import concurrent_trials

    plan, store, reasons = planned(
        recipe, settings, search=search, stop=stop, metric=metric, cost=cost, trials=trials, seeds=seeds,
        budget=Budget(images, hours, worker_hours),
    )  # fmt: skip
    check_files(store)
    directory = (to or Path("runs") / plan.name).absolute()
    cluster = plan.base.cluster
    possible = len(plan.space.combinations()) - len(reasons) if plan.search == "grid" else None
    typer.echo(_announced(plan, possible, directory))
    if reasons:
        typer.echo(
            f"{len(reasons)} combinations of settings cannot be trained, and are left out; the first: {reasons[0]}"
        )
    with locked(directory, "the sweep"):
        directory.mkdir(parents=True, exist_ok=True)
        with connected(address, cpus=cluster.cpus, offer=(at_once or 1) * cluster.cpus):
            import ray

            fitting = concurrent_trials(cluster, ray.cluster_resources())
            try:
                found = run_sweep(plan, store, directory, possible, min(at_once or fitting, fitting), typer.echo)
            except Interrupted as interrupted:
                typer.echo(str(interrupted), err=True)
                raise typer.Exit(130) from None
        _show(found)
        typer.echo(f"{write_sweep_page(directory)}, sweep.json")
    typer.echo(found["best"]["verdict"])
    override = shlex.quote(str(directory / "best.json"))
    typer.echo(f"for a longer run: feral pretrain {recipe} --override {override} training.images_seen=…")


def planned(
    recipe: str,
    settings: list[str],
    *,
    search: str = "auto",
    stop: str = "none",
    trials: int | None = None,
    **asked: Any,
) -> "tuple[Plan, Store, list[str]]":
    """What a command line asks for, its store, and why some combinations of settings cannot be trained.

    Raises:
        ValueError: what cannot be done, before anything is started.
    """
    from jobs.recipes import find_recipe
    from pipeline.evaluate.validation import labelled
    from pipeline.tune.search import SHARES
    from pipeline.tune.space import parse_space
    from pipeline.tune.sweep import Plan

    if stop not in SHARES:
        raise ValueError(NO_PBT if stop == "pbt" else f"--stop {stop} is unknown: use {', '.join(SHARES)}")
    space = parse_space(settings)
    absolute_paths(space.fixed)
    if starts := space.lists.get("training.start_from"):
        space.lists["training.start_from"] = [start and str(Path(start).absolute()) for start in starts]
    if search == "auto":
        search = "tpe" if space.drawn or trials is not None else "grid"
    base = find_recipe(recipe)().override(space.fixed)
    if not base.data.store:
        raise ValueError("data.store is not set: make one with `feral curate SOURCE --to STORE`, then data.store=STORE")
    store = base.data.open()
    base = base.fitted(store)
    plan = Plan(recipe, base, space, search, stop, trials=trials, **asked)  # type: ignore[arg-type]
    reasons = space.refuse_impossible(lambda changes: plan.build(changes, store))
    labelled(store)
    return plan, store, reasons


def _announced(plan: "Plan", possible: int | None, directory: Path) -> str:
    count = possible or plan.trials
    words = f"{count} trials" if count else "trials"
    stopped = "" if plan.stop == "none" else f", bad ones stopped early ({plan.stop})"
    supervised = ""
    if plan.base.needs_labels:
        supervised = (
            "\nthe objective learns from labels, those of held-back images too: scores favour learning by heart"
        )
    return (
        f"{words} ({plan.search}) of {plan.base.training.images_seen} images seen{stopped}; then the best and the "
        f"recipe's own settings with {plan.seeds} fresh seeds; in {directory}{supervised}"
    )


def _show(found: dict[str, Any]) -> None:
    """The trials of the search, the best first, and what the machinery cost."""
    from rich.console import Console
    from rich.table import Table

    table = Table("trial", found["metric"], *found["space"], "loss", "s training", "s beside", "images/s", "MB", "run")
    searched = [trial for trial in found["trials"] if trial["repeat"] is None]
    for trial in sorted(searched, key=lambda trial: -1.0 if trial["score"] is None else trial["score"], reverse=True):
        front = " *" if trial["number"] in found["front"] else ""
        shown = trial["state"] if trial["score"] is None else f"{trial['score']:.1%}{front}"
        measured = [f"{trial['seconds']:.0f}", f"{trial['overhead_seconds']:.0f}"]
        table.add_row(
            str(trial["number"]), shown, *(json.dumps(value) for value in trial["changes"].values()),
            "" if trial["loss"] is None else f"{trial['loss']:.3f}", *measured,
            f"{trial['images_per_second'] or 0:.0f}", f"{(trial['peak_memory_bytes'] or 0) / 1e6:.0f}",
            Path(trial["run"]).name if trial["run"] else "",
        )  # fmt: skip
    console = Console()
    Console(width=max(console.width, 120)).print(table)
    for trial in searched:
        if trial["error"]:
            typer.echo(f"trial {trial['number']} {trial['state']}: {trial['error']}")
    states = [trial["state"] for trial in found["trials"]]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    left_out = f"; {found['not_started']} not started: {found['why_not']}" if found["not_started"] else ""
    typer.echo(f"{len(states)} trials with the repeats: {counts}{left_out}")
    ended = [trial for trial in found["trials"] if trial["overhead"]]
    names = dict.fromkeys(name for trial in ended for name in trial["overhead"])
    parts = {name: fmean(trial["overhead"].get(name, 0.0) for trial in ended) for name in names}
    told = ", ".join(f"{name} {seconds:.0f}" for name, seconds in parts.items() if seconds >= 0.5)
    typer.echo(
        f"a trial trained {fmean(trial['seconds'] for trial in ended):.0f} s, and took {sum(parts.values()):.0f} s "
        f"beside it ({told})"
    )
    if found["front"]:
        typer.echo(f"* no other trial is better in {found['metric']} and in {found['cost']}")
