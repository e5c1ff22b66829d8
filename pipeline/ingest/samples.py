"""What every reader of a source yields: raw samples, refusals and damage; and the one rule for captions."""

from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline.ingest.refusals import Reason, Refusal
from pipeline.ingest.store import Split

MAX_IMAGE_BYTES = 64 * 2**20
MAX_CAPTION_BYTES = 8 * 2**10


class Captions(NamedTuple):
    """Captions in order, each once, with white space collapsed; `dropped` counts those over 8 KB."""

    texts: list[str]
    dropped: int


class Address(NamedTuple):
    """Where an image file's bytes lie, unchanged, in a file of the source: what an index in place refers to."""

    path: str  # relative to the source's root
    offset: int  # bytes


@dataclass(frozen=True)
class Sample:
    """One sample as found. `content` is the image file's bytes, or the reason why they were not read."""

    source: str  # shown to people: a path, shard.tar#key, file.parquet#row
    content: bytes | Refusal
    captions: Captions = field(default_factory=lambda: Captions([], 0))
    label: str | None = None
    split: Split | None = None
    address: Address | None = None  # None: the bytes lie nowhere as they are (Parquet pages, compressed tars)
    origin: str | None = None  # who made it, for quotas: the host of its URL; None: the file or folder that holds it
    sha256: str | None = None  # of the content, as the source declares it


@dataclass(frozen=True)
class Broken:
    """Damage to a container. It is no sample: what could be read is yielded before and after it.

    `lost` counts the samples that are known to have been there and could not be read; None: nothing tells how many.
    """

    source: str
    reason: Reason
    why: str
    lost: int | None = None


def captions_of(*values: object) -> Captions:
    """Captions from any mix of strings and lists of strings; anything else is no caption."""
    texts: dict[str, None] = {}  # ordered, each once
    dropped = 0
    for value in values:
        for item in value if isinstance(value, list | tuple) else [value]:
            if not isinstance(item, str):
                continue
            if len(item) > MAX_CAPTION_BYTES or len(item.encode("utf-8", "replace")) > MAX_CAPTION_BYTES:
                dropped += 1
                continue
            text = " ".join(item.encode("utf-8", "replace").decode().replace("\0", " ").split())
            if text:
                texts[text] = None
    return Captions(list(texts), dropped)


def printable(text: str) -> str:
    """`text` with everything escaped that could not be stored as UTF-8 or would steer a terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def named(label: object) -> str | None:
    """A class as text; None if there is none."""
    if isinstance(label, bool) or not isinstance(label, int | str):
        return None
    return " ".join(str(label).encode("utf-8", "replace").decode().split())[:200] or None


def host_of(url: object) -> str | None:
    """The host of a URL, lower case; None for anything else. The URL is never opened."""
    if not isinstance(url, str) or "://" not in url[:12]:
        return None
    host = url.split("://", 1)[1].split("/", 1)[0].rpartition("@")[2].partition(":")[0].lower()
    return printable(host)[:253] or None
