"""The page of a sweep: what is best and how sure that is, what each setting does, costs, curves, failures. Offline."""

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.report.axes import Axis, axis_of, linear, of_categories
from pipeline.report.costs import Candidate, cost_plots
from pipeline.report.learning import thinned
from pipeline.report.page import Part, link_to, write_page
from pipeline.report.plots import Line, Plot, dot, line, plot
from pipeline.train.goodput import duration
from pipeline.tune.importance import METHOD, importances
from pipeline.tune.sources import TITLES
from pipeline.tune.sweep import FILE

PAGE = "sweep.html"
STATES = ("finished", "stopped", "failed", "refused", "running")

Trial = dict[str, Any]


def write_sweep_page(directory: Path) -> Path:
    """Writes `sweep.html` from `sweep.json`, whole or not at all; what that holds says `pipeline.tune.sweep`.

    Raises:
        ValueError: there is no sweep in `directory`.
    """
    try:
        sweep = json.loads((directory / FILE).read_text())
        return write_page(directory / PAGE, "sweep_page.html", _content(directory, sweep))
    except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{directory / FILE} is no sweep of this version of `feral sweep`: {type(error).__name__} {error}"
        ) from None


def _content(directory: Path, sweep: dict[str, Any]) -> dict[str, Any]:
    trials = [
        {**trial, "link": link_to(directory / trial["run"] / "report.html", directory) if trial["run"] else None}
        for trial in sweep["trials"]
    ]
    search = [trial for trial in trials if trial["repeat"] is None]
    scored = sorted((trial for trial in search if trial["score"] is not None), key=lambda trial: trial["score"])
    metric = TITLES[sweep["metric"]]
    axes = {key: _axis(key, space, search) for key, space in sweep["space"].items()}
    log = [key for key, space in sweep["space"].items() if str(space.get("kind", "")).startswith("log")]
    return {
        "name": directory.absolute().name,
        "recipe": sweep["recipe"],
        "metric": metric,
        "counts": {state: sum(trial["state"] == state for trial in search) for state in STATES},
        "repeats": [trial for trial in trials if trial["repeat"] is not None],
        "verdict": verdict(sweep, metric),
        "facts": _facts(sweep, search, metric),
        "best": sweep["best"],
        "scored": len(scored),
        "together": sweep["concurrent"] > 1,
        "parallel": parallel(axes, scored, search, metric) if scored else None,
        "importance": Part.of(
            lambda: importances([trial["changes"] for trial in scored], [trial["score"] for trial in scored], log)
        ),
        "method": METHOD,
        "neat": neat,
        "slices": [_slice(axis, scored, trials, metric) for axis in axes.values()] if scored else [],
        "costs": cost_plots([_candidate(trial) for trial in scored], metric),
        "curves": _curves(search, scored),
        "keys": list(axes),
        "trials": sorted(trials, key=lambda trial: (trial["score"] is None, -(trial["score"] or 0), trial["number"])),
        "broken": [trial for trial in trials if trial["state"] in ("failed", "refused")],
        "stopped": [trial for trial in search if trial["state"] == "stopped"],
        "overhead": _overhead(trials),
        "command": shlex.join(sweep["command"]),
        "onward": _onward(sweep),
    }


def words(changes: dict[str, Any]) -> str:
    """Settings for people: numbers are rounded."""
    return ", ".join(f"{key}={neat(value)}" for key, value in changes.items())


def neat(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:.4g}" if isinstance(value, float) else json.dumps(value)


