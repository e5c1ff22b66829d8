"""`feral embed` and `feral search`: embeddings of any source as Parquet, and what of it is near an image or a text."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.pretrain import Address

if TYPE_CHECKING:
    from pipeline.ingest.running import Progress

ENCODER = "a run, or a name (champion); a folder of `feral export`; or timm:MODEL@FILE, torchvision:…, open_clip:…"


def embed(
    encoder: Annotated[str, typer.Argument(help=ENCODER)],
    source: Annotated[str, typer.Argument(help="a sealed store; or what `feral curate` takes: a folder, tars, s3://…")],
    to: Annotated[Path, typer.Option("--to", help="folder of the Parquet files")],
    address: Address = None,
) -> None:
    """Embeds every image of a source that can be decoded. The same command again goes on where it stopped.

    Example: feral embed runs/clip photos/ --to photos_embedded; any Parquet reader takes it, and `feral search`.
    """
    from pipeline.cluster import ClusterConfig, connected
    from pipeline.evaluate.embed import Embedding
    from pipeline.evaluate.encoders import RunEncoders
    from pipeline.evaluate.foreign import find_encoders
    from pipeline.search.vectors import embed_source, opened

    found = find_encoders(encoder)
    spec = str(found.directory) if isinstance(found, RunEncoders) else found.checkpoint_name
    cluster = found.experiment.cluster if isinstance(found, RunEncoders) else ClusterConfig()
    with connected(address, cpus=cluster.cpus):
        store = opened(source, to, _telling(), address)
        written = embed_source(spec, found, store, source, to, Embedding(cluster), _told())
    refused = sum(written.refused.values())
    blocked = written.seen - written.images - refused  # since the store was sealed
    why = ", ".join(f"{name} {count:,}" for name, count in sorted(written.refused.items()))
    counts = f"{written.images:,} embedded + {refused:,} refused{why and f' ({why})'}"
    typer.echo(f"{written.seen:,} images seen = {counts}" + (f" + {blocked:,} blocked" if blocked else ""))
    typer.echo(f"{to}: feral search {to} --image FILE" + (" or --text SENTENCE" if found.context_length else ""))


def search(
    folder: Annotated[Path, typer.Argument(help="written by `feral embed`")],
    image: Annotated[Path | None, typer.Option(help="the image to look for")] = None,
    text: Annotated[str | None, typer.Option(help="the sentence to look for; needs an image-text encoder")] = None,
    count: Annotated[int, typer.Option("--count", "-k", min=1, help="how many are shown")] = 10,
    page: Annotated[Path | None, typer.Option(help="also write a page that shows the images")] = None,
) -> None:
    """Finds the embedded images that are nearest to an image or to a sentence.

    Example: feral search photos_embedded --text "a dog in the snow" --page found.html
    """
    from rich.console import Console
    from rich.table import Table

    from pipeline.search.page import write_found
    from pipeline.search.searching import search as nearest

    if (image is None) == (text is None):
        raise ValueError("give one of --image FILE and --text SENTENCE")
    hits = nearest(folder, image=image, text=text, count=count)
    shown = Table("cosine", "source", "class or caption")
    for hit in hits:
        shown.add_row(f"{hit.similarity:.3f}", hit.source, hit.label or (hit.captions[0] if hit.captions else ""))
    Console(width=max(Console().width, 100)).print(shown, markup=False)
    if page is not None:
        write_found(page, folder, hits, image, text)
        typer.echo(f"page {page}")


def _telling(seconds: float = 10) -> "Callable[[Progress], None]":
    import time

    shown = time.monotonic()

    def tell(progress: "Progress") -> None:
        nonlocal shown
        if not progress.sealed_before and time.monotonic() - shown >= seconds:
            shown = time.monotonic()
            typer.echo(f"{progress.stage}: {progress.seen:,} seen, {sum(progress.refused.values()):,} refused")

    return tell


def _told() -> Callable[[int, int], None]:
    return lambda done, total: typer.echo(f"{done:,} of {total:,} images embedded")
