"""The parent side of the guarded decoder: pictures are decoded in a child process that may crash, hang or be killed.

One child decodes one picture after the other. It is started by exec (never fork: workers have threads), with an empty
environment and next to no rights (`decoder_child`), and its answers are untrusted: bounded and validated. While it
decodes, the next pictures wait in its pipe. The first unanswered picture is the culprit of a child's end; the others
go to the next child. So a bad picture costs one sample and bounded time.
"""

import contextlib
import fcntl
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import cycle, islice
from json import dumps
from typing import Generic, Self, TypeVar

from pipeline.ingest.answers import HEADER_BYTES, DecodeLimits, checked
from pipeline.ingest.decode import Decoded
from pipeline.ingest.decoder_child import ANSWER, PICTURE, READY
from pipeline.ingest.refusals import Refusal
from pipeline.ingest.samples import printable

__all__ = ["DecodeLimits", "Decoded", "Guarded", "GuardedDecoder"]

T = TypeVar("T")
R = TypeVar("R")

_CHILD = "pipeline.ingest.decoder_child"
_BOOTSTRAP = """
import importlib, json, sys
sys.path[:], options, child = json.loads(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
importlib.import_module(child).main(options)
"""
_ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    # glibc would give a picture's memory back to the kernel and fault it in again for the next: a third of the time
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**27),
}
_WINDOW, _WINDOW_BYTES = 16, 64 * 2**20  # pictures that wait for their answer, at most (one may be larger)
_PIPE_BYTES = 2**20  # what Linux allows without privilege
_STARTS, _START_SECONDS = 3, 120.0  # a cold network file system is slow to import from


