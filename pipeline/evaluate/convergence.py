"""How fast a supervised run learns: its classifier at some steps, on training images that it was not given labels of.

Written to `convergence.json` of the run, once; the test split is not read.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path

import numpy as np

from pipeline.evaluate.classification import classified
from pipeline.evaluate.embed import BATCH, Embedder
from pipeline.evaluate.encoders import RunEncoders
from pipeline.evaluate.validation import held_back
from pipeline.experiment import Experiment
from pipeline.ingest.store import Store
from pipeline.ingest.write import replaced
from pipeline.run import Run
from pipeline.stream.crops import CenterCrop
from pipeline.stream.read import Reader
from pipeline.train.checkpoints import Checkpoint
from pipeline.train.checkpoints.writing import remove_old

FILE = "convergence.json"
# Shares of a run that it is judged after: dense where a run from pretrained weights is fast.
SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8, 1)
MAX_IMAGES = 2_000


@dataclass(frozen=True)
class Learned:
    """Top-1 after some images seen, ascending, on `queries` training images."""

    queries: int
    points: tuple[tuple[int, float], ...]


def judged_steps(experiment: Experiment, store: Store) -> list[int]:
    """The steps that `judge_convergence` wants checkpoints of; none where all labels are used, so that no image is
    left to judge by."""
    if not len(_unused(experiment, store)):
        return []
    return sorted({ceil(share * experiment.total_steps) for share in SHARES})


def judge_convergence(run: Run, steps: Sequence[int], threads: int) -> None:
    """Judges the checkpoints of `steps`, then removes those that the run does not keep for itself. What was judged
    before stays. Ray must be connected where it uses GPUs."""
    experiment = run.experiment
    if not (run.path / FILE).exists():
        kept = [checkpoint for checkpoint in run.kept_checkpoints() if checkpoint.step in steps]
        if experiment.cluster.use_gpu:
            import ray

            found = ray.get(ray.remote(num_gpus=1, max_retries=0)(learned).remote(run, kept, threads))
        else:
            found = learned(run, kept, threads)
        with replaced(run.path / FILE) as file:
            file.write(json.dumps(asdict(found), indent=1).encode())
    training = experiment.training
    remove_old(run.checkpoints, keep=training.keep_checkpoints, keep_best=training.keep_best, verified=set())


def learned(run: Run, checkpoints: Sequence[Checkpoint], threads: int) -> Learned:
    """Accuracy of the classifier of each checkpoint, oldest first, on at most 2,000 labelled training images that the
    run was not given the labels of; the same for all runs with the same few labels. In this process."""
    experiment = run.experiment
    store = experiment.data.open()
    numbers, _ = held_back(_unused(experiment, store), MAX_IMAGES, share=0)
    labels = store.column("label").to_numpy()[numbers]
    reader = Reader(CenterCrop(experiment.encoder.image_size), place=store.place)
    references = reader.references(store, numbers, np.zeros(len(numbers), dtype=np.int64))
    crops = [reader.read(references.slice(first, BATCH)) for first in range(0, len(numbers), BATCH)]
    points = []
    for checkpoint in checkpoints:
        encoders = RunEncoders(run.path.name, experiment.model_dump(mode="json"), checkpoint)
        embedder = Embedder(encoders, threads, ("trained",), "")
        embeddings = np.concatenate([embedder(part)["trained"] for part in crops])
        answers = classified(embedder.encoders["trained"].cpu(), embeddings)[:, 0]
        points.append((checkpoint.step * experiment.data.batch_size, float((answers == labels).mean())))
    return Learned(len(numbers), tuple(points))


def read_learned(run: Path) -> Learned | None:
    """What `judge_convergence` wrote; None: nothing.

    Raises:
        ValueError: the file is none of these.
    """
    path = run / FILE
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        return Learned(content["queries"], tuple((images, top1) for images, top1 in content["points"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no learning curve: {error}") from None


def _unused(experiment: Experiment, store: Store) -> np.ndarray:
    """Numbers of the labelled training images that an experiment does not train on."""
    numbers = np.setdiff1d(store.select("train"), experiment.training_samples(store)[0])
    return numbers[store.column("label").to_numpy()[numbers] >= 0]
