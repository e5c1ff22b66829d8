"""The page of a comparison: who leads and whether that can be trusted, scores, costs, curves, failures. Offline."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.evaluate.protocol import Evaluation
from pipeline.report.comparison import cells, columns, read_comparison, shown_columns
from pipeline.report.costs import Candidate, cost_plots
from pipeline.report.learning import loss_plots, probe_plots, read_learning
from pipeline.report.page import link_to, write_page
from pipeline.report.plane import trials_plane
from pipeline.report.tracks import Judgement, track
from pipeline.settings import settings
from pipeline.tune.compare import METHOD
from pipeline.tune.comparison import Conclusion, Measure, Row, conclusions, groups, scores_of

PAGE = "compare.html"
LABELS = "learns from labels"  # a note of a row


def write_comparison_page(directory: Path) -> Path:
    """Writes `compare.html` from `compare.json` and the records of the trials beside it, whole or not at all.

    Raises:
        ValueError: there is no comparison in `directory`.
    """
    found = read_comparison(directory)
    rows: list[Row] = found["rows"]
    trials = [{**trial, **_place(directory, trial["run"])} for trial in found["trials"]]
    learned = [
        learning
        for row in rows
        for trial in trials
        if trial["recipe"] == row.recipe
        and (learning := read_learning(row.recipe, f"seed {trial['seed']}", trial["path"]))
    ]
    experiments = {row.recipe: found["experiments"][row.recipe] for row in rows}
    content = {
        "name": directory.absolute().name,
        "command": found["command"],
        "explanation": found["explanation"],
        "ended": sum(trial["evaluation"] is not None for trial in trials),
        "planned": len(trials),
        "failed": [trial for trial in trials if trial["error"]],
        "facts": facts(rows, next(iter(experiments.values()))),
        "verdict": verdict(rows, trials),
        "shown": shown_columns(rows),
        "groups": [_group(group, trials) for group in groups(rows)],
        "losses": loss_plots(learned),
        "probes": probe_plots(learned),
        "protocols": _protocols(trials),
        "equal": equal_settings(experiments),
        "methods": [(recipe, *(_words(content[part]) for part in METHOD)) for recipe, content in experiments.items()],
    }
    return write_page(directory / PAGE, "comparison_page.html", content)


def _place(directory: Path, run: str) -> dict[str, Any]:
    """Where a run lies, also after the directory was moved; and its report, as seen from there."""
    beside = directory / "trials" / Path(run).name
    path = beside if beside.exists() else Path(run)
    return {"path": path, "report": link_to(path / "report.html", directory)}


# ---- in words ------------------------------------------------------------------------------------------------------


def facts(rows: Sequence[Row], experiment: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value and a remark of what all have in common."""
    data, encoder, training = experiment["data"], experiment["encoder"], experiment["training"]
    encoders = list(dict.fromkeys(row.encoder for row in rows))
    size = encoder["image_size"]
    return [
        ("Methods", str(len(rows)), "the same data, encoder, length and evaluation"),
        ("Encoder", ", ".join(encoders), f"sees {size} × {size} pixels"),
        ("Data", Path(data["store"]).name, f"selection {data['selection']}"),
        ("Images seen", f"{training['images_seen']:,}", f"in batches of {data['batch_size']:,}"),
        ("Precision", training["precision"], f"{experiment['cluster']['workers']} worker(s)"),
    ]


