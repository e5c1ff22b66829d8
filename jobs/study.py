"""`feral study` and `feral studies`: the field's classic tables, on the user's data."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.compare import tell_missing, train_missing
from jobs.pretrain import Address, absolute_paths
from pipeline.redaction import typed_command

if TYPE_CHECKING:
    from pipeline.tune.compare import Contender, Trial
    from pipeline.tune.study import Cell, Study


def studies() -> None:
    """Lists the studies.

    Example: feral studies
    """
    from rich.console import Console
    from rich.table import Table

    from jobs.studies import STUDIES

    table = Table("study", "what it asks", "points", "after")
    for name, make in STUDIES.items():
        study = make()
        table.add_row(name, study.question, str(len(study.points)), study.source.split(":")[0])
    Console().print(table)
    typer.echo("feral study NAME data.store=STORE training.images_seen=100000 --seeds 2")


def study(
    name: Annotated[str, typer.Argument(help="one of `feral studies`")],
    settings: Annotated[list[str] | None, typer.Argument(metavar="key=value …", help="of all points")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="training.seed of each point: 0 … N − 1")] = 1,
    at_once: Annotated[
        int, typer.Option(min=1, help="trials at the same time; more than 1, and speeds do not compare")
    ] = 1,
    to: Annotated[Path | None, typer.Option(help="directory; default: runs/study-NAME-DIGEST")] = None,
    address: Address = None,
) -> None:
    """Redraws a classic table at your scale: trains and evaluates every point, beside the published numbers.

    The same command again resumes; more seeds add to those that are there. All scores are of the test split, which
    nothing is chosen by.

    Example: feral study temperature data.store=stores/cifar10 training.images_seen=100000 --seeds 2
    """
    from jobs.studies import find_study
    from pipeline.lock import locked
    from pipeline.settings import parse_overrides
    from pipeline.stream.batches import check_files
    from pipeline.tune.compare import comparison_name, refuse_unjudged

    asked = find_study(name)()
    found = asked.contenders(absolute_paths(parse_overrides(settings or [])))
    data = found[0].experiment.data
    if not data.store:
        raise ValueError("data.store is not set: make one with `feral curate SOURCE --to STORE`, then data.store=STORE")
    store = data.open()
    refuse_unjudged(found, store)
    check_files(store)
    found = [contender.fitted(store) for contender in found]
    digest = comparison_name(found, store).removeprefix("compare-")
    directory = (to or Path("runs") / f"study-{name}-{digest}").absolute()
    with locked(directory, "the study"):
        directory.mkdir(parents=True, exist_ok=True)
        images = sum(contender.experiment.training.images_seen for contender in found) * seeds
        typer.echo(f"{asked.question}\n{len(found)} points × {seeds} seeds, {images:,} images in all, in {directory}")
        trials, _ = train_missing(
            found, seeds, directory, store, at_once, address,
            lambda ended, at_once: _write(asked, found, ended, directory), asked.also,
        )  # fmt: skip
        _show(asked, found, trials, directory)
    tell_missing(trials)


def _write(
    asked: "Study", found: "Sequence[Contender]", trials: "Sequence[Trial]", directory: Path
) -> "tuple[list[Cell], str]":
    """All files of the study, of the trials that have ended: what is in them."""
    from pipeline.report.study import write_study
    from pipeline.report.study_figure import draw_study
    from pipeline.tune.study import cells

    measured = cells(asked, trials)
    experiment = found[0].experiment
    seen = sorted({contender.experiment.training.images_seen for contender in found})
    ended = max((spread.count for cell in measured for spread in cell.measured.values()), default=0)
    common = (
        f"Here: {experiment.encoder.name}, {experiment.encoder.image_size} px, {Path(experiment.data.store).name}, "
        f"{' to '.join(f'{count:,}' for count in (seen[0], seen[-1])[: len(seen)])} images seen, test split; "
        + (f"mean ± standard deviation over {ended} seeds." if ended > 1 else "one seed: no spread is known.")
    )
    write_study(directory, asked, measured, common, shlex.join(typed_command()))
    draw_study(asked, measured, directory / "study.png")
    return measured, common


def _show(asked: "Study", found: "Sequence[Contender]", trials: "Sequence[Trial]", directory: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from pipeline.report.study import columns, explanation, lines

    measured, common = _write(asked, found, trials, directory)
    shown = Table(*columns(asked))
    for line in lines(asked, measured):
        shown.add_row(*line)
    console = Console()
    console = Console(width=max(console.width, 140))  # narrower, numbers are cut
    console.print(shown)
    for sentence in explanation(asked, measured, common)[1:]:
        typer.echo(sentence)
    typer.echo(f"{directory / 'study.md'}, study.json, study.png; the report of each run is in its directory")
