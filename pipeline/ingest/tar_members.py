"""Reads a tar member by member from a stream, in little memory, and finds its way on after damage.

Python's `tarfile` ends without an error when a file is cut between members or inside a header, when a header is
garbage, or when zeros lie in the middle. Here what is neither a member nor the end marker is a `Damage`, and reading
goes on at the next header that has a magic number and a right checksum, wherever it lies: lost or added bytes shift it.
"""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal, NamedTuple

from pipeline.ingest.compressed import MAGIC
from pipeline.ingest.refusals import Reason, Refusal

BLOCK = tarfile.BLOCKSIZE
END_BYTES = 2 * BLOCK  # zeros that end a tar
MAX_EXTENDED_BYTES = 2**20  # of a long name or a PAX header, which is read whole
_CHUNK_BYTES = 2**20
_EXTENDED = b"xXgLK"  # headers that speak of the next member: PAX, PAX for all members, GNU long name and long link
_EMPTY = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, b"V")
_Type = Literal["file", "folder", "sparse", "other"]
_TYPES: dict[bytes, _Type] = {
    tarfile.REGTYPE: "file", tarfile.AREGTYPE: "file", tarfile.CONTTYPE: "file", tarfile.GNUTYPE_SPARSE: "sparse",
    tarfile.DIRTYPE: "folder", b"D": "folder", b"V": "folder",  # D: of incremental backups; V: a volume's label
}  # fmt: skip
_MAGIC, _MAGIC_AT = re.compile(rb"ustar(?:\x0000|  \x00)"), 257  # of POSIX and of GNU; where in a header
_STRIDE = 64  # bytes: a search tries one wrong magic number in so many, so that a file full of them is no trap


class Member(NamedTuple):
    """A member whose header is whole."""

    name: str  # with surrogates for what is not UTF-8
    type: _Type
    size: int  # bytes of content in the tar
    offset: int  # of the content, in bytes from the start of the stream


class Damage(NamedTuple):
    """A place with bytes that are neither member nor end marker, or an end without its marker."""

    reason: Reason
    why: str
    shifted: bool = False  # bytes were lost or added in the content that was read last: it is not that member's own


