"""The guarded reader of WebDataset tars: streams members, bounds them, and notices when an archive is damaged.

`tarfile` ends without an error when a file is cut between members or inside a header, or when a header is garbage; so
a clean end proves nothing, and the file's tail is checked as well.
"""

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pipeline.ingest.decode import Reason, Refusal
from pipeline.ingest.samples import (
    MAX_CAPTION_BYTES,
    MAX_IMAGE_BYTES,
    Broken,
    Captions,
    Sample,
    captions_of,
    named,
    printable,
)
from pipeline.ingest.store import Split

IMAGES = ("jpg", "jpeg", "jpe", "png", "webp", "gif", "bmp", "tif", "tiff")
MAX_MEMBERS = 1_000_000
MAX_JSON_BYTES = 2**20
_MAX_HEADER_BYTES = 2**20  # of a long-name or PAX header, which tarfile reads into memory whole
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,254}")
_LIMITS = {"txt": MAX_CAPTION_BYTES, "json": MAX_JSON_BYTES, "cls": 1024}
_END_BYTES = 2 * tarfile.BLOCKSIZE
_KEY_WAS_COMPLETE = Refusal("key_duplicate", "the members of a key must follow each other; its sample was complete")


class _BoundedInfo(tarfile.TarInfo):
    """A header that refuses to announce more metadata than fits in `_MAX_HEADER_BYTES`."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_BoundedInfo":
        info = super().frombuf(buf, encoding, errors)
        if info.type in b"xgXLK" and info.size > _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {info.size} bytes; the most is {_MAX_HEADER_BYTES}")
        return info


@dataclass
class _Group:
    """The members of one key so far."""

    key: str
    image: bytes | Refusal | None = None
    extension: str = ""  # of the image
    texts: dict[str, bytes] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    dropped: int = 0


def read_tar(path: Path, name: str, split: Split | None) -> Iterator[Sample | Broken]:
    """Yields the samples of a tar in order; last a `Broken` if the archive is damaged. `name` is shown to people."""
    group: _Group | None = None
    seen: set[str] = set()
    broken: Broken | None = None
    members = 0
    try:
        # "r|" and not "r|*": a compressed file is not unpacked, so it cannot grow
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r|", bufsize=2**20, tarinfo=_BoundedInfo) as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # else tarfile keeps every header
                members += 1
                if members > MAX_MEMBERS:
                    broken = Broken(name, "tar_too_many_members", f"more than {MAX_MEMBERS} members")
                    break
                key, extension = _key(member.name)
                if member.isdir() or not key:
                    continue
                if group is None or key != group.key:
                    if group is not None:
                        yield _sample(group, name, split)
                    group = _Group(key, _KEY_WAS_COMPLETE if key in seen else None)
                    seen.add(key)
                extra = _take(tar, member, extension, group, name)
                if extra is not None:
                    yield extra
            broken = broken or _bad_tail(file, tar.offset, name)
    except Exception as error:  # hostile headers raise anything: ReadError, OSError, ValueError, RecursionError ...
        reason: Reason = "tar_truncated" if members else "header_bad"
        broken = Broken(name, reason, f"{type(error).__name__}: {error}, after {members} members")
    if group is not None and not (broken is not None and group.image is None):  # else its image is beyond the damage
        yield _sample(group, name, split)
    if broken is not None:
        yield broken


def _key(member: str) -> tuple[str, str]:
    """A member's key and extension, split at the first dot of its base name; ("", "") for hidden files."""
    member = printable(member.removeprefix("./"))
    folder, slash, base = member.rpartition("/")
    stem, _, extension = base.partition(".")
    return (folder + slash + stem, extension.lower()) if stem else ("", "")


