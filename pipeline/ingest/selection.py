"""Selections: which samples of a store are used, and why each other one is not. Immutable, named, with a digest.

STORE/selections/NAME/decisions.parquet   one row a sample of the index: null, or the reason for leaving it out
STORE/selections/NAME/selection.json      the policy, counts and digests; written last
"""

import hashlib
import re
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from pipeline.ingest.store import SELECTION_SCHEMA, SELECTIONS, Split, file_sha256
from pipeline.ingest.write import replaced, write_table
from ssl_models.config import Config

if TYPE_CHECKING:
    from pipeline.ingest.store import Store

DECISIONS, CARD = "decisions.parquet", "selection.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class Selection(Config):
    """What a selection holds. `kept + sum(dropped.values())` is the number of samples in the store."""

    name: str
    store: str  # digest of the index that it refers to
    based_on: str | None  # the digest of the selection that it narrows
    policy: dict[str, Any]
    inputs: dict[str, str]  # digest of everything else that decided: evaluation sets, block-list, encoder, concepts
    kept: int
    dropped: dict[str, int]
    splits: dict[Split, int]
    notes: dict[str, Any]  # for the data card: what each stage has to say
    digest: str  # of the ids that are kept and their splits, in any order
    decisions_sha256: str
    created: str  # UTC, ISO 8601


def check_name(name: str) -> None:
    """Raises ValueError for what is no name of a selection."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name for a selection: letters, digits and _ . - only, 64 at most")


def digest_of(ids: pa.ChunkedArray, splits: pa.ChunkedArray) -> str:
    """sha256 over the sorted (id, split): the same samples have the same digest, however they were packed."""
    order = pc.sort_indices(pa.table({"id": ids, "split": splits}), [("id", "ascending"), ("split", "ascending")])
    digest = hashlib.sha256()
    for start in range(0, len(order), 2**16):
        rows = order.slice(start, 2**16)
        digest.update(
            "".join(pc.binary_join_element_wise(ids.take(rows), splits.take(rows), "\n").to_pylist()).encode()
        )
    return digest.hexdigest()


def write_selection(
    path: Path, name: str, index_sha256: str, ids: pa.ChunkedArray, splits: pa.ChunkedArray, decisions: pa.Table,
    **facts: Any,
) -> Selection:  # fmt: skip
    """Writes decisions (`SELECTION_SCHEMA`) about the samples of the store at `path`; returns the selection's card."""
    folder = path / SELECTIONS / name
    folder.mkdir(parents=True, exist_ok=True)
    kept = pc.is_null(decisions["reason"])
    ids, splits = ids.filter(kept), splits.filter(kept)
    counts = _counts(splits)
    dropped = _counts(decisions["reason"].drop_null())
    selection = Selection(
        name=name,
        store=index_sha256,
        kept=len(ids),
        dropped=dict(sorted(dropped.items())),
        splits={"train": counts["train"], "test": counts["test"]},
        digest=digest_of(ids, splits),
        decisions_sha256=write_table(decisions.cast(SELECTION_SCHEMA), folder / DECISIONS),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        **facts,
    )
    with replaced(folder / CARD) as file:
        file.write(selection.model_dump_json(indent=1).encode())
    return selection


def _counts(values: pa.ChunkedArray) -> Counter[str]:
    return Counter({entry["values"]: entry["counts"] for entry in pc.value_counts(values).to_pylist()})


def selections_of(path: Path) -> list[str]:
    """The names of a store's finished selections."""
    return sorted(card.parent.name for card in (path / SELECTIONS).glob(f"*/{CARD}"))


def read_selection(store: "Store", name: str) -> Selection:
    """The card of a selection.

    Raises:
        ValueError: there is none of that name, or it cannot be read, or belongs to another index.
    """
    check_name(name)
    path = store.path / SELECTIONS / name / CARD
    if not path.is_file():
        there = ", ".join(selections_of(store.path))
        raise ValueError(f"{store.path} has no selection {name!r}: make it with `feral select`; there are: {there}")
    try:
        selection = Selection.model_validate_json(path.read_text())
    except ValidationError as error:
        raise ValueError(f"{path} cannot be used ({error.error_count()} faults): make the selection anew") from error
    if selection.store != store.manifest.index_sha256:
        raise ValueError(f"{path} belongs to another store: make the selection anew with `feral select`")
    return selection


def read_decisions(store: "Store", name: str) -> pa.Table:
    """Reason and survivor of every sample (`SELECTION_SCHEMA`), in the order of the index.

    Raises:
        ValueError: no such selection, or its file is not the one that was written.
    """
    selection = read_selection(store, name)
    path = store.path / SELECTIONS / name / DECISIONS
    if not path.is_file() or file_sha256(path) != selection.decisions_sha256:
        raise ValueError(f"{path} is missing or was changed after it was written: make the selection anew")
    return pq.read_table(path, schema=SELECTION_SCHEMA)


def kept_numbers(store: "Store", name: str) -> np.ndarray:
    """Numbers (n,) int64 of the samples that a selection keeps, ascending."""
    kept = pc.is_null(read_decisions(store, name)["reason"])
    return np.flatnonzero(kept.to_numpy(zero_copy_only=False)).astype(np.int64)
