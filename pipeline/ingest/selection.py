"""Selections: which samples of a store are used and how often, and why each other one is not. Immutable, named, with a
digest.

STORE/selections/NAME/decisions.parquet   one row a sample of the index: its weight, or the reason for leaving it out
STORE/selections/NAME/train.npy           numbers of the samples that are kept for training, ascending; test.npy, too
STORE/selections/NAME/train_weights.npy   entries of each of them in an epoch; not there if each has one
STORE/selections/NAME/selection.json      the policy, counts and digests; written last

The stream maps the .npy files into memory: opening them takes no time and no memory, for any number of samples.
"""

import hashlib
import math
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

from pipeline.ingest.store import DEFAULT, SELECTION_SCHEMA, SELECTIONS, SealedFile, Split, file_sha256
from pipeline.ingest.write import replaced, sealed_file, write_table
from ssl_models.config import Config

if TYPE_CHECKING:
    from pipeline.ingest.store import Store

DECISIONS, CARD = "decisions.parquet", "selection.json"
TRAIN_WEIGHTS = "train_weights.npy"
COMPARED_BYTES = 2**24  # of a file that is mapped: up to here all of it is compared when it is opened, else its size
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
    weights: dict[str, float]  # least, most and sum over the training samples; empty: each counts once
    notes: dict[str, Any]  # for the data card: what each stage has to say
    digest: str  # of the ids that are kept, their splits and, if there are any, their weights, in any order
    files: tuple[SealedFile, ...]
    created: str  # UTC, ISO 8601

    @property
    def entries(self) -> int:
        """Training samples in an epoch, each as often as its weight says."""
        return int(self.weights["sum"]) if self.weights else self.splits["train"]


def check_name(name: str) -> None:
    """Raises ValueError for what is no name of a selection."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name for a selection: letters, digits and _ . - only, 64 at most")


def digest_of(ids: pa.ChunkedArray, splits: pa.ChunkedArray, weights: pa.ChunkedArray) -> str:
    """sha256 over the sorted (id, split, weight): the same samples have the same digest, however they were packed.

    Weights (float32) only count if one of them is not 1.
    """
    columns = {"id": ids, "split": splits, "weight": weights}
    order = pc.sort_indices(pa.table(columns), [(name, "ascending") for name in columns])
    digest = hashlib.sha256()
    for start in range(0, len(order), 2**16):
        rows = order.slice(start, 2**16)
        digest.update(
            "".join(pc.binary_join_element_wise(ids.take(rows), splits.take(rows), "\n").to_pylist()).encode()
        )
    if _weighted(weights):
        digest.update(weights.take(order).to_numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def _weighted(weights: pa.ChunkedArray) -> bool:
    return bool(pc.any(pc.not_equal(weights, 1)).as_py())


def write_selection(
    path: Path, name: str, index_sha256: str, ids: pa.ChunkedArray, splits: pa.ChunkedArray, decisions: pa.Table,
    **facts: Any,
) -> Selection:  # fmt: skip
    """Writes decisions (`SELECTION_SCHEMA`) about the samples of the store at `path`; returns the selection's card."""
    folder = path / SELECTIONS / name
    folder.mkdir(parents=True, exist_ok=True)
    decisions = decisions.cast(SELECTION_SCHEMA)
    kept = pc.is_null(decisions["reason"])
    numbers = np.flatnonzero(kept.to_numpy(zero_copy_only=False)).astype(np.int64)
    ids, splits, weights = ids.filter(kept), splits.filter(kept), decisions["weight"].filter(kept).fill_null(1)
    train = pc.equal(splits, "train").to_numpy(zero_copy_only=False)
    arrays = {"train.npy": numbers[train], "test.npy": numbers[~train]}
    summary = {}
    if _weighted(weights):
        arrays[TRAIN_WEIGHTS] = each = weights.to_numpy()[train]
        summary = {"least": float(each.min()), "most": float(each.max()), "sum": float(each.sum(dtype=np.float64))}
    for file_name, array in arrays.items():
        with replaced(folder / file_name) as file:
            np.save(file, array)
    write_table(decisions, folder / DECISIONS)
    dropped = _counts(decisions["reason"].drop_null())
    selection = Selection(
        name=name,
        store=index_sha256,
        kept=len(ids),
        dropped=dict(sorted(dropped.items())),
        splits={"train": int(train.sum()), "test": int((~train).sum())},
        weights=summary,
        digest=digest_of(ids, splits, weights),
        files=tuple(sealed_file(folder / file_name) for file_name in (DECISIONS, *arrays)),
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
    """Reason, survivor and weight of every sample (`SELECTION_SCHEMA`), in the order of the index.

    Raises:
        ValueError: no such selection, or its file is not the one that was written.
    """
    return pq.read_table(_unchanged(store, read_selection(store, name), DECISIONS), schema=SELECTION_SCHEMA)


def kept_numbers(store: "Store", name: str, split: Split) -> np.ndarray:
    """Numbers (n,) int64 of the samples of a split that a selection keeps, ascending; mapped, read-only.

    Raises:
        ValueError: as `read_decisions`; of a large file only the size is compared.
    """
    return _mapped(_unchanged(store, read_selection(store, name), f"{split}.npy", COMPARED_BYTES))


def kept_weights(store: "Store", name: str, split: Split) -> np.ndarray | None:
    """Entries (n,) float32 that an epoch has of each of the `kept_numbers`; None: one of each; mapped, read-only.

    Raises:
        ValueError: as `kept_numbers`.
    """
    selection = read_selection(store, name)
    if split == "test" or not selection.weights:
        return None
    return _mapped(_unchanged(store, selection, TRAIN_WEIGHTS, COMPARED_BYTES))


def check_selection(store: "Store", name: str) -> list[str]:
    """What is wrong with a selection's files, a sentence each; all of every file is compared."""
    try:
        selection = read_selection(store, name)
    except ValueError as error:
        return [str(error)]
    folder = store.path / SELECTIONS / name
    faults = [fault for sealed in selection.files if (fault := _fault(folder, sealed))]
    if name == DEFAULT and selection.digest != store.manifest.selection:
        faults.append(f"{folder / CARD} is not the one that the store was sealed with")
    return faults


def _unchanged(store: "Store", selection: Selection, file_name: str, compared_bytes: float = math.inf) -> Path:
    """The path of a selection's file. Raises ValueError: it is not the one that was written."""
    folder = store.path / SELECTIONS / selection.name
    sealed = next((sealed for sealed in selection.files if sealed.name == file_name), None)
    fault = _fault(folder, sealed, compared_bytes) if sealed else f"{folder / CARD} names no {file_name}"
    if fault:
        raise ValueError(f"{fault}: restore it, or make the selection anew with `feral select`")
    return folder / file_name


def _fault(folder: Path, sealed: SealedFile, compared_bytes: float = math.inf) -> str | None:
    path = folder / sealed.name
    if not path.is_file():
        return f"{path} is missing"
    if path.stat().st_size != sealed.bytes or (sealed.bytes <= compared_bytes and file_sha256(path) != sealed.sha256):
        return f"{path} was changed after it was written"
    return None


def _mapped(path: Path) -> np.ndarray:
    return np.asarray(np.load(path, mmap_mode="r"))