class Guarded(Generic[R]):
    """Makes an R of each picture in a child process. `child` names the module whose `main(options)` is the child;
    `check` makes an R of an answer (kind, header, body), or raises ValueError."""

    def __init__(
        self, limits: DecodeLimits, child: str, check: Callable[[int, bytes, bytes, DecodeLimits], R | Refusal]
    ) -> None:
        self.limits = limits
        self._check = check
        self._starts = 0
        self._module = child
        self._child: _Child | None = None
        self._busy = False

    @property
    def restarts(self) -> int:
        """Children started after the first."""
        return max(0, self._starts - 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the child. The decoder can be used again: it then starts another."""
        if self._child is not None:
            self._child.stop()
            self._child = None

    def decode(self, items: Iterable[tuple[T, bytes]]) -> Generator[tuple[T, bytes, R | Refusal], None, None]:
        """Each item with its outcome, lazily and in order; up to 16 items are taken ahead.

        Raises:
            RuntimeError: no child can be started, or another iteration of this decoder is under way.
        """
        if self._busy:
            raise RuntimeError("this decoder is already decoding: finish that iteration, or use a decoder of its own")
        self._busy = True
        source = iter(items)
        waiting: deque[tuple[T, bytes]] = deque()
        more = True
        try:
            while True:
                if len(waiting) <= _WINDOW // 2:  # then many at once: fewer turns between the two processes
                    size = sum(len(raw) for _, raw in waiting)
                    while more and (not waiting or (len(waiting) < _WINDOW and size < _WINDOW_BYTES)):
                        item = next(source, None)
                        if item is None:
                            more = False
                            break
                        waiting.append(item)
                        size += len(item[1])
                        if self._child is not None:
                            self._child.send(item[1])
                if not waiting:
                    return
                outcome = self._outcome(waiting)
                yield *waiting.popleft(), outcome
        finally:
            self._busy = False
            if waiting:  # its answers would be taken for those of other pictures
                self.close()

    def _outcome(self, waiting: Iterable[tuple[T, bytes]]) -> R | Refusal:
        """Of the first of `waiting`, all of which the child has or, if it must be started, gets."""
        seconds = self.limits.seconds
        tries = 0
        while True:
            tries += 1
            if self._child is None:
                self._child = self._started()
                for _, raw in waiting:
                    self._child.send(raw)
            try:
                return self._check(*self._child.receive(seconds), self.limits)
            except TimeoutError:
                refusal = Refusal("decode_timeout", f"not decoded within {seconds:g} s")
            except ValueError as error:
                refusal = Refusal("decode_crash", f"the decoder's answer makes no sense: {printable(str(error))}")
            except EOFError:
                code = self._child.exit_code()
                if code == -signal.SIGKILL and tries == 1:  # from outside, for want of memory: whose picture is unknown
                    self.close()
                    continue
                refusal = _verdict(code, seconds)
            self.close()
            return refusal

    def _started(self) -> "_Child":
        """A child that is ready, and has shown that it can decode."""
        for _ in range(_STARTS):
            child = _Child(self.limits, self._module)
            self._starts += 1
            try:
                if child.receive(_START_SECONDS)[0] == READY:
                    return child
            except (TimeoutError, ValueError, EOFError):
                pass
            complaint = child.stop()
        raise RuntimeError(
            f"the image decoder does not start ({_STARTS} attempts; memory_bytes={self.limits.memory_bytes}); "
            f"it says: {complaint or 'nothing'}"
        )


class GuardedDecoder(Guarded[Decoded]):
    """Decodes pictures to canonical ones. `child`: tests put faults there."""

    def __init__(self, limits: DecodeLimits, *, child: str = _CHILD) -> None:
        super().__init__(limits, child, checked)


def decode_with(
    decoders: Sequence[Guarded[R]], items: Iterable[tuple[T, bytes]]
) -> Generator[tuple[T, bytes, R | Refusal], None, None]:
    """As `Guarded.decode`, by several children at once: item i by decoder i mod n, outcomes in order."""
    source, turn = iter(items), cycle(range(len(decoders)))
    waiting: list[deque[tuple[T, bytes]]] = [deque() for _ in decoders]

    def lane(number: int) -> Iterator[tuple[T, bytes]]:
        while True:
            while not waiting[number]:
                if (item := next(source, None)) is None:
                    return
                waiting[next(turn)].append(item)
            yield waiting[number].popleft()

    outcomes = [decoder.decode(lane(number)) for number, decoder in enumerate(decoders)]
    try:
        for outcome in cycle(outcomes):
            if (found := next(outcome, None)) is None:  # the last item came before it
                return
            yield found
    finally:
        for outcome in outcomes:
            outcome.close()  # also when `items` fails: the decoders are to be used again


def _verdict(code: int | None, seconds: float) -> Refusal:
    """Why a child ended, from its exit code; None: it went silent and had to be killed."""
    if code is None:
        return Refusal("decode_crash", "the decoder closed its answers")
    if code >= 0:
        return Refusal("decode_crash", f"the decoder ended with status {code}")
    if -code in (signal.SIGXCPU, signal.SIGALRM):
        return Refusal("decode_timeout", f"not decoded within {seconds:g} s")
    if -code == signal.SIGKILL:
        return Refusal("decode_oom", "the decoder was killed twice, as the kernel does when memory is short")
    name = next((known.name for known in signal.Signals if known == -code), f"signal {-code}")
    return Refusal("decode_crash", f"the decoder died of {name}")


class _Child:
    """A decoder process and its pipes: sends and receives at once, so that neither side can block the other."""

    def __init__(self, limits: DecodeLimits, module: str) -> None:
        path = dumps([os.path.abspath(entry) for entry in sys.path])  # it starts in "/", and may run from a zip
        environment = _ENVIRONMENT | {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
        self._complaints, complain = os.pipe()
        os.set_blocking(self._complaints, False)
        os.set_blocking(complain, False)  # what does not fit into the pipe (64 KiB) is lost, and nobody waits for it
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-B", "-c", _BOOTSTRAP, path, limits.model_dump_json(), module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complain,
                bufsize=0,
                cwd="/",
                env=environment,
                start_new_session=True,  # Ctrl-C is for the parent
            )
        except BaseException:
            os.close(self._complaints)
            raise
        finally:
            os.close(complain)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)
        for pipe in (self._in, self._out):  # so that a child has work while the parent waits for another
            with contextlib.suppress(OSError):  # the kernel may grant less
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._answers, self._both = select.poll(), select.poll()  # to wait for answers; and for room to send, too
        self._answers.register(self._out, select.POLLIN)
        self._both.register(self._out, select.POLLIN)
        self._both.register(self._in, select.POLLOUT)
        self._outgoing: deque[bytes | memoryview] = deque()
        self._received = bytearray()
        self._body_bytes = limits.body_bytes

    def send(self, raw: bytes) -> None:
        """Puts a picture behind the others; `receive` does the sending."""
        self._outgoing += (PICTURE.pack(len(raw)), raw)

    def receive(self, seconds: float) -> tuple[int, bytes, bytes]:
        """The next answer: kind, header, body.

        Raises:
            TimeoutError: it did not come in time.
            EOFError: the child has ended or closed its answers.
            ValueError: what came is no answer.
        """
        last = time.monotonic() + seconds
        while (answer := self._parsed()) is None:
            self._write()
            poll = self._both if self._outgoing else self._answers
            ready = poll.poll(max(0, math.ceil((last - time.monotonic()) * 1000)))
            if not ready:
                raise TimeoutError
            if any(descriptor == self._out for descriptor, _ in ready):
                piece = os.read(self._out, 2**16)
                if not piece:
                    raise EOFError
                self._received += piece
        return answer

    def _write(self) -> None:
        """As much as the pipe takes now."""
        try:
            while self._outgoing:
                count = os.writev(self._in, list(islice(self._outgoing, 2 * _WINDOW)))
                while self._outgoing and count >= len(self._outgoing[0]):
                    count -= len(self._outgoing.popleft())
                if count:
                    self._outgoing[0] = memoryview(self._outgoing[0])[count:]
        except BlockingIOError:
            pass
        except BrokenPipeError:  # it has ended; what it answered before can still be read
            self._outgoing.clear()

    def _parsed(self) -> tuple[int, bytes, bytes] | None:
        """The first answer of what was received, once it is whole."""
        received = self._received
        if len(received) < ANSWER.size:
            return None
        kind, head, body = ANSWER.unpack_from(received)
        if head > HEADER_BYTES or body > self._body_bytes:
            most = f"{HEADER_BYTES} and {self._body_bytes}"
            raise ValueError(f"header of {head} bytes, body of {body}; the most are {most}")
        start, end = ANSWER.size + head, ANSWER.size + head + body
        if len(received) < end:
            return None
        answer = kind, bytes(received[ANSWER.size : start]), bytes(received[start:end])
        del received[:end]
        return answer

    def exit_code(self) -> int | None:
        """Of a child that closed its answers, once it has ended; None if it has not within a second."""
        try:
            return self._process.wait(1)
        except subprocess.TimeoutExpired:
            return None

    def stop(self) -> str:
        """Kills it, leaves no zombie; what it complained of, the last 2,000 characters."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        try:
            complaint = os.read(self._complaints, 2**16).decode(errors="replace").strip()
        except BlockingIOError:
            complaint = ""
        os.close(self._complaints)
        return complaint[-2000:]