def verdict(rows: Sequence[Row], trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Tone, title and further lines: who leads, who cannot be told from it, who gained nothing, collapsed or failed."""
    found = conclusions(rows)
    if not found:
        return {"tone": "none", "title": "Nothing can be said yet: no trial has ended.", "more": _faults(rows, trials)}
    first, *others = found
    several = len({row.family for row in rows}) > 1
    more = [_sentence(one, several, first) for one in others]
    if LABELS in first.best.notes:
        without = conclusions([row for row in rows if LABELS not in row.notes])
        more = [f"Without labels: {_sentence(one, several, first)}" for one in without[:1]] + more
    more += [
        f"No better than the encoder before training ({one.title}): {', '.join(one.weak)}." for one in found if one.weak
    ]
    more += [
        f"Too few seeds to tell from the encoder before training ({one.title}): {', '.join(one.unsure)}."
        for one in found
        if one.unsure
    ]
    more += _below_pixels(rows)
    sure = first.best.recipe not in first.weak + first.unsure and not first.single and not first.close
    tone = "bad" if first.best.recipe in first.weak else "good" if sure else "close"
    return {"tone": tone, "title": _sentence(first, several), "more": more + _faults(rows, trials)}


def _sentence(one: Conclusion, several: bool, before: Conclusion | None = None) -> str:
    """What was said `before` of how far a lead can be trusted is not said again."""
    where = f"{one.title}, {one.encoder}" if several else one.title
    said = not one.reservation or (before and before.reservation == one.reservation)
    return f"{where}: {one.lead}{'' if said else f'; {one.reservation}'}."


def _below_pixels(rows: Sequence[Row]) -> list[str]:
    """How many a baseline without a network beats, by the first score."""
    name, title = next(iter(scores_of(rows).items()))
    found = [measure for row in rows if (measure := row.measures.get(name))]
    below = sum(measure.trained.mean <= measure.pixels for measure in found)
    return [f"No better than raw pixels ({title}): {below} of {len(found)} methods."] if below else []


def _faults(rows: Sequence[Row], trials: Sequence[dict[str, Any]]) -> list[str]:
    failed = [f"{trial['recipe']} seed {trial['seed']}" for trial in trials if trial["error"]]
    found = [f"{row.recipe}: {row.collapse}." for row in rows if row.collapse]
    return found + ([f"Failed: {', '.join(failed)}."] if failed else [])


# ---- a group -------------------------------------------------------------------------------------------------------


def _group(rows: list[Row], trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    lines, titles = cells(rows), columns(rows)
    measured = [row for row in rows if row.measures]
    scores = scores_of(rows)
    tracks = [track(title, [_judgement(row.measures.get(name)) for row in measured]) for name, title in scores.items()]
    name, title = next(iter(scores.items()))
    candidates = [
        Candidate(
            row.recipe, row.measures[name].trained.mean, row.seconds, row.images_per_second, row.peak_memory_bytes
        )
        for row in measured
        if name in row.measures
    ]
    judged = [
        (trial["recipe"], trial["seed"], Evaluation.model_validate({**trial["evaluation"], "neighbours": {}}))
        for row in rows
        for trial in trials
        if trial["recipe"] == row.recipe and trial["evaluation"]
    ]
    return {
        "encoder": rows[0].encoder,
        "names": [row.recipe for row in measured],
        "tracks": [one for one in tracks if one],
        "costs": cost_plots(candidates, title),
        "plane": trials_plane(judged, name),
        "columns": titles,
        "time": titles.index("time"),
        "lines": [
            {"row": row, "cells": line, "trials": [trial for trial in trials if trial["recipe"] == row.recipe]}
            for row, line in zip(rows, lines, strict=False)
        ],
        "baselines": lines[len(rows) :],
    }


def _judgement(measure: Measure | None) -> Judgement | None:
    if measure is None:
        return None
    trained, random = measure.trained, 100 * measure.random.mean
    mean, std = 100 * trained.mean, 100 * (trained.std or 0)
    text = f"{trained.percent()} % over {trained.count} seed(s); random encoder {random:.1f} %"
    return Judgement(mean, mean - std, mean + std, random, 100 * measure.pixels, measure.sign, text)


# ---- settings ------------------------------------------------------------------------------------------------------


def equal_settings(experiments: dict[str, dict[str, Any]]) -> list[tuple[str, Any]]:
    """What is the same of all, but for what methods choose."""
    flat = [settings({k: v for k, v in one.items() if k not in METHOD}) for one in experiments.values()]
    return [
        (key, value)
        for key, value in flat[0].items()
        if key != "training.seed" and all(key in one and one[key] == value for one in flat)
    ]


def _words(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings(values).items() if value is not None)


def _protocols(trials: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Title and protocol of each score, as the first trial that has it tells."""
    return list({score["name"]: score["protocol"] for trial in trials if trial["evaluation"]
                 for score in reversed(trial["evaluation"]["scores"])}.items())[::-1]  # fmt: skip
