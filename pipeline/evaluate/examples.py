"""Some pictures of an evaluation on masks, with what the encoder made of them, in a file beside it: for people."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.ingest.write import replaced


@dataclass(frozen=True, eq=False)
class Examples:
    """Test images, their masks, and the class that was answered for every pixel."""

    classes: tuple[str, ...]
    images: np.ndarray  # (N, S, S, 3) uint8
    masks: np.ndarray  # (N, S, S) uint8, IGNORED where no class is
    answers: np.ndarray  # (N, S, S) uint8


def examples_file(evaluation_file: Path) -> Path:
    return evaluation_file.with_suffix(".npz")


def write_examples(evaluation_file: Path, examples: Examples, encoder: str) -> None:
    """`encoder`: the digest of what was judged."""
    with replaced(examples_file(evaluation_file)) as file:
        np.savez_compressed(
            file, classes=np.array(examples.classes), images=examples.images, masks=examples.masks,
            answers=examples.answers, encoder=np.array(encoder),
        )  # fmt: skip


def read_examples(evaluation_file: Path, encoder: str) -> Examples | None:
    """None: there are none, or they are of other weights.

    Raises:
        ValueError: the file is damaged.
    """
    path = examples_file(evaluation_file)
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as found:
            if str(found["encoder"]) != encoder:
                return None
            return Examples(tuple(map(str, found["classes"])), found["images"], found["masks"], found["answers"])
    except (KeyError, OSError, ValueError) as error:
        raise ValueError(f"{path} holds no examples of an evaluation: {error}") from None
