"""Small pictures of a store's samples for a page: encoded anew, without metadata, and no more than a page can hold."""

import base64
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator

from PIL import Image

from pipeline.ingest.guard import Decoded, DecodeLimits, GuardedDecoder
from pipeline.ingest.store import Store

SIDE = 96  # pixels of the longer side, at most
QUALITY = 72
PAGE_BYTES = 2_400_000  # of all data URIs


def thumbnails(store: Store, wanted: Iterable[tuple[int, str]], max_bytes: int = PAGE_BYTES) -> dict[int, str]:
    """Data URIs by number.

    Args:
        wanted: number and id of samples, as often as the page shows each. The last are left out when `max_bytes` is
            reached, and so is what cannot be read, or is no longer the picture that was curated.
    """
    uses = Counter(wanted)
    times = {number: count for (number, _), count in uses.items()}
    uris: dict[int, str] = {}
    for number, jpeg in _jpegs(store, list(uses)):
        uri = _encoded(jpeg)
        max_bytes -= len(uri) * times[number]
        if max_bytes < 0:
            break
        uris[number] = uri
    return uris


def _jpegs(store: Store, wanted: list[tuple[int, str]]) -> Iterator[tuple[int, bytes]]:
    """Canonical JPEGs: the store's own; in place, foreign bytes go through the guarded decoder."""
    if not store.manifest.in_place:
        yield from _stored(store, wanted)
        return
    config = store.manifest.config
    limits = DecodeLimits(side=SIDE, quality=QUALITY, min_side=1, max_pixels=config["max_pixels"], encode=True)
    with GuardedDecoder(limits) as decoder:
        ids = dict(wanted)
        same = (
            (number, raw) for number, raw in _stored(store, wanted) if hashlib.sha256(raw).hexdigest() == ids[number]
        )
        for number, _, result in decoder.decode(same):
            if isinstance(result, Decoded):
                yield number, result.jpeg


def _stored(store: Store, wanted: list[tuple[int, str]]) -> Iterator[tuple[int, bytes]]:
    try:
        _ = store.place  # the source itself may be gone
    except ValueError:
        return
    for number, _ in wanted:
        try:
            yield number, store.read(number)
        except ConnectionError:  # the storage is away: the other pictures are too
            return
        except (OSError, ValueError):  # this file is
            continue


def _encoded(jpeg: bytes) -> str:
    with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as stored:
        image = stored.convert("RGB")
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    clean = Image.new("RGB", image.size)  # nothing but pixels: Pillow writes comments and profiles that it has found
    clean.paste(image)
    buffer = io.BytesIO()
    clean.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
