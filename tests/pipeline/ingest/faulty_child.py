"""A decoder child with faults, which the first bytes of a picture set off. Only tests start it."""

import json
import os
import signal
import socket
import time
from typing import Any

from pipeline.ingest import decoder_child
from pipeline.ingest.decode import Decoded
from pipeline.ingest.refusals import Refusal


def main(options: dict[str, Any]) -> None:
    decoder_child.main(options, decode)


def decode(raw: bytes, options: dict[str, Any]) -> Decoded:
    fault, _, argument = raw.decode("latin-1").partition(" ")
    if fault == "CRASH":
        os.kill(os.getpid(), signal.SIGSEGV)
    if fault == "HANG":
        time.sleep(1000)
    if fault == "SPIN":
        while True:
            pass
    if fault == "EAT":
        bytearray(64 * 2**30)
    if fault == "KILLED":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "EXIT":
        os._exit(0)
    if fault == "GARBAGE":
        os.write(_answers(), bytes.fromhex(argument))
        time.sleep(1000)
    if fault == "CLOSE":
        os.close(_answers())
        time.sleep(1000)
    if fault == "SAY":  # whatever is asked, as a detail
        raise Refusal("decode_failed", said(argument))
    return decoder_child.decode(raw, options)


def said(question: str) -> str:
    try:
        if question == "environment":
            return json.dumps(sorted(os.environ))
        if question == "folder":
            return os.getcwd()
        if question.startswith("write"):
            return str(os.write(int(question.removeprefix("write ")), b"x"))
        if question == "open":
            return str(os.open("/proc/self/environ", os.O_RDONLY))
        if question == "socket":
            return str(socket.socket().fileno())
    except OSError as error:
        return type(error).__name__ + " " + os.strerror(error.errno or 0)
    return question


def _answers() -> int:
    """The pipe to the parent: of the child's descriptors, the last that is one."""
    pipes = []
    for descriptor in range(32):
        try:
            pipes += [descriptor] * (os.fstat(descriptor).st_mode & 0o170000 == 0o010000)
        except OSError:
            continue
    return max(pipes)
