"""The child side of the guarded decoder for masks: PNG files come in, the class of every pixel goes out."""

from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from pipeline.ingest import decoder_child
from pipeline.ingest.decode import opened, refusing
from pipeline.ingest.refusals import Refusal

# Pillow spreads gray of fewer than 8 bits over 0 to 255; palettes and single bits it leaves as they are.
SPREAD = {"L;2": 85, "L;4": 17}


@dataclass(frozen=True, eq=False)
class Mask:
    """The classes of the largest central square, by nearest neighbour: `ids` (S, S) uint8. `width` and `height` are of
    the whole mask."""

    ids: np.ndarray
    width: int
    height: int


def decode(raw: bytes, options: dict[str, Any]) -> Mask:
    """The mask at options["side"] pixels a side.

    Raises:
        Refusal: no PNG of a palette or of 1 to 8 bits of gray, out of bounds, or it cannot be decoded to the end.
    """
    with refusing():
        image = opened(raw, options["min_side"], options["max_pixels"])
        if image.format != "PNG" or image.mode not in ("P", "L", "1"):
            found = f"{image.format} of mode {image.mode}"
            raise Refusal("format_forbidden", f"{found}; class ids are PNG, of a palette or gray")
        layout = image.tile[0].args  # type: ignore[attr-defined]
        image.load()
        places = central(image.width, image.height, options["side"])
        ids = np.asarray(image.convert("L") if image.mode == "1" else image)[places].astype(np.uint8)
        return Mask(ids // (255 if image.mode == "1" else SPREAD.get(layout, 1)), image.width, image.height)


def central(width: int, height: int, side: int) -> tuple[np.ndarray, ...]:
    """Rows and columns, to index with, of `side` × `side` pixels spread over the largest central square, each nearest
    to the middle of its cell."""
    square = min(width, height)
    steps = ((np.arange(side) + 0.5) * square / side).astype(int)
    return np.ix_((height - square) // 2 + steps, (width - square) // 2 + steps)


def frame(mask: Mask) -> tuple[dict[str, Any], bytes]:
    return {"width": mask.width, "height": mask.height}, mask.ids.tobytes()


def main(options: dict[str, Any]) -> NoReturn:
    decoder_child.main(options, decode, frame)