def verdict(sweep: dict[str, Any], metric: str) -> dict[str, Any]:
    """Tone, title and more: the best settings, and what fresh seeds say of them."""
    best, more = sweep["best"], [_sentence(sweep["why_not"])] if sweep["why_not"] else []
    if sweep["not_started"]:
        more.append(f"{sweep['not_started']} trials that were asked for were not started.")
    if best is None:
        return {"tone": "none", "title": "Nothing can be said yet: no trial has finished.", "more": more}
    settings = words(best["changes"]) or "the recipe's own settings"
    if best["score_mean"] is None:
        title = f"Best of the search, not confirmed with fresh seeds: {settings}."
        return {"tone": "close", "title": title, "more": [*_said(best), *more]}
    spread = f" ± {100 * best['score_std']:.1f}" if best["score_std"] is not None else ""
    name = "Best" if best["confirmed"] else "Best of the search"
    title = f"{name}: {settings}, {metric} {100 * best['score_mean']:.1f}{spread} % with fresh seeds."
    return {"tone": "good" if best["confirmed"] else "close", "title": title, "more": [*_said(best), *more]}


def _said(best: dict[str, Any]) -> list[str]:
    return [_sentence(best["verdict"])] if best["verdict"] else []


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].removesuffix(".") + "."


def _facts(sweep: dict[str, Any], search: Sequence[Trial], metric: str) -> list[tuple[str, str, str]]:
    seconds = sum(trial["seconds"] or 0 for trial in sweep["trials"])
    beside = sum(trial["overhead_seconds"] or 0 for trial in sweep["trials"])
    states = Counter(trial["state"] for trial in search)
    images = sweep["images_seen"]
    return [
        ("Trials", str(len(search)), ", ".join(f"{states[state]} {state}" for state in STATES if states[state])),
        ("Settings that vary", str(len(sweep["space"])), f"search {sweep['search']}, stopping {sweep['stop']}"),
        ("Judged by", metric, "on held-back training images; the test split is never read"),
        ("Images seen", f"{images:,}" if images else "varies", "by a whole trial"),
        ("Training", duration(seconds), f"and {duration(beside)} beside it"),
    ]


# ---- drawings ------------------------------------------------------------------------------------------------------


def _axis(key: str, space: dict[str, Any], trials: Sequence[Trial]) -> Axis:
    if len(space.get("values", ())) in range(1, 9):
        return of_categories(key, space["values"])
    drawn = [trial["changes"][key] for trial in trials if key in trial["changes"]]
    values = space.get("values") or [space["low"], *drawn, space["high"]]
    return axis_of(key, values, log=str(space.get("kind", "")).startswith("log"))


def _tint(trial: Trial, scored: Sequence[Trial]) -> float:
    """By rank: scores crowd at the top, where they are to be told apart."""
    return scored.index(trial) / max(1, len(scored) - 1)


def parallel(axes: dict[str, Axis], scored: Sequence[Trial], search: Sequence[Trial], metric: str) -> dict[str, Any]:
    """Parallel coordinates: an axis a setting and one for the score, a line a trial, the best drawn last. A trial
    without a score ends before it. Trials that share a category are spread around it, the better ones higher."""
    score = _score_axis(scored, metric)
    places = [100 * number / len(axes) for number in range(len(axes) + 1)]
    ended = [trial for trial in search if trial["state"] in ("stopped", "failed")]
    drawn = [*ended, *scored]
    heights = [_spread(axis, [trial["changes"][key] for trial in drawn]) for key, axis in axes.items()]
    lines = []
    for number, trial in enumerate(drawn):
        has_score = trial["score"] is not None
        ups = [height[number] for height in heights] + ([score.place(100 * trial["score"])] if has_score else [])
        points = " ".join(f"{x:.2f},{100 - up:.2f}" for x, up in zip(places, ups, strict=False))
        look = "best" if trial is scored[-1] else "" if has_score else trial["state"]
        lines.append(Line(points, _told(trial, metric), look, _tint(trial, scored) if has_score else None))
    return {"axes": list(zip(places, [*axes.values(), score], strict=True)), "lines": lines}


