"""A comparison as a table: cells for the terminal, Markdown for a README, JSON for programs."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.evaluate.spread import Spread
from pipeline.ingest.write import replaced
from pipeline.train.goodput import duration
from pipeline.tune.compare import Contender, Trial
from pipeline.tune.comparison import Measure, Row, conclusions, groups, scores_of

COMPARISON = "compare.json"


def columns(rows: Sequence[Row]) -> tuple[str, ...]:
    """The names of what `cells` gives."""
    scores = (f"{title} %" for title in scores_of(rows).values())
    return ("method", "encoder", *scores, "Δ to random", "crops", "trained M", "images/s", "memory", "time", "note")


def shown_columns(rows: Sequence[Row]) -> list[int]:
    """Places of the columns that tell something: an encoder that all share does not."""
    several = len({row.family for row in rows}) > 1
    return [place for place, name in enumerate(columns(rows)) if name != "encoder" or several]


def cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The table as text, a group after another, each with its baselines below it."""
    lines = []
    for group in groups(rows):
        lines += [_cells(row) for row in group] + _baselines(group)
    return lines


def _cells(row: Row) -> tuple[str, ...]:
    found = [row.measures.get(name) for name in scores_of([row])]
    gains = [f"{100 * measure.gain.mean:+.1f}" for measure in found if measure]
    return (
        row.recipe,
        row.encoder,
        *(measure.trained.percent() if measure else "–" for measure in found),
        ", ".join(gains) or "–",
        row.views,
        f"{row.parameters / 1e6:.2f}",
        f"{row.images_per_second:.0f}" if row.images_per_second else "–",
        f"{row.peak_memory_bytes / 1e6:,.0f} MB" if row.peak_memory_bytes else "–",
        duration(row.seconds) if row.seconds else "–",
        "; ".join(row.notes),
    )


def _baselines(group: Sequence[Row]) -> list[tuple[str, ...]]:
    """The random encoder and raw pixels, over all that a group measured."""

    def line(name: str, note: str, value: Any) -> tuple[str, ...]:
        measured = [[row.measures[score] for row in group if score in row.measures] for score in scores_of(group)]
        values = [f"{100 * sum(map(value, some)) / len(some):.1f}" if some else "–" for some in measured]
        return (
            name,
            group[0].encoder if name == "random encoder" else "",
            *values,
            *[""] * (len(columns(group)) - 5),
            note,
        )

    def random(measure: Measure) -> float:
        return measure.random.mean

    def pixels(measure: Measure) -> float:
        return measure.pixels

    return [line("random encoder", "the same before training", random), line("raw pixels", "thumbnails", pixels)]


def explanation(found: Sequence[Contender], seeds: int, concurrent: int) -> str:
    """What all had in common, and how to read the table."""
    experiment = found[0].experiment
    data, training = experiment.data, experiment.training
    memory = "of the first GPU" if experiment.cluster.use_gpu else "resident memory of the first worker"
    words = [
        f"All: {training.images_seen:,} images seen of {Path(data.store).name} in batches of {data.batch_size}, "
        f"{experiment.encoder.image_size} px, {training.precision}, {experiment.cluster.workers} worker(s).",
        f"Mean ± sample standard deviation over {seeds} seeds." if seeds > 1 else "One seed: no spread is known.",
        "Scores are on the test split, read once a trial, at its last step; nothing was chosen by them.",
        "Δ: of both scores. Crops: global + local, that a method processes of an image. Trained M: million parameters "
        f"that are trained, heads included. Memory: peak {memory}. Time: of training, without evaluation.",
    ]
    if len({contender.family for contender in found}) > 1:
        words.append("Ranked within an encoder only.")
    if concurrent > 1:
        words.append(f"Up to {concurrent} trials ran at the same time: speeds and times do not compare.")
    return " ".join(words)


def markdown(rows: Sequence[Row], explained: str, command: str) -> str:
    """A table that is ready for a README, with the command that made it and what may be concluded."""
    lines, shown = [columns(rows), *cells(rows)], shown_columns(rows)
    text = [" | ".join(line[place].replace("|", "\\|").replace("\n", " ") for place in shown) for line in lines]
    ruler = "|".join(["---"] * len(shown))
    body = "\n".join(f"| {line} |" for line in text[1:])
    drawn = "\n".join(f"- {line}." for line in conclusions(rows))
    return f"`{command}`\n\n| {text[0]} |\n|{ruler}|\n{body}\n\n{explained}\n\n{drawn}\n"


def write_comparison(
    directory: Path,
    rows: Sequence[Row],
    trials: Sequence[Trial],
    found: Sequence[Contender],
    explained: str,
    command: str,
) -> None:
    """Writes `compare.json` and `compare.md`."""
    content = {
        "command": command,
        "explanation": explained,
        "conclusions": [str(one) for one in conclusions(rows)],
        "rows": [asdict(row) for row in rows],
        "trials": [
            {
                "recipe": trial.recipe,
                "seed": trial.seed,
                "run": trial.run,
                "error": trial.error,
                "cost": asdict(trial.cost) if trial.cost else None,
                "evaluation": trial.evaluation.model_dump(mode="json", exclude={"neighbours", "map", "confusion"})
                if trial.evaluation
                else None,
            }
            for trial in trials
        ],
        "experiments": {contender.recipe: contender.experiment.model_dump(mode="json") for contender in found},
    }
    for name, text in (
        (COMPARISON, json.dumps(content, indent=1)),
        ("compare.md", markdown(rows, explained, command)),
    ):
        with replaced(directory / name) as file:
            file.write(text.encode("utf-8", "backslashreplace"))


def read_comparison(directory: Path) -> dict[str, Any]:
    """What `write_comparison` wrote, with its rows as they were.

    Raises:
        ValueError: the file is none of these.
    """
    path = directory / COMPARISON
    try:
        content = json.loads(path.read_text())
        return {**content, "rows": [_row(row) for row in content["rows"]]}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no comparison of `feral compare`: {type(error).__name__} {error}") from None


def _row(row: dict[str, Any]) -> Row:
    measures = {
        name: Measure(**measure | {spread: Spread(**measure[spread]) for spread in ("trained", "random", "gain")})
        for name, measure in row["measures"].items()
    }
    return Row(**row | {"measures": measures, "notes": tuple(row["notes"])})
