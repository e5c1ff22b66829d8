"""A study as a table: cells for the terminal, Markdown for a README, JSON for programs."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pipeline.ingest.write import replaced
from pipeline.tune.study import Cell, Study, agreement


def columns(study: Study) -> list[str]:
    """The names of what `lines` gives."""
    titles = [f"{title} %" for title in study.scores]
    return [*study.axes, *titles, *_published(study).values(), "random %", "images/s", "memory", "missing"]


def lines(study: Study, found: Sequence[Cell]) -> list[list[str]]:
    """A line a point, in the order of the study."""
    return [_line(study, cell) for cell in found]


def _published(study: Study) -> dict[str, str]:
    """The scores that have published numbers, and the titles of their columns."""
    known = [title for title in study.scores if any(title in point.published for point in study.points)]
    return {title: "published" if len(known) == 1 else f"published, {title}" for title in known}


def _line(study: Study, cell: Cell) -> list[str]:
    first = next(iter(study.scores))
    return [
        *(str(value) for value in cell.point.place),
        *(cell.measured[title].percent() if title in cell.measured else "–" for title in study.scores),
        *(str(cell.point.published.get(title, "–")) for title in _published(study)),
        f"{100 * cell.random[first]:.1f}" if first in cell.random else "–",
        f"{cell.images_per_second:.0f}" if cell.images_per_second else "–",
        f"{cell.peak_memory_bytes / 1e6:,.0f} MB" if cell.peak_memory_bytes else "–",
        str(cell.missing or ""),
    ]


def explanation(study: Study, found: Sequence[Cell], common: str) -> list[str]:
    """The question, what was published, what this scale shows, and what all points had in common."""
    return [
        f"{study.question[0].upper()}{study.question[1:]}",
        f"Published: {study.found} ({study.source}).",
        *(f"{line}." for line in agreement(study, found)),
        common,
    ]


def markdown(study: Study, found: Sequence[Cell], common: str, command: str) -> str:
    titles, body = columns(study), lines(study, found)
    kept = [place for place, _ in enumerate(titles) if any(line[place] not in ("", "–") for line in body)]
    table = [" | ".join(line[place] for place in kept) for line in (titles, *body)]
    ruler = "|".join(["---"] * len(kept))
    rows = "\n".join(f"| {line} |" for line in table[1:])
    said = "\n\n".join(explanation(study, found, common))
    return f"`{command}`\n\n| {table[0]} |\n|{ruler}|\n{rows}\n\n{said}\n"


def write_study(directory: Path, study: Study, found: Sequence[Cell], common: str, command: str) -> None:
    """Writes `study.json` and `study.md`."""
    content = {
        "study": study.name,
        "command": command,
        "explanation": explanation(study, found, common),
        "axes": study.axes,
        "points": [
            {
                "place": cell.point.place,
                "changes": dict(cell.point.changes),
                "measured": {title: asdict(spread) for title, spread in cell.measured.items()},
                "published": dict(cell.point.published),
                "random": cell.random,
                "images_per_second": cell.images_per_second,
                "peak_memory_bytes": cell.peak_memory_bytes,
                "missing": cell.missing,
            }
            for cell in found
        ],
    }
    for name, text in (
        ("study.json", json.dumps(content, indent=1)),
        ("study.md", markdown(study, found, common, command)),
    ):
        with replaced(directory / name) as file:
            file.write(text.encode())
