"""The page of encoders on stores: who is best on which, beside itself before training and raw pixels. Offline."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.evaluate.examples import read_examples
from pipeline.evaluate.protocol import Score
from pipeline.evaluate.spread import reach
from pipeline.evaluate.transfer import SHOWN, Judged
from pipeline.report.encoder_page import encoder_page
from pipeline.report.page import link_to, write_page
from pipeline.report.scores import SCORE_TITLES
from pipeline.report.segmented import Segmentations, segmentations
from pipeline.report.tracks import Judgement, track

PAGE = "table.html"
DRAWN = 2  # scores, the first that a store allows


def write_transfer_page(folder: Path, found: Sequence[Judged], command: str) -> Path:
    """Writes `table.html` beside the evaluations in `folder`, whole or not at all."""
    stores = list(dict.fromkeys(one.store for one in found))
    parts = [_part(folder, store, [one for one in found if one.store == store]) for store in stores]
    content = {
        "encoders": list(dict.fromkeys(one.encoder for one in found)),
        "stores": stores,
        "command": command,
        "verdict": verdict(parts),
        "parts": parts,
        "matrix": _matrix(parts) if len(stores) > 1 else None,
    }
    return write_page(folder / PAGE, "transfer_page.html", content)


def _part(folder: Path, store: str, judged: Sequence[Judged]) -> dict[str, Any]:
    """One store: its scores, the encoders best first by the first of them."""
    names = [name for name in SHOWN if any(one.evaluation.score(name) for one in judged)]
    order = sorted(judged, key=lambda one: -_value(one, names[0]) if names else 0)
    tracks = [track(SCORE_TITLES[name], [_judgement(one.evaluation.score(name)) for one in order]) for name in names]
    protocols = {s.name: s.protocol for one in order for s in one.evaluation.scores if s.name in names}
    return {
        "store": store,
        "names": names,
        "titles": [SCORE_TITLES[name] for name in names],
        "tracks": [one for one in tracks if one][:DRAWN],
        "judged": order,
        "rows": [
            (one, [one.evaluation.score(name) for name in names], link_to(encoder_page(one.file), folder))
            for one in order
        ],
        "queries": max((s.num_queries for one in order for s in one.evaluation.scores), default=0),
        "protocols": [(SCORE_TITLES[name], protocols[name]) for name in names],
        "segmented": _segmented(order),
        "skipped": [(one.encoder, reason) for one in order for reason in one.evaluation.skipped],
    }


def _segmented(judged: Sequence[Judged]) -> Segmentations | None:
    """The same pictures with the answers of each encoder; None: of a store, or of older evaluations."""
    found = {one.encoder: read_examples(one.file, one.evaluation.encoder_digest) for one in judged if not one.place}
    kept = {name: examples for name, examples in found.items() if examples}
    return segmentations(kept) if kept else None


def _value(one: Judged, name: str) -> float:
    score = one.evaluation.score(name)
    return score.trained if score else -1.0


def _judgement(score: Score | None) -> Judgement | None:
    if score is None:
        return None
    value, low, high, random, pixels = (
        100 * share for share in (score.trained, *score.reach, score.random_encoder, score.raw_pixels)
    )
    text = f"{value:.1f} %, {low:.1f} to {high:.1f}; untrained {random:.1f} %"
    return Judgement(value, low, high, random, pixels, "better" if beats(score) else "weak", text)


def beats(score: Score) -> bool:
    """Whether it is better than before training by more than the sampling of test images explains, at 95 %."""
    noise = _variance(score, score.trained) + _variance(score, score.random_encoder)
    return score.trained - score.random_encoder > reach([], noise)


def _variance(score: Score, share: float) -> float:
    """Of a share that was measured as the trained one was: what that one's interval says, scaled as a binomial's."""
    low, high = score.reach
    own = score.trained * (1 - score.trained)
    return ((high - low) / 2 / 1.96) ** 2 * (share * (1 - share) / own if own else 1.0)


# ---- in words ------------------------------------------------------------------------------------------------------


def verdict(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A sentence a store: who leads, who cannot be told from it, who is no better than untrained or than pixels."""
    lines = [line for part in parts for line in _said(part)]
    if not lines:
        return {"tone": "none", "title": "No score could be computed.", "more": []}
    clear = all(part["names"] and not _close(part) and _sound(part) for part in parts)
    return {"tone": "good" if clear else "close", "title": lines[0], "more": lines[1:]}


def _sound(part: dict[str, Any]) -> bool:
    """Whether the best encoder beats what costs nothing."""
    score = part["judged"][0].evaluation.score(part["names"][0])
    return score is not None and beats(score) and score.trained > score.raw_pixels


def _close(part: dict[str, Any]) -> list[str]:
    """Encoders that the first score does not tell from the best one."""
    scores = [(one.encoder, score) for one in part["judged"] if (score := one.evaluation.score(part["names"][0]))]
    best = scores[0][1]

    def near(score: Score) -> bool:
        noise = _variance(best, best.trained) + _variance(score, score.trained)
        return best.trained - score.trained <= reach([], noise)

    return [name for name, score in scores[1:] if near(score)]


def _said(part: dict[str, Any]) -> Iterator[str]:
    if not part["names"]:
        return
    name, title = part["names"][0], part["titles"][0]
    scores = [(one.encoder, score) for one in part["judged"] if (score := one.evaluation.score(name))]
    leader, score = scores[0]
    line = f"{part['store']}, {title}: {leader}" + (" leads with" if len(scores) > 1 else " has")
    close = _close(part)
    told = f"; not distinguishable from it: {', '.join(close)}" if close else ""
    yield f"{line} {score.shown(score.trained)}{told}."
    weak = [encoder for encoder, one in scores if not beats(one)]
    if weak:
        yield f"{part['store']}: not better than untrained: {', '.join(weak)}."
    below = [encoder for encoder, one in scores if one.trained <= one.raw_pixels]
    if below:
        yield f"{part['store']}: not better than raw pixels: {', '.join(below)}."


def _matrix(parts: Sequence[dict[str, Any]]) -> list[tuple[str, list[tuple[Score | None, bool]]]]:
    """Encoders by stores, the first score of each store; and whether it is the best of its store."""
    encoders = dict.fromkeys(one.encoder for part in parts for one in part["judged"])
    rows = []
    for encoder in encoders:
        cells = []
        for part in parts:
            mine = next((one for one in part["judged"] if one.encoder == encoder), None)
            score = mine.evaluation.score(part["names"][0]) if mine and part["names"] else None
            cells.append((score, mine is part["judged"][0]))
        rows.append((encoder, cells))
    return rows
