"""What a choice may look at: k-NN on training images alone. The test split is never read."""

import numpy as np
import torch

from pipeline.cluster import cores_each
from pipeline.evaluate.embed import Embedding
from pipeline.evaluate.encoders import RunEncoders
from pipeline.evaluate.probes import knn_predictions
from pipeline.ingest.store import Store
from pipeline.run import Run
from ssl_models.batch import uniform

QUERY_SHARE = 0.1
MAX_IMAGES = 20_000


def validation_knn(run: Run, sharing: int = 1) -> float:
    """Weighted k-NN accuracy of the newest checkpoint: a tenth of the labelled training images, chosen by a hash of
    the sample number, against the rest. Ray must be connected; `sharing` runs share the cores of a node.

    Raises:
        ValueError: no checkpoint, or no labels.
    """
    experiment = run.experiment
    store = experiment.data.open()
    numbers, is_query = held_back(labelled(store), MAX_IMAGES, QUERY_SHARE)
    found = Embedding(experiment.cluster, cores_each(sharing)).samples(
        RunEncoders.of(run), store, numbers, names=("trained",)
    )
    config, embeddings = experiment.evaluation, found.features["trained"]
    predicted = knn_predictions(
        embeddings[~is_query],
        found.labels[~is_query],
        embeddings[is_query],
        config.neighbours,
        config.neighbour_temperature,
    )
    return float((predicted == found.labels[is_query]).mean())


def held_back(numbers: np.ndarray, most: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """At most so many samples, ascending, and which of them are asked about: the same in every run, by a hash of their
    numbers."""
    draws = uniform(0, 0, torch.from_numpy(np.array(numbers)), 2, "validation").numpy()
    chosen = np.sort(np.argsort(draws[:, 0])[:most])
    return np.asarray(numbers)[chosen], draws[chosen, 1] < share


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
