"""Classification on frozen embeddings: nearest neighbours, a linear probe, and both with few labels."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from pipeline.evaluate.encoders import ENCODERS
from pipeline.evaluate.probes import (
    SGD_EPOCHS,
    knn_predictions,
    linear_predictions,
    linear_ranking,
    mean_predictions,
    sgd_predictions,
)
from pipeline.evaluate.protocol import Confusion
from pipeline.evaluate.scoring import Answered, Case, Labelled, answered, score
from pipeline.evaluate.spread import Spread, reach, sampling
from pipeline.stream.labels import few_labels
from ssl_models.objectives.supervised import Supervised

SHARES = {"1pct": 0.01, "10pct": 0.1}  # of the labels
SHOTS = (1, 5)  # labelled images a class
DRAWS = 3
FEWEST = 5  # images a class that a linear probe is fitted to
MOST = 5_000  # images in all, for there are 36 fits of as many: `DRAWS` × encoders × strengths and the last

TOP = 5  # of so many answers one is right: of more classes only
MOST_CLASSES = 50  # of a table that a person can read


def classification(case: Case) -> Iterator[Answered | Confusion | str]:
    """k-NN and linear probe with all labels; and what the k-NN takes the classes for, if they are not too many."""
    labelled = case.labelled()
    if isinstance(labelled, str):
        yield f"knn_top1, linear_top1: {labelled}"
        return
    config, bank, asked = case.config, labelled.train, labelled.test
    k = min(config.neighbours, len(bank.labels))
    answers = {
        one: knn_predictions(bank.features[one], bank.labels, asked.features[one], k, config.neighbour_temperature)
        for one in ENCODERS
    }
    hits = {one: found == asked.labels for one, found in answers.items()}
    protocol = f"weighted {k}-NN, cosine, T={config.neighbour_temperature}, bank of {len(bank.labels)} clean images"
    yield answered("knn_top1", protocol, hits, 1 / labelled.num_classes, asked.numbers)
    classes = case.store.manifest.classes
    if len(classes) <= MOST_CLASSES:
        counts = np.zeros((len(classes), len(classes)), int)
        np.add.at(counts, (asked.labels, answers["trained"]), 1)
        yield Confusion(classes=classes, counts=tuple(map(tuple, counts.tolist())))
    protocol = (
        f"logistic regression on standardised frozen embeddings, {len(bank.labels)} images, L-BFGS "
        f"≤ {config.linear_iterations} iterations, C chosen on a tenth of the training images"
    )
    yield from _ranked("linear", protocol, {one: _by_probe(case, labelled, one) for one in ENCODERS}, labelled)


def _by_probe(case: Case, labelled: Labelled, one: str) -> np.ndarray:
    """The answers (Q, `_depth`) of the linear probe of an encoder, the likeliest first."""
    bank, asked = labelled.train, labelled.test
    return linear_ranking(
        bank.features[one], bank.labels, asked.features[one], case.config.linear_iterations, _depth(labelled)
    )[0]


def _depth(labelled: Labelled) -> int:
    """How many answers a query gets."""
    return TOP if labelled.num_classes > TOP else 1


def _ranked(name: str, protocol: str, answers: dict[str, np.ndarray], labelled: Labelled) -> Iterator[Answered]:
    """Top-1, and of more than five classes top-5. answers: of each encoder, (Q, `_depth`), the likeliest first."""
    asked = labelled.test
    for k in dict.fromkeys((1, _depth(labelled))):
        hits = {one: (of[:, :k] == asked.labels[:, None]).any(1) for one, of in answers.items()}
        yield answered(f"{name}_top{k}", protocol, hits, k / labelled.num_classes, asked.numbers)


def sgd_probe(case: Case) -> Iterator[Answered | str]:
    """The linear probe as MAE's paper has it: what masked encoders are compared by."""
    labelled = case.labelled()
    if isinstance(labelled, str):
        yield f"linear_sgd_bn_top1: {labelled}"
        return
    bank, asked = labelled.train, labelled.test
    hits = {
        one: sgd_predictions(bank.features[one], bank.labels, asked.features[one])[0] == asked.labels
        for one in ENCODERS
    }
    protocol = (
        f"linear layer behind a BatchNorm without affine parameters, SGD, {SGD_EPOCHS} epochs of {len(bank.labels)} "
        "frozen embeddings, rate chosen on a tenth of the training images; MAE's, but for its random crops and LARS"
    )
    yield answered("linear_sgd_bn_top1", protocol, hits, 1 / labelled.num_classes, asked.numbers)


