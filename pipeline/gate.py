"""May a candidate take the champion's place? Four kinds of checks, each a row that a person can read.

| kind | passes when |
|---|---|
| complete | it was trained to its end, and judged: every score that the champion has, all finite, on the same data |
| collapse | its embeddings tell images apart (`pipeline.evaluate.health`) |
| guard | no headline score is worse than the champion's by more than a tolerance, at 95 % |
| target | one headline score is better than the champion's, at 95 % for all that were tried |

A first candidate has no champion to be compared with: only the first two are asked. Guards and targets compare query
by query, on the queries that both were asked: the paired bootstrap (Efron, Tibshirani 1993, "An introduction to the
bootstrap", ch. 13), so that what makes a query hard for both does not blur the difference. One target is enough, and
with each there is a chance of being better by chance: the intervals of m targets are those at 1 − 5 % / m (Bonferroni).
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline.evaluate.health import complaint
from pipeline.evaluate.outcomes import Outcomes, read_outcomes
from pipeline.evaluate.protocol import Evaluation, Score

Kind = Literal["complete", "collapse", "guard", "target"]

HEADLINES = (  # scores that the gate looks at, where an evaluation has them
    "knn_top1", "linear_top1", "classifier_top1", "zero_shot_top1",
    "retrieval_image_to_text_r10", "retrieval_text_to_image_r10",
)  # fmt: skip
TOLERANCE = 0.01  # a headline score may be lower by this much
RESAMPLES = 10_000
FEWEST = 30  # queries, below which a percentile interval is worth nothing


@dataclass(frozen=True)
class Judged:
    """An encoder as it was judged on one store; `fault` says why that cannot be used, if so."""

    evaluation: Evaluation | None
    outcomes: Outcomes | None = None
    fault: str | None = None
    file: Path | None = None

    @classmethod
    def read(cls, file: Path, encoder_digest: str, way_out: str) -> "Judged":
        """The evaluation in a file, if it is of these weights; `way_out`: a command that makes it so."""
        if not file.exists():
            return cls(None, fault=f"not judged yet: {way_out}")
        try:
            evaluation = Evaluation.model_validate_json(file.read_text())
        except ValueError:
            return cls(None, fault=f"{file.name} cannot be read: {way_out}")
        if evaluation.encoder_digest != encoder_digest:
            return cls(None, fault=f"{file.name} is of other weights: {way_out}")
        return cls(evaluation, read_outcomes(file, evaluation), file=file)

    def headlines(self) -> dict[str, Score]:
        scores = self.evaluation.scores if self.evaluation else []
        return {score.name: score for score in scores if score.name in HEADLINES}


@dataclass(frozen=True)
class Check:
    """A row of the gate's table. `difference` and its `interval` (a guard's at 95 %, a target's at 95 % for all targets
    together) are candidate − champion, `bound` is what the lower end must not be below (a guard), or above (a target).
    """

    kind: Kind
    what: str
    passed: bool
    note: str = ""
    champion: float | None = None
    candidate: float | None = None
    difference: float | None = None
    interval: tuple[float, float] | None = None
    bound: float | None = None


@dataclass(frozen=True)
class Gate:
    """What was found; `passed` is the verdict."""

    checks: tuple[Check, ...]

    @property
    def held_for(self) -> tuple[Kind, ...]:
        """The kinds of checks that did not pass. If it is the target alone, the candidate does no harm."""
        kinds: set[Kind] = {check.kind for check in self.checks if not check.passed and check.kind != "target"}
        targets = [check for check in self.checks if check.kind == "target"]
        if targets and not any(check.passed for check in targets):
            kinds.add("target")
        return tuple(sorted(kinds))

    @property
    def passed(self) -> bool:
        return not self.held_for

    @property
    def reason(self) -> str:
        """The verdict in a line."""
        if not self.passed:
            first = next((c for c in self.checks if not c.passed and c.kind != "target"), None)
            if first is None:
                return "no score is better than the champion's, at 95 % for all together"
            return f"{first.what}: {first.note}"
        better = [check.what for check in self.checks if check.kind == "target" and check.passed]
        return f"better in {', '.join(better)}" if better else "the first: there was nothing to compare with"

    def rows(self) -> list[dict[str, Any]]:
        """As JSON."""
        return [asdict(check) for check in self.checks]


def gate(
    candidate: Sequence[Judged],
    champion: Sequence[Judged] | None,
    *,
    unfinished: str | None = None,
    tolerance: float = TOLERANCE,
) -> Gate:
    """Compares a candidate with the champion.

    Args:
        candidate: as it was judged, on each store.
        champion: on the same stores, in the same order; None: there is none yet.
        unfinished: why the candidate was not trained to its end, if so.
        tolerance: share of the queries by which a headline score may be lower.
    """
    if champion is not None and len(candidate) != len(champion):
        raise ValueError(f"the candidate was judged on {len(candidate)} stores, the champion on {len(champion)}")
    checks = [Check("complete", "training", unfinished is None, unfinished or "to its end")]
    targets = sum(len(one.headlines()) for one in champion or ())
    for place, mine in enumerate(candidate):
        checks += _alone(mine)
        if champion is not None:
            checks += _against(mine, champion[place], tolerance, targets)
    return Gate(tuple(checks))


def _alone(mine: Judged) -> Iterator[Check]:
    fault = mine.fault or _incomplete(mine)
    yield Check("complete", "evaluation", fault is None, fault or ", ".join(mine.headlines()))
    if mine.evaluation is None:
        return
    health = mine.evaluation.health
    if "trained" not in health or "random" not in health:
        yield Check("collapse", "embeddings", False, "their health is not known: feral evaluate")
        return
    trained, found = health["trained"], complaint(**health)
    said = f"rank {trained.rank:.1f} of {trained.dim}, mean cosine {trained.mean_cosine:.3f}"
    yield Check("collapse", "embeddings", found is None, found or said)


def _incomplete(mine: Judged) -> str | None:
    evaluation = mine.evaluation
    assert evaluation is not None
    values = {score.name: score.trained for score in evaluation.scores}
    health = evaluation.health.get("trained")
    values |= {"the rank of embeddings": health.rank, "their mean cosine": health.mean_cosine} if health else {}
    if odd := [name for name, value in values.items() if not isfinite(value)]:
        return f"{odd[0]} is {values[odd[0]]}"
    if not mine.headlines():
        return f"none of {', '.join(HEADLINES)} ({'; '.join(evaluation.skipped) or 'and nothing says why'})"
    return None


def _against(mine: Judged, theirs: Judged, tolerance: float, targets: int) -> Iterator[Check]:
    fault = _not_comparable(mine, theirs)
    yield Check("complete", "comparison", fault is None, fault or "the same data, asked in the same way")
    if fault is not None:
        return
    assert mine.outcomes is not None
    assert theirs.outcomes is not None
    for name in theirs.headlines():
        found, before = mine.outcomes.paired(theirs.outcomes, name)
        low, high = paired_interval(found, before)
        row: dict[str, Any] = {
            "champion": float(before.mean()),
            "candidate": float(found.mean()),
            "difference": float(found.mean() - before.mean()),
        }
        too_few = f"{len(found)} queries are too few to tell" if len(found) < FEWEST else ""
        unclear = "not worse, as far as can be told: more test images would tell" if high >= 0 else "worse"
        harmless = not too_few and low >= -tolerance
        asked = f"{len(found):,} queries"
        said = asked if harmless else too_few or unclear
        yield Check("guard", name, harmless, said, bound=-tolerance, interval=(low, high), **row)
        strict = paired_interval(found, before, error=0.05 / targets)
        better = not too_few and strict[0] > 0
        said = asked if better else too_few or "not better"
        yield Check("target", name, better, said, bound=0.0, interval=strict, **row)


def _not_comparable(mine: Judged, theirs: Judged) -> str | None:
    if theirs.fault is not None:
        return f"champion: {theirs.fault}"
    if mine.evaluation is None or theirs.evaluation is None:
        return "the candidate is not judged"
    if mine.evaluation.store_digest != theirs.evaluation.store_digest:
        return "the two were judged on different data: --on STORE judges both on one"
    if mine.outcomes is None or theirs.outcomes is None:
        who = "candidate" if mine.outcomes is None else "champion"
        return f"what became of each query is not known of the {who}, an older version judged it: feral evaluate it"
    for name, score in theirs.headlines().items():
        own = mine.headlines().get(name)
        if own is None:
            return f"the champion has {name}, the candidate has not"
        if own.protocol != score.protocol:
            return f"{name} was asked in another way ({own.protocol}; champion: {score.protocol}): judge both again"
        if not len(mine.outcomes.paired(theirs.outcomes, name)[0]):
            return f"{name}: the two were asked no common query"
    return None


def paired_interval(found: np.ndarray, before: np.ndarray, error: float = 0.05) -> tuple[float, float]:
    """The 1 − `error` percentile interval of the mean difference of two encoders on the same queries (Q,).

    A resample of Q differences holds each different value as often as a multinomial draw says: with few different
    values, as of hits and misses, 10,000 resamples cost next to nothing for any Q.
    """
    values, counts = np.unique(np.asarray(found, np.float64) - np.asarray(before, np.float64), return_counts=True)
    total = int(counts.sum())
    drawn = np.random.default_rng(0).multinomial(total, counts / total, RESAMPLES)  # (RESAMPLES, values)
    low, high = np.quantile(drawn @ values / total, (error / 2, 1 - error / 2))
    return float(low), float(high)
