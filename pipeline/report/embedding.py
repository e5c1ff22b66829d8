"""What the report draws of embeddings: test images in the plane, and what their classes are taken for."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.evaluate.protocol import Confusion, Evaluation
from pipeline.ingest.store import Store

# Ten colours that are told apart on light and on dark paper (Tableau's ten); further classes share the last, grey.
COLOURS = ("#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f", "#edc948", "#b07aa1", "#ff9da7", "#9c755f", "#8c8c8c")


@dataclass(frozen=True)
class DrawnMap:
    method: str
    points: tuple[tuple[float, float, str, str], ...]  # x and y in percent, colour, class
    legend: tuple[tuple[str, str], ...]  # colour, class


def drawn_map(evaluation: Evaluation, store: Store) -> DrawnMap:
    """
    Raises:
        ValueError: the store is not the one that was evaluated.
    """
    assert evaluation.map is not None
    if store.manifest.digest != evaluation.store_digest:
        raise ValueError(f"{store.path} is not the store that was evaluated")
    labels = store.column("label").to_numpy()[np.array(evaluation.map.numbers)]
    classes = store.manifest.classes
    common = [
        int(label) for label in np.argsort(-np.bincount(labels[labels >= 0], minlength=len(classes)), kind="stable")
    ]
    own = sorted(common[: len(COLOURS) - (len(common) > len(COLOURS))])  # with a colour of their own
    colour = {label: COLOURS[place] for place, label in enumerate(own)}
    points = tuple(
        (100 * x, 100 * (1 - y), colour.get(int(label), COLOURS[-1]), classes[label] if label >= 0 else "no label")
        for (x, y), label in zip(evaluation.map.points, labels, strict=True)
    )
    legend = [(colour[label], classes[label]) for label in own]
    if len(common) > len(own):
        legend.append((COLOURS[-1], f"{len(common) - len(own)} more classes"))
    return DrawnMap(evaluation.map.method, points, tuple(legend))


def confusion_table(confusion: Confusion) -> list[dict[str, Any]]:
    """A row a class: its name, its share that is answered rightly, and shares of the row by answer."""
    rows = []
    for place, (name, counts) in enumerate(zip(confusion.classes, confusion.counts, strict=True)):
        total = sum(counts)
        shares = [count / total if total else 0.0 for count in counts]
        rows.append(
            {"name": name, "total": total, "right": shares[place], "shares": list(zip(shares, counts, strict=True))}
        )
    return rows
