"""Embeddings of a store's samples: by the trained encoder, by the same encoder before training, and raw pixels."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from pipeline.experiment import Experiment, build_experiment
from pipeline.ingest.store import Store
from pipeline.stream.batches import reading_dataset, to_batch
from pipeline.stream.crops import CenterCrop
from pipeline.stream.read import Columns, Reader
from pipeline.train.checkpoints import Checkpoint
from ssl_models.objectives import Objective, build_objective
from ssl_models.objectives.image_text import ImageTextObjective

BOTH = ("trained", "random")
THUMBNAIL = 12  # side of the raw-pixel baseline: on small photos stronger than all pixels


@dataclass(frozen=True)
class Embeddings:
    """Rows of equal order. "trained", "random" (B, dim), "pixels" (B, 432); with text also the projections into the
    shared space, "trained_projection" and "random_projection" (B, D)."""

    numbers: np.ndarray  # (B,) sample numbers, ascending
    labels: np.ndarray  # (B,) -1 = unlabelled
    features: dict[str, np.ndarray]

    def of(self, numbers: np.ndarray) -> "Embeddings":
        """The rows of some samples."""
        rows = np.isin(self.numbers, numbers)
        features = {name: values[rows] for name, values in self.features.items()}
        return Embeddings(self.numbers[rows], self.labels[rows], features)


class Embedder:
    """Embeds blocks of crops; lives in a process of its own, on a GPU if it was given one."""

    def __init__(
        self, experiment: dict[str, Any], checkpoint: Checkpoint, threads: int, names: tuple[str, ...] = BOTH
    ) -> None:
        torch.set_num_threads(threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        config = build_experiment(experiment)
        self.views = config.device_views(plain=True)
        pair = load_pair(config, checkpoint)
        self.objectives = {name: pair[name].to(self.device) for name in names}

    @torch.inference_mode()
    def __call__(self, columns: Columns) -> Columns:
        batch = to_batch(columns, self.views, self.device)
        images = batch.views[0]
        out = {"number": columns["number"], "label": columns["label"], "pixels": thumbnails(images).cpu().numpy()}
        for name, objective in self.objectives.items():
            out[name] = objective.embed(images).float().cpu().numpy()
            if isinstance(objective, ImageTextObjective):
                out[f"{name}_projection"] = objective.project_image(images).float().cpu().numpy()
        return out


def load_pair(experiment: Experiment, checkpoint: Checkpoint) -> dict[str, Objective]:
    """The trained objective and the same one before its first step, both for evaluation."""
    torch.manual_seed(experiment.training.seed)
    random = build_objective(experiment.objective, experiment.encoder)
    trained = build_objective(experiment.objective, experiment.encoder)
    checkpoint.restore_objective(trained)
    return {"trained": trained.eval(), "random": random.eval()}


def thumbnails(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, S, S) → (B, 3 · 12 · 12)."""
    return F.interpolate(images, (THUMBNAIL, THUMBNAIL), mode="bilinear", antialias=True).flatten(1)


def embed_samples(
    experiment: Experiment, checkpoint: Checkpoint, store: Store, numbers: np.ndarray, threads: int
) -> Embeddings:
    """Embeds samples on the connected Ray cluster, by the trained encoder and the one before training."""
    numbers = np.sort(numbers)
    blocks = list(embedding_blocks(experiment, checkpoint, store, numbers, threads))
    columns = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    assert np.array_equal(columns["number"], numbers)
    return Embeddings(columns.pop("number"), columns.pop("label"), columns)


def embedding_blocks(
    experiment: Experiment,
    checkpoint: Checkpoint,
    store: Store,
    numbers: np.ndarray,
    threads: int,
    names: tuple[str, ...] = BOTH,
) -> Iterator[Columns]:
    """Embeds samples in the order of `numbers`, block by block: decoding on CPUs, encoding in one process a training
    worker. Ray must be connected."""
    from ray.data import ActorPoolStrategy

    reader = Reader(CenterCrop(experiment.encoder.image_size), place=store.place)
    references = reader.references(store, numbers, np.zeros(len(numbers), dtype=np.int64))
    cluster = experiment.cluster
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")  # no other way to max_restarts in Ray 2.60
        data = reading_dataset(reader, references).map_batches(
            Embedder,
            fn_constructor_kwargs={
                "experiment": experiment.model_dump(mode="json"),
                "checkpoint": checkpoint,
                "threads": threads,
                "names": names,
            },
            batch_size=256,
            batch_format="numpy",
            compute=ActorPoolStrategy(size=cluster.workers),
            num_gpus=1 if cluster.use_gpu else 0,
            max_restarts=0,  # the stage fails as a whole, and the same command does it again
        )
    yield from data.iter_batches(batch_size=None, batch_format="numpy")
