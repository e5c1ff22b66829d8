"""A worker that hangs ends itself, so that its group is started again."""

import faulthandler
import time
from pathlib import Path
from typing import TextIO


class Alarm:
    """Ends this process when it was not put off for too long, after writing where it hangs.

    It needs neither a thread of this process nor the interpreter's lock (faulthandler has a thread in C). The other
    ranks wait for the one that hangs, so their alarms end them too; then Ray starts the group again.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.seconds, self.set = path, seconds, float("-inf")
        self.file: TextIO | None = None

    def put_off(self) -> None:
        """To be called at each sign of life."""
        now = time.monotonic()
        if now - self.set > 1:  # setting it costs a thread
            self.set = now
            if self.file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.file = self.path.open("w")
            faulthandler.dump_traceback_later(self.seconds, exit=True, file=self.file)

    def cancel(self) -> None:
        """From here on nothing happens until it is put off again."""
        faulthandler.cancel_dump_traceback_later()
        self.set = float("-inf")
        if self.file is not None:
            self.file.close()
            self.file = None
            self.path.unlink(missing_ok=True)  # nothing hung: else this process would have ended
