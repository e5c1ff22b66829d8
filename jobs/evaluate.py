"""`feral evaluate` and `feral report`: the last stages of a run again; and any encoder on any store."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.pretrain import Address, print_scores

if TYPE_CHECKING:
    from pipeline.evaluate.transfer import Judged

RunName = Annotated[str, typer.Argument(metavar="RUN", help="directory of a run, or a name: champion")]
Encoder = Annotated[
    list[str],
    typer.Argument(
        metavar="ENCODER …",
        help="a run, or a name (champion); a folder of `feral export`; or timm:MODEL@FILE, torchvision:…, open_clip:… "
        "with a file of weights",
    ),
]
On = Annotated[list[Path] | None, typer.Option(help="a sealed store; may be given again. Default: a run's own")]
To = Annotated[Path, typer.Option(help="where the table of several encoders or stores is written")]
Also = Annotated[
    list[str] | None,
    typer.Option(
        help="depths (a linear probe after each stage) or knowledge (what was done to an image, told before and after "
        "the projector); may be given again"
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
    from pipeline.ledger.names import run_called
    from pipeline.report.run_report import write_report

    refuse_unknown(also or [])
    opened = None if on or len(encoders) > 1 else run_called(encoders[0])
    if opened is None:
        _judge_all(encoders, on or [], to, also or [], address)
        return
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
    (to / "table.md").write_text(markdown(found, shlex.join(["feral", *sys.argv[1:]])))
    typer.echo(f"{to / 'table.md'}; all scores of each, with intervals and protocols, are in the .json files beside it")


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


def report(run: RunName) -> None:
    """Writes the report of a run again, of whatever there is; needs no Ray."""
    from pipeline.ledger.names import find_run
    from pipeline.report.run_report import write_report

    typer.echo(f"report {write_report(find_run(run))}")
