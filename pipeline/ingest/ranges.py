"""Files that are read by ranges: of this machine, and of object storage."""

import io
import os
from typing import Any, BinaryIO, Protocol

from pyarrow import fs


class Ranges(Protocol):
    """A file that several threads read at once."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Some bytes; fewer only where the file ends (or, locally, where the system pleases)."""

    def expect(self, offset: int, length: int) -> None:
        """Tells that a range is going to be read."""


class LocalRanges:
    """A file of this machine, whose system reads ahead what it is told to expect."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read_at(self, offset: int, length: int) -> bytes:
        return os.pread(self._file.fileno(), length, offset)

    def expect(self, offset: int, length: int) -> None:
        if hasattr(os, "posix_fadvise"):  # not on macOS
            os.posix_fadvise(self._file.fileno(), offset, length, os.POSIX_FADV_WILLNEED)


def lost_connection(file: BinaryIO) -> ConnectionError | None:
    """The error that ended the reading of a place's file, also if a parser took it for damage; None for none."""
    return getattr(getattr(file, "raw", None), "lost", None)


class RemoteFile(io.RawIOBase):
    """A file of object storage. What fails in reading it is the connection, never the file."""

    def __init__(self, files: fs.FileSystem, path: str) -> None:
        self.lost: ConnectionError | None = None
        try:
            self._file = files.open_input_file(path)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise ConnectionError(f"{path} cannot be opened now: {error}") from None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return self._file.readinto(buffer)
        except OSError as error:
            self.lost = ConnectionError(f"reading failed, not for the file's fault: {error}")
            raise self.lost from None

    def read_at(self, offset: int, length: int) -> bytes:
        try:
            return self._file.read_at(length, offset)
        except OSError as error:
            raise ConnectionError(f"reading failed, not for the file's fault: {error}") from None

    def expect(self, offset: int, length: int) -> None:
        pass  # a thread reads it already

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
