"""The page of a production cycle: what is in use and since when, what waits for a person, what became of each dump."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, select

from pipeline.gate import HEADLINES
from pipeline.ledger.database import Ledger
from pipeline.ledger.overview import overview
from pipeline.ledger.resolutions import in_base
from pipeline.ledger.tables import ENDED, checkpoint, dump, evaluation, event, run, work
from pipeline.report.axes import linear, of_categories
from pipeline.report.page import Part, link_to, write_page
from pipeline.report.plots import Plot, dot, line, plot
from pipeline.report.scores import SCORE_TITLES
from pipeline.stream.batches import named_store

FILE = "index.html"  # in the root of a cycle
WAITING = ("quarantined", "drifted")  # states that a person alone ends
COMPARED = "candidate and champion of then, on the same test images"


@dataclass(frozen=True)
class Compared:
    """A score of a dump's candidate, and of the champion that it was held against; None: there was none."""

    name: str
    candidate: float
    champion: float | None


@dataclass(frozen=True)
class Line:
    """What became of a dump."""

    dump: Row
    outputs: Mapping[str, str]  # of the stages that are done
    store: Part
    verdict: Row | None  # the event of its candidate
    scores: Sequence[Compared]
    harmful: bool  # held, and nothing goes on from it
    links: Sequence[tuple[str, str | None]]

    @property
    def candidate(self) -> str | None:
        """Its run."""
        return self.outputs.get("cooldown")


def write_cycle_page(root: Path, ledger: Ledger, sources: Sequence[str], champion: str, file: Path) -> Path:
    """Writes the page of the cycle at `root` that the TOML `file` describes, whole or not at all."""
    with ledger.reading() as connection:
        found = overview(connection)
        lines = _lines(connection, root, sources)
    standing = next((row for row in found["names"] if row.name == champion), None)
    mine = {line.dump.dump_id for line in lines}
    content = {
        "champion": champion,
        "standing": standing,
        "verdict": _verdict(champion, standing, lines),
        "facts": _facts(champion, standing, lines),
        "waiting": _waiting(lines),
        "lines": lines[::-1],
        "plots": [drawn for name in HEADLINES if (drawn := _plot(name, lines)) is not None],
        "work": [row for row in found["work"] if row.dump_id in mine],
        "deliveries": [row for row in found["deliveries"] if row.source_id in sources],
        "gaps": [gap for gap in found["gaps"] if gap.source_id in sources],
        "file": file,
        "written": time.time(),
        "ledger": ledger.shown,
        "feral": f"{ledger.named}feral",
        "titles": SCORE_TITLES,
    }
    return write_page(root / FILE, "cycle_page.html", content)


def _lines(connection: Connection, root: Path, sources: Sequence[str]) -> list[Line]:
    """Of all dumps, oldest first."""
    dumps = connection.execute(select(dump).where(dump.c.source_id.in_(sources)).order_by(dump.c.admit_no)).all()
    units = connection.execute(select(work.c.dump_id, work.c.stage, work.c.output).where(work.c.state == "done")).all()
    verdicts = connection.execute(
        select(event, run.c.path.label("run"))
        .join(checkpoint, checkpoint.c.digest == event.c.checkpoint)
        .join(run, run.c.run_id == checkpoint.c.run_id)
        .order_by(event.c.event_id)
    ).all()
    judged = connection.execute(select(evaluation.c.checkpoint, evaluation.c.scores)).all()
    lines = []
    for row in dumps:
        outputs = {unit.stage: unit.output for unit in units if unit.dump_id == row.dump_id and unit.output}
        verdict = next((one for one in verdicts[::-1] if one.run == outputs.get("cooldown")), None)
        store = _store(outputs)
        own = [one.scores for one in judged if verdict is not None and one.checkpoint == verdict.checkpoint]
        harmful = row.state == "held" and not in_base(connection, row.dump_id)
        links = _links(store, outputs, root)
        lines.append(Line(row, outputs, store, verdict, _compared(verdict, own), harmful, links))
    return lines


def _store(outputs: Mapping[str, str]) -> Part:
    if "curate" not in outputs:
        return Part(missing="not curated")
    found = Part.of(lambda: named_store(outputs["curate"]))
    return found if found.content else Part(missing="its store is gone")


