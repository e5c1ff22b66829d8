"""A delivery as it lies in its source now."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.cycle.config import Source
from pipeline.cycle.contents import MARKERS, Contents, drift
from pipeline.ingest.places import Entry, Place, place_of
from pipeline.ingest.sources import listing_digest


@dataclass(frozen=True)
class Delivery:
    """A child of a source's root as it is now."""

    source: Source
    name: str
    place: Place
    uri: str
    entries: tuple[Entry, ...]  # sorted; with those that are no files to read
    is_folder: bool

    @property
    def shown(self) -> str:
        return f"{self.source.name}/{self.name}"

    @property
    def number(self) -> int | None:
        """That its name tells; None: the source has no numbers."""
        if self.source.number is None:
            return None
        found = re.search(self.source.number, self.name)
        assert found is not None, self.name
        return int(re.sub(r"\D", "", found[1]) or 0)

    @property
    def listing(self) -> str:
        return listing_digest(self.entries)

    @property
    def files(self) -> list[Entry]:
        """What a dump of it consists of; also what cannot be read, which curation counts as refused."""
        return [entry for entry in self.entries if entry.path not in MARKERS]


def delivery_of(source: Source, child: Entry) -> Delivery:
    name, is_folder = child.path.removesuffix("/"), child.path.endswith("/")
    place, file = place_of(child_of(source.root, name))
    entries = [child] if file else sorted(place.entries(), key=lambda entry: entry.path)
    return Delivery(source, name, place, place.shown, tuple(entries), is_folder)


def child_of(root: str, name: str) -> str:
    """The place of a delivery, as `place_of` takes it: a URI's options stay at its end."""
    path, question, options = root.partition("?") if "://" in root else (root, "", "")
    return f"{path.rstrip('/')}/{name}{question}{options}"


def unlisted(entries: Iterable[Entry]) -> str | None:
    """Which folder of a delivery cannot be listed, and why: nobody knows then what it consists of."""
    folders = (entry for entry in entries if entry.problem and (not entry.path or entry.path.endswith("/")))
    return next((f"{entry.path or 'it'} is {entry.problem}" for entry in folders), None)


def still_sealed(source: Source, contents: Contents) -> str | None:
    """How a delivery differs now from what was sealed of it; None: it does not. Files that came late do not count.

    Raises:
        ConnectionError: it cannot be listed now.
    """
    try:
        place, file = place_of(child_of(source.root, contents.name))
        entries = [place.entry(file)] if file else list(place.entries())
    except ValueError as error:  # storage that is away; what is gone drifts when it is looked for again
        raise ConnectionError(str(error)) from error
    if hidden := unlisted(entries):
        raise ConnectionError(f"{contents.uri}: {hidden}")
    found = drift(contents.files, place, [entry for entry in entries if entry.path in contents.files])
    return found.said() or None
