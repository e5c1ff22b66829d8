"""`feral curate`: let a source of images in, and seal what is good as a store."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from pipeline.ingest.curate import CurateConfig, Progress
    from pipeline.ingest.store import Store

SECONDS_BETWEEN_LINES = 10  # where there is no terminal


def curate(
    source: Path = typer.Argument(help="folder of images (class folders become labels), of .tar or of .parquet files"),
    to: Path = typer.Option(..., "--to", help="folder of the new store"),
    side: int = typer.Option(288, min=16, max=4096, help="short side of the stored pictures, at most, in pixels"),
    quality: int = typer.Option(90, min=30, max=100, help="JPEG quality of the stored pictures"),
    holdout: float = typer.Option(0.1, min=0.0, max=0.99, help="test share, if the source names no split itself"),
    samples_per_shard: int = typer.Option(2000, min=1, max=100_000, help="samples in a shard, at most"),
    image_column: str | None = typer.Option(None, help="Parquet column that holds the images"),
    caption_column: str | None = typer.Option(None, help="Parquet column that holds the captions"),
    overwrite: bool = typer.Option(False, "--overwrite", help="replace the store that is at --to"),
    address: str | None = typer.Option(None, help="Ray cluster to run on; default: RAY_ADDRESS, else this machine"),
) -> None:
    """Decode, check and deduplicate a source of images into a sealed store; nothing is left out uncounted."""
    from pipeline.ingest.curate import CurateConfig

    config = CurateConfig(
        side=side, quality=quality, holdout=holdout, samples_per_shard=samples_per_shard,
        image_column=image_column, caption_column=caption_column,
    )  # fmt: skip
    curate_and_tell(source, to, config, overwrite=overwrite, address=address)


def curate_and_tell(
    source: Path, to: Path, config: "CurateConfig", *, overwrite: bool = False, address: str | None = None
) -> None:
    """Curates with live progress, and ends with the summary."""
    from pipeline.ingest.curate import curate as run
    from pipeline.ingest.store import Store

    with _live() as on_progress:
        run(source, to, config, on_progress, overwrite=overwrite, address=address)
    for line in summary(Store(to), to):
        typer.echo(line)


def summary(store: "Store", shown_as: Path) -> Iterator[str]:
    """What a person should know of a new store, and the next command."""
    from pipeline.ingest.samples import printable

    manifest = store.manifest
    yield f"{manifest.seen:,} seen = {manifest.kept:,} kept + {sum(manifest.refused.values()):,} refused → {store.path}"
    refused = store.refused
    sources, reasons, details = (refused[name].to_pylist() for name in ("source", "reason", "detail"))
    for reason, count in sorted(manifest.refused.items(), key=lambda item: -item[1]):
        first = reasons.index(reason)
        yield printable(f"  {count:,} {reason}, such as {sources[first]}: {details[first]}")
    splits = ", ".join(f"{count:,} {split}" for split, count in manifest.splits.items())
    dropped = f" ({manifest.captions_dropped:,} captions over 8 KB dropped)" if manifest.captions_dropped else ""
    yield f"{len(manifest.classes)} classes, {manifest.captioned:,} pictures with captions{dropped}; {splits}"
    for damage in manifest.damaged[:5]:
        yield printable(f"damaged: {damage.shard}: {damage.saved:,} samples saved; {damage.why}")
    if len(manifest.damaged) > 5:
        yield f"damaged: and {len(manifest.damaged) - 5:,} more, listed in {store.path / 'manifest.json'}"
    yield f"{manifest.seconds:.1f} s, {manifest.seen / manifest.seconds:,.0f} images/s"
    yield f"next: feral pretrain RECIPE data.store={shown_as}"


@contextmanager
def _live() -> Iterator[Callable[["Progress"], None]]:
    """A callback that shows progress: a live bar on a terminal, else a line every ten seconds."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    started = last = time.monotonic()
    with Bar(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[counts]}"), TimeElapsedColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    ) as bar:  # fmt: skip
        task = bar.add_task("curating", total=None, counts="starting Ray")

        def show(progress: "Progress") -> None:
            nonlocal last
            if progress.sealed_before:
                typer.echo("sealed already from the same source with the same settings: nothing to do")
                return
            now = time.monotonic()
            speed = progress.seen / (now - started)
            counts = (
                f"{progress.seen:,} seen, {progress.kept:,} kept, {progress.refused:,} refused, {speed:,.0f} images/s"
            )
            bar.update(task, completed=progress.seen, total=progress.total, counts=counts)
            if not console.is_terminal and now - last >= SECONDS_BETWEEN_LINES:
                typer.echo(counts, err=True)
                last = now

        yield show
