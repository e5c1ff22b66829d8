"""`feral evaluate` and `feral report`: the last stages of a run again; and any encoder on any store."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.pretrain import Address, print_scores

if TYPE_CHECKING:
    from pipeline.evaluate.transfer import Judged

RunDirectory = Annotated[Path, typer.Argument(metavar="RUN", help="directory of a run")]
Encoder = Annotated[
    list[str],
    typer.Argument(
        metavar="ENCODER …",
        help="a run; a folder of `feral export`; or timm:MODEL@FILE, torchvision:…, open_clip:… with a file of weights",
    ),
]
On = Annotated[list[Path] | None, typer.Option(help="a sealed store; may be given again. Default: a run's own")]
To = Annotated[Path, typer.Option(help="where the table of several encoders or stores is written")]
Also = Annotated[
    list[str] | None,
    typer.Option(
        help="depths (a linear probe after each stage), knowledge (what was done to an image, told before and after "
        "the projector) or projection (k-NN and linear probe after the projector); may be given again"
    ),
]


def evaluate(
    encoders: Encoder, on: On = None, to: To = Path("evaluations"), also: Also = None, address: Address = None
) -> None:
    """Judges a run again and writes its report; or any encoders, ours or others', on any stores, in one table.

    Example: feral evaluate runs/simclr timm:resnet18@weights.safetensors --on stores/cifar10 --on stores/pets
    """
    from pipeline.cluster import connected
    from pipeline.evaluate.suite import evaluate as judge
    from pipeline.evaluate.transfer import refuse_unknown
    from pipeline.report.run_report import write_report
    from pipeline.run import Run

    refuse_unknown(also or [])
    if on or len(encoders) > 1 or not Path(encoders[0], "experiment.json").exists():
        _judge_all(encoders, on or [], to, also or [], address)
        return
    opened = Run.open(Path(encoders[0]))
    with connected(address, cpus=opened.experiment.cluster.cpus):
        print_scores(judge(opened, lambda name: typer.echo(f"evaluating: {name}"), also=also or []))
    typer.echo(f"report {write_report(opened)}")


def _judge_all(names: list[str], on: list[Path], to: Path, also: list[str], address: str | None) -> None:
    from pipeline.cluster import ClusterConfig, connected
    from pipeline.evaluate.embed import Embedding
    from pipeline.evaluate.encoders import RunEncoders
    from pipeline.evaluate.foreign import find_encoders
    from pipeline.evaluate.protocol import EvaluationConfig
    from pipeline.evaluate.transfer import judge_all, markdown
    from pipeline.ingest.store import Store
    from pipeline.report.transfer_page import write_transfer_page

    encoders = [find_encoders(name) for name in names]
    runs = [one for one in encoders if isinstance(one, RunEncoders)]
    stores = [Store(path) for path in on] or list(
        {run.experiment.data.store: run.experiment.data.open() for run in runs}.values()
    )
    if not stores:
        raise ValueError("no data to judge on: name a sealed store with --on STORE (make one with `feral curate`)")
    cluster = runs[0].experiment.cluster if runs else ClusterConfig()
    with connected(address, cpus=cluster.cpus):
        found = judge_all(encoders, stores, to, EvaluationConfig(), Embedding(cluster), typer.echo, also)
    _print(found)
    command = shlex.join(["feral", *sys.argv[1:]])
    (to / "table.md").write_text(markdown(found, command))
    page = write_transfer_page(to, found, command)
    typer.echo(f"{page}, table.md; all scores of each, with intervals and protocols, are in the .json files beside it")


def _print(found: "list[Judged]") -> None:
    from rich.console import Console
    from rich.table import Table

    from pipeline.evaluate.transfer import table

    console = Console()
    console = Console(width=max(console.width, 150))  # narrower, numbers are cut
    for store in dict.fromkeys(one.store for one in found):
        titles, *lines = table(found, store)
        shown = Table(*titles, title=store)
        for line in lines:
            shown.add_row(*line)
        console.print(shown)
    for one in found:
        for reason in one.evaluation.skipped:
            typer.echo(f"{one.encoder} on {one.store}: skipped {reason}")


def report(
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="of a run, a comparison or a sweep")],
) -> None:
    """Writes the page of a run, a comparison or a sweep again, of whatever there is; needs no Ray.

    Example: feral report runs/first
    """
    from pipeline.report.comparison import COMPARISON
    from pipeline.report.comparison_page import write_comparison_page
    from pipeline.report.run_report import write_report
    from pipeline.report.sweep_page import SWEEP, write_sweep_page
    from pipeline.run import Run

    if (directory / COMPARISON).exists():
        page = write_comparison_page(directory)
    elif (directory / SWEEP).exists():
        page = write_sweep_page(directory)
    elif (directory / "experiment.json").exists():
        page = write_report(Run.open(directory))
    else:
        raise ValueError(
            f"{directory} is no run (experiment.json), no comparison ({COMPARISON}) and no sweep ({SWEEP})"
        )
    typer.echo(f"report {page}")
