"""`feral continue` and `feral cooldown`: a run goes on, on the next dump; a candidate for use leaves its plateau."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.pretrain import Address, absolute_paths, pretrain_run

if TYPE_CHECKING:
    from pipeline.experiment import Experiment

Before = Annotated[
    Path, typer.Argument(metavar="RUN", help="a run with optimizer.schedule=constant and optimizer.warmup_images")
]
Settings = Annotated[list[str] | None, typer.Argument(metavar="key=value …", help="what is other than in RUN")]


def continue_(
    before: Before,
    settings: Settings = None,
    run: Annotated[Path | None, typer.Option(help="run directory; default: beside RUN, STORE-DIGEST")] = None,
    address: Address = None,
) -> None:
    """Goes on from the newest checkpoint of RUN, with all of its state, on another store; older ones are replayed.

    RUN itself stays as it is. By default a quarter of each batch comes from all stores that were trained on before
    (data.replay_share, data.replay). The same command again resumes.

    Example: feral continue runs/first data.store=stores/second training.images_seen=500000
    """
    from pipeline.train.continuing import continued

    experiment = _from(before, settings, continued)
    path = run or before.absolute().parent / f"{Path(experiment.data.store).name}-{experiment.digest[:8]}"
    pretrain_run(experiment, path, address)


def cooldown(
    before: Before,
    settings: Settings = None,
    run: Annotated[Path | None, typer.Option(help="run directory; default: beside RUN, RUN-cooldown")] = None,
    address: Address = None,
) -> None:
    """Anneals RUN on its own data, rate and momentum to their ends, for 15 % of its images (training.images_seen).

    What comes of it is for use, and nothing goes on from it: the next dump goes on from RUN.

    Example: feral cooldown runs/first
    """
    from pipeline.train.continuing import cooled_down

    experiment = _from(before, settings, cooled_down)
    pretrain_run(experiment, run or before.absolute().with_name(f"{before.absolute().name}-cooldown"), address)


def _from(before: Path, settings: list[str] | None, make: "Callable[[Experiment, Path, Any], Experiment]"):
    from pipeline.run import Run
    from pipeline.settings import parse_overrides

    opened = Run.open(before)
    return make(opened.experiment, opened.path, absolute_paths(parse_overrides(settings or [])))
