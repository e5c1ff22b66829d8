"""The guarded reader of WebDataset tars: groups members into samples, bounds them, and reports every damage.

Nothing is ever extracted to disk. A sample of which any member was seen is yielded, if only as a refusal: one whose
image lies in damage is refused under its key. So `Broken.lost` is None: what else the damage held, nobody knows.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from pipeline.ingest.refusals import Refusal
from pipeline.ingest.samples import (
    MAX_CAPTION_BYTES,
    MAX_IMAGE_BYTES,
    Address,
    Broken,
    Captions,
    Sample,
    captions_of,
    host_of,
    named,
    printable,
)
from pipeline.ingest.store import Split
from pipeline.ingest.tar_members import Damage, Member, TarMembers

IMAGES = ("jpg", "jpeg", "jpe", "png", "webp", "gif", "bmp", "tif", "tiff")
MAX_MEMBERS = 1_000_000
MAX_JSON_BYTES = 2**20
MAX_NAME_BYTES = 255
MAX_BROKEN = 100  # damages of a tar that are told one by one
_LIMITS = {"txt": MAX_CAPTION_BYTES, "json": MAX_JSON_BYTES, "cls": 1024}  # bytes
_KEY_WAS_COMPLETE = Refusal("key_duplicate", "the members of a key must follow each other; its sample was complete")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


@dataclass
class _Group:
    """The members of one key so far."""

    key: str
    image: bytes | Refusal | None = None
    extension: str = ""  # of the image
    offset: int = 0  # of the image in the tar, bytes
    texts: dict[str, bytes] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    dropped: int = 0
    last: str = ""  # the kind of the member that was read last
    damaged: bool = False  # damage lies before, between or behind its members
    lost: Refusal | None = None  # the image was there, and cannot be used

    def shifted(self) -> None:
        """Damage tells that the member read last holds bytes of others."""
        if self.last in _LIMITS:
            self.texts.pop(self.last, None)
        elif isinstance(self.image, bytes):
            self.image = None
            self.lost = Refusal("tar_header_bad", "bytes were lost or added within its image: what follows is shifted")


def read_tar(
    file: BinaryIO, name: str, split: Split | None, *, addressed: str | None = None
) -> Iterator[Sample | Broken]:
    """Yields the samples of a tar in order, and a `Broken` for each damaged place after the samples before it.

    `file` needs `read(n)` only. `name` is shown to people. `addressed` is the tar's path below the source's root, for
    `Sample.address`; None for a compressed tar. Errors of `file` (OSError, Refusal) end the tar with a `Broken`.
    """
    group: _Group | None = None
    seen: set[int] = set()  # hashes: the keys themselves would take hundreds of MB
    broken: list[Broken] = []  # since the group began
    members = damages = 0
    damaged = False  # since the last group began
    tar = TarMembers(file)
    for item in tar:
        if isinstance(item, Damage):
            damages, damaged = damages + 1, True
            if group is not None:
                group.damaged = True
                if item.shifted:
                    group.shifted()
            if damages <= MAX_BROKEN:
                broken.append(Broken(name, item.reason, item.why))
            continue
        members += 1
        if members > MAX_MEMBERS:
            broken.append(Broken(name, "tar_too_many_members", f"more than {MAX_MEMBERS} members: the rest is unread"))
            break
        key, extension = _key(item.name)
        if item.type == "folder" or key is None:
            continue
        if group is None or key != group.key:
            yield from _closed(group, broken, name, split, addressed)
            group = _Group(key, _KEY_WAS_COMPLETE if hash(key) in seen else None, damaged=damaged)
            seen.add(hash(key))
            damaged = False
        extra = _take(tar, item, extension, group, name)
        if extra is not None:
            yield extra
    if damages > MAX_BROKEN:
        broken.append(Broken(name, "tar_header_bad", f"and {damages - MAX_BROKEN} more damaged places"))
    yield from _closed(group, broken, name, split, addressed)


def _closed(
    group: _Group | None, broken: list[Broken], name: str, split: Split | None, addressed: str | None
) -> Iterator[Sample | Broken]:
    """The sample of a complete group, then the damage found since it began."""
    if group is not None:
        yield _sample(group, name, split, addressed)
    yield from broken
    broken.clear()


def _key(member: str) -> tuple[str | None, str]:
    """A member's key and extension, split at the first dot of its base name; no key for hidden files."""
    member = member.removeprefix("./")
    if not member.isprintable():
        member = printable(member)
    folder, slash, base = member.rpartition("/")
    stem, dot, extension = base.partition(".")
    return (None if dot and not stem else folder + slash + stem), extension.lower()