def _links(store: Part, outputs: Mapping[str, str], root: Path) -> list[tuple[str, str | None]]:
    pages = [("data card", store.content.path / "data_card.html")] if store.content else []
    if "cooldown" in outputs:
        pages.append(("candidate", Path(outputs["cooldown"]) / "report.html"))
    return [(name, link_to(path, root)) for name, path in pages]


def _waiting(lines: Sequence[Line]) -> list[Line]:
    """The dumps that a person decides of; one that was held for harm only until a later one was promoted."""
    promoted = max((line.dump.admit_no for line in lines if line.dump.state == "promoted"), default=0)
    return [line for line in lines if line.dump.state in WAITING or (line.harmful and line.dump.admit_no > promoted)]


def _compared(verdict: Row | None, own: Sequence[Mapping[str, float | None]]) -> list[Compared]:
    """By the gate, or of a first candidate by its evaluations; a mean, where it was judged on several stores."""
    rows = [row for row in (verdict.gate or [] if verdict is not None else []) if row["kind"] == "guard"]
    found = []
    for name in HEADLINES:
        pairs = [(row["candidate"], row["champion"]) for row in rows if row["what"] == name]
        alone = [value for scores in own if (value := scores.get(name)) is not None]
        if pairs:
            found.append(Compared(name, *(sum(values) / len(pairs) for values in zip(*pairs, strict=True))))
        elif alone:
            found.append(Compared(name, sum(alone) / len(alone), None))
    return found


def _verdict(champion: str, standing: Row | None, lines: Sequence[Line]) -> dict[str, Any]:
    waiting = _waiting(lines)
    newest = next((line for line in lines[::-1] if line.verdict is not None), None)
    held = [newest] if newest is not None and newest.dump.state == "held" and newest not in waiting else []
    said = [f"Dump {line.dump.admit_no} is {line.dump.state}: {line.dump.reason}" for line in (*waiting, *held)]
    if standing is None:
        title = f"Nothing is {champion} yet." if lines else "No dump has come yet."
    else:
        title = f"{champion} is {Path(standing.run).name}: {standing.reason}."
    tone = "close" if said else "good" if standing is not None else "none"
    return {"tone": tone, "title": title, "more": said}


def _facts(champion: str, standing: Row | None, lines: Sequence[Line]) -> list[tuple[str, str, str]]:
    """Name, value and a remark."""
    counts = [line.store.content.manifest for line in lines if line.store.content]
    seen, kept = sum(one.seen for one in counts), sum(one.kept for one in counts)
    states = [line.dump.state for line in lines]
    promoted, held, ended = states.count("promoted"), states.count("held"), sum(state in ENDED for state in states)
    facts = [
        ("Dumps", f"{len(lines):,}", f"{promoted} promoted, {held} held, {ended} not used"),
        ("Images", f"{kept:,}", f"kept of {seen:,} seen"),
    ]  # fmt: skip
    if standing is not None:
        facts.append((champion, Path(standing.run).name, f"step {standing.step:,}, {standing.digest[:12]}"))
    return facts


def _plot(name: str, lines: Sequence[Line]) -> Plot | None:
    """A score over the dumps. None: fewer than two have it."""
    pairs = [(line.dump, one) for line in lines for one in line.scores if one.name == name]
    if len(pairs) < 2:
        return None
    x = of_categories("dump", [row.admit_no for row, _ in pairs])
    values = [value for _, one in pairs for value in (one.candidate, one.champion) if value is not None]
    y = linear("", [100 * value for value in values], near_zero=False)
    dots, lanes = [], []
    for row, one in pairs:
        candidate = (row.admit_no, 100 * one.candidate)
        if one.champion is not None:
            before = (row.admit_no, 100 * one.champion)
            lanes.append(line(x, y, [before, candidate], look="front"))
            dots.append(dot(x, y, before, f"champion, on the images of dump {row.admit_no}: {before[1]:.1f} %"))
        shown = f"dump {row.admit_no}, {row.state}: {candidate[1]:.1f} %"
        dots.append(dot(x, y, candidate, shown, look="best" if row.state == "promoted" else "held"))
    return plot(f"{SCORE_TITLES[name]}, %", COMPARED, x, y, lanes, dots)
