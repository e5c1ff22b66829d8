"""`feral export`: a trained encoder for other libraries."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.evaluate import RunName

FORMS = "safetensors, timm, hf, torchvision, open_clip, onnx or torch_export"


def export(
    run: RunName,
    to: Annotated[str, typer.Option(metavar="FORM", help=FORMS)],
    folder: Annotated[Path | None, typer.Option(help="where to write; default: RUN/exports/FORM")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a folder that exists")] = False,
) -> None:
    """Writes the encoder of a run in the form of another library, with a README that says how to load it.

    What was written is loaded again, and its embeddings compared with the run's.

    Example: feral export runs/simclr --to timm
    """
    from pipeline.export.card import agreement
    from pipeline.export.exporting import export as write
    from pipeline.ledger.names import find_run

    opened = find_run(run)
    exported = write(opened, to, (folder or opened.path / "exports" / to).absolute(), overwrite=overwrite)
    for path in sorted(exported.folder.iterdir()):
        typer.echo(f"{path}  {path.stat().st_size / 1e6:.1f} MB")
    if exported.missing:
        typer.secho(f"not tried: {exported.missing} is not installed", fg="yellow", err=True)
    else:
        assert exported.difference is not None
        typer.echo(f"tried: loaded again, it gives the run's embeddings, {agreement(exported.difference)}")
