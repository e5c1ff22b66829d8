"""The verdict of a data card: can one train on this, and what should a person look at first?"""

from collections import Counter
from typing import Any

SUSPICIOUS = 10_000  # samples in one group of copies
LOST, TAKEN, DOMINANT = 0.05, 0.2, 0.5  # shares: of the source, of what was seen, of what is kept
_STARTS = {"good": "Ready to train", "close": "Usable, but look first", "bad": "Do not train on this yet"}


def verdict(card: dict[str, Any]) -> dict[str, Any]:
    """Tone, title and concerns, from the other parts of a data card.

    Bad: nothing to train on, or over 5 % of the source was lost. Close: anything else that a person should see.
    """
    counts = card["counts"]
    seen, kept, lost = counts["seen"], counts["kept"], counts["lost"]
    bad, close = [], []
    if not card["selection"]["splits"].get("train"):
        bad.append("No training picture is left.")
    if lost > LOST * (seen + lost):
        bad.append(f"{lost:,} samples, {share(lost / (seen + lost))} of the source, could not be read at all.")
    elif lost:
        close.append(f"{lost:,} samples could not be read at all.")
    close += [*_damage(card["damage"]), *_refused(card["reasons"], seen), *_kept(card)]
    tone = "bad" if bad else "close" if close else "good"
    missing = f"{lost:,} lost" if lost else "none known to be lost" if counts["declared"] is None else "none lost"
    title = f"{_STARTS[tone]}: {kept:,} of {seen:,} samples kept ({share(kept / seen if seen else 0)}), {missing}."
    return {"tone": tone, "title": title, "concerns": bad + close}


def _damage(damage: dict[str, Any]) -> list[str]:
    if damage["unknown"]:
        return [f"Damaged parts of the source that cannot tell how much is missing: {damage['unknown']:,}."]
    return [f"Damaged parts of the source: {damage['count']:,}."] if damage["count"] else []


def _refused(reasons: list[dict[str, Any]], seen: int) -> list[str]:
    taken = Counter[str]()
    for row in reasons:
        taken[row["reason"]] += row["count"]
    found = [
        f"{share(count / seen)} fell to one reason, {reason}: check that this is what you want."
        for reason, count in taken.items()
        if count > TAKEN * seen
    ]
    if hard := sum(taken[reason] for reason in ("decode_crash", "decode_timeout", "decode_oom")):
        found.append(f"Files that crashed, stalled or exhausted the decoder: {hard:,}. Keep them from other readers.")
    return found


def _kept(card: dict[str, Any]) -> list[str]:
    counts, splits, origins, clusters = card["counts"], card["selection"]["splits"], card["origins"], card["clusters"]
    found = []
    if counts["kept"] < 0.5 * counts["seen"]:
        found.append("Less than half of what was seen is kept.")
    if counts["blocked_since"]:
        found.append(f"{counts['blocked_since']:,} of the kept are on the block-list by now, and skipped when read.")
    if origins["count"] > 1 and origins["most_kept"] > DOMINANT * counts["kept"]:
        found.append(f"One origin gives {share(origins['most_kept'] / counts['kept'])} of what is kept.")
    if any(group["size"] > SUSPICIOUS for group in clusters["largest"]):
        found.append(f"A group of copies has over {SUSPICIOUS:,} members: look at it before you trust it.")
    if card["selection"]["notes"].get("near comparisons skipped"):
        found.append("Near copies may have been missed: so many pictures look alike that not all were compared.")
    if splits.get("train") and not splits.get("test"):
        found.append("There is no test picture: an encoder cannot be judged on this store.")
    return found


def share(value: float) -> str:
    """Percent, never rounded to all or nothing."""
    if 0 < value < 0.001:
        return "< 0.1 %"
    return "> 99.9 %" if 0.999 < value < 1 else f"{100 * value:.1f} %"
