"""What pages show of an evaluation: verdict, scores, health, neighbours, map, confusion, segmented pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.evaluate.examples import read_examples
from pipeline.evaluate.health import collapse
from pipeline.evaluate.protocol import Evaluation
from pipeline.evaluate.segmentation import MIOU
from pipeline.evaluate.twin import FOLDER as TWIN
from pipeline.ingest.store import Store
from pipeline.report import pictures
from pipeline.report.embedding import confusion_table, drawn_map
from pipeline.report.page import Part, link_to
from pipeline.report.scores import score_table, verdict
from pipeline.report.segmented import segmentations


def judged_content(
    evaluation: Evaluation | None,
    file: Path,
    of_store: Callable[[Callable[[Store], Any]], Part],
    twin_command: str | None = None,
) -> dict[str, Any]:
    """What `judged_scores.html` and `judged_pictures.html` show.

    Args:
        file: of the evaluation. of_store: a section that needs the store, or why there is none.
        twin_command: trains the supervised twin, where it is missing and could be.
    """
    found = of_store(lambda store: pictures.neighbours(evaluation, store)) if evaluation else Part()
    return {
        "evaluation": evaluation,
        "verdict": verdict(evaluation),
        "complaint": collapse(evaluation) if evaluation else None,
        "table": score_table(evaluation) if evaluation and evaluation.scores else None,
        "twin_report": link_to(file.parent / TWIN / "report.html", file.parent),
        "twin_command": twin_command,
        "neighbours": found,
        "agreement": pictures.agreement(found.content or []),
        "map": of_store(lambda store: drawn_map(evaluation, store)) if evaluation and evaluation.map else None,
        "confusion": confusion_table(evaluation.confusion) if evaluation and evaluation.confusion else None,
        "segmented": _segmented(evaluation, file) if evaluation and evaluation.score(MIOU) else None,
    }


def _segmented(evaluation: Evaluation, file: Path) -> Part | None:
    """None: older evaluations kept no pictures."""
    read = Part.of(lambda: read_examples(file, evaluation.encoder_digest))
    return Part(segmentations({"answer": read.content})) if read.content else read if read.missing else None
