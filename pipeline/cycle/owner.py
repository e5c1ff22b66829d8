"""Who holds a lease: a process that others on its machine can tell to be dead, so that they need not wait."""

import os
import socket
from hashlib import sha256
from pathlib import Path


def this_process() -> str:
    """A name for the ledger: host, machine, process, and when that began (process numbers come again)."""
    return f"{socket.gethostname()} {_machine()} {os.getpid()} {_began(os.getpid())}"


def is_dead(owner: str) -> bool:
    """Whether a name is of a process of this machine that is no more; False where nobody here can tell."""
    host, machine, number, began = (owner.split(" ") + [""] * 4)[:4]
    if (host, machine) != (socket.gethostname(), _machine()) or not machine or not number.isdigit():
        return False
    return _began(int(number)) != began


def _machine() -> str:
    """This boot of this machine, and in it the space of process numbers (a container has its own); "": not Linux."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        return sha256(f"{boot} {os.stat('/proc/self/ns/pid').st_ino}".encode()).hexdigest()[:12]
    except OSError:
        return ""


def _began(process: int) -> str:
    """When a process began, in ticks since the boot; "": there is none, or it is a zombie."""
    try:
        after_name = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split(" ")
    except OSError:
        return ""
    return "" if after_name[0] == "Z" else after_name[19]
