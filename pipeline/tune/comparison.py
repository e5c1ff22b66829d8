"""What a comparison shows: means and spreads over seeds, who can be told from whom, what each method cost."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean

from pipeline.evaluate.health import collapse
from pipeline.evaluate.protocol import Evaluation, Score
from pipeline.evaluate.spread import Sign, Spread, reach, sampling
from pipeline.tune.compare import Contender, Trial

# What methods are ranked by, the first before the second: where the store has labels; where it has captions only.
CLASSES = {"knn_top1": "k-NN", "linear_top1": "linear probe"}
PAIRS = {"retrieval_image_to_text_r10": "image→text R@10", "retrieval_text_to_image_r10": "text→image R@10"}


@dataclass(frozen=True)
class Measure:
    """One score of a method over its seeds, beside its baselines."""

    trained: Spread
    random: Spread  # its encoder before training
    gain: Spread  # trained − random, of the same seed
    pixels: float
    chance: float
    num_queries: int

    @classmethod
    def of(cls, scores: Sequence[Score]) -> "Measure":
        return cls(
            trained=Spread.of([score.trained for score in scores]),
            random=Spread.of([score.random_encoder for score in scores]),
            gain=Spread.of([score.trained - score.random_encoder for score in scores]),
            pixels=fmean(score.raw_pixels for score in scores),
            chance=scores[0].chance,
            num_queries=scores[0].num_queries,
        )

    @property
    def sign(self) -> Sign:
        """Beside the random encoder. weak: the sampling of test images alone may explain the gain, at 95 %; unsure:
        that does not, but together with the spread over seeds it may; better: neither, with one seed the first."""
        noise = sum(sampling(share.mean, self.num_queries) for share in (self.trained, self.random))
        if self.gain.mean > reach([self.gain], noise):
            return "better"
        return "unsure" if self.gain.mean > reach([], noise) else "weak"


@dataclass(frozen=True)
class Row:
    """A method in the table. `measures` is empty where no seed succeeded."""

    recipe: str
    family: str
    encoder: str
    views: str
    parameters: int
    seeds: int  # that succeeded
    measures: dict[str, Measure]
    images_per_second: float | None
    seconds: float | None  # of training, mean over seeds
    peak_memory_bytes: int | None
    notes: tuple[str, ...]
    collapse: str | None = None  # names it, where embeddings of a seed collapsed

    @property
    def key(self) -> float:
        return next((measure.trained.mean for measure in self.measures.values()), -1.0)


def table(found: Sequence[Contender], trials: Sequence[Trial]) -> list[Row]:
    """A row a method: by encoder family, within it the best first."""
    rows = [_row(contender, [trial for trial in trials if trial.recipe == contender.recipe]) for contender in found]
    families = list(dict.fromkeys(row.family for row in rows))
    return sorted(rows, key=lambda row: (families.index(row.family), -row.key))


def scores_of(rows: Sequence[Row]) -> dict[str, str]:
    """The two scores that these rows are ranked by, with their titles."""
    return PAIRS if any(name in row.measures for row in rows for name in PAIRS) else CLASSES


def groups(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """The rows of one encoder family after another: only these are ranked."""
    for _, group in groupby(rows, lambda row: row.family):
        yield list(group)


def _row(contender: Contender, trials: Sequence[Trial]) -> Row:
    judged = [trial.evaluation for trial in trials if trial.evaluation is not None]
    costs = [trial.cost for trial in trials if trial.cost is not None]
    measures = {}
    labelled = any(evaluation.score("knn_top1") for evaluation in judged)
    for name in CLASSES if labelled else PAIRS:
        scores = [score for evaluation in judged if (score := evaluation.score(name)) is not None]
        if scores:
            measures[name] = Measure.of(scores)
    memory = [cost.peak_memory_bytes for cost in costs if cost.peak_memory_bytes]
    fault = _collapse(judged)
    return Row(
        recipe=contender.recipe,
        family=contender.family,
        encoder=contender.experiment.encoder.name,
        views=contender.views,
        parameters=contender.parameters,
        seeds=len(judged),
        measures=measures,
        images_per_second=fmean(cost.images_per_second for cost in costs) if costs else None,
        seconds=fmean(cost.seconds for cost in costs) if costs else None,
        peak_memory_bytes=max(memory, default=None),
        notes=((fault,) if fault else ()) + tuple(_notes(contender, trials, measures)),
        collapse=fault,
    )


def _collapse(judged: Sequence[Evaluation]) -> str | None:
    known = [evaluation for evaluation in judged if evaluation.health]
    faults = [fault for evaluation in known if (fault := collapse(evaluation))]
    if not faults:
        return None
    return faults[0] + (f", {len(faults)} of {len(known)} seeds" if len(known) > 1 else "")


def _notes(contender: Contender, trials: Sequence[Trial], measures: dict[str, Measure]) -> Iterator[str]:
    titles = CLASSES | PAIRS
    weak = [titles[name] for name, measure in measures.items() if measure.sign == "weak"]
    if weak:
        yield f"not better than the random encoder ({', '.join(weak)})"
    unsure = [titles[name] for name, measure in measures.items() if measure.sign == "unsure"]
    if unsure:
        yield f"too few seeds to tell it from the random encoder ({', '.join(unsure)})"
    below = [titles[name] for name, measure in measures.items() if measure.trained.mean <= measure.pixels]
    if below:
        yield f"not better than raw pixels ({', '.join(below)})"
    if hasattr(contender.experiment.objective, "num_classes"):
        yield "learns from labels"
    if contender.experiment.needs_text:
        yield "learns from captions"
    for trial in trials:
        if trial.evaluation is None:
            yield f"seed {trial.seed} failed: {trial.error}" if trial.error else f"seed {trial.seed} is not finished"


# ---- what may be concluded -----------------------------------------------------------------------------------------


def apart(first: Measure, second: Measure) -> bool:
    """Whether two methods differ by more than chance explains, at 95 % (Welch 1947): by more than the spread over
    seeds and the sampling of test images. The latter as if each method had test images of its own: a little strict."""
    spreads = (first.trained, second.trained)
    if any(spread.std is None for spread in spreads):
        return False  # how much a seed changes is not known
    noise = sum(sampling(spread.mean, first.num_queries) for spread in spreads)
    return abs(first.trained.mean - second.trained.mean) > reach(spreads, noise)


@dataclass(frozen=True)
class Conclusion:
    """What one score says of a group."""

    title: str  # of the score
    encoder: str
    best: Row
    leading: Measure
    others: int  # methods beside the best
    close: tuple[str, ...]  # that are not told from the best
    weak: tuple[str, ...]  # that are not better than their random encoder
    unsure: tuple[str, ...]  # that more seeds may tell from theirs
    single: bool  # one has a single seed: nothing is told from anything

    @property
    def lead(self) -> str:
        return f"{self.best.recipe} has the highest mean, {self.leading.trained.percent()} %"

    @property
    def reservation(self) -> str:
        """How far the lead can be trusted; "" where there is none to compare with."""
        if self.others and self.single:
            return "a single seed tells no method from another: give --seeds 3 or more"
        if self.close:
            return f"not distinguishable from it: {', '.join(self.close)}"
        others = f"all {self.others} others" if self.others > 1 else "the other"
        return f"above {others} by more than seeds and test images explain" if self.others else ""

    def __str__(self) -> str:
        weak = f"not better than its random encoder: {', '.join(self.weak)}" if self.weak else ""
        unsure = f"too few seeds to tell from its random encoder: {', '.join(self.unsure)}" if self.unsure else ""
        said = (f"{self.title}, {self.encoder}: {self.lead}", self.reservation, weak, unsure)
        return "; ".join(part for part in said if part)


def conclusions(rows: Sequence[Row]) -> list[Conclusion]:
    """One a group and score: who leads, who cannot be told from it; and who gained nothing by training."""
    return [conclusion for group in groups(rows) for conclusion in _conclude(group)]


def _conclude(group: list[Row]) -> Iterator[Conclusion]:
    for name, title in scores_of(group).items():
        judged = sorted(
            (row for row in group if name in row.measures), key=lambda row: -row.measures[name].trained.mean
        )
        if judged:
            best, *others = judged
            leading = best.measures[name]
            yield Conclusion(
                title,
                best.encoder,
                best,
                leading,
                len(others),
                close=tuple(row.recipe for row in others if not apart(leading, row.measures[name])),
                weak=tuple(row.recipe for row in judged if row.measures[name].sign == "weak"),
                unsure=tuple(row.recipe for row in judged if row.measures[name].sign == "unsure"),
                single=min(row.seeds for row in judged) == 1,
            )
