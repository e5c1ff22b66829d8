"""Faults of what a stage runs on: they say nothing about its dump, and cost it no attempt."""

import errno
import os

from pipeline.ingest.storage import Unreachable

_FULL = tuple(os.strerror(number).lower() for number in (errno.ENOSPC, errno.EDQUOT))


def is_outage(error: BaseException) -> bool:
    """Whether an error is, or came from, a connection that failed or a disk that is full."""
    at: BaseException | None = error
    while at is not None:
        # by its text: what a worker wrote to a full disk comes here as the message of another error
        if isinstance(at, (ConnectionError, Unreachable)) or any(full in str(at).lower() for full in _FULL):
            return True
        at = getattr(at, "cause", None) or at.__cause__ or at.__context__  # the first: Ray's
    return False
