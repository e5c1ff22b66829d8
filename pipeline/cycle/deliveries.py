"""What lies in the watched places: sealed deliveries become dumps; what is not whole yet is not read.

A delivery is sealed once. A file that is added later makes another dump, of the added files alone; one that changed or
is missing makes the dump *drifted*, as long as it was not trained on: nothing is trained on it then.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sqlalchemy import Connection, select

from pipeline.cycle.config import Source
from pipeline.cycle.contents import SUCCESS, Contents, Drift, delivery_name, drift, read_contents, read_files
from pipeline.cycle.delivery import Delivery, delivery_of, unlisted
from pipeline.ingest.declared import MANIFEST, Declared, read_declared
from pipeline.ingest.places import Entry, place_of
from pipeline.ingest.sources import listing_digest
from pipeline.ledger.database import Ledger, Unusable
from pipeline.ledger.dumps import Moved, add_source, check_number, discover, forget, move, seal, unsealed
from pipeline.ledger.tables import delivery, dump

UNTRAINED = ("sealed", "verified", "curated")  # states in which a change of its files still matters to a dump
AT_REST = ("drifted", "quarantined")  # in these it does not, until a person decides
_FILES = (".tar", ".parquet")  # that are deliveries by themselves


@dataclass(frozen=True)
class Finding:
    """Something to tell of a delivery."""

    kind: Literal["sealed", "known", "late", "quarantined", "drifted", "waiting", "changed", "ignored"]
    name: str  # SOURCE/DELIVERY
    said: str
    dump_id: str | None = None


def look(ledger: Ledger, folder: Path, source: Source) -> Iterator[Finding]:
    """Looks through a source once: seals what is whole, finds drift. `folder`: the cycle's root.

    Raises:
        ValueError: the source cannot be listed.
        Unusable: the ledger cannot be used now.
    """
    place, file = place_of(source.root)
    if file:
        raise ValueError(f"source {source.name}: {place.shown} is a file; give the folder in which deliveries appear")
    with ledger.writing() as connection:
        add_source(connection, source.name, place.shown, source.seal, source.quota)
    children = place.children()
    yield from _gone(ledger, folder, source, {child.path.removesuffix("/") for child in children})
    for child in children:
        if refused := _refused(source, child):
            if refused != _NO_DELIVERY:
                yield Finding("ignored", f"{source.name}/{child.path}", refused)
            continue
        try:
            yield from _look_at(ledger, folder, delivery_of(source, child))
        except Unusable:  # of the ledger
            raise
        except (OSError, ValueError) as error:  # storage that fails now, a number that is taken
            yield Finding("ignored", f"{source.name}/{child.path}", f"not read: {error}")


_NO_DELIVERY = "no folder, tar or Parquet file"


def _refused(source: Source, child: Entry) -> str | None:
    if child.problem:
        return child.problem
    if not child.path.endswith(("/", *_FILES)):
        return _NO_DELIVERY
    if source.number is not None and not re.search(source.number, child.path.removesuffix("/")):
        return f"its name has no number as {source.number!r} wants it: rename it, or change `number`"
    return None


def _look_at(ledger: Ledger, folder: Path, one: Delivery) -> Iterator[Finding]:
    known = _known(ledger, one.uri)
    if one.listing in known:
        return
    if hidden := unlisted(one.entries):
        with ledger.writing() as connection:
            discover(connection, one.source.name, one.uri, one.listing)
        yield Finding("waiting", one.shown, hidden)
        return
    sealed: dict[str, Contents] = {}
    compared: dict[str, Contents] = {}
    for dump_id, state in known.values():
        contents = read_contents(folder, dump_id)
        if contents.uri == one.uri:
            sealed[dump_id] = contents
            if state not in AT_REST:
                compared[dump_id] = contents
    if not sealed:
        yield _seal(ledger, folder, one)
        return
    before, now = _files_of(sealed.values()), _files_of(compared.values())
    found = drift(now, one.place, [entry for entry in one.files if entry.path in now or entry.path not in before])
    yield from _drifted(ledger, one, compared, found)
    if found.added:
        yield _late(ledger, folder, one, next(iter(sealed)), found)
    elif compared and not found.changed and not found.missing:  # touched only, or a marker was written
        _register(ledger, one, next(iter(compared)))


def _files_of(dumps: Iterable[Contents]) -> dict[str, tuple[int, int, str]]:
    return {path: file for each in dumps for path, file in each.files.items()}


def _known(ledger: Ledger, uri: str) -> dict[str, tuple[str, str]]:
    """Listings of a delivery that a cycle sealed, oldest first, and the dumps that they are, with their states."""
    rows = (
        select(delivery.c.listing, dump.c.dump_id, dump.c.state)
        .join(dump, dump.c.dump_id == delivery.c.dump_id)
        .where(delivery.c.uri == uri, delivery.c.source_id.is_not(None))
        .order_by(delivery.c.stable_since)
    )
    with ledger.reading() as connection:
        return {listing: (dump_id, state) for listing, dump_id, state in connection.execute(rows)}


def _register(ledger: Ledger, one: Delivery, dump_id: str) -> None:
    """Notes another listing as that of a dump, so that it is not looked into again."""
    with ledger.writing() as connection:
        discover(connection, one.source.name, one.uri, one.listing)
        seal(connection, one.uri, one.listing, dump_id, files=0, size=0)


def _seal(ledger: Ledger, folder: Path, one: Delivery) -> Finding:
    with ledger.writing() as connection:
        quiet = discover(connection, one.source.name, one.uri, one.listing)
    if why := _unfinished(one, quiet):
        return Finding("waiting", one.shown, why)
    if one.number is not None:
        size = sum(entry.size for entry in one.files)
        with ledger.reading() as connection:
            check_number(connection, one.source.name, one.number, files=len(one.files), size=size)
    contents = read_files(one.place, one.uri, one.files)
    if _changed_meanwhile(one):
        return Finding("waiting", one.shown, "it changed while it was read")
    return _admit(ledger, folder, one, contents, None)


def _late(ledger: Ledger, folder: Path, one: Delivery, parent: str, found: Drift) -> Finding:
    with ledger.writing() as connection:
        quiet = discover(connection, one.source.name, one.uri, one.listing)
    if quiet < 60 * one.source.quiet_minutes:
        return Finding("waiting", one.shown, f"{len(found.added):,} file(s) came late: {_minutes(one.source, quiet)}")
    contents = read_files(one.place, one.uri, [entry for entry in one.files if entry.path in set(found.added)])
    if _changed_meanwhile(one):
        return Finding("waiting", one.shown, "it changed while it was read")
    return _admit(ledger, folder, one, contents, parent)


def _unfinished(one: Delivery, quiet: float) -> str | None:
    """Why a delivery is not whole yet."""
    if one.source.seal == "quiet":
        return _minutes(one.source, quiet) if quiet < 60 * one.source.quiet_minutes else None
    if not one.is_folder:
        return 'a single file has no place for a marker: deliver a folder, or set seal = "quiet"'
    names = {entry.path for entry in one.entries}
    if SUCCESS in names:
        return None
    if MANIFEST not in names:
        return f"neither {SUCCESS} nor {MANIFEST} is in it yet"
    declared = read_declared(one.place, one.entries)
    faults = [f"{path}: {why}" for path, why in declared.faults.items()]
    faults += [f"{damage.shard}: {damage.why}" for damage in declared.damaged]
    return f"{MANIFEST} names what is not there yet: {faults[0]}" if faults else None


def _minutes(source: Source, quiet: float) -> str:
    return f"unchanged for {quiet / 60:.1f} of {source.quiet_minutes:g} minutes"


def _changed_meanwhile(one: Delivery) -> bool:
    return listing_digest(sorted(one.place.entries(), key=lambda e: e.path)) != one.listing if one.is_folder else (
        one.place.entry(one.name) != one.entries[0]
    )  # fmt: skip


def _admit(ledger: Ledger, folder: Path, one: Delivery, contents: Contents, parent: str | None) -> Finding:
    """Makes the contents of a delivery a dump, in one transaction, unless they are one already."""
    dump_id = contents.dump_id
    false = _falsely_declared(one, contents)
    with ledger.reading() as connection:
        before = _state(connection, dump_id)
    if before in (None, "drifted"):  # what drifted may be read from here
        contents.write(folder)  # before the ledger names it
    with ledger.writing() as connection:
        sealed = seal(
            connection, one.uri, one.listing, dump_id, files=len(contents.files), size=contents.size, seq=one.number,
            parent_id=parent,
        )  # fmt: skip
        if sealed.is_new:
            move(connection, dump_id, "sealed", "quarantined" if false else "verified", false)
    size = f"{len(contents.files):,} file(s), {contents.size / 1e6:,.1f} MB"
    if unread := [entry for entry in one.files if entry.problem and entry.path in contents.files]:
        size += f", {len(unread):,} of them cannot be read, as {unread[0].path}: {unread[0].problem}"
    if not sealed.is_new:
        again = f", which drifted: `feral ledger retry {sealed.admit_no} --reason …` takes it from here"
        what = again if before == "drifted" else ": nothing new"
        return Finding("known", one.shown, f"the same bytes as dump {sealed.admit_no}{what}", dump_id)
    named = f"dump {sealed.admit_no} ({dump_id[:12]}), {size}"
    if false:
        return Finding("quarantined", one.shown, f"{named}: {false}", dump_id)
    if parent is not None:
        return Finding("late", one.shown, f"{named}, which came after it was sealed: a dump of its own", dump_id)
    return Finding("sealed", one.shown, named, dump_id)


def _falsely_declared(one: Delivery, contents: Contents) -> str | None:
    """What is wrong with the sha256 that the source's own manifest gives."""
    declared = read_declared(one.place, one.entries) if one.is_folder else Declared()
    wrong = [path for path, digest in declared.sha256.items() if contents.files.get(path, (0, 0, digest))[2] != digest]
    if not wrong:
        return None
    return f"{len(wrong):,} file(s) hold other bytes than {MANIFEST} declares, as {wrong[0]}: deliver it anew"


