"""One process at a time."""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(directory: Path, what: str) -> Iterator[None]:
    """Holds a directory, through a file beside it, for this process; the operating system lets go when the process
    ends, however it ends.

    Raises:
        ValueError: another process holds it; says which, where and since when.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with (directory.parent / f".{directory.name}.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise ValueError(
                f"another command works on {what} {directory} ({file.read().strip() or 'unknown'}): wait for it, stop "
                "it, or name another directory"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        yield
