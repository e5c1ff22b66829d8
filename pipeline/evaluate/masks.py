"""Pictures with the class of every pixel, for dense evaluation: a folder of pictures and one of masks.

They are untrusted: both are decoded in guarded children, and a bad pair costs itself. Nothing is stored.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from pipeline.evaluate.separation import spread_over
from pipeline.ingest.answers import DecodeLimits, refused
from pipeline.ingest.decode import Decoded
from pipeline.ingest.guard import Guarded, GuardedDecoder
from pipeline.ingest.mask_child import Mask
from pipeline.ingest.places import Entry, Place, place_of
from pipeline.ingest.refusals import Refusal
from pipeline.ingest.samples import MAX_IMAGE_BYTES, printable
from pipeline.stream.crops import CenterCrop, crop
from ssl_models.config import Config

IGNORED = 255  # no class: borders, and what nobody labelled
LAYOUTS = (  # folders of pictures, of masks, of train.txt and val.txt
    ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation/"),  # Pascal VOC
    ("images", "masks", ""),
)
WANTED = " or ".join(f"{pictures}/ and {masks}/" for pictures, masks, _ in LAYOUTS)
HELD_OUT = 0.2  # share that is judged where no lists say which
MAX_IMAGES = 2_000  # of each split
MAX_LIST_BYTES = 64 * 2**20


@dataclass(frozen=True, eq=False)
class Segmented:
    """Pictures and the classes of their pixels, the largest central square of each, `size` pixels a side."""

    name: str
    digest: str  # of all bytes that were used, and of the split
    classes: tuple[str, ...]
    images: np.ndarray  # (N, S, S, 3) uint8
    masks: np.ndarray  # (N, S, S) uint8, IGNORED where no class is
    is_test: np.ndarray  # (N,) bool
    seen: int  # pairs, whole or not
    left_out: int  # whole ones above MAX_IMAGES a split, not read
    refused: Mapping[str, str]  # name of a pair → why
    without_mask: int  # pictures

    @property
    def told(self) -> str:
        """What became of the pairs, in one line: seen = used + refused + left out."""
        test = int(self.is_test.sum())
        words = f"{self.name}: {self.seen:,} pairs seen, {len(self.masks) - test:,} to train and {test:,} to test"
        if self.left_out:
            words += f", {self.left_out:,} more than {MAX_IMAGES:,} of a split left out"
        if self.refused:
            name, why = next(iter(self.refused.items()))
            words += f", {len(self.refused):,} refused (first {name}: {why})"
        return words + (f"; {self.without_mask:,} pictures have no mask" if self.without_mask else "")


def read_segmented(folder: str, size: int) -> Segmented:
    """Reads `folder`: JPEGImages/ and SegmentationClass/ (Pascal VOC), or images/ and masks/.

    A mask is a PNG with its picture's name, of palette or gray class ids; 255 is no class. classes.txt may name the
    classes, one a line. train.txt and val.txt name the pairs of each split; without them a fifth, by a hash of the
    name, is judged.

    Raises:
        ValueError: no such folders, a list that cannot be, or nothing to train on or to judge.
    """
    place, single = place_of(folder)
    if single:
        raise ValueError(f"{folder} is a file: name the folder that holds {WANTED}")
    pictures, masks, root = _layout(place)
    bad = {name: entry.problem for name, entry in masks.items() if entry.problem is not None}
    bad |= {name: "two pictures have this name" for name, paths in pictures.items() if len(paths) > 1}
    bad |= dict.fromkeys(masks.keys() - pictures.keys(), "there is no picture for this mask")
    splits = _splits(place, root, masks.keys())
    bad |= dict.fromkeys(splits.keys() - masks.keys(), "a list names it, and it has no mask")
    bad |= dict.fromkeys(masks.keys() - splits.keys(), "neither train.txt nor val.txt names it")
    whole = sorted((masks.keys() & splits.keys()) - bad.keys())
    chosen = [name for split in (False, True) for name in _few([one for one in whole if splits[one] is split])]
    classes = _classes(place)
    digest = hashlib.sha256()
    found: list[tuple[np.ndarray, np.ndarray, bool]] = []
    paths = {name: (pictures[name][0], masks[name].path) for name in chosen}
    for name, image, mask, raw in _decoded(place, paths, size):
        why = _fault(image, mask, classes)
        if why is None:
            assert isinstance(image, Decoded)
            assert isinstance(mask, Mask)
            for part in (name.encode(errors="surrogatepass"), bytes([splits[name]]), *raw):
                digest.update(hashlib.sha256(part).digest())
            found.append((_square(image.jpeg, size), mask.ids, splits[name]))
        else:
            bad[name] = why
    if not found:
        examples = "; ".join(f"{printable(name)}: {why}" for name, why in list(bad.items())[:3])
        raise ValueError(f"{place.shown} holds no picture with a usable mask ({examples or 'both folders are empty'})")
    images, ids, is_test = (np.stack(column) for column in zip(*found, strict=True))
    known = np.unique(ids)
    count = int(known[known != IGNORED].max(initial=0)) + 1
    result = Segmented(
        name=PurePosixPath(place.shown.rstrip("/")).name,
        digest=digest.hexdigest(),
        classes=classes or tuple(map(str, range(count))),
        images=images,
        masks=ids,
        is_test=is_test,
        seen=len(masks.keys() | splits.keys()),
        left_out=len(whole) - len(chosen),
        refused={printable(name): why for name, why in sorted(bad.items()) if name in masks or name in splits},
        without_mask=len(pictures.keys() - masks.keys()),
    )
    _refuse_useless(result)
    return result


def _refuse_useless(found: Segmented) -> None:
    for split, which in (("train", ~found.is_test), ("test", found.is_test)):
        classes = np.setdiff1d(found.masks[which], [IGNORED])
        if not which.any() or len(classes) < 1 + (split == "train"):
            shown = f"only class {classes[0]}" if len(classes) else "no class"
            raise ValueError(
                f"{found.told}: the masks to {split} show {shown}, so there is nothing to tell apart; class ids are "
                f"0, 1, 2 …, and {IGNORED} means no class (black and white masks need 0 and 1)"
            )


def _layout(place: Place) -> tuple[dict[str, list[str]], dict[str, Entry], str]:
    """Paths of pictures and masks by name, and where the lists lie."""
    for pictures, masks, root in LAYOUTS:
        drawn = {_name(one.path, masks): one for one in _entries(place, masks) if one.path.lower().endswith(".png")}
        by_name: dict[str, list[str]] = {}
        for path in sorted(entry.path for entry in _entries(place, pictures) if entry.problem is None):
            by_name.setdefault(_name(path, pictures), []).append(path)
        if drawn and by_name:
            return by_name, drawn, root
    raise ValueError(f"{place.shown} holds no pictures with masks: it must have the folders {WANTED}, the masks as PNG")


def _entries(place: Place, folder: str) -> list[Entry]:
    """Of a folder that may be missing. Raises ValueError: it cannot be listed."""
    found = list(place.entries(folder))
    if found and found[0].path.rstrip("/") == folder:
        raise ValueError(f"{folder}/ of {place.shown} is {found[0].problem}")
    return found


def _name(path: str, folder: str) -> str:
    """Without folder and ending."""
    return str(PurePosixPath(path).relative_to(folder).with_suffix(""))


def _lines(place: Place, path: str) -> list[str] | None:
    """Of a text file that may be missing."""
    try:
        content = place.read(path, MAX_LIST_BYTES)
    except OSError:
        return None
    if len(content) > MAX_LIST_BYTES:
        raise ValueError(f"{path} of {place.shown} has more than {MAX_LIST_BYTES:,} bytes: it is no list")
    return [line for text in content.decode(errors="surrogateescape").splitlines() if (line := text.strip())]


def _splits(place: Place, root: str, names: Iterable[str]) -> dict[str, bool]:
    """Whether a pair is judged, by name."""
    train, test = (_lines(place, f"{root}{split}.txt") for split in ("train", "val"))
    if train is None and test is None:
        return {name: _draw(name) < HELD_OUT for name in names}
    if train is None or test is None:
        missing = "train.txt" if train is None else "val.txt"
        raise ValueError(f"{place.shown} has no {root}{missing}: give both lists, or none for a split by hash")
    both = set(train) & set(test)
    if both:
        raise ValueError(
            f"{printable(min(both))} stands in {root}train.txt and in {root}val.txt, and {len(both) - 1} more: what is "
            "judged must not be trained on"
        )
    return dict.fromkeys(train, False) | dict.fromkeys(test, True)


def _draw(name: str) -> float:
    return int(hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:13], 16) / 16**13


def _few(names: list[str]) -> list[str]:
    """At most MAX_IMAGES, evenly spread."""
    return [names[row] for row in spread_over(len(names), MAX_IMAGES)] if names else []


def _classes(place: Place) -> tuple[str, ...]:
    return tuple(printable(line)[:200] for line in _lines(place, "classes.txt") or ())


# ---- decoding ------------------------------------------------------------------------------------------------------


class _Header(Config):
    width: Annotated[int, Field(ge=1)]
    height: Annotated[int, Field(ge=1)]


def checked_mask(kind: int, header: bytes, body: bytes, limits: DecodeLimits) -> Mask | Refusal:
    """The answer of a `mask_child` as it may be. Raises: ValueError."""
    if (refusal := refused(kind, header)) is not None:
        return refusal
    told = _Header.model_validate_json(header, strict=True)
    if told.width * told.height > limits.max_pixels or min(told.width, told.height) < limits.min_side:
        raise ValueError(f"a mask of {told.width}×{told.height} pixels, which is out of bounds")
    if len(body) != limits.side**2:
        raise ValueError(f"{len(body)} bytes that are no mask of {limits.side}×{limits.side}")
    ids = np.frombuffer(body, np.uint8).reshape(limits.side, limits.side)
    return Mask(ids, told.width, told.height)


Outcome = tuple[str, Decoded | Refusal, Mask | Refusal, tuple[bytes, bytes]]


def _decoded(place: Place, paths: Mapping[str, tuple[str, str]], size: int) -> Iterator[Outcome]:
    """Name, picture, mask, and the bytes of both, in order."""
    limits = DecodeLimits(side=max(288, size), quality=95, min_side=1)

    def read(which: int) -> Iterator[tuple[str, bytes]]:
        for name, pair in paths.items():
            yield name, _bytes(place, pair[which])

    with (
        GuardedDecoder(limits) as pictures,
        Guarded(limits.model_copy(update={"side": size}), "pipeline.ingest.mask_child", checked_mask) as masks,
        closing(pictures.decode(read(0))) as first,
        closing(masks.decode(read(1))) as second,
    ):
        for (name, raw, image), (_, raw_mask, mask) in zip(first, second, strict=True):
            yield name, image, mask, (raw, raw_mask)


def _bytes(place: Place, path: str) -> bytes:
    """What cannot be read, or is too large, goes to the decoder as an empty file, which it refuses."""
    try:
        content = place.read(path, MAX_IMAGE_BYTES)
    except ConnectionError:
        raise
    except OSError:
        return b""
    return content if len(content) <= MAX_IMAGE_BYTES else b""


def _fault(image: Decoded | Refusal, mask: Mask | Refusal, classes: tuple[str, ...]) -> str | None:
    for what, part in (("picture", image), ("mask", mask)):
        if isinstance(part, Refusal):
            return f"its {what} was refused: {part.reason}, {part.detail}"
    assert isinstance(image, Decoded)
    assert isinstance(mask, Mask)
    sizes = (image.original_width, image.original_height), (mask.width, mask.height)
    if sizes[0] != sizes[1]:
        return "the picture has {}×{} pixels, its mask {}×{}".format(*sizes[0], *sizes[1])
    if "rotated" in image.flags:
        return "the picture is turned by its EXIF orientation, and nothing tells whether its mask is"
    highest = int(mask.ids[mask.ids != IGNORED].max(initial=0))
    if classes and highest >= len(classes):
        return f"it has class {highest}, and classes.txt names {len(classes)}"
    return None


def _square(jpeg: bytes, size: int) -> np.ndarray:
    """(S, S, 3) uint8: the largest central square of a canonical picture, as evaluation sees any picture."""
    image = torch.from_numpy(np.array(Image.open(io.BytesIO(jpeg), formats=("JPEG",)).convert("RGB"))).permute(2, 0, 1)
    height, width = (torch.tensor([side]) for side in image.shape[1:])
    ids = torch.zeros(1, dtype=torch.int64)
    return crop(image, CenterCrop(size).boxes(0, ids, height, width)[0], size)[0].numpy()
