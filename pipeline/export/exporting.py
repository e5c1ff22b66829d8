"""Writes an encoder in one of the forms, with a README that holds the code to load it, and tries that code."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.export.card import MADE_BY, card
from pipeline.export.forms import FORMS, Form
from pipeline.export.trained import Trained
from pipeline.run import Run

TOLERANCE = 1e-4  # of the greatest magnitude of an embedding


@dataclass(frozen=True)
class Exported:
    """`difference`: the greatest between embeddings of made pictures, as loaded again and as the run gives them, over
    the greatest magnitude; None where the library that loads is not installed: `missing` tells which."""

    folder: Path
    difference: float | None
    missing: str | None = None


def export(run: Run, form: str, folder: Path, *, overwrite: bool = False) -> Exported:
    """Exports the newest checkpoint into a new folder; nothing is left behind if it fails.

    Raises:
        ValueError: no such form, the form cannot hold this encoder, or the folder exists; says the way out. Or what was
            written gives other embeddings, which would be a fault of ours.
    """
    chosen = FORMS.get(form)
    if chosen is None:
        raise ValueError(f"no form is called {form!r}: there are {', '.join(FORMS)}")
    if folder.exists() and not overwrite:
        raise ValueError(f"{folder} exists: give --overwrite, or another --folder")
    if folder.exists() and not is_export(folder):
        raise ValueError(f"{folder} is no export, so it is not replaced: give another --folder")
    trained = Trained.of(run)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}", dir=folder.parent) as scratch:
        written = Path(scratch) / "export"
        written.mkdir()
        try:
            chosen.write(trained, written)
        except ModuleNotFoundError as error:
            raise ValueError(f"--to {form} needs {error.name}: from the checkout, pip install -e '.[{form}]'") from None
        difference, missing = _tried(chosen, trained, written)
        (written / "README.md").write_text(card(trained, form, chosen, difference))
        if folder.exists():
            shutil.rmtree(folder)
        written.rename(folder)
    return Exported(folder, difference, missing)


def is_export(folder: Path) -> bool:
    """Whether `export` made it: nothing else may be removed."""
    readme = folder / "README.md"
    return readme.is_file() and MADE_BY in readme.read_text(errors="replace")


def _tried(form: Form, trained: Trained, folder: Path) -> tuple[float | None, str | None]:
    try:
        embed = form.load(str(folder))
    except ModuleNotFoundError as error:
        return None, error.name
    found = difference(embed, form.expected(trained), trained.examples)
    if not found <= TOLERANCE:
        raise ValueError(
            f"the exported encoder gives other embeddings than the run: they differ by {found:.2g} of the greatest, "
            f"more than {TOLERANCE:g}. This is a fault of feral: nothing was written"
        )
    return found, None


@torch.no_grad()
def difference(embed: Callable[[Tensor], Tensor], expected: nn.Module, pixels: Tensor) -> float:
    """The greatest of all embeddings (B, dim), over the greatest magnitude of the expected ones."""
    theirs, ours = embed(pixels), expected(pixels)
    if theirs.shape != ours.shape:
        return float("inf")
    return float((theirs - ours).abs().max() / ours.abs().max())
