"""What fine-tuning shows: with how many labels it helps to begin with the encoder of a run."""

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.evaluate.convergence import MAX_IMAGES
from pipeline.evaluate.spread import Spread, reach, sampling
from pipeline.experiment import Experiment
from pipeline.ingest.write import replaced
from pipeline.run import Run
from pipeline.tune.compare import Trial
from pipeline.tune.convergence import Convergence, restored
from pipeline.tune.finetune import FOLDER, Arm, Budget
from ssl_models.objectives import OBJECTIVES, Objective

TABLE, SCORE, TOP5 = "table.json", "classifier_top1", "classifier_top5"
SPREADS = ("run", "scratch", "gain", "run_top5", "scratch_top5")  # of a row


@dataclass(frozen=True)
class Row:
    """A budget in the table: top-1 of the classifiers on the test split, over the draws that have ended; of more than
    five classes top-5, too."""

    labels: str
    images: int
    images_seen: int
    run: Spread | None
    scratch: Spread | None
    gain: Spread | None  # of the run over from scratch, with the same labels and seed
    num_queries: int
    run_top5: Spread | None = None
    scratch_top5: Spread | None = None

    @property
    def differs(self) -> bool:
        """Whether the gain is more than draws and the sampling of test images explain, at 95 %."""
        if self.gain is None or self.run is None or self.scratch is None or self.gain.std is None:
            return False
        noise = sum(sampling(spread.mean, self.num_queries) for spread in (self.run, self.scratch))
        return abs(self.gain.mean) > reach([self.gain], noise)

    def cells(self, with_top5: bool) -> tuple[str, ...]:
        shown = [self.run, self.scratch, *((self.run_top5, self.scratch_top5) if with_top5 else ())]
        run, scratch, *top5 = (spread.percent() if spread else "–" for spread in shown)
        gain = f"{100 * self.gain.mean:+.1f}" if self.gain else "–"
        return (self.labels, f"{self.images:,}", run, scratch, gain, *top5)


def lines(run: Run, rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The table as text: its columns, then a line a row."""
    with_top5 = any(row.run_top5 or row.scratch_top5 for row in rows)
    names = ("labels", "images", f"from {run.path.name}, %", "from scratch, %", "gain")
    top5 = (f"top-5 from {run.path.name}, %", "top-5 from scratch, %") if with_top5 else ()
    return [names + top5, *(row.cells(with_top5) for row in rows)]


def table(found: Sequence[Arm], trials: Sequence[Trial]) -> list[Row]:
    """A row a budget, in their order."""
    queries = {0}

    def values(name: str, budget: Budget, starts: bool) -> dict[int, float]:
        """Of each draw that has ended."""
        recipe = next(arm.recipe for arm in found if arm.budget == budget and arm.starts == starts)
        scores = {
            trial.seed: score
            for trial in trials
            if trial.recipe == recipe and trial.evaluation and (score := trial.evaluation.score(name))
        }
        queries.update(score.num_queries for score in scores.values())
        return {draw: score.trained for draw, score in scores.items()}

    def spread(values: Collection[float]) -> Spread | None:
        return Spread.of(list(values)) if values else None

    rows = []
    for arm in (arm for arm in found if arm.starts):
        ours, theirs = (values(SCORE, arm.budget, starts) for starts in (True, False))
        gains = [ours[draw] - theirs[draw] for draw in sorted(ours.keys() & theirs.keys())]
        run, scratch, gain = (spread(of) for of in (ours.values(), theirs.values(), gains))
        top5 = [spread(values(TOP5, arm.budget, starts).values()) for starts in (True, False)]
        seen = arm.experiment.training.images_seen
        rows.append(Row(str(arm.budget), arm.images, seen, run, scratch, gain, max(queries), *top5))
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
    words.append(
        f"Learning curves: the same classifiers along the way, on at most {MAX_IMAGES:,} training images whose labels "
        "were not given; the run itself may have seen these, without labels. Both sides' rates end at the same step."
    )
    return " ".join(words)


def write_table(
    run: Run,
    rows: Sequence[Row],
    curves: Sequence[Convergence],
    found: Sequence[Arm],
    trials: Sequence[Trial],
    explained: str,
    command: str,
) -> Path:
    """Writes `RUN/finetune/table.json`."""
    path = run.path / FOLDER / TABLE
    content = {
        "command": command,
        "start_digest": found[0].experiment.training.start_digest,
        "explanation": explained,
        "verdict": verdict(rows, run.path.name),
        "rows": [asdict(row) for row in rows],
        "convergence": [asdict(curve) for curve in curves],
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
            row |= {name: Spread(**row[name]) if row.get(name) else None for name in SPREADS}
        rows, curves = [Row(**row) for row in content["rows"]], content.get("convergence", [])
        return {**content, "lines": lines(run, rows), "rows": rows, "convergence": [restored(one) for one in curves]}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no table of `feral finetune`: {error}") from None