def _drifted(ledger: Ledger, one: Delivery, sealed: dict[str, Contents], found: Drift) -> Iterator[Finding]:
    trained = []
    for dump_id, contents in sealed.items():
        mine = tuple(path for path in found.changed if path in contents.files)
        gone = tuple(path for path in found.missing if path in contents.files)
        if not mine and not gone:
            continue
        why = f"{Drift(mine, gone, ()).said()}, after it was sealed"
        with ledger.writing() as connection:
            state = _state(connection, dump_id)
            if state in UNTRAINED:
                move(connection, dump_id, state, "drifted", why)
        if state in UNTRAINED:
            yield Finding("drifted", one.shown, why, dump_id)
        elif state not in AT_REST:
            trained.append(dump_id)
    if trained:
        if not found.added:
            _register(ledger, one, trained[0])  # told once
        done_with = "after it was done with; what is new in it is not read: deliver it under another name"
        yield Finding("changed", one.shown, f"{found.said()}, {done_with}")


def _gone(ledger: Ledger, folder: Path, source: Source, there: set[str]) -> Iterator[Finding]:
    """Deliveries that are no more: dumps that were not trained on yet drift, and what was never whole is forgotten."""
    with ledger.writing() as connection:
        for row in unsealed(connection):
            if row.source_id == source.name and delivery_name(row.uri) not in there:
                forget(connection, row.uri)
    rows = select(dump.c.dump_id, dump.c.state).where(dump.c.source_id == source.name, dump.c.state.in_(UNTRAINED))
    with ledger.reading() as connection:
        waiting = connection.execute(rows).all()
    for dump_id, state in waiting:
        contents = read_contents(folder, dump_id)
        if contents.name not in there:
            with suppress(Moved):
                with ledger.writing() as connection:
                    move(connection, dump_id, state, "drifted", f"{contents.uri} is gone")
                yield Finding("drifted", f"{source.name}/{contents.name}", "it is gone", dump_id)


def _state(connection: Connection, dump_id: str) -> str | None:
    return connection.execute(select(dump.c.state).where(dump.c.dump_id == dump_id)).scalar()
