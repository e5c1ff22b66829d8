"""A stage's lease, prolonged while the stage runs; and what stops a stage: a signal, or the loss of the lease."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from pipeline.ledger.database import Ledger, Unusable
from pipeline.ledger.work import HEARTBEAT_SECONDS, LEASE_SECONDS, Lease, LeaseLost, heartbeat


class Told(KeyboardInterrupt):
    """The process was told to stop, by a signal; what was running can be gone on with."""

    def __init__(self, number: int) -> None:
        super().__init__(f"told to stop by {signal.Signals(number).name}")
        self.signal = number


@contextmanager
def stoppable() -> Iterator[None]:
    """Lets SIGTERM and Ctrl-C raise `Told` in the main thread; training, which saves first, has its own way meanwhile.
    Outside of the main thread nothing is changed."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise Told(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Keeper:
    """Prolongs a lease in a thread. If another took over, it is `lost`, and the main thread is told to stop."""

    def __init__(self, ledger: Ledger, lease: Lease, seconds: float) -> None:
        self.lost = False
        self._ledger, self._lease, self._seconds = ledger, lease, seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> "Keeper":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _keep(self) -> None:
        while not self._ended.wait(self._seconds * HEARTBEAT_SECONDS / LEASE_SECONDS):
            try:
                with self._ledger.writing() as connection:
                    heartbeat(connection, self._lease, self._seconds)
            except Unusable:
                continue  # for now: whether the lease still holds is asked again, and when the stage is published
            except LeaseLost:
                self.lost = True
                if callable(signal.getsignal(signal.SIGTERM)):  # else it would end the process
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
                return
