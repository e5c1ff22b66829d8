"""What evaluators have in common: a case to judge, and scores with their intervals."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.evaluate.embed import Embedding, Embeddings
from pipeline.evaluate.encoders import Encoders
from pipeline.evaluate.protocol import Confusion, EvaluationConfig, Score, wilson
from pipeline.ingest.store import Store

RESAMPLES = 200


@dataclass(frozen=True)
class Case:
    """An encoder and the samples that it is judged on."""

    encoders: Encoders
    store: Store
    config: EvaluationConfig
    train: Embeddings
    test: Embeddings
    embedding: Embedding  # for evaluators that ask for more of some samples

    def labelled(self) -> "Labelled | str":
        """The labelled samples of both splits, or why there are none to tell apart."""
        known, asked = self.train.labels >= 0, self.test.labels >= 0
        splits = ((self.train, known), (self.test, asked))  # whole ones stay files, others are copied
        if len(np.unique(self.train.labels[known])) < 2 or not asked.any():
            return "the store has no labels (class folders, .cls or a label column) on both splits"
        return Labelled(*(part if all_of.all() else part.rows(all_of) for part, all_of in splits))


@dataclass(frozen=True)
class Labelled:
    train: Embeddings
    test: Embeddings

    @property
    def num_classes(self) -> int:
        return len(np.unique(self.train.labels))


@dataclass(frozen=True)
class Answered:
    """A score with what the trained encoder made of each query: two encoders can then be compared query by query."""

    score: Score
    numbers: np.ndarray  # (Q,) samples that were asked about
    right: np.ndarray  # (Q,) in [0, 1]: answered rightly, or the share of answers that were


# What evaluators yield; a str says what could not be computed, and why.
Evaluator = Callable[[Case], Iterator[Score | Answered | Confusion | str]]


def accuracy(name: str, protocol: str, hits: dict[str, np.ndarray], chance: float) -> Score:
    """hits: of each encoder, which queries (Q,) were answered rightly."""
    count = len(hits["trained"])
    found = {encoder: float(hit.mean()) for encoder, hit in hits.items()}
    return score(name, protocol, count, found, chance, wilson(found["trained"], count))


def answered(name: str, protocol: str, hits: dict[str, np.ndarray], chance: float, numbers: np.ndarray) -> Answered:
    """As `accuracy`; numbers: (Q,) the samples that the queries are."""
    return Answered(accuracy(name, protocol, hits, chance), numbers, hits["trained"])


def score(
    name: str,
    protocol: str,
    num_queries: int,
    found: dict[str, float],
    chance: float,
    interval: tuple[float, float] | None,
    *,
    index: bool = False,
) -> Score:
    return Score(
        name=name,
        protocol=protocol,
        num_queries=num_queries,
        trained=found["trained"],
        random_encoder=found["random"],
        raw_pixels=found["pixels"],
        chance=chance,
        unit="index" if index else "share",
        interval=interval,
    )


def bootstrap(measure: Callable[[np.ndarray], float], count: int) -> tuple[float, float]:
    """The 95 % percentile interval of a measure of `count` queries, given the rows of each of 200 resamples."""
    generator = np.random.default_rng(0)
    values = [measure(generator.integers(0, count, count)) for _ in range(RESAMPLES)]
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