class TarMembers:
    """The members and damages of a tar in order; `content()` reads the content of the member yielded last."""

    def __init__(self, file: BinaryIO) -> None:
        self._source = _Source(file)
        self._member: Member | None = None
        self._left = 0  # bytes of the current member, or extended header, and its padding that are still to be read
        self._last = (b"", b"")  # its content and its padding, if they were read
        self._again = 0  # bytes that were searched a second time: never more than were read

    def content(self) -> bytes:
        """The content of the current member, once. Shorter than the member's size if the stream ends in it."""
        assert self._member is not None
        return self._content(self._member.size)

    def __iter__(self) -> Iterator[Member | Damage]:
        extended = _Extended()
        while True:
            cut = self._finish()
            start = self._source.offset
            block = b"" if cut else self._source.read(BLOCK)
            try:
                header = _header(block)
            except tarfile.HeaderError as error:
                problem = str(error) if block.strip(b"\0") else "foreign bytes"
                damage, ended = self._resume(start, block, cut, problem)
                if damage is None and extended.used:
                    damage = Damage("tar_header_bad", f"the long name before byte {start} has no member")
                if damage is not None:
                    yield damage
                if ended:
                    return
                extended = _Extended()
                continue
            self._member, self._last = None, (b"", b"")
            if header.type in _EXTENDED:
                self._left = _padded(header.size)
                payload = self._content(header.size)
                if len(payload) == header.size and not extended.add(header.type, payload):
                    extended = _Extended()
                    yield Damage("tar_header_bad", f"the extended header at byte {start} cannot be read")
                continue
            more = header.type == tarfile.GNUTYPE_SPARSE and block[482] != 0
            while more:  # blocks that go on with the map of a sparse member
                more = self._source.read(BLOCK)[504:505].strip(b"\0") != b""
            size = 0 if header.type in _EMPTY else header.size if extended.size is None else extended.size
            type: _Type = "sparse" if extended.sparse else _TYPES.get(header.type, "other")
            name = header.name if extended.name is None else extended.name
            self._member, self._left = Member(name, type, size, self._source.offset), _padded(size)
            extended = _Extended()
            yield self._member

    def _content(self, size: int) -> bytes:
        content = self._source.read(size)
        self._left -= len(content)
        self._last = (content, b"")
        return content

    def _finish(self) -> str:
        """Reads what is left of the current member; says where if the stream ends before."""
        content = self._last[0]
        if content:
            self._last = (content, self._source.read(self._left))
            self._left -= len(self._last[1])
        else:
            self._left -= self._source.skip(self._left)
        cut, self._left = self._left, 0
        if not cut:
            return ""
        if self._member is None:
            return "inside an extended header"
        missing = self._member.offset + self._member.size - self._source.offset
        return f"{missing} bytes before the end of a member" if missing > 0 else "in the padding after a member"

    def _resume(self, start: int, block: bytes, cut: str, problem: str) -> tuple[Damage | None, bool]:
        """Searches the next header. Returns the damage, None for the end marker; and whether the stream ended.

        `block` at byte `start` should have been a header. Where it is foreign, the search begins in the content read
        last: if bytes were lost there, the next header lies in it.
        """
        source, shifted = self._source, False
        packed = next((kind for magic, kind in MAGIC.items() if start == 0 and block.startswith(magic)), None)
        if packed:
            what = f"is compressed ({packed}): unpack it, or name it .tar.gz (.bz2, .xz, .zst) and pass --compressed"
            return Damage("tar_header_bad", what), True
        source.back(block)
        if cut or block.strip(b"\0"):
            content, padding = self._last
            shifted = self._member is not None and bool(padding.strip(b"\0"))
            if self._again + len(content) <= start:
                self._again += len(content)
                source.back(padding)
                source.back(content)
        member, self._member, self._last = self._member, None, (b"", b"")
        found, zeros, foreign = source.search(start)
        end = source.offset
        if found:
            shifted = shifted or (end < start and member is not None)
            if end < start:
                why = f"bytes were lost before byte {start}: the next header lies at byte {end}, inside a member"
                return Damage("tar_header_bad", why, shifted), False
            if foreign:
                why = f"{problem} at byte {start}; goes on at byte {end}"
                return Damage("tar_header_bad", why, shifted), False
            return Damage("tar_trailing", f"{zeros} zeros at byte {start}, and members after them", shifted), False
        if source.failure:
            return Damage(*source.failure, shifted), True
        if cut:
            return Damage("tar_truncated", f"ends at byte {end}, {cut}"), True
        if not foreign:
            why = f"ends at byte {end} with {zeros} of {END_BYTES} zeros of its end marker"
            return (Damage("tar_truncated", why) if zeros < END_BYTES else None), True
        if zeros >= END_BYTES:
            return Damage("tar_trailing", f"foreign bytes after the end marker, at byte {start + zeros}"), True
        if end - start < BLOCK:
            return Damage("tar_truncated", f"ends at byte {end}, inside a header"), True
        return Damage("tar_header_bad", f"{problem} at byte {start}, and no other header up to the end", shifted), True


@dataclass
class _Extended:
    """What extended headers say of the next member."""

    used: bool = False
    name: str | None = None
    size: int | None = None
    sparse: bool = False

    def add(self, type: bytes, payload: bytes) -> bool:
        """Takes one header in; False if it cannot be read."""
        self.used = True
        if type == tarfile.GNUTYPE_LONGNAME:
            self.name = payload.rstrip(b"\0").decode("utf-8", "surrogateescape")
            return "\0" not in self.name  # else it is the header of the next member: blocks are missing
        return type not in b"xX" or self._add_pax(payload)

    def _add_pax(self, payload: bytes) -> bool:
        """Records are `length key=value\\n`; the length, in decimal bytes, counts all of it."""
        at = 0
        while at < len(payload):
            digits = payload[at : at + 9].partition(b" ")[0]
            end = at + int(digits) if digits.isdigit() else 0
            key, equals, value = payload[at + len(digits) + 1 : end - 1].partition(b"=")
            if not equals or payload[end - 1 : end] != b"\n":
                return False
            if key == b"path":
                self.name = value.decode("utf-8", "surrogateescape")
            elif key == b"size":
                if not value.isdigit() or len(value) > 19:
                    return False
                self.size = int(value)
            elif key.startswith(b"GNU.sparse."):
                self.sparse = True
            at = end
        return True


