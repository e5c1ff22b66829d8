"""Pictures with masks as a page shows them: the image, its mask, and what encoders' linear layers answer."""

from collections.abc import Mapping
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
    rows: tuple[tuple[Picture, ...], ...]  # image, mask, answers
    legend: tuple[tuple[str, str], ...]  # colour, class


def segmentations(found: Mapping[str, Examples]) -> Segmentations:
    """The same test images with the answers of each, under its name; image and mask are those of the first. The classes
    that are seen get the colours, those with the most pixels first; what is left shares the last."""
    first = next(iter(found.values()))
    seen = np.concatenate([first.masks.ravel(), *(one.answers.ravel() for one in found.values())])
    counts = np.bincount(seen[seen != IGNORED], minlength=len(first.classes))
    common = [int(one) for one in np.argsort(-counts, kind="stable") if counts[one]]
    own = common if len(common) <= len(COLOURS) else common[: len(COLOURS) - 1]
    colour = {one: COLOURS[place] for place, one in enumerate(own)}
    table = np.array([ImageColor.getrgb(colour.get(one, COLOURS[-1])) for one in range(256)], np.uint8)
    table[IGNORED] = ImageColor.getrgb(NO_CLASS)
    rows = []
    for place, (image, mask) in enumerate(zip(first.images, first.masks, strict=True)):
        answers = [
            _picture(table[one.answers[place]], name + _right(one.answers[place], one.masks[place]))
            for name, one in found.items()
        ]
        rows.append((_picture(image, "image"), _picture(table[mask], "mask"), *answers))
    legend = [(colour[one], first.classes[one]) for one in own]
    if len(common) > len(own):
        legend.append((COLOURS[-1], f"{len(common) - len(own)} more classes"))
    if (first.masks == IGNORED).any():
        legend.append((NO_CLASS, "no class"))
    return Segmentations(tuple(rows), tuple(legend))


def _picture(pixels: np.ndarray, text: str) -> Picture:
    return picture(Image.fromarray(pixels), text)


def _right(answer: np.ndarray, mask: np.ndarray) -> str:
    known = mask != IGNORED
    return f", {100 * (mask == answer)[known].mean():.0f} % right" if known.any() else ""
