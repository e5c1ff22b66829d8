"""What of a source is not used, and why: by reason, along the funnel, and by damaged container."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.ingest.store import Store
from pipeline.report.census import cut
from pipeline.report.reasons import FUNNEL, Stage, meaning, stage_of

EXAMPLES = 6  # of a reason
DAMAGED = 100  # containers that are listed


def refusals(store: Store) -> Iterator[dict[str, Any]]:
    """What was never admitted: there is no picture of it."""
    column = store.refused["reason"].combine_chunks().dictionary_encode()
    for code, reason in enumerate(column.dictionary.to_pylist()):
        rows = np.flatnonzero(column.indices.to_numpy() == code)
        stage = stage_of(reason)
        examples = store.refused.take(pa.array(rows[:EXAMPLES])).select(["source", "detail"]).to_pylist()
        yield {
            "reason": reason,
            "stage": stage,
            "count": len(rows),
            "meaning": meaning(stage, reason, store.manifest.config),
            "examples": [{name: cut(text) for name, text in example.items()} for example in examples],
        }


def drops(decisions: pa.Table, settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What a policy left out, although it was admitted."""
    stage: Stage = "policy"
    column = decisions["reason"].combine_chunks().dictionary_encode()
    codes = column.indices.fill_null(-1).to_numpy()
    for code, reason in enumerate(column.dictionary.to_pylist()):
        rows = np.flatnonzero(codes == code)
        stands = decisions["because"].take(pa.array(rows)).fill_null(-1).to_numpy()
        _, firsts = np.unique(np.where(stands < 0, -1 - rows, stands), return_index=True)  # of each group of copies
        firsts = np.sort(firsts)[:EXAMPLES]
        pairs = zip(rows[firsts].tolist(), stands[firsts].tolist(), strict=True)
        yield {
            "reason": reason,
            "stage": stage,
            "count": len(rows),
            "meaning": meaning(stage, reason, settings),
            "examples": [{"number": number, "because": None if other < 0 else other} for number, other in pairs],
        }


def funnel(store: Store, decisions: pa.Table, reasons: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The stages that took something, in order; `left` is what came through."""
    manifest = store.manifest
    known = manifest.seen + manifest.lost if manifest.declared is None else manifest.declared
    left = manifest.seen
    rows: list[dict[str, Any]] = [{"title": "seen", "left": left, "taken": {}}]
    if known > left:
        title = "known to be there" if manifest.declared is None else "declared"
        rows = [{"title": title, "left": known, "taken": {}}, {**rows[0], "taken": {"lost": known - left}}]
    elif manifest.declared is not None:
        rows.insert(0, {"title": "declared", "left": manifest.declared, "taken": {}})
    before = {
        stage: {row["reason"]: row["count"] for row in reasons if row["stage"] == stage}
        for stage in ("source", "decode")
    }
    alone = pc.and_(
        pc.is_null(decisions["because"]), pc.is_in(decisions["reason"], pa.array(["dup_exact", "dup_near"]))
    )
    texts = pc.if_else(alone, pc.binary_join_element_wise(decisions["reason"], "earlier", " "), decisions["reason"])
    dropped = Counter({row["values"]: row["counts"] for row in pc.value_counts(texts.drop_null()).to_pylist()})
    stages: list[tuple[str, dict[str, int]]] = [("readable", before["source"]), ("decoded", before["decode"])]
    for title, names in FUNNEL.items():
        stages.append((title, {name: dropped.pop(name) for name in names if name in dropped}))
    stages.append(("the rest", dict(dropped)))
    for title, taken in stages:
        left -= sum(taken.values())
        if taken or title in ("readable", "decoded"):
            rows.append({"title": title, "left": left, "taken": taken})
    return [*rows, {"title": "kept", "left": left, "taken": {}}]


def damage(store: Store) -> dict[str, Any]:
    damaged = store.manifest.damaged
    listed = [
        {
            **damage.model_dump(),
            "meaning": meaning(stage_of(damage.reason), damage.reason, store.manifest.config),
            "why": damage.why[:300],
        }
        for damage in damaged[:DAMAGED]
    ]
    return {
        "count": len(damaged),
        "lost": sum(damage.lost or 0 for damage in damaged),
        "unknown": sum(damage.lost is None for damage in damaged),
        "listed": listed,
    }
