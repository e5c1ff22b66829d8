"""The table of studies. A study is a function that returns a `Study`; its docstring's first line says what it asks."""

import difflib
from collections.abc import Callable

from jobs.studies.contrast import losses, moco_momentum, moco_queue, temperature
from jobs.studies.image_text import clip_batch
from jobs.studies.labels import depth, few_labels
from jobs.studies.masking import mask_ratio
from jobs.studies.simclr import augmentations, batch_size, projection_head
from pipeline.tune.study import Study

_TABLE = (
    temperature,
    losses,
    batch_size,
    projection_head,
    augmentations,
    moco_queue,
    moco_momentum,
    mask_ratio,
    clip_batch,
    few_labels,
    depth,
)
STUDIES: dict[str, Callable[[], Study]] = {study.__name__: study for study in _TABLE}


def find_study(name: str) -> Callable[[], Study]:
    """The study called `name`.

    Raises:
        ValueError: there is none; names the nearest.
    """
    if name not in STUDIES:
        close = difflib.get_close_matches(name, STUDIES, n=1, cutoff=0.3)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ValueError(f"{name!r} is no study; {hint}there are {', '.join(STUDIES)} (`feral studies`)")
    return STUDIES[name]
