"""Which run a person means: a directory, or a name that the ledger knows, such as "champion"."""

import os
from pathlib import Path

from pipeline.run import Run

_FILE = "experiment.json"


def find_run(text: str, ledger: str | None = None) -> Run:
    """As `run_called`.

    Raises:
        ValueError: also where there is neither.
    """
    if found := run_called(text, ledger):
        return found
    hint = f", and no name in the ledger ({_known(ledger)})" if _is_word(text) else ""
    raise ValueError(f"{text} is no run: it has no {_FILE}{hint}; `feral pretrain` makes runs")


def run_called(text: str, ledger: str | None = None) -> Run | None:
    """The run at a path; or that of the checkpoint which a name stands for in the ledger (by default the one at
    FERAL_LEDGER, else runs/ledger.db), pinned to it. A word without a slash may be either, but not both. None: it is
    neither.

    Raises:
        ValueError: it is both, the checkpoint is not what was promoted, or the ledger cannot be used.
    """
    named = _named(text, ledger) if _is_word(text) else None
    if named is not None and Path(text).exists():
        raise ValueError(
            f"{text} is a name in the ledger, and something that lies here: write ./{text} for what lies here, or "
            f"{named.path} for the run that the ledger names"
        )
    if named is None and Path(text, _FILE).is_file():
        return Run.open(Path(text))
    return named


def _named(word: str, where: str | None) -> Run | None:
    from pipeline.ledger.database import Ledger, is_there  # SQLAlchemy: only where a name is asked for
    from pipeline.ledger.promotion import resolve

    if not is_there(where):
        return None
    with Ledger.open(where).reading() as connection:
        found = resolve(connection, word)
    return None if found is None else Run(found.run, pinned=found.digest)


def _known(where: str | None) -> str:
    from pipeline.ledger.database import BEGINS, Ledger, is_there
    from pipeline.ledger.promotion import names

    if not is_there(where):
        return f"there is none yet: {BEGINS}"
    with Ledger.open(where).reading() as connection:
        return f"it knows {', '.join(row.name for row in names(connection)) or 'none'}"


def _is_word(text: str) -> bool:
    return not any(sign in text for sign in (os.sep, ":", "@")) and text not in (".", "..")