def _spread(axis: Axis, values: Sequence[Any]) -> list[float]:
    """Places on the axis; those of one category evenly around it, in order."""
    if not axis.categories:
        return [axis.place(value) for value in values]
    texts = [json.dumps(value) for value in values]
    totals, seen = Counter(texts), Counter[str]()
    reach = min(8.0, 30 / len(axis.ticks))  # percent to either side
    found = []
    for value, text in zip(values, texts, strict=True):
        found.append(axis.place(value) + reach * (2 * (seen[text] + 0.5) / totals[text] - 1))
        seen[text] += 1
    return found


def _score_axis(scored: Sequence[Trial], metric: str) -> Axis:
    return linear(f"{metric}, %", [100 * trial["score"] for trial in scored], near_zero=False)


def _told(trial: Trial, metric: str) -> str:
    result = trial["state"] if trial["score"] is None else f"{metric} {100 * trial['score']:.1f} %"
    return f"trial {trial['number']}, {result}: {words(trial['changes'])}"


def _slice(axis: Axis, scored: Sequence[Trial], trials: Sequence[Trial], metric: str) -> Plot:
    repeats = [trial for trial in trials if trial["repeat"] is not None and trial["score"] is not None]
    shown = [trial for trial in (*scored, *repeats) if axis.name in trial["changes"]]
    y = linear(f"{metric}, %", [100 * trial["score"] for trial in shown], near_zero=False)
    dots = [
        dot(
            axis, y, (trial["changes"][axis.name], 100 * trial["score"]), _told(trial, metric),
            look="repeat" if trial["repeat"] else "best" if trial is scored[-1] else "",
        )
        for trial in shown
    ]  # fmt: skip
    best = scored[-1]["changes"].get(axis.name)
    return replace(plot(axis.name, f"best at {neat(best)}", axis, y, dots=dots), x_name="")  # the title says it


def _candidate(trial: Trial) -> Candidate:
    return Candidate(
        f"trial {trial['number']}", trial["score"], trial["seconds"], trial["images_per_second"],
        trial["peak_memory_bytes"], trial["images"], trial["parameters"],
    )  # fmt: skip


def _curves(search: Sequence[Trial], scored: Sequence[Trial]) -> Plot | None:
    """What checkpoints showed while trials trained; coloured by the score at the end."""
    known = [trial for trial in search if trial["curve"]]
    if max((len(trial["curve"]) for trial in known), default=0) < 2:  # only the ends: nothing was judged on the way
        return None
    points = {trial["number"]: [(seen, 100 * knn) for seen, knn in trial["curve"]] for trial in known}
    every = [point for line in points.values() for point in line]
    x = linear("images seen", [seen for seen, _ in every], from_zero=True)
    y = linear("k-NN, %", [knn for _, knn in every], near_zero=False)
    drawn = sorted(known, key=lambda trial: trial["score"] or -1)
    lines, dots = [], []
    for trial in drawn:
        tint = None if trial["score"] is None else _tint(trial, scored)
        look = "" if trial["score"] is not None else "stopped" if trial["state"] == "stopped" else "failed"
        lines.append(line(x, y, thinned(points[trial["number"]]), _told(trial, "score"), look=look, tint=tint))
        if look:
            dots.append(dot(x, y, points[trial["number"]][-1], _told(trial, "score"), look=look))
    return plot("k-NN while training", f"{len(known)} trials", x, y, lines, dots)


# ---- costs and commands --------------------------------------------------------------------------------------------


def _overhead(trials: Sequence[Trial]) -> list[tuple[str, float]]:
    """What all trials spent beside steps, by bucket, the most first."""
    total: Counter[str] = Counter()
    for trial in trials:
        total.update(trial["overhead"] or {})
    return [(name, seconds) for name, seconds in total.most_common() if seconds > 0]


def _onward(sweep: dict[str, Any]) -> str | None:
    """The command that trains with the best settings."""
    if sweep["best"] is None:
        return None
    chosen = {**sweep["settings"], **sweep["best"]["changes"]}
    told = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in chosen.items()]
    return shlex.join(["feral", "pretrain", sweep["recipe"], *told])
