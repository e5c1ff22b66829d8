"""Where the ledger lies: SQLite in a file by default, PostgreSQL when several machines share it.

On both there is one writer at a time, so that what a transaction has read stays true until it ends: SQLite's BEGIN
IMMEDIATE, and on PostgreSQL a lock that is held until the end of the transaction. Only commands and schedulers touch
the ledger, a few times a minute; workers never do.
"""

import os
import shlex
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.pool import NullPool

from pipeline.ledger.migrations import HEAD, migrate, revision

VARIABLE, DEFAULT = "FERAL_LEDGER", "runs/ledger.db"
BEGINS = (
    f"`feral promote RUN` and `feral tick FILE` begin one; if yours lies elsewhere, name it with --ledger or {VARIABLE}"
)
# File systems of several machines (and of FUSE), whose locks and shared memory SQLite's journal cannot rely on.
NETWORK = ("nfs", "cifs", "smb", "lustre", "gpfs", "ceph", "afs", "beegfs", "gluster", "fuse.", "ocfs", "gfs", "pvfs")
_BUSY_SECONDS = 30
_WRITER = 0x666572616C  # names the lock: "feral" in ASCII
_READS = {"feral_reads": True}


class Unusable(ValueError):
    """The database cannot be reached, or others have kept it locked for too long: it may do later."""


@dataclass(frozen=True)
class Ledger:
    """An open ledger. Every function of this package takes a connection of `writing` or `reading`, so that several
    make one transaction: all of it happens, or nothing."""

    engine: Engine
    shown: str  # for people: without a password

    @classmethod
    def open(cls, where: str | None = None, *, create: bool = False) -> "Ledger":
        """The ledger at a path or URL; by default what FERAL_LEDGER names, else runs/ledger.db. An older one is
        brought to the schema of this version.

        Raises:
            ValueError: there is none and `create` is not set, it cannot be reached, lies on a network file system, or
                was written by a newer version.
        """
        url = _url(where or os.environ.get(VARIABLE) or DEFAULT)
        is_file = url.get_backend_name() == "sqlite"
        shown = url.database or "" if is_file else url.set(query={}).render_as_string(hide_password=True)
        if is_file:
            _check_file(Path(shown), create)
        ledger = cls(_engine(url), shown)
        try:
            ledger._bring_up_to_date(create)
        except DBAPIError as error:  # no database at all
            raise Unusable(ledger._said(error)) from None
        return ledger

    @property
    def named(self) -> str:
        """What comes before `feral …` in a command for a person, so that it means this ledger wherever it is typed;
        nothing before one that means the default."""
        return "" if self.shown == str(Path(DEFAULT).absolute()) else f"{VARIABLE}={shlex.quote(self.shown)} "

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction; no other writes meanwhile. An error undoes all of it."""
        try:
            with self.engine.begin() as connection:
                yield connection
        except OperationalError as error:
            raise Unusable(self._said(error)) from None

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Sees one state of the ledger, and keeps nobody from writing."""
        try:
            with self.engine.connect().execution_options(**_READS) as connection:
                yield connection
        except OperationalError as error:
            raise Unusable(self._said(error)) from None

    def _bring_up_to_date(self, create: bool) -> None:
        with self.reading() as connection:
            found = revision(connection)
        if found is not None and found > HEAD:
            raise ValueError(
                f"the ledger {self.shown} has schema {found}, and this version of feral knows {HEAD}: a newer version "
                "wrote it; use that one"
            )
        if found is None and not create:
            raise ValueError(f"{self.shown} holds no ledger yet: {BEGINS}")
        if found != HEAD:
            with self.writing() as connection:
                migrate(connection)

    def _said(self, error: DBAPIError) -> str:
        said, url = " ".join(str(error.orig).split()), self.engine.url
        for secret in (url.password, *(value for key, value in url.query.items() if "pass" in key)):
            said = said.replace(str(secret), "…") if secret else said
        return f"the ledger {self.shown} cannot be used: {said}"


def is_there(where: str | None = None) -> bool:
    """Whether there is a ledger to ask: a file that exists, or a server."""
    where = where or os.environ.get(VARIABLE) or DEFAULT
    return "://" in where or Path(where).exists()


def now(connection: Connection) -> float:
    """Unix seconds by the clock that all who use the ledger share: the server's, or this machine's."""
    if connection.dialect.name == "postgresql":
        return float(connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())
    return time.time()


def _url(where: str) -> URL:
    if "://" not in where:
        return URL.create("sqlite", database=str(Path(where).absolute()))
    try:
        url = make_url(where)
    except (ArgumentError, ValueError):
        url = URL.create("unreadable")  # it may hold a password: not repeated
    kind = url.get_backend_name()
    if kind == "sqlite" and url.database:
        return url.set(drivername="sqlite", database=str(Path(url.database).absolute()), query={})
    if kind in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    raise ValueError(
        f"a ledger is a file ({DEFAULT}) or postgresql://user@host/database, not {kind}://…: give such a one with "
        f"--ledger or {VARIABLE}"
    )


def _engine(url: URL) -> Engine:
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url, poolclass=NullPool, connect_args={"timeout": _BUSY_SECONDS})
        event.listen(engine, "connect", _prepare_sqlite)
    else:
        # a writer that is stopped for a minute loses its transaction, so that others can go on
        options = f"-c lock_timeout={_BUSY_SECONDS}s -c idle_in_transaction_session_timeout=60s"
        try:
            engine = create_engine(url, poolclass=NullPool, connect_args={"options": options, "connect_timeout": 10})
        except ImportError:
            raise ValueError(
                "a ledger on PostgreSQL needs its driver: from the checkout, pip install -e '.[postgres]'"
            ) from None
    event.listen(engine, "begin", _begin)
    return engine


def _prepare_sqlite(connection, record) -> None:
    connection.isolation_level = None  # the driver begins no transactions of its own: `_begin` does
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")
    until = time.monotonic() + _BUSY_SECONDS
    while connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):  # a new file; SQLite does not wait here
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def _begin(connection: Connection) -> None:
    reads = connection.get_execution_options().get("feral_reads", False)
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
    elif reads:
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    else:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITER})")


def _check_file(path: Path, create: bool) -> None:
    if not path.exists() and not create:
        raise ValueError(f"there is no ledger at {path}: {BEGINS}")
    if kind := network_file_system(path):
        raise ValueError(
            f"the ledger {path} would lie on {kind}, a file system of several machines, on which SQLite loses writes: "
            f"name a file on a local disk, or postgresql://user@host/database, with --ledger or {VARIABLE}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)


def network_file_system(path: Path, mounts: str | None = None) -> str | None:
    """The type of the network file system that a path lies on, or None. `mounts` is as in /proc/mounts."""
    table = Path("/proc/mounts")
    if mounts is None:
        mounts = table.read_text() if table.exists() else ""  # not Linux: nothing is known
    real, found = path.resolve(), (0, "")
    for line in mounts.splitlines():
        where, kind = line.split(" ")[1:3]
        place = Path(where.replace("\\040", " "))
        if real.is_relative_to(place):
            found = max(found, (len(place.parts), kind), key=lambda one: one[0])
    return found[1] if found[1].startswith(NETWORK) else None
