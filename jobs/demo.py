"""`feral demo`: the whole of feral on a generated dump, without network and without files of yours."""

import shutil
import time
from pathlib import Path
from typing import Annotated

import typer

from jobs.curate import curate_and_tell
from jobs.pretrain import duration, pretrain_run


def demo(
    to: Annotated[Path, typer.Option(help="directory for the dump, the store and the run")] = Path("demo"),
    images: Annotated[int, typer.Option(min=500, help="files of the generated dump")] = 5000,
    images_seen: Annotated[int | None, typer.Option(min=1000, help="length of training; default: the recipe's")] = None,
) -> None:
    """Generates an uncurated dump, curates it, pretrains SimCLR on it, evaluates, and writes the report.

    Two minutes on 2 cores, more where they are shared. The same command again takes up where it stopped.

    Example: feral demo --to /tmp/demo --images 2000 --images-seen 20000
    """
    from jobs.demo_dump import generate_dump
    from jobs.recipes import find_recipe
    from pipeline.cluster import connected
    from pipeline.ingest.config import CurateConfig

    began = time.monotonic()
    dump, store = to / "dump", to / "store"
    if dump.exists():
        typer.echo(f"1/3 dump {dump.absolute()} is there already")
    else:
        partial = to / ".dump"
        shutil.rmtree(partial, ignore_errors=True)
        summary = generate_dump(partial, num_images=images)
        partial.rename(dump)
        typer.echo(
            f"1/3 generated {summary.total} files in {dump.absolute()}: {summary.images} pictures, "
            f"{summary.exact_duplicates} exact and {summary.near_duplicates} near duplicates, "
            f"{summary.truncated} truncated, {summary.wrong_format} of a wrong format"
        )
    changes = {"data.store": str(store.absolute())}
    if images_seen is not None:
        changes["training.images_seen"] = str(images_seen)
    experiment = find_recipe("demo")().override(changes)
    with connected(cpus=experiment.cluster.cpus):
        typer.echo(f"2/3 feral curate {dump} --to {store}")
        curate_and_tell(dump, store, CurateConfig())
        typer.echo(f"3/3 feral pretrain demo data.store={store}")
        run = pretrain_run(experiment, to / "run")
    typer.echo(f"done in {duration(time.monotonic() - began)}; open {run.report_file}")
