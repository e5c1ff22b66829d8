"""`feral finetune`: what an encoder is worth where labels are few, against training from scratch."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from jobs.compare import tell_missing, train_missing
from jobs.evaluate import RunName
from jobs.pretrain import Address
from pipeline.redaction import typed_command

if TYPE_CHECKING:
    from pipeline.tune.compare import Trial
    from pipeline.tune.convergence import Convergence
    from pipeline.tune.finetune import Budget
    from pipeline.tune.finetune_table import Row

N = TypeVar("N", int, float)


def finetune(
    run: RunName,
    settings: Annotated[list[str] | None, typer.Argument(metavar="key=value …", help="of all trials")] = None,
    labels: Annotated[str | None, typer.Option(help="shares of each class's labels; default: 0.01,0.1,1")] = None,
    shots: Annotated[str | None, typer.Option(help="labels of each class: 1,5")] = None,
    draws: Annotated[int, typer.Option(min=1, help="parts of the labels, each with its own seed")] = 3,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="over the labelled images, at least 200 steps; default: 30, ViTs 100")
    ] = None,
    on: Annotated[Path | None, typer.Option(help="a labelled store; default: that of the run")] = None,
    at_once: Annotated[int, typer.Option(min=1, help="trials at the same time")] = 1,
    address: Address = None,
) -> None:
    """Fine-tunes the encoder of a run on few and many labels, and trains its twin from scratch on the same.

    The trials are runs below RUN/finetune; the same command again resumes. Judged by the classifier on the test split.

    Example: feral finetune runs/first --labels 0.01,0.1 --shots 5 --on stores/cifar10
    """
    from pipeline.ledger.names import find_run
    from pipeline.lock import locked
    from pipeline.report.run_report import write_report
    from pipeline.settings import parse_overrides
    from pipeline.stream.batches import check_files
    from pipeline.tune.compare import refuse_unjudged
    from pipeline.tune.convergence import convergence
    from pipeline.tune.finetune import FOLDER, arms, base_experiment, usual_epochs
    from pipeline.tune.finetune_table import explanation, lines, table, verdict, write_table

    opened, changes = find_run(run), parse_overrides(settings or [])
    budgets = parse_budgets(labels, shots)
    there = opened.experiment
    base = base_experiment(there, str(on.absolute()) if on else None, changes)
    store = base.data.open()
    if epochs is not None and "training.images_seen" in changes:
        raise ValueError("--epochs and training.images_seen both say how long: give one of them")
    length = None if "training.images_seen" in changes else epochs or usual_epochs(base)
    found = arms(base, opened, store, budgets, length, draws)
    refuse_unjudged(found, store)
    check_files(store)
    directory = opened.path / FOLDER

    def write(trials: "Sequence[Trial]") -> "tuple[list[Row], list[Convergence]]":
        rows, curves = table(found, trials), convergence(found, trials)
        command = shlex.join(typed_command())
        write_table(opened, rows, curves, found, trials, explanation(found, there, draws), command)
        return rows, curves

    with locked(directory, "the fine-tuning"):
        directory.mkdir(exist_ok=True)
        typer.echo(f"{len(budgets)} budgets of labels × {draws} draws × 2, in {directory}")
        trials, _ = train_missing(
            found, draws, directory, store, at_once, address, lambda ended, at_once: write(ended), curves=True
        )
        rows, curves = write(trials)
    show(lines(opened, rows))
    typer.echo(explanation(found, there, draws))
    typer.echo(verdict(rows, opened.path.name))
    for curve in curves:
        typer.echo(f"How fast, from {opened.path.name}, {curve.words}.")
    typer.echo(f"{directory / 'table.json'}; report {write_report(opened)}")
    tell_missing(trials)


def parse_budgets(labels: str | None, shots: str | None) -> "list[Budget]":
    """The budgets of the two options, shares first.

    Raises:
        ValueError: what is no list of numbers, or out of bounds.
    """
    from pipeline.tune.finetune import Budget

    shares = _numbers("--labels", labels or ("" if shots else "0.01,0.1,1"), float)
    counts = _numbers("--shots", shots or "", int)
    for share in shares:
        if not 0 < share <= 1:
            raise ValueError(f"--labels {share:g} is no share in (0, 1]: 1 % is 0.01, all labels are 1")
    for count in counts:
        if count < 1:
            raise ValueError(f"--shots {count} is less than one image of a class: use 1 or more")
    return [*(Budget(share=share) for share in shares), *(Budget(shots=count) for count in counts)]


def _numbers(option: str, text: str, kind: Callable[[str], N]) -> list[N]:
    try:
        return list(dict.fromkeys(kind(part) for part in text.split(",") if part))
    except ValueError:
        raise ValueError(
            f"{option} {text!r} is no list of numbers: write them as in --labels 0.01,0.1 --shots 1,5"
        ) from None


def show(lines: "Sequence[Sequence[str]]") -> None:
    from rich.console import Console
    from rich.table import Table

    names, *rows = lines
    shown = Table(*names)
    for row in rows:
        shown.add_row(*row)
    Console(width=max(Console().width, 100)).print(shown)
