"""Classification on frozen embeddings: nearest neighbours, a linear probe, and both with few labels."""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from pipeline.evaluate.encoders import ENCODERS
from pipeline.evaluate.probes import knn_predictions, linear_predictions, mean_predictions
from pipeline.evaluate.protocol import Confusion, Score
from pipeline.evaluate.scoring import Case, Labelled, accuracy, score
from ssl_models.batch import uniform

SHARES = {"1pct": 0.01, "10pct": 0.1}  # of the labels
SHOTS = (1, 5)  # labelled images a class
DRAWS = 3
FEWEST = 5  # images a class that a linear probe is fitted to

Predict = Callable[[np.ndarray, np.ndarray], np.ndarray]  # bank, queries → classes


def classification(case: Case) -> Iterator[Score | str]:
    """k-NN and linear probe with all labels."""
    labelled = case.labelled()
    if isinstance(labelled, str):
        yield f"knn_top1, linear_top1: {labelled}"
        return
    config, bank, asked = case.config, labelled.train, labelled.test

    def judged(name: str, protocol: str, predict: Predict) -> Score:
        hits = {one: predict(bank.features[one], asked.features[one]) == asked.labels for one in ENCODERS}
        return accuracy(name, protocol, hits, 1 / labelled.num_classes)

    k = min(config.neighbours, len(bank.labels))
    yield judged(
        "knn_top1",
        f"weighted {k}-NN, cosine, T={config.neighbour_temperature}, bank of {len(bank.labels)} clean images",
        lambda rows, queries: knn_predictions(rows, bank.labels, queries, k, config.neighbour_temperature),
    )
    yield judged(
        "linear_top1",
        f"logistic regression on standardised frozen embeddings, {len(bank.labels)} images, L-BFGS "
        f"≤ {config.linear_iterations} iterations, C chosen on a tenth of the training images",
        lambda rows, queries: linear_predictions(rows, bank.labels, queries, config.linear_iterations)[0],
    )


def few_labels(case: Case) -> Iterator[Score | str]:
    """The same with the labels of a few images, drawn evenly over the classes, several times."""
    labelled = case.labelled()
    if isinstance(labelled, str):
        yield f"few labels: {labelled}"
        return
    labels = labelled.train.labels
    for shots in SHOTS:
        what = f"{shots} image{'s' if shots > 1 else ''} a class"
        yield _with_few(f"mean_{shots}shot", f"nearest class mean of {what}, cosine, centred", shots, labelled, None)
    for name, share in SHARES.items():
        if share * len(labels) < FEWEST * labelled.num_classes:
            yield f"linear_{name}: {100 * share:.0f} % of {len(labels)} labels are fewer than {FEWEST} a class"
            continue
        protocol = f"linear probe as linear_top1, with {100 * share:.0f} % of the labels of each class"
        yield _with_few(f"linear_{name}", protocol, share, labelled, case.config.linear_iterations)


def _with_few(name: str, protocol: str, budget: float, labelled: Labelled, iterations: int | None) -> Score:
    bank, asked = labelled.train, labelled.test
    found: dict[str, list[float]] = {one: [] for one in ENCODERS}
    for draw in range(DRAWS):
        rows = few(bank.numbers, bank.labels, budget, draw)
        known = bank.labels[rows]
        for one in ENCODERS:
            seen, queries = bank.features[one][rows], asked.features[one]
            if iterations is None:
                answers = mean_predictions(seen, known, queries)
            else:
                answers = linear_predictions(seen, known, queries, iterations)[0]
            found[one].append(float((answers == asked.labels).mean()))
    means = {one: float(np.mean(values)) for one, values in found.items()}
    protocol += f"; mean of {DRAWS} draws, the interval is from the lowest to the highest"
    low, high = min(found["trained"]), max(found["trained"])
    return score(name, protocol, len(asked.labels), means, 1 / labelled.num_classes, (low, high))


def few(numbers: np.ndarray, labels: np.ndarray, budget: float, draw: int) -> np.ndarray:
    """Rows of some labelled samples of every class: `budget` of them, or this share where it is below 1, at least one;
    a function of the samples' numbers and the draw."""
    order = np.argsort(uniform(draw, 0, torch.from_numpy(np.array(numbers)), 1, "few labels")[:, 0].numpy())
    chosen = []
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        chosen.append(rows[: max(1, round(budget * len(rows)) if budget < 1 else int(budget))])
    return np.sort(np.concatenate(chosen))


MOST_CLASSES = 50  # of a table that a person can read


def confusion(case: Case) -> Confusion | None:
    """What the k-NN classifier takes the classes for; None without labels, or of too many classes."""
    labelled = case.labelled()
    classes = case.store.manifest.classes
    if isinstance(labelled, str) or len(classes) > MOST_CLASSES:
        return None
    bank, asked, config = labelled.train, labelled.test, case.config
    k = min(config.neighbours, len(bank.labels))
    answers = knn_predictions(
        bank.features["trained"], bank.labels, asked.features["trained"], k, config.neighbour_temperature
    )
    counts = np.zeros((len(classes), len(classes)), int)
    np.add.at(counts, (asked.labels, answers), 1)
    return Confusion(classes=classes, counts=tuple(map(tuple, counts.tolist())))
