"""`feral evaluate` and `feral report`: the last stages of a run again, from its directory alone."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.pretrain import Address, print_scores

RunDirectory = Annotated[Path, typer.Argument(metavar="RUN", help="directory of a run")]


def evaluate(run: RunDirectory, address: Address = None) -> None:
    """Judges the newest checkpoint of a run again, and writes its report."""
    from pipeline.cluster import connected
    from pipeline.evaluate.suite import evaluate as judge
    from pipeline.report.run_report import write_report
    from pipeline.run import Run

    opened = Run.open(run)
    with connected(address, cpus=opened.experiment.cluster.cpus):
        print_scores(judge(opened, on_stage=lambda name: typer.echo(f"evaluating: {name}")))
    typer.echo(f"report {write_report(opened)}")


def report(run: RunDirectory) -> None:
    """Writes the report of a run again, of whatever there is; needs no Ray."""
    from pipeline.report.run_report import write_report
    from pipeline.run import Run

    typer.echo(f"report {write_report(Run.open(run))}")
