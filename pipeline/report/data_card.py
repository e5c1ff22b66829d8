"""The data card of a sealed store: can one train on this, what was lost, and why? A page and the same as data."""

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.ingest.config import CurateConfig
from pipeline.ingest.samples import printable
from pipeline.ingest.selection import read_decisions, read_selection
from pipeline.ingest.store import DATA_CARD, DATA_CARD_JSON, DEFAULT, SELECTIONS, Store
from pipeline.ingest.write import replaced
from pipeline.report import census, losses, recorded
from pipeline.report.histograms import drawing
from pipeline.report.page import render
from pipeline.report.thumbnails import thumbnails
from pipeline.report.verdict import SUSPICIOUS, share, verdict
from pipeline.select.policy import PRESETS, Policy
from pipeline.select.selecting import Stages

CARD = 1  # version of the data's schema
LIMITS = (
    "Perceptual hashes find copies that were resized, recompressed or slightly recoloured; they miss mirrored, cropped "
    "and rotated ones.",
    "The language of a caption is a guess, and a weak one for short captions and between close languages.",
    "Entropy, sharpness and spread are measured of the stored, smaller picture; low values are no proof of a bad one.",
    "Nothing here looks for people, violence or abuse: only the operator's block-list does, for what it names.",
    "Origins are what the source says of itself; rights and consent are not known.",
)


def write_data_card(store: Store, selection: str = DEFAULT) -> Path:
    """Writes `data_card.html` and `data_card.json` of a selection, each whole or not at all; returns the page's path.

    Raises:
        ValueError: there is no such selection, or its files were changed.
    """
    folder = store.path if selection == DEFAULT else store.path / SELECTIONS / selection
    card = data_card(store, selection)
    with replaced(folder / DATA_CARD_JSON) as file:
        file.write(json.dumps(card, indent=1).encode())  # ASCII: what captions hold steers no terminal
    with replaced(folder / DATA_CARD) as file:
        file.write(_page(store, card).encode("utf-8", "backslashreplace"))
    return folder / DATA_CARD


