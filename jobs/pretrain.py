"""`feral pretrain`: a recipe and a store become an evaluated encoder, in one run directory."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.curate import store_path
from pipeline.redaction import typed_command

if TYPE_CHECKING:
    from pipeline.evaluate.protocol import Evaluation
    from pipeline.experiment import Experiment
    from pipeline.run import Run

Address = Annotated[str | None, typer.Option(help="Ray cluster; default: RAY_ADDRESS, else this machine")]


def pretrain(
    recipe: Annotated[str, typer.Argument(help="one of `feral recipes`")],
    settings: Annotated[list[str] | None, typer.Argument(metavar="key=value …", help="see `feral show RECIPE`")] = None,
    override: Annotated[
        Path | None, typer.Option(help="JSON of settings, as best.json of a sweep; those typed here come after it")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="run directory; default: runs/RECIPE-DIGEST")] = None,
    address: Address = None,
) -> None:
    """Pretrains an encoder, evaluates it and writes a report. The same command again resumes.

    Example: feral pretrain simclr_32px data.store=stores/cifar10 training.images_seen=200000
    """
    from jobs.recipes import find_recipe
    from pipeline.settings import parse_overrides

    changes = (read_override(override) if override else {}) | parse_overrides(settings or [])
    experiment = find_recipe(recipe)().override(absolute_paths(changes))
    pretrain_run(experiment, run or Path("runs") / f"{recipe}-{experiment.digest[:8]}", address)


def read_override(path: Path) -> dict[str, Any]:
    """Settings from a file.

    Raises:
        ValueError: it cannot be read, or is no JSON object.
    """
    try:
        changes = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"--override {path} cannot be read: {error}") from None
    if not isinstance(changes, dict):
        raise ValueError(f'--override {path} holds no settings: write {{"objective.temperature": 0.2, …}}')
    return changes


def absolute_paths(changes: dict[str, Any]) -> dict[str, Any]:
    """Workers have other working directories: stores and a run to start from are named by their absolute paths."""
    from pipeline.stream.batches import store_names

    if changes.get("data.store"):
        changes["data.store"] = str(store_path(str(changes["data.store"])))
    for key in ("training.start_from", "training.continue_from"):
        if changes.get(key):
            changes[key] = str(Path(str(changes[key])).absolute())
    if changes.get("data.replay"):
        changes["data.replay"] = [str(store_path(name)) for name in store_names(changes["data.replay"])]
    return changes


def pretrain_run(experiment: "Experiment", path: Path, address: str | None = None) -> "Run":
    """Train, evaluate, report: each stage only if it is not done yet.

    Raises:
        ValueError: the experiment does not fit its data, or another command works on the run.
        typer.Exit: training failed (1), or was told to stop by a signal (128 + its number); the state is saved.
    """
    from pipeline.pretrain import plan_line, prepared, working_on

    experiment = prepared(experiment, path)
    with failures_told(path.absolute()), working_on(experiment, path, typed_command(), typer.echo) as run:
        typer.echo(f"run {run.path}")
        typer.echo(plan_line(experiment, experiment.open_stores()))
        _train_and_judge(run, address)
        _report(run)
    return run


@contextmanager
def failures_told(run: Path) -> Iterator[None]:
    """Training of the run that ends early within the block ends the command, in words for a person."""
    from pipeline.train.fit import Stopped, TrainingFailed

    try:
        yield
    except TrainingFailed as failure:
        typer.secho(f"training failed: {failure}", fg="red", err=True)
        typer.echo(f"the same command resumes; stacks of workers that hung are in {run / 'logs'}", err=True)
        raise typer.Exit(1) from None
    except Stopped as stopped:
        typer.echo(str(stopped))
        raise typer.Exit(128 + stopped.signal) from None


def _train_and_judge(run: "Run", address: str | None) -> None:
    from pipeline.cluster import connected
    from pipeline.pretrain import is_judged, judge, train

    checkpoint = run.newest_checkpoint()
    if is_judged(run):
        assert checkpoint is not None
        typer.echo(f"finished already, at step {checkpoint.step}; a longer run: training.images_seen=…")
        return
    if checkpoint:
        typer.echo(f"resuming after step {checkpoint.step}")
    with connected(address, cpus=run.experiment.cluster.cpus):
        train(run, StepProgress, typer.echo)
        judge(run, typer.echo)


def _report(run: "Run") -> None:
    from pipeline.report.run_report import write_report
    from pipeline.train.goodput import goodput, goodput_line
    from pipeline.train.record import read_all_metrics, read_events

    if not run.report_file.exists():
        write_report(run)
    print_scores(run.evaluation)
    typer.echo(goodput_line(goodput(read_events(run.path), read_all_metrics(run.path))))
    typer.echo(f"report {run.report_file}")


class StepProgress:
    """The state of training on one line: alive on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, total_steps: int, seconds_between_lines: float = 10, *, to_stderr: bool = False) -> None:
        from rich.console import Console
        from rich.live import Live

        self.total_steps, self.between, self.to_stderr = total_steps, seconds_between_lines, to_stderr
        console = Console(stderr=to_stderr)
        self.live = Live("starting workers …", console=console, refresh_per_second=4) if console.is_terminal else None
        self.shown = 0.0

    def __enter__(self) -> "StepProgress":
        if self.live:
            self.live.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self.live:
            self.live.__exit__(*exception)

    def tell(self, line: str) -> None:
        """A line that stays, above the one that changes."""
        if self.live:
            self.live.console.print(line, markup=False)
        else:
            typer.echo(line, err=self.to_stderr)

    def show(self, row: dict[str, Any]) -> None:
        line = progress_line(row, self.total_steps)
        if self.live:
            self.live.update(line)
        elif row["step"] == self.total_steps or time.monotonic() - self.shown >= self.between:
            self.shown = time.monotonic()
            typer.echo(line, err=self.to_stderr)


def progress_line(row: dict[str, Any], total_steps: int) -> str:
    speed = row["images_per_second"]
    batch = row["images_seen"] / row["step"]
    left = (total_steps - row["step"]) * batch / speed
    return (
        f"step {row['step']}/{total_steps} · {speed:.0f} images/s · loss {row['loss']:.4f} · {duration(left)} left · "
        f"data wait {row['data_wait_ratio']:.0%}"
    )


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def print_scores(evaluation: "Evaluation | None") -> None:
    """The table of scores, each beside its baselines."""
    if evaluation is None:
        return
    from rich.console import Console
    from rich.table import Table

    from pipeline.evaluate.health import collapse

    columns = evaluation.columns
    table = Table("score", *columns.values(), "test images")
    for score in evaluation.scores:
        values = (score.shown(getattr(score, name)) for name in columns)
        table.add_row(score.name, *values, str(score.num_queries))
    if evaluation.scores:
        Console(width=max(Console().width, 100)).print(table)  # narrower, the names are cut
    if fault := collapse(evaluation):
        typer.secho(fault, fg="red")
    for reason in evaluation.skipped:
        typer.echo(f"skipped {reason}")