def own_classifier(case: Case) -> Iterator[Answered | str]:
    """The classifier that was trained with the encoder, where there is one."""
    objectives = {name: one for name, one in case.encoders.load().items() if isinstance(one, Supervised)}
    labelled = case.labelled()
    if not objectives or isinstance(labelled, str):
        return
    features = labelled.test.features
    answers = {name: classified(one, features[name], _depth(labelled)) for name, one in objectives.items()}
    answers["pixels"] = _by_probe(case, labelled, "pixels")
    protocol = "by the classifier that was trained with the encoder; raw pixels: their linear probe"
    yield from _ranked("classifier", protocol, answers, labelled)


@torch.inference_mode()
def classified(objective: Supervised, embeddings: np.ndarray, k: int = 1) -> np.ndarray:
    """The k likeliest classes of each embedding (Q, dim) by a supervised objective's own classifier: (Q, k)."""
    return objective.classify(torch.from_numpy(embeddings)).topk(k).indices.numpy()


def with_few_labels(case: Case) -> Iterator[Answered | str]:
    """The same with the labels of a few images of every class, drawn several times."""
    labelled = case.labelled()
    if isinstance(labelled, str):
        yield f"few labels: {labelled}"
        return
    labels, iterations = labelled.train.labels, case.config.linear_iterations
    fewest = int(np.unique(labels, return_counts=True)[1].min())

    def linear(bank: np.ndarray, known: np.ndarray, queries: np.ndarray) -> np.ndarray:
        return linear_predictions(bank, known, queries, iterations)[0]

    for shots in SHOTS:
        if shots > fewest:
            yield f"mean_{shots}shot: a class has only {fewest} labelled training images"
            continue
        protocol = f"nearest class mean of {shots} image{'s' if shots > 1 else ''} a class, cosine, centred"
        yield _drawn(f"mean_{shots}shot", protocol, case, labelled, mean_predictions, shots=shots)
    for name, share in SHARES.items():
        if share * len(labels) < FEWEST * labelled.num_classes:
            yield f"linear_{name}: {100 * share:.0f} % of {len(labels)} labels are fewer than {FEWEST} a class"
            continue
        if share * len(labels) > MOST:
            yield f"linear_{name}: {100 * share:.0f} % of {len(labels)} labels are over {MOST}, for `feral finetune`"
            continue
        protocol = f"linear probe as linear_top1, with {100 * share:.0f} % of the labels of each class"
        yield _drawn(f"linear_{name}", protocol, case, labelled, linear, share=share)


def _drawn(
    name: str,
    protocol: str,
    case: Case,
    labelled: Labelled,
    predict: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    **budget: Any,
) -> Answered:
    """predict: bank, its labels, queries → classes."""
    bank, asked = labelled.train, labelled.test
    right: dict[str, list[np.ndarray]] = {one: [] for one in ENCODERS}
    for draw in range(DRAWS):
        rows = np.flatnonzero(np.isin(bank.numbers, few_labels(case.store, bank.numbers, draw=draw, **budget)))
        for one in ENCODERS:
            answers = predict(bank.features[one][rows], bank.labels[rows], asked.features[one])
            right[one].append(answers == asked.labels)
    means = {one: float(np.mean(hits)) for one, hits in right.items()}
    protocol += f"; mean of {DRAWS} draws of labels, whose spread is in the interval"
    spread = Spread.of([float(hits.mean()) for hits in right["trained"]])
    half = reach([spread], sampling(spread.mean, len(asked.labels)))
    interval = (max(0.0, spread.mean - half), min(1.0, spread.mean + half))
    found = score(name, protocol, len(asked.labels), means, 1 / labelled.num_classes, interval)
    return Answered(found, asked.numbers, np.mean(right["trained"], axis=0))