class _Source:
    """A stream that gives exactly as much as is asked for, unless it ends; bytes can be put back."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._chunk, self._at = b"", 0
        self._ahead: list[bytes] = []  # chunks after this one, in reverse
        self.offset = 0  # bytes
        self.failure: tuple[Reason, str] | None = None  # why the stream ended

    def read(self, size: int) -> bytes:
        """`size` bytes; fewer at the end."""
        end = self._at + size
        if end <= len(self._chunk):
            data = self._chunk[self._at : end]
            self._at = end
            self.offset += size
            return data
        parts = []
        while size and (data := self._any()):
            if len(data) > size:
                self.back(data[size:])
            parts.append(data[:size])
            size -= len(parts[-1])
        return b"".join(parts)

    def skip(self, size: int) -> int:
        """Reads `size` bytes and keeps none; returns how many there were."""
        left = size
        while left > len(self._chunk) - self._at:
            if not (data := self._any()):
                return size - left
            if len(data) > left:
                self.back(data[left:])
            left -= min(left, len(data))
        self._at += left
        self.offset += left
        return size

    def back(self, data: bytes) -> None:
        """Puts bytes back, to be read again."""
        if self._at < len(self._chunk):
            self._ahead.append(self._chunk[self._at :])
        self._chunk, self._at = data, 0
        self.offset -= len(data)

    def search(self, start: int) -> tuple[bool, int, bool]:
        """Reads on to the next header with a magic number, or to the end.

        Of the bytes from `start` to there it tells how many zeros lead them, and whether others follow.
        """
        zeros, foreign, window = 0, False, b""
        while True:
            at = self.offset - len(window)  # of the window
            data = self._any()
            window += data
            found = _find(window)
            gone = found if found is not None else max(0, len(window) - BLOCK + 1) if data else len(window)
            if not foreign and at + gone > start:
                passed = window[max(0, start - at) : gone]
                rest = passed.lstrip(b"\0")
                zeros, foreign = zeros + len(passed) - len(rest), bool(rest)
            window = window[gone:]
            if found is not None or not data:
                self.back(window)
                return found is not None, zeros, foreign

    def _any(self) -> bytes:
        """The next bytes, as many as are at hand; b"" at the end."""
        if self._at < len(self._chunk):
            data = self._chunk[self._at :]
        elif self._ahead:
            data = self._ahead.pop()
        else:
            data = self._fetch()
        self._chunk, self._at = b"", 0
        self.offset += len(data)
        return data

    def _fetch(self) -> bytes:
        if self.failure:
            return b""
        try:
            return self._file.read(_CHUNK_BYTES) or b""
        except Refusal as refusal:  # of a compressed stream
            self.failure = (refusal.reason, refusal.detail)
        except OSError as error:
            self.failure = ("tar_truncated", f"cannot be read on at byte {self.offset}: {error}")
        return b""


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _header(block: bytes) -> tarfile.TarInfo:
    """Raises `tarfile.HeaderError`, also for a header that nobody should act upon."""
    header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    if header.size < 0 or (header.type in _EXTENDED and header.size > MAX_EXTENDED_BYTES):
        raise tarfile.HeaderError(f"a header of {header.size} bytes; the most is {MAX_EXTENDED_BYTES}")
    if block[_MAGIC_AT - 8 : _MAGIC_AT + 13].find(b"ustar") not in (8, -1):
        raise tarfile.HeaderError("a shifted header")  # its checksum is right in 1 of 256
    return header


def _find(window: bytes) -> int | None:
    """Where the first header with a magic number lies that is whole in the window."""
    at = _MAGIC_AT
    while (match := _MAGIC.search(window, at)) and match.start() - _MAGIC_AT + BLOCK <= len(window):
        start = match.start() - _MAGIC_AT
        try:
            _header(window[start : start + BLOCK])
            return start
        except tarfile.HeaderError:
            at = match.start() + _STRIDE
    return None
