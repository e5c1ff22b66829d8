"""Pictures with masks as a page shows them: the image, its mask, and what the encoder's linear layer answers."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageColor

from pipeline.evaluate.examples import Examples
from pipeline.evaluate.masks import IGNORED
from pipeline.report.embedding import COLOURS
from pipeline.report.pictures import Picture, picture

NO_CLASS = "#000000"


@dataclass(frozen=True)
class Segmentations:
    rows: tuple[tuple[Picture, Picture, Picture, str], ...]  # image, mask, answer, and how much of it is right
    legend: tuple[tuple[str, str], ...]  # colour, class


def segmentations(examples: Examples) -> Segmentations:
    """The classes that are seen get the colours, those with the most pixels first; what is left shares the last."""
    seen = np.concatenate([examples.masks.ravel(), examples.answers.ravel()])
    counts = np.bincount(seen[seen != IGNORED], minlength=len(examples.classes))
    common = [int(one) for one in np.argsort(-counts, kind="stable") if counts[one]]
    own = common if len(common) <= len(COLOURS) else common[: len(COLOURS) - 1]
    colour = {one: COLOURS[place] for place, one in enumerate(own)}
    table = np.array([ImageColor.getrgb(colour.get(one, COLOURS[-1])) for one in range(256)], np.uint8)
    table[IGNORED] = ImageColor.getrgb(NO_CLASS)
    rows = []
    for image, mask, answer in zip(examples.images, examples.masks, examples.answers, strict=True):
        drawn, truth, answered = (picture(Image.fromarray(array)) for array in (image, table[mask], table[answer]))
        known = mask != IGNORED
        right = f"{100 * (mask == answer)[known].mean():.0f} % right" if known.any() else ""
        rows.append((drawn, truth, answered, right))
    legend = [(colour[one], examples.classes[one]) for one in own]
    if len(common) > len(own):
        legend.append((COLOURS[-1], f"{len(common) - len(own)} more classes"))
    if (examples.masks == IGNORED).any():
        legend.append((NO_CLASS, "no class"))
    return Segmentations(tuple(rows), tuple(legend))
