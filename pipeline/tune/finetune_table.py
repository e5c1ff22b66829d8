"""What fine-tuning shows: with how many labels it helps to begin with the encoder of a run."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.experiment import Experiment
from pipeline.ingest.write import replaced
from pipeline.run import Run
from pipeline.tune.compare import Trial
from pipeline.tune.comparison import Spread, reach, sampling
from pipeline.tune.finetune import FOLDER, Arm, Budget
from ssl_models.objectives import OBJECTIVES, Objective

TABLE, SCORE = "table.json", "classifier_top1"


@dataclass(frozen=True)
class Row:
    """A budget in the table: top-1 of the classifiers on the test split, over the draws that have ended."""

    labels: str
    images: int
    images_seen: int
    run: Spread | None
    scratch: Spread | None
    gain: Spread | None  # of the run over from scratch, with the same labels and seed
    num_queries: int

    @property
    def differs(self) -> bool:
        """Whether the gain is more than draws and the sampling of test images explain, at 95 %."""
        if self.gain is None or self.run is None or self.scratch is None or self.gain.std is None:
            return False
        noise = sum(sampling(spread.mean, self.num_queries) for spread in (self.run, self.scratch))
        return abs(self.gain.mean) > reach([self.gain], noise)

    @property
    def cells(self) -> tuple[str, ...]:
        shown = [spread.percent() if spread else "–" for spread in (self.run, self.scratch)]
        gain = f"{100 * self.gain.mean:+.1f}" if self.gain else "–"
        return (self.labels, f"{self.images:,}", *shown, gain)


def columns(run: Run) -> tuple[str, ...]:
    """The names of a row's cells."""
    return ("labels", "images", f"from {run.path.name}, %", "from scratch, %", "gain")


def table(found: Sequence[Arm], trials: Sequence[Trial]) -> list[Row]:
    """A row a budget, in their order."""
    scores: dict[tuple[Budget, bool], dict[int, float]] = {}
    queries = {0}
    for arm in found:
        for trial in trials:
            score = trial.evaluation.score(SCORE) if trial.recipe == arm.recipe and trial.evaluation else None
            if score is not None:
                scores.setdefault((arm.budget, arm.starts), {})[trial.seed] = score.trained
                queries.add(score.num_queries)
    rows = []
    for arm in (arm for arm in found if arm.starts):
        ours, theirs = (scores.get((arm.budget, starts), {}) for starts in (True, False))
        gains = [ours[draw] - theirs[draw] for draw in sorted(ours.keys() & theirs.keys())]
        run, scratch, gain = (Spread.of(list(v)) if v else None for v in (ours.values(), theirs.values(), gains))
        seen = arm.experiment.training.images_seen
        rows.append(Row(str(arm.budget), arm.images, seen, run, scratch, gain, max(queries)))
    return rows


def verdict(rows: Sequence[Row], name: str) -> str:
    """In one line: with how many labels does it help to start from the run?"""
    judged = [row for row in rows if row.gain]
    if not judged:
        return "Nothing can be said yet: no pair of trials has ended."

    def points(some: Sequence[Row]) -> str:
        return ", ".join(f"{row.labels} ({100 * row.gain.mean:+.1f})" for row in some if row.gain)

    clear = [row for row in judged if row.differs]
    parts = {
        "better than from scratch with": [row for row in clear if row.gain and row.gain.mean > 0],
        "worse with": [row for row in clear if row.gain and row.gain.mean < 0],
        "not distinguishable from scratch with": [row for row in judged if not row.differs],
    }
    words = "; ".join(f"{what} {points(some)}" for what, some in parts.items() if some)
    single = min(row.gain.count for row in judged if row.gain) == 1
    return f"From {name}: {words}" + ("; a single draw tells no more: give --draws 3" if single else "") + "."


def explanation(found: Sequence[Arm], there: Experiment, draws: int) -> str:
    """What all trials had in common, and how to read the table."""
    experiment = found[0].experiment
    optimizer, objective = experiment.optimizer, experiment.objective
    decay = "" if optimizer.layer_decay is None else f"layer decay {optimizer.layer_decay:g}, "
    seen = sorted({arm.experiment.training.images_seen for arm in found})
    words = [
        f"Top-1 of the classifier on the test split of {Path(experiment.data.store).name}, once a trial, at its last "
        f"step; mean ± sample standard deviation over {draws} draw(s) of labels, each with its own seed.",
        f"Both sides: {optimizer.name}, rate {optimizer.learning_rate:g} per 256, {decay}"
        f"mixup {objective.mixup:g}, CutMix {objective.cutmix:g}, batches of {experiment.data.batch_size}, "
        f"{' to '.join(f'{count:,}' for count in dict.fromkeys((seen[0], seen[-1])))} images seen. These are settings "
        "for fine-tuning: a network from scratch may want other ones, and more steps.",
    ]
    if OBJECTIVES[there.objective.name].embed is not Objective.embed:
        name = there.objective.name
        words.append(f"{name} showed its encoder other pictures than these views: it begins at a disadvantage.")
    return " ".join(words)


def write_table(
    run: Run, rows: Sequence[Row], found: Sequence[Arm], trials: Sequence[Trial], explained: str, command: str
) -> Path:
    """Writes `RUN/finetune/table.json`."""
    path = run.path / FOLDER / TABLE
    content = {
        "command": command,
        "start_digest": found[0].experiment.training.start_digest,
        "explanation": explained,
        "verdict": verdict(rows, run.path.name),
        "rows": [asdict(row) for row in rows],
        "trials": [
            {"trial": trial.recipe, "draw": trial.seed, "run": trial.run, "top1": trial.accuracy(SCORE),
             "error": trial.error}
            for trial in trials
        ],
    }  # fmt: skip
    with replaced(path) as file:
        file.write(json.dumps(content, indent=1).encode("utf-8", "backslashreplace"))
    return path


def read_table(run: Run) -> dict[str, Any] | None:
    """What `write_table` wrote, with its rows as they were; None: nothing was fine-tuned from this run.

    Raises:
        ValueError: the file is none of these.
    """
    path = run.path / FOLDER / TABLE
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        for row in content["rows"]:
            row |= {name: Spread(**row[name]) if row[name] else None for name in ("run", "scratch", "gain")}
        return {**content, "columns": columns(run), "rows": [Row(**row) for row in content["rows"]]}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no table of `feral finetune`: {error}") from None
