"""Pictures with masks: coloured shapes on textured ground, where colour tells the class."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLOURS = ((90, 90, 90), (210, 40, 40), (40, 60, 210))  # of ground, boxes, discs
BORDER = 255


def shapes(generator: np.random.Generator, side: int) -> tuple[Image.Image, Image.Image]:
    """An RGB picture and its mask of palette ids: 0 ground, 1 box, 2 disc, 255 around the disc."""
    mask = Image.new("P", (side + side // 4, side), 0)
    mask.putpalette([value for colour in COLOURS for value in colour] + [255] * (768 - 3 * len(COLOURS)))  # else 2 bits
    draw = ImageDraw.Draw(mask)
    for number, shape in ((1, draw.rectangle), (2, draw.ellipse)):
        left, top = generator.uniform(0, 0.55, 2) * side
        width, height = generator.uniform(0.3, 0.45, 2) * side
        shape((left, top, left + width, top + height), fill=number, outline=BORDER if number == 2 else number)
    ids = np.minimum(np.asarray(mask), len(COLOURS) - 1)
    pixels = np.array(COLOURS)[ids] + generator.normal(0, 12, (*ids.shape, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), mask


def write_shapes(folder: Path, count: int = 40, side: int = 64, voc: bool = True) -> Path:
    """As Pascal VOC with lists (a quarter to judge), or plain folders without."""
    generator = np.random.default_rng(0)
    images, masks = (folder / name for name in (("JPEGImages", "SegmentationClass") if voc else ("images", "masks")))
    lists = folder / "ImageSets" / "Segmentation"
    for path in (images, masks, *([lists] if voc else [])):
        path.mkdir(parents=True)
    for number in range(count):
        image, mask = shapes(generator, side)
        image.save(images / f"{number:03d}.jpg", quality=95)
        mask.save(masks / f"{number:03d}.png")
    if voc:
        names = [f"{number:03d}" for number in range(count)]
        (lists / "val.txt").write_text("\n".join(names[::4]) + "\n")
        (lists / "train.txt").write_text("\n".join(name for name in names if name not in names[::4]))
    return folder