def _take(tar: tarfile.TarFile, member: tarfile.TarInfo, extension: str, group: _Group, name: str) -> Sample | None:
    """Adds a member to its group, reading only what a sample can use. Returns an image too many, refused.

    `x.jpg` is the image of `x` before `x.mask.png`; else the first is.
    """
    kind = extension if extension in _LIMITS else extension.rpartition(".")[2]
    is_image = kind in IMAGES
    refusal = _unsafe(member, _LIMITS.get(kind, MAX_IMAGE_BYTES if is_image else None))
    if refusal is not None and refusal.reason == "tar_member_too_big" and kind in _LIMITS:
        group.dropped += kind == "txt"  # the picture is still good
    elif is_image and isinstance(group.image, bytes) and not ("." in group.extension and "." not in extension):
        return _too_many(name, group.key, extension)
    elif refusal is not None:
        group.image = group.image if isinstance(group.image, Refusal) else refusal
    elif kind in _LIMITS:
        if kind not in group.texts:
            group.texts[kind] = _content(tar, member)
    elif not is_image:
        group.others = [*group.others[:4], extension]
    elif not isinstance(group.image, Refusal):
        extra = None if group.image is None else _too_many(name, group.key, group.extension)
        group.image, group.extension = _content(tar, member), extension
        return extra
    return None


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    assert stream is not None  # regular members have content
    return stream.read()


def _too_many(name: str, key: str, extension: str) -> Sample:
    return Sample(f"{name}#{key}.{extension}", Refusal("key_duplicate", f"one more image of the sample {key}"))


def _unsafe(member: tarfile.TarInfo, limit: int | None) -> Refusal | None:
    """Why a member is not read, from its header alone."""
    name = member.name.removeprefix("./")
    parts = name.split("/")
    if not _NAME.fullmatch(name) or ".." in parts or "" in parts:
        return Refusal(
            "key_invalid", f"member name {name[:100]!r}: letters, digits and _ . / - only, no empty part or .."
        )
    if member.issparse():  # checked before isreg(), which is true of sparse members
        return Refusal("tar_sparse", f"{name} claims {member.size} bytes that are not in the file")
    if not member.isreg():
        return Refusal("tar_nonregular", f"{name} is a link or a device")
    if limit is not None and member.size > limit:
        return Refusal("tar_member_too_big", f"{name} has {member.size} bytes; the most is {limit}")
    return None


def _sample(group: _Group, name: str, split: Split | None) -> Sample:
    """The sample of a complete group."""
    notes: dict[str, object] = {}
    if "json" in group.texts:
        try:
            parsed = json.loads(group.texts["json"])
            notes = parsed if isinstance(parsed, dict) else {}
        except (ValueError, RecursionError):
            notes = {}
    text = group.texts.get("txt", b"").decode("utf-8", "replace")
    captions = captions_of(text, notes.get("caption"), notes.get("text"))
    labels = [notes.get(key) for key in ("label", "class", "cls")]
    if "cls" in group.texts:
        labels.insert(0, group.texts["cls"].decode("utf-8", "replace"))
    label = next((label for label in labels if isinstance(label, str) and label.strip()), None)
    content = group.image
    if content is None:
        content = Refusal("ext_forbidden", f"no image among its members: {', '.join([*group.texts, *group.others])}")
    return Sample(
        f"{name}#{group.key}", content, Captions(captions.texts, captions.dropped + group.dropped), named(label), split
    )


def _bad_tail(file: BinaryIO, end: int, name: str) -> Broken | None:
    """After the last member there must be nothing but zeros, and at least two blocks of them."""
    file.seek(end)
    length, foreign = 0, False
    while not foreign and (chunk := file.read(2**20)):
        length += len(chunk)
        foreign = chunk.count(0) != len(chunk)
    if foreign and length >= tarfile.BLOCKSIZE:  # shorter: a header that was cut
        return Broken(name, "tar_trailing", f"a damaged header or foreign bytes at byte {end}: the rest is unread")
    if length < _END_BYTES:
        return Broken(name, "tar_truncated", f"cut at byte {end}: {length} bytes of end marker instead of {_END_BYTES}")
    return None