def _take(tar: TarMembers, member: Member, extension: str, group: _Group, name: str) -> Sample | None:
    """Adds a member to its group, reading only what a sample can use. Returns an image too many, refused.

    `x.jpg` is the image of `x` before `x.mask.png`; else the first is.
    """
    kind = extension if extension in _LIMITS else extension.rpartition(".")[2]
    is_image = kind in IMAGES
    refusal = _unsafe(member, _LIMITS.get(kind, MAX_IMAGE_BYTES if is_image else None))
    if refusal is not None and refusal.reason == "tar_member_too_big" and kind in _LIMITS:
        group.dropped += kind != "cls"  # the picture is still good
    elif is_image and isinstance(group.image, bytes) and not ("." in group.extension and "." not in extension):
        return _too_many(name, group.key, extension)
    elif refusal is not None:
        group.image = group.image if isinstance(group.image, Refusal) else refusal
    elif kind in _LIMITS:
        if kind not in group.texts:
            content, group.last = tar.content(), kind
            if len(content) == member.size:
                group.texts[kind] = content
    elif not is_image:
        group.others = [*group.others[:4], extension]
    elif not isinstance(group.image, Refusal):
        extra = None if group.image is None else _too_many(name, group.key, group.extension)
        group.image, group.last = tar.content(), kind
        group.extension, group.offset = extension, member.offset
        if len(group.image) < member.size:
            group.lost = Refusal("tar_truncated", f"its image is cut after {len(group.image)} of {member.size} bytes")
            group.image = None
        return extra
    return None


def _too_many(name: str, key: str, extension: str) -> Sample:
    return Sample(f"{name}#{key}.{extension}", Refusal("key_duplicate", f"one more image of the sample {key}"))


def _unsafe(member: Member, limit: int | None) -> Refusal | None:
    """Why a member is not read, from its header alone. Names are never used as paths, so most are harmless."""
    name = member.name.removeprefix("./")
    parts = name.split("/")
    if not name.isprintable() or "\\" in name or name[:1] == "-" or ".." in parts or "" in parts:
        return Refusal(
            "key_invalid",
            f"member name {name[:100]!r}: no control characters, \\, leading - or /, empty part or ..; valid UTF-8",
        )
    if len(name.encode()) > MAX_NAME_BYTES:
        return Refusal("key_invalid", f"member name {name[:100]!r}...: over {MAX_NAME_BYTES} bytes")
    if member.type == "sparse":
        return Refusal("tar_sparse", f"{name} claims bytes that are not in the file")
    if member.type == "other":
        return Refusal("tar_nonregular", f"{name} is a link or a device")
    if limit is not None and member.size > limit:
        return Refusal("tar_member_too_big", f"{name} has {member.size} bytes; the most is {limit}")
    return None


def _sample(group: _Group, name: str, split: Split | None, addressed: str | None) -> Sample:
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
    label = next((found for value in labels if (found := named(value))), None)
    content = _content(group)
    return Sample(
        f"{name}#{group.key}",
        content,
        Captions(captions.texts, captions.dropped + group.dropped),
        label,
        split,
        Address(addressed, group.offset) if addressed is not None and isinstance(content, bytes) else None,
        host_of(notes.get("url")),
        _sha256(notes),
    )


def _content(group: _Group) -> bytes | Refusal:
    """The image, or why there is none."""
    if group.image is not None:
        return group.image
    if group.lost is not None:
        return group.lost
    beside = "; it may lie in the damage beside them" if group.damaged else ""
    members = ", ".join([*group.texts, *group.others])
    return Refusal("ext_forbidden", f"no image among its members: {members}{beside}")


def _sha256(notes: dict[str, object]) -> str | None:
    """The digest that the notes declare; None if it is of other bytes.

    img2dataset notes the digest of the download, and encodes the picture anew unless `original_width` is empty.
    """
    digest = notes.get("sha256")
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest) or notes.get("original_width") is not None:
        return None
    return digest.lower()
