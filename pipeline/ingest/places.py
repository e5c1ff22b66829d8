"""Where a source lies: a local folder or object storage, read through one door that no path leads out of.

Locally no symbolic link below the folder is ever followed. Elsewhere pyarrow's file systems do the work. What is shown
to people, stored or logged holds no credentials.
"""

import errno
import io
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from pipeline.ingest.ranges import LocalRanges, Ranges, RemoteFile
from pipeline.ingest.storage import SCHEMES, opened_storage, unusable

_BUFFER_BYTES = 4 * 2**20  # of one request to object storage
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


class Entry(NamedTuple):
    """One file of a source; `problem` says why it cannot be read, whatever it holds."""

    path: str  # relative to the place
    size: int  # bytes
    modified: int  # ns since 1970, as exact as the file system tells
    problem: str | None = None


@dataclass(frozen=True)
class Place:
    """A folder on some file system. Picklable, with its credentials if the URI held any: those of the environment are
    looked up anew on each machine. `shown` names it to people and can be given to `place_of` again."""

    files: fs.FileSystem = field(repr=False)
    folder: str
    shown: str

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine."""
        return isinstance(self.files, fs.LocalFileSystem)

    def open(self, path: str) -> BinaryIO:
        """A file for random access; `path` is relative to the folder.

        Raises:
            ConnectionError: the storage cannot be read now; that says nothing about the file. (Not for local files.)
            OSError: no such file, a symbolic link, nothing that is a regular file, a path that leads elsewhere.
        """
        if fault := path_fault(path):
            raise OSError(f"a path that {fault}")
        if self.is_local:
            return _open_local(self.folder, path)
        return cast(BinaryIO, io.BufferedReader(RemoteFile(self.files, self._full(path)), _BUFFER_BYTES))

    def open_ranges(self, path: str) -> Ranges:
        """A file to be read by ranges, from several threads at once. Raises as `open`, then and in reading."""
        if fault := path_fault(path):
            raise OSError(f"a path that {fault}")
        return (
            LocalRanges(_open_local(self.folder, path)) if self.is_local else RemoteFile(self.files, self._full(path))
        )

    def read(self, path: str, limit: int) -> bytes:
        """The first `limit` + 1 bytes of a file, or all: a longer result than `limit` tells that there is more."""
        with self.open(path) as file:
            return file.read(limit + 1)

    def entries(self, folder: str = "", recursive: bool = True) -> Iterator[Entry]:
        """The files in a folder that are not hidden, in no particular order.

        Raises:
            ValueError: the storage cannot be listed.
        """
        if self.is_local:
            return _walk(self.folder, f"{folder}/" if folder else "", recursive)
        return self._listed(folder, recursive)

    def children(self) -> list[Entry]:
        """What lies directly in the folder and is not hidden, by name; the path of a folder ends with a slash, and its
        size and time say nothing.

        Raises:
            ValueError: the storage cannot be listed.
        """
        files = list(self.entries(recursive=False))
        if self.is_local:
            try:
                names = [name for name, about in _scanned(self.folder, "") if stat.S_ISDIR(about.st_mode)]
            except OSError as error:
                raise ValueError(f"{self.shown} cannot be listed: {error.strerror or error}") from None
        else:
            try:
                infos = self.files.get_file_info(fs.FileSelector(self.folder, allow_not_found=True))
            except (OSError, pa.ArrowException) as error:
                raise unusable(self.shown, error) from None
            names = [info.base_name for info in infos if info.type == fs.FileType.Directory]
        folders = [Entry(f"{name}/", 0, 0) for name in names if not name.startswith(".")]
        return sorted([*files, *folders], key=lambda entry: entry.path)

    def entry(self, path: str) -> Entry:
        """One file of the folder.

        Raises:
            OSError: no such file.
        """
        if self.is_local:
            about = os.stat(os.path.join(self.folder, path))
            return Entry(path, about.st_size, about.st_mtime_ns)
        info = self.files.get_file_info(self._full(path))
        if info.type != fs.FileType.File:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        return Entry(path, info.size or 0, info.mtime_ns or 0)

    def _listed(self, folder: str, recursive: bool) -> Iterator[Entry]:
        selector = fs.FileSelector(self._full(folder), allow_not_found=True, recursive=recursive)
        try:
            infos = self.files.get_file_info(selector)
        except (OSError, pa.ArrowException) as error:
            raise unusable(self.shown, error) from None
        for info in infos:
            if info.type == fs.FileType.File and not info.path.endswith("/"):  # a marker of an empty folder
                path = info.path[len(self.folder) :].removeprefix("/")
                fault = path_fault(path)
                if fault or not any(part.startswith(".") for part in path.split("/")):
                    yield Entry(path, info.size or 0, info.mtime_ns or 0, f"its path {fault}" if fault else None)

    def _full(self, path: str) -> str:
        return "/".join(part for part in (self.folder, path) if part)


def path_fault(path: str) -> str | None:
    """What makes a path lead out of its folder, or be no path; None for a plain relative path."""
    parts = path.split("/")
    faults = {
        "holds a NUL character": "\0" in path,
        "holds a backslash": "\\" in path,
        "is absolute": path.startswith("/"),
        "leads upwards (..)": ".." in parts,
        "has an empty part": "" in parts or "." in parts,
        "is not valid UTF-8": path.encode("utf-8", "replace").decode() != path,
    }
    return next((fault for fault, found in faults.items() if found), None)


def declared_path(path: str) -> str:
    """A path as a list or a manifest gives it, without a leading `./`.

    Raises:
        ValueError: it names a scheme, chains file systems, or could lead out of the folder.
    """
    plain = path.removeprefix("./")
    fault = path_fault(plain)
    if "::" in path:
        fault = "chains file systems (::)"
    elif _SCHEME.match(path):
        fault = "names a scheme or a drive"
    if fault:
        raise ValueError(f"the path {path[:200]!r} {fault}")
    return plain


def place_of(source: str | Path) -> tuple[Place, str]:
    """The folder that `source` names, and "", or the folder that holds the single file it names, and the file's name.

    Args:
        source: a local path, or a URI: s3://bucket/folder, gs://…, abfs://…, hdfs://…, file:///….
    Raises:
        ValueError: nothing there, an unknown scheme or option, an unreachable endpoint, refused credentials.
    """
    text = str(source)
    scheme = text.partition("://")[0].lower() if "://" in text else ""
    if scheme in ("", "file"):
        return _local(text if not scheme else _file_path(text))
    if scheme not in SCHEMES:
        known = ", ".join(f"{known}://" for known in (*SCHEMES, "file"))
        raise ValueError(f"sources of scheme {scheme[:20]!r} are not read: give a local folder, or one of {known}")
    files, path, shown = opened_storage(text, scheme)
    try:
        info = files.get_file_info(path)
    except (OSError, pa.ArrowException) as error:
        raise unusable(shown, error) from None
    if info.type == fs.FileType.NotFound:
        raise ValueError(f"nothing at {shown}: no such bucket, folder or file; check its spelling, region and endpoint")
    if info.type == fs.FileType.File:
        path, _, name = path.rpartition("/")
        return Place(files, path, shown), name
    return Place(files, path, shown), ""


def _local(text: str) -> tuple[Place, str]:
    path = os.path.abspath(text)
    if not os.path.exists(path):
        raise ValueError(
            f"no source at {path}: give a folder of images, or of .tar or .parquet files, on this machine, or a URI "
            "such as s3://bucket/folder"
        )
    # a link that a person gives is meant; from then on none is followed
    folder, name = (path, "") if os.path.isdir(path) else os.path.split(os.path.realpath(path))
    return Place(fs.LocalFileSystem(), folder, path), name


def _file_path(text: str) -> str:
    uri = urlsplit(text, allow_fragments=False)
    if uri.netloc not in ("", "localhost"):
        raise ValueError(f"{text} names the machine {uri.netloc}: a file:// source lies on this one, as file:///folder")
    return unquote(uri.path)


def _descend(root: str, folder: str) -> int:
    """A descriptor of a folder below `root`, reached without following a symbolic link."""
    at = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for part in filter(None, folder.split("/")):
        try:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
        finally:
            os.close(at)
        at = below
    return at


def _open_local(root: str, path: str) -> BinaryIO:
    """A regular file that is no symbolic link, even if it, or a folder above it, became one since it was listed."""
    folder, _, name = path.rpartition("/")
    at = _descend(root, folder)
    try:
        opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=at)  # a pipe would block for ever
    finally:
        os.close(at)
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise OSError("not a regular file")
    return os.fdopen(opened, "rb")


def _walk(root: str, start: str, recursive: bool) -> Iterator[Entry]:
    folders = [start]
    while folders:
        prefix = folders.pop()
        try:
            found = list(_scanned(root, prefix))
        except FileNotFoundError:  # it went since, or was only declared
            continue
        except OSError as error:
            yield Entry(prefix, 0, 0, f"a folder that cannot be listed: {error.strerror}")
            continue
        for base, about in found:
            name = prefix + base
            readable = os.fsencode(name).decode("utf-8", "backslashreplace")
            if readable != name:
                yield Entry(readable, 0, 0, "its name is not valid UTF-8")
            elif stat.S_ISDIR(about.st_mode):
                folders.extend([name + "/"] if recursive else [])
            elif stat.S_ISLNK(about.st_mode):
                yield Entry(name, 0, 0, "a symbolic link, which is never followed")
            elif not stat.S_ISREG(about.st_mode):
                yield Entry(name, 0, 0, "not a regular file")
            else:
                fault = path_fault(base)
                yield Entry(name, about.st_size, about.st_mtime_ns, f"its name {fault}" if fault else None)


def _scanned(root: str, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
    """Names that are not hidden in one folder, and what they are."""
    at = _descend(root, prefix)
    try:
        with os.scandir(at) as listed:
            for item in listed:
                if not item.name.startswith("."):
                    with suppress(FileNotFoundError):  # it went since
                        yield item.name, item.stat(follow_symlinks=False)
    finally:
        os.close(at)
