"""`feral evaluate` and `feral report`: the last stages of a run again; and any encoder on any store."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.pretrain import Address, StepProgress, failures_told, print_scores
from pipeline.redaction import typed_command

if TYPE_CHECKING:
    from pipeline.evaluate.transfer import Judged
    from pipeline.experiment import Experiment
    from pipeline.run import Run

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
        help="depths (a linear probe after each stage), knowledge (what was done to an image, told before and after "
        "the projector), projection (k-NN and linear probe after the projector) or sgd_probe (MAE's linear probe; "
        "masked methods always have it); may be given again"
    ),
]

Masks = Annotated[
    str | None,
    typer.Option(
        help="a folder of pictures with masks, for linear segmentation: JPEGImages/ and SegmentationClass/, or images/ "
        "and masks/ with PNGs of class ids (255: no class); train.txt and val.txt, classes.txt if there are"
    ),
]
Layers = Annotated[
    bool, typer.Option("--layers", help="with --masks: also by the maps of the last four stages or blocks, joined")
]
Supervised = Annotated[
    bool,
    typer.Option(
        "--supervised",
        help="of each run also its supervised twin, the same encoder trained by labels on the same images; trained in "
        "RUN/supervised if it is not there yet, which takes about as long as training the run did",
    ),
]
Chain = Annotated[
    bool, typer.Option("--chain", help="encoders and stores are those of one training that goes on, oldest first")
]


def evaluate(
    encoders: Encoder,
    on: On = None,
    to: To = Path("evaluations"),
    also: Also = None,
    masks: Masks = None,
    layers: Layers = False,
    supervised: Supervised = False,
    chain: Chain = False,
    address: Address = None,
) -> None:
    """Judges a run again and writes its report; or any encoders, ours or others', on any stores, in one table.

    With --chain also tells what was forgotten of each store, here and in the report of the last run.

    Example: feral evaluate runs/simclr timm:resnet18@weights.safetensors --on stores/cifar10 --on stores/pets
    """
    from pipeline.evaluate.transfer import refuse_unknown
    from pipeline.ledger.names import run_called

    refuse_unknown(also or [])
    if layers and masks is None:
        raise ValueError("--layers joins the maps that segmentation is judged by: name pictures with --masks FOLDER")
    if chain and len(encoders) < 2:
        raise ValueError("--chain compares an encoder with earlier ones: name two or more, oldest first")
    if chain and supervised:
        raise ValueError("--chain compares encoders of one training, to which no twin belongs: leave out --supervised")
    opened = None if on or len(encoders) > 1 else run_called(encoders[0])
    if opened is None:
        found = _judge_all(encoders, on or [], to, also or [], masks, layers, supervised, address)
        if chain:
            _tell_forgotten(found, encoders[-1], to)
        return
    _judge_run(opened, also or [], masks, layers, supervised, address)


def _judge_run(
    run: "Run", also: list[str], masks: str | None, layers: bool, supervised: bool, address: str | None
) -> None:
    from pipeline.cluster import connected
    from pipeline.evaluate.encoders import RunEncoders
    from pipeline.evaluate.masks import read_segmented
    from pipeline.evaluate.suite import evaluate as judge
    from pipeline.evaluate.suite import expected
    from pipeline.report.run_report import write_report
    from pipeline.supervised import twin_experiment
    from ssl_models.objectives import OBJECTIVES

    RunEncoders.of(run)  # there is something to judge
    experiment = twin_experiment(run) if supervised else None
    pictures = read_segmented(masks, run.experiment.encoder.image_size) if masks else None
    if pictures:
        typer.echo(pictures.told)
    with connected(address, cpus=run.experiment.cluster.cpus):
        if experiment:
            twin = _trained_twin(run, experiment)
            asked = [*expected(OBJECTIVES[run.experiment.objective.name]), *also]
            judge(twin, _tell("the supervised twin, "), also=asked, pictures=pictures, joined=layers)
            typer.echo(f"report {write_report(twin)}")
        print_scores(judge(run, _tell(), also=also, pictures=pictures, joined=layers))
    typer.echo(f"report {write_report(run)}")


def _trained_twin(run: "Run", experiment: "Experiment") -> "Run":
    from pipeline.evaluate.twin import twin_of
    from pipeline.supervised import train_twin

    with failures_told(twin_of(run).path):
        return train_twin(run, experiment, typed_command(), StepProgress, typer.echo)


def _tell(of: str = "") -> Callable[[str], None]:
    return lambda stage: typer.echo(f"evaluating: {of}{stage}")


def _judge_all(
    names: list[str],
    on: list[Path],
    to: Path,
    also: list[str],
    masks: str | None,
    layers: bool,
    supervised: bool,
    address: str | None,
) -> "list[Judged]":
    from pipeline.cluster import ClusterConfig, connected
    from pipeline.evaluate.embed import Embedding
    from pipeline.evaluate.encoders import RunEncoders
    from pipeline.evaluate.foreign import find_encoders
    from pipeline.evaluate.masks import read_segmented
    from pipeline.evaluate.protocol import EvaluationConfig
    from pipeline.evaluate.transfer import judge_all, markdown
    from pipeline.ingest.store import Store
    from pipeline.report.encoder_page import write_encoder_page
    from pipeline.report.transfer_page import write_transfer_page
    from pipeline.run import Run
    from pipeline.supervised import twin_experiment

    encoders = [find_encoders(name) for name in names]
    runs = [one for one in encoders if isinstance(one, RunEncoders)]
    learned = [Run(run.directory) for run in runs if not run.experiment.needs_labels] if supervised else []
    twins = [(run, twin_experiment(run)) for run in learned]
    if supervised and not twins:
        raise ValueError("--supervised: none of these is a run that was trained without labels; leave it out")
    stores = [Store(path) for path in on]
    if not on and masks is None:
        stores = list({run.experiment.data.store: run.experiment.data.open() for run in runs}.values())
        if not stores:
            raise ValueError("no data to judge on: name a sealed store with --on STORE (make one with `feral curate`)")
    pictures = (
        {size: read_segmented(masks, size) for size in sorted({one.sees.image_size for one in encoders})}
        if masks
        else {}
    )
    for one in list(pictures.values())[:1]:
        typer.echo(one.told)
    cluster = runs[0].experiment.cluster if runs else ClusterConfig()
    with connected(address, cpus=cluster.cpus):
        encoders += [RunEncoders.of(_trained_twin(run, experiment)) for run, experiment in twins]
        found = judge_all(
            encoders, stores, to, EvaluationConfig(), Embedding(cluster), typer.echo, also, pictures, layers
        )
    _print(found)
    command = shlex.join(typed_command())
    (to / "table.md").write_text(markdown(found, command))
    pages = [write_encoder_page(one, command) for one in found]
    table = write_transfer_page(to, found, command)
    first, other = (pages[0], "table.html, ") if len(pages) == 1 else (table, "")
    typer.echo(
        f"{first}; beside it {other}table.md, and of each encoder on each store a page and a .json of all scores"
    )
    return found


def _tell_forgotten(found: "list[Judged]", last: str, to: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from pipeline.evaluate.forgetting import forgetting, write_forgetting
    from pipeline.ledger.names import run_called
    from pipeline.report.run_report import write_report

    matrix = forgetting(found)
    titles, *lines = matrix.table
    shown = Table(*titles, title="forgotten: best value of an earlier encoder less the last one's")
    for line in lines:
        shown.add_row(*line)
    console = Console()
    Console(width=max(console.width, 100)).print(shown)
    typer.echo(str(write_forgetting(matrix, to)))
    if run := run_called(last):
        write_forgetting(matrix, run.path)
        typer.echo(f"report {write_report(run)}")


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
    directory: Annotated[
        str, typer.Argument(metavar="DIRECTORY", help="of a run, a comparison or a sweep; or a name: champion")
    ],
) -> None:
    """Writes the page of a run, a comparison or a sweep again, of whatever there is; needs no Ray.

    Example: feral report runs/first
    """
    from pipeline.ledger.names import run_called
    from pipeline.report.comparison import COMPARISON
    from pipeline.report.comparison_page import write_comparison_page
    from pipeline.report.run_report import write_report
    from pipeline.report.sweep_page import write_sweep_page
    from pipeline.tune.sweep import FILE as SWEEP

    if Path(directory, COMPARISON).exists():
        page = write_comparison_page(Path(directory))
    elif Path(directory, SWEEP).exists():
        page = write_sweep_page(Path(directory))
    elif run := run_called(directory):
        page = write_report(run)
    else:
        raise ValueError(
            f"{directory} is no run (experiment.json), no comparison ({COMPARISON}) and no sweep ({SWEEP}), nor a name "
            "in the ledger"
        )
    typer.echo(f"report {page}")
