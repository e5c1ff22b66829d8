"""The page of one encoder on one store: what a run's report shows of its evaluation, for any encoder. Offline."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.evaluate.transfer import Judged
from pipeline.ingest.store import Store
from pipeline.report.judged import judged_content
from pipeline.report.page import Part, link_to, write_page
from pipeline.report.plane import run_plane


def encoder_page(file: Path) -> Path:
    """Where the page of an evaluation lies."""
    return file.with_suffix(".html")


def write_encoder_page(one: Judged, command: str) -> Path:
    """Writes the page beside the evaluation, whole or not at all. Where the store is gone, its pictures are."""
    opened = Part.of(lambda: Store(one.place) if one.place else None)

    def of_store(make: Callable[[Store], Any]) -> Part:
        return Part.of(lambda: make(opened.content)) if opened.content else opened

    content = judged_content(one.evaluation, one.file, of_store)
    if one.place is None:
        content["neighbours"] = None  # pictures with masks have none
    content |= {
        "one": one,
        "facts": _facts(one),
        "plane": run_plane(one.evaluation, []),
        "told_classes": True,  # nobody here knows
        "scores_file": link_to(one.file, one.file.parent),
        "command": command,
    }
    return write_page(encoder_page(one.file), "encoder_page.html", content)


def _facts(one: Judged) -> list[tuple[str, str, str]]:
    """Name, value and a remark."""
    found, health = one.evaluation, one.evaluation.health.get("trained")
    queries = max((score.num_queries for score in found.scores), default=0)
    facts = [("Encoder", one.encoder, found.checkpoint), ("Judged on", one.store, f"{queries:,} test images")]
    if health:
        facts.append(("Embedding", f"{health.dim:,} numbers", f"of {health.num_images:,} images"))
    return [*facts, ("Took", f"{found.seconds:.0f} s", f"encoder {found.encoder_digest[:12]}")]
