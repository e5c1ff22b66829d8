"""The child side of the guarded decoder: pictures come in on stdin, answers go out on stdout, nothing else can happen.

Frames. Picture: its length (8 bytes), its bytes. Answer: kind (1 byte), lengths of header and body (4 bytes each), the
header as JSON, the body (a JPEG, or nothing). Big-endian. Before it reads a byte the child gives up its means: memory,
time, new files, sockets and processes. It ends at the end of stdin, or by a signal.
"""

import gc
import io
import json
import math
import os
import resource
import signal
import struct
import sys
import time
from collections.abc import Callable
from typing import Any, BinaryIO, NoReturn

# Pillow would load the last two at the first picture that needs them, when no file can be opened.
from PIL import Image as images
from PIL import ImageCms, MpoImagePlugin  # noqa: F401

from pipeline.ingest.decode import FORMATS, Decoded, canonical
from pipeline.ingest.refusals import Refusal

PICTURE = struct.Struct(">Q")
ANSWER = struct.Struct(">BII")
READY, KEPT, REFUSED = range(3)
GRACE_SECONDS = 1.0  # the parent's clock is to strike first; the child's own is for when the parent is gone or busy
Options = dict[str, Any]  # fields of answers.DecodeLimits
Decode = Callable[[bytes, Options], Any]  # what it gives, `frame` makes an answer of
Frame = Callable[[Any], tuple[dict[str, Any], bytes]]  # header and body


def decode(raw: bytes, options: Options) -> Decoded:
    """The real work. Raises: Refusal."""
    return canonical(
        raw,
        options["side"],
        options["quality"],
        min_side=options["min_side"],
        max_pixels=options["max_pixels"],
        encode=options["encode"],
    )


def frame(result: Decoded) -> tuple[dict[str, Any], bytes]:
    measures = vars(result.measures) | {"thumb": result.measures.thumb.hex()}
    header = {name: value for name, value in vars(result).items() if name != "jpeg"}
    return header | {"measures": measures}, result.jpeg


def main(options: Options, decode: Decode = decode, frame: Frame = frame) -> NoReturn:
    """Serves until the end of stdin."""
    pictures = open(0, "rb", buffering=2**18, closefd=False)  # noqa: SIM115
    answers = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)  # a library that prints must not break a frame
    rehearse(options)  # loads what Pillow loads late
    confine(options["memory_bytes"])
    rehearse(options)  # a child that cannot decode under the limits must not start
    _write(answers, READY, {}, b"")
    os.dup2(null, 2)  # libtiff is talkative
    while (raw := _read(pictures)) is not None:
        _allow(options["seconds"])
        answer = _answer(raw, options, decode, frame)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _write(answers, *answer)
    os._exit(0)


def confine(memory_bytes: int) -> None:
    """Gives up means for good: address space above what is in use, new file descriptors (so sockets too), bytes in
    files, core dumps and, unless it runs as root, new processes and threads."""
    with open("/proc/self/statm") as table:
        in_use = int(table.read().split()[0]) * resource.getpagesize()
    with os.scandir("/proc/self/fd") as entries:
        highest = max(int(entry.name) for entry in entries)  # counts the listing's own
    for kind, most in (
        (resource.RLIMIT_AS, in_use + memory_bytes),
        (resource.RLIMIT_NOFILE, highest),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for end in (signal.SIGALRM, signal.SIGXCPU):
        signal.signal(end, signal.SIG_DFL)
    for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # they mean the parent, whose end is seen on stdin
        signal.signal(other, signal.SIG_IGN)


def rehearse(options: Options) -> None:
    """Decodes one good picture of each format."""
    for format in FORMATS:
        buffer = io.BytesIO()
        images.new("RGB", (16, 16), "gray").save(buffer, format)
        decode(buffer.getvalue(), options | {"min_side": 1, "max_pixels": 256, "encode": True})
    gc.collect()
    gc.freeze()  # what is there now stays: collections need not look at it


def _allow(seconds: float) -> None:
    """From now on, `seconds` of processor time and of wall clock, and a little; then the kernel ends this process."""
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    most = math.ceil(time.process_time() + seconds + GRACE_SECONDS)
    resource.setrlimit(resource.RLIMIT_CPU, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    signal.setitimer(signal.ITIMER_REAL, seconds + GRACE_SECONDS)


def _answer(raw: bytes, options: Options, decode: Decode, frame: Frame) -> tuple[int, dict[str, Any], bytes]:
    try:
        return KEPT, *frame(decode(raw, options))
    except Refusal as refusal:
        return REFUSED, {"reason": refusal.reason, "detail": refusal.detail}, b""
    except MemoryError:
        return REFUSED, {"reason": "decode_oom", "detail": "does not fit in memory"}, b""


def _read(pictures: BinaryIO) -> bytes | None:
    """The next picture; None at the end."""
    size = pictures.read(PICTURE.size)
    if len(size) < PICTURE.size:
        return None
    (length,) = PICTURE.unpack(size)
    raw = pictures.read(length)
    return raw if len(raw) == length else None


def _write(answers: int, kind: int, header: dict[str, Any], body: bytes) -> None:
    head = json.dumps(header).encode()
    frame = memoryview(ANSWER.pack(kind, len(head), len(body)) + head + body)
    try:
        while frame:
            frame = frame[os.write(answers, frame) :]
    except BrokenPipeError:  # the parent is gone
        sys.exit(0)