def data_card(store: Store, selection: str = DEFAULT) -> dict[str, Any]:
    """All that the card says, as JSON data. Samples are named by number; `samples` says who they are.

    - card: version of this schema
    - store: source, in_place, created, listing, digest, index_sha256, path, shards, shard_bytes, source_bytes
    - selection: name, digest, based_on, created, policy (name of the preset, or None), splits, inputs, notes
    - verdict: tone (good, close, bad), title, concerns
    - counts: declared (None: not told), lost, seen, admitted, kept, captioned, captions_dropped, blocked_since
    - funnel: title, left, taken ({reason: count}) of each stage, in order
    - reasons: reason, stage (source, decode, policy), count, meaning, examples (source and detail; or number and
      because), the most frequent first
    - histograms: name, title, unit, log, whole, edges, kept, dropped, kept_median, dropped_median, thresholds
    - categories: name, title, unit, distinct, rows (value, kept, dropped)
    - clusters: count, copies, largest (survivor, dropped_too, size, reasons, members)
    - damage: count, lost (known), unknown (containers that do not tell), listed (reason, shard, saved ...)
    - origins: count, most_kept, largest (origin, admitted, kept)
    - captions: count, distinct, repeated (caption, samples, kept)
    - seconds: stage, seconds, images_per_second (samples seen), summed (over parallel tasks)
    - settings: group, name, value, default, changed, meaning
    - commands: again, other
    - limits: sentences
    - samples: number, id, source, width, height (of the source's picture), caption (None: none, or withheld), shown
      (False: on the block-list, never to be shown)
    """
    manifest, chosen = store.manifest, read_selection(store, selection)
    decisions = read_decisions(store, selection)
    kept = pc.is_null(decisions["reason"]).to_numpy(zero_copy_only=False)
    blocked, private = (_dropped_as(decisions, reason) for reason in ("blocklisted", "caption_private"))
    blocked_now = store.blocked
    blocked[blocked_now] = True
    policy, stages = recorded.policy_of(chosen)
    thresholds = {**Policy().model_dump(mode="json"), **policy}
    groups = census.clusters(decisions)
    reasons = [*losses.refusals(store), *losses.drops(decisions, thresholds)]
    reasons.sort(key=lambda row: (-row["count"], row["stage"], row["reason"]))
    named = sorted({number for number in _numbers(reasons, groups) if number is not None})
    who = census.samples(store, named, set(np.flatnonzero(blocked | private).tolist()))
    card = {
        "card": CARD,
        "store": {
            "path": str(store.path),
            **manifest.model_dump(mode="json", include={"source", "in_place", "created", "listing", "digest"}),
            "index_sha256": manifest.index_sha256,
            "shards": len(manifest.shards),
            "shard_bytes": sum(shard.bytes for shard in manifest.shards),
            "source_bytes": pc.sum(store.column("bytes")).as_py() or 0,
        },
        "selection": {
            **chosen.model_dump(mode="json", include={"name", "digest", "based_on", "created", "splits", "inputs"}),
            "policy": recorded.preset(policy),
            "notes": chosen.notes,
        },
        "counts": {
            **manifest.model_dump(include={"declared", "lost", "seen", "admitted", "captions_dropped"}),
            "kept": chosen.kept,
            "captioned": _captioned(store, kept),
            "blocked_since": int(kept[blocked_now].sum()),
        },
        "funnel": losses.funnel(store, decisions, reasons),
        "reasons": reasons,
        "histograms": census.histograms(store, kept, thresholds),
        "categories": census.categories(store, kept),
        "clusters": groups,
        "damage": losses.damage(store),
        "origins": census.origins(store, kept),
        "captions": census.captions(store, kept, blocked | private),
        "seconds": [
            {
                "stage": name.removeprefix("tasks: "),
                "seconds": seconds,
                "images_per_second": round(manifest.seen / seconds, 1) if seconds else None,
                "summed": name.startswith("tasks: "),
            }
            for name, seconds in manifest.seconds.items()
        ],
        "settings": [
            *recorded.settings("curation", manifest.config, CurateConfig, CurateConfig().model_dump(mode="json")),
            *recorded.settings("policy", policy, Policy, PRESETS["clean"][0].model_dump(mode="json")),
            *recorded.settings("stages", stages, Stages, {}),
        ],
        "commands": recorded.commands(store, chosen),
        "limits": list(LIMITS),
        "samples": [{**row, "shown": not blocked[row["number"]]} for row in who],
    }
    return {**card, "verdict": verdict(card)}


def _page(store: Store, card: dict[str, Any]) -> str:
    samples = {sample["number"]: sample for sample in card["samples"]}
    wanted = [number for number in _numbers(card["reasons"], card["clusters"]) if number is not None]
    allowed = [(number, samples[number]["id"]) for number in wanted if samples[number]["shown"]]
    content = {
        **card,
        "samples": samples,
        "pictures": thumbnails(store, allowed),
        "presets": {name: about for name, (_, about) in PRESETS.items()},
        "suspicious": SUSPICIOUS,
    }
    content["notes"] = recorded.notes(read_selection(store, card["selection"]["name"]))
    return render(
        "data_card.html", content, share=share, duration=duration, date=date, shown=printable, drawn=drawing,
        name=lambda path: path.rstrip("/").rpartition("/")[2],
    )  # fmt: skip


def _dropped_as(decisions: pa.Table, reason: str) -> np.ndarray:
    """(n,) bool"""
    return pc.equal(decisions["reason"], reason).fill_null(False).to_numpy(zero_copy_only=False).copy()


def _captioned(store: Store, kept: np.ndarray) -> int:
    lengths = pc.list_value_length(store.column("captions")).fill_null(0).to_numpy()
    return int((kept & (lengths > 0)).sum())


def _numbers(reasons: list[dict[str, Any]], groups: dict[str, Any]) -> Iterator[int | None]:
    """The samples that the card shows, as often as it does."""
    for row in reasons:
        if row["stage"] == "policy":
            for example in row["examples"]:
                yield from (example["number"], example["because"])
    for group in groups["largest"]:
        yield from (group["survivor"], *group["members"])


# ---- filters of the template ---------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def date(created: str) -> str:
    """An ISO 8601 time for people."""
    return datetime.fromisoformat(created).strftime("%Y-%m-%d %H:%M UTC")
