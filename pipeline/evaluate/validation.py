"""What a choice may look at: scores on held-back training images alone. The test split is never read."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from pipeline.cluster import cores_each
from pipeline.evaluate.embed import Embedding
from pipeline.evaluate.encoders import RunEncoders
from pipeline.evaluate.health import health
from pipeline.evaluate.probes import knn_predictions, linear_predictions
from pipeline.experiment import Experiment
from pipeline.ingest.store import Store
from pipeline.run import Run
from pipeline.stream.batches import captioned
from ssl_models.batch import uniform

Metric = Literal["knn", "linear"]

QUERY_SHARE, MAX_IMAGES = 0.1, 20_000  # after training
ONLINE_QUERY_SHARE = 0.25  # while it goes on, of few images


@dataclass(frozen=True)
class Validation:
    """What an encoder is worth on held-back training images."""

    hits: dict[Metric, np.ndarray]  # (queries,) bool: which images it was right about
    probe: dict[str, Any]  # the same as while it trained, on few of the images: an event `probe`

    @property
    def scores(self) -> dict[Metric, float]:
        return {metric: float(hits.mean()) for metric, hits in self.hits.items()}

    @property
    def queries(self) -> int:
        return len(self.hits["knn"])


def validate(
    run: Run, metric: Metric = "knn", sharing: int = 1, selection: str | None = None, online_images: int = 2_000
) -> Validation:
    """Accuracy of weighted k-NN, and where asked for of a linear probe, on the newest checkpoint: a tenth of the
    labelled training images, chosen by a hash of the sample number, against the rest. Ray must be connected; `sharing`
    runs share the cores of a node. `selection`: whose images; None: those that were trained on.

    Raises:
        ValueError: no checkpoint, or no labels.
    """
    experiment = run.experiment
    store = Store(experiment.data.store, selection or experiment.data.selection)
    known = labelled(store)
    numbers, is_query = held_back(known, MAX_IMAGES, QUERY_SHARE)
    encoders = RunEncoders.of(run)
    found = Embedding(experiment.cluster, cores_each(sharing)).samples(encoders, store, numbers, names=("trained",))
    rows, labels = found.features["trained"], found.labels
    hits: dict[Metric, np.ndarray] = {"knn": knn_hits(rows, labels, is_query, experiment)}
    if metric == "linear":
        answers, _ = linear_predictions(
            rows[~is_query], labels[~is_query], rows[is_query], experiment.evaluation.linear_iterations
        )
        hits["linear"] = answers == labels[is_query]
    few, asked = held_back(known, min(online_images, MAX_IMAGES), ONLINE_QUERY_SHARE)
    places = np.searchsorted(numbers, few)  # fewer of the same images
    probe = probed(encoders.step, rows[places], labels[places], asked, experiment)
    return Validation(hits, probe)


def probed(
    step: int,
    rows: np.ndarray,
    labels: np.ndarray | None,
    is_query: np.ndarray,
    experiment: Experiment,
    aligned: float | None = None,
) -> dict[str, Any]:
    """What the event `probe` says of embeddings (N, dim): their health, with the alignment of views if that is known,
    and with labels (N,) the k-NN accuracy."""
    found: dict[str, Any] = {"step": step, "knn": None, "queries": 0}
    if labels is not None:
        hits = knn_hits(rows, labels, is_query, experiment)
        found |= {"knn": float(hits.mean()), "queries": len(hits)}
    return found | {"health": health(rows, aligned).model_dump(mode="json")}


def knn_hits(rows: np.ndarray, labels: np.ndarray, is_query: np.ndarray, experiment: Experiment) -> np.ndarray:
    """Which queries, in order, their nearest neighbours among the others are right about."""
    config = experiment.evaluation
    k = min(config.neighbours, int((~is_query).sum()))
    answers = knn_predictions(rows[~is_query], labels[~is_query], rows[is_query], k, config.neighbour_temperature)
    return answers == labels[is_query]


def held_back(numbers: np.ndarray, most: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """At most so many samples, ascending, and which of them are asked about: the same in every run, by a hash of their
    numbers. Fewer are among more."""
    draws = uniform(0, 0, torch.from_numpy(np.array(numbers)), 2, "validation").numpy()
    chosen = np.sort(np.argsort(draws[:, 0])[:most])
    return np.asarray(numbers)[chosen], draws[chosen, 1] < share


def judges(store: Store, experiment: Experiment) -> bool:
    """Whether a store's test split can tell how good an encoder is: by labels on both splits, or by captions, where it
    compares images with text."""
    train, test = store.select("train"), store.select("test")
    labels = store.column("label").to_numpy()
    if (labels[test] >= 0).any() and len(np.unique(labels[train][labels[train] >= 0])) > 1:
        return True
    return experiment.compares_text and len(captioned(store, test)) > 1


def labelled(store: Store) -> np.ndarray:
    """Numbers of the labelled training samples.

    Raises:
        ValueError: there are fewer than two classes to tell apart.
    """
    numbers = store.select("train")
    labels = store.column("label").to_numpy()[numbers]
    if len(np.unique(labels[labels >= 0])) < 2:
        raise ValueError(
            f"{store.path} has no labels to judge trials by: sweeps and comparisons need class folders, .cls members "
            "or a label column"
        )
    return numbers[labels >= 0]
