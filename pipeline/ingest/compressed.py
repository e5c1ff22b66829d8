"""Streams compressed tars: no file is unpacked as a whole, no chunk explodes, and a bomb is refused by its ratio."""

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from typing import BinaryIO, Protocol, cast

import pyarrow as pa

from pipeline.ingest.refusals import Refusal

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
MAX_RATIO = 200  # bytes out for a byte in; a tar of text reaches 20, a gzip bomb 1000
_SLACK_BYTES = 8 * 2**20  # let out at any ratio: small files of zeros are no bombs
_CHUNK_BYTES = 2**16
_XZ_MEMORY_BYTES = 2**28  # xz -9 needs 65 MB; a header can claim 4 GB


def decompressed(file: BinaryIO, path: str) -> BinaryIO:
    """The content of a compressed tar, which `read(n)` streams; the suffix of `path` tells how it is compressed.

    Reading raises `Refusal`: tar_ratio over 200 bytes out for a byte in, tar_truncated if the stream is cut,
    tar_header_bad if it is damaged. What was unpacked before is given out first. Raises ValueError for other suffixes.
    """
    counted = _Counted(file)
    if path.endswith(".tar.zst"):  # its window is bounded by the library: 128 MB
        read: Callable[[int], bytes] = pa.CompressedInputStream(pa.PythonFile(counted, "r"), "zstd").read
    elif path.endswith((".tar.gz", ".tgz")):
        read = _Unpacked(counted, _Gzip).read
    elif path.endswith(".tar.bz2"):
        read = _Unpacked(counted, bz2.BZ2Decompressor).read
    elif path.endswith(".tar.xz"):
        read = _Unpacked(counted, lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY_BYTES)).read
    else:
        raise ValueError(f"{path} has no suffix of a compressed tar: {', '.join(COMPRESSED)}")
    return cast(BinaryIO, _Bounded(counted, read))


class _Counted(io.RawIOBase):
    """Counts what is read."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.count = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(_CHUNK_BYTES if size < 0 else min(size, _CHUNK_BYTES)) or b""
        self.count += len(data)
        return data


class _Decompressor(Protocol):
    """What the standard library's decompressors have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Gzip:
    """zlib's decompressor with the interface of the others."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)  # 31: gzip framing, its checksum verified

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail  # the trailer stays there until all output is out

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


class _Unpacked:
    """The content of one or more compressed streams, one after the other; zeros may pad each."""

    def __init__(self, file: _Counted, new: Callable[[], _Decompressor]) -> None:
        self._file, self._new = file, new
        self._decompressor = new()

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; b"" at the end. Raises EOFError if the stream is cut, and what the library raises."""
        while True:
            data = b""
            if self._decompressor.eof:
                data = self._decompressor.unused_data.lstrip(b"\0")
                while not data:
                    if not (data := self._file.read()):
                        return b""
                    data = data.lstrip(b"\0")
                self._decompressor = self._new()
            elif self._decompressor.needs_input and not (data := self._file.read()):
                raise EOFError("the compressed stream is cut")
            if out := self._decompressor.decompress(data, size):
                return out


class _Bounded(io.RawIOBase):
    """Watches the ratio, and gives every error the same form."""

    def __init__(self, packed: _Counted, read: Callable[[int], bytes]) -> None:
        self._packed, self._read = packed, read
        self._count = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, and at most 64 KB; b"" at the end."""
        try:
            data = self._read(_CHUNK_BYTES if size < 0 else min(size, _CHUNK_BYTES))
        except (EOFError, OSError, ValueError, zlib.error, lzma.LZMAError) as error:
            cut = isinstance(error, EOFError) or "Truncated" in str(error)  # the latter as pyarrow says it
            where = f"after {self._packed.count} compressed bytes"
            raise Refusal("tar_truncated" if cut else "tar_header_bad", f"{error}, {where}") from error
        self._count += len(data)
        if self._count > _SLACK_BYTES + MAX_RATIO * self._packed.count:
            raise Refusal(
                "tar_ratio",
                f"{self._packed.count} compressed bytes unpack to {self._count} and more; the most is "
                f"{MAX_RATIO} for 1",
            )
        return data
