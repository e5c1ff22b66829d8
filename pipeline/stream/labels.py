"""Few labels: a part of the labelled images, of every class, that is the same on every machine."""

import math

import numpy as np
import torch

from pipeline.ingest.store import Store
from ssl_models.batch import uniform


def few_labels(
    store: Store, numbers: np.ndarray, *, share: float | None = None, shots: int | None = None, draw: int = 0
) -> np.ndarray:
    """Of some samples (ascending numbers) a `share` of the labelled ones of each class, at least one; or `shots` of
    each. Each `draw` is another part.

    The order in which a class gives its images is a hash of the draw and the image's own id: of two shares with one
    draw, the smaller is a part of the greater, and what else is in the store does not matter.

    Raises:
        ValueError: none is labelled, or a class has fewer than `shots` images.
    """
    labels = store.column("label").to_numpy()[numbers]
    numbers, labels = numbers[labels >= 0], labels[labels >= 0]
    if not len(numbers):
        raise ValueError(f"no training image of {store.path} has a label: curate class folders or a label column")
    ids = [int(image[:15], 16) for image in store.column("id").take(numbers).to_pylist()]  # 60 bits of a sha256
    order = np.argsort(uniform(draw, 0, torch.tensor(ids), 1, "labels")[:, 0].numpy(), kind="stable")
    chosen = []
    for label in np.unique(labels):
        own = numbers[order[labels[order] == label]]
        if shots is not None and shots > len(own):
            raise ValueError(
                f"data.shots={shots}: class {store.manifest.classes[label]!r} has only {len(own)} training images; "
                "lower data.shots, or use a share (data.labels=0.1)"
            )
        chosen.append(own[: shots if shots is not None else max(1, math.floor((share or 1.0) * len(own) + 0.5))])
    return np.sort(np.concatenate(chosen))
