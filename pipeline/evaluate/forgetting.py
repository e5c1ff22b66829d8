"""What a training that goes on from dump to dump forgets: each encoder of the chain on each dump's held-back images."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.evaluate.protocol import Evaluation
from pipeline.evaluate.transfer import SHOWN, Judged
from pipeline.ingest.write import replaced
from ssl_models.config import Config

FORGETTING = "forgetting.json"
RANK = "rank"  # RankMe, of images without labels: of one method, more is better


class Forgetting(Config):
    """`forgetting.json`: a score of every encoder, oldest first, on the held-back images of every store."""

    score: str
    encoders: tuple[str, ...]
    stores: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]  # [encoder][store]

    @property
    def forgotten(self) -> tuple[float, ...]:
        """Of each store: the best value of an earlier encoder less the last one's; below zero it has learned more."""
        *earlier, now = self.values
        return tuple(max(before) - value for *before, value in zip(*earlier, now, strict=True))

    @property
    def mean_of_older(self) -> float:
        """The mean over all stores but the last, whose images are new."""
        older = self.forgotten[:-1] or self.forgotten
        return sum(older) / len(older)

    def shown(self, value: float) -> str:
        return f"{value:.1f}" if self.score == RANK else f"{100 * value:.1f} %"

    @property
    def table(self) -> list[list[str]]:
        """A line of titles, one an encoder, and what was forgotten."""
        lines = [[name, *map(self.shown, row)] for name, row in zip(self.encoders, self.values, strict=True)]
        lost = [f"{value:+.1f}" if self.score == RANK else f"{100 * value:+.1f}" for value in self.forgotten]
        return [[self.score, *self.stores], *lines, ["forgotten", *lost]]


def forgetting(found: Sequence[Judged]) -> Forgetting:
    """The matrix of encoders that were judged on stores, both in the order of a chain.

    It takes the first score that all of them have; where images have no labels and no captions, the effective rank.

    Raises:
        ValueError: there are fewer than two encoders.
    """
    encoders, stores = (tuple(dict.fromkeys(getattr(one, what) for one in found)) for what in ("encoder", "store"))
    if len(encoders) < 2:
        raise ValueError("forgetting compares an encoder with earlier ones: name two or more, oldest first")
    by = {(one.encoder, one.store): one.evaluation for one in found}
    score = next((name for name in SHOWN if all(each.score(name) for each in by.values())), RANK)
    values = tuple(tuple(_value(by[encoder, store], score) for store in stores) for encoder in encoders)
    return Forgetting(score=score, encoders=encoders, stores=stores, values=values)


def write_forgetting(found: Forgetting, folder: Path) -> Path:
    """Writes `forgetting.json`, and returns where."""
    with replaced(folder / FORGETTING) as file:
        file.write(found.model_dump_json(indent=1).encode())
    return folder / FORGETTING


def read_forgetting(folder: Path) -> Forgetting | None:
    """What `write_forgetting` wrote; None if it wrote nothing there."""
    file = folder / FORGETTING
    return Forgetting.model_validate_json(file.read_text()) if file.exists() else None


def _value(evaluation: Evaluation, name: str) -> float:
    score = evaluation.score(name)
    return score.trained if score is not None else evaluation.health["trained"].rank
