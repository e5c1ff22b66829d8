"""Checkpoints judged while training goes on: k-NN among training images, and the health of their embeddings.

One at a time, in a process of the lowest priority, on one thread, beside the workers and never waited for: where it is
slower than checkpoints come, some are passed over. The test split is not read.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cluster import ClusterConfig
from pipeline.evaluate.embed import Embedding
from pipeline.evaluate.encoders import RunEncoders
from pipeline.evaluate.health import alignment, complaint, health
from pipeline.evaluate.outputs import PAIRS
from pipeline.evaluate.probes import knn_predictions
from pipeline.evaluate.protocol import Health
from pipeline.evaluate.separation import spread_over
from pipeline.evaluate.validation import held_back
from pipeline.run import Run
from pipeline.train.checkpoints import Checkpoint, Damaged
from pipeline.train.checkpoints.commit import MARKER, step_directories
from pipeline.train.record import append_event

QUERY_SHARE = 0.25
MAX_PAIRS = 500  # images, of two views each: a view costs as much as an image


class OnlineProbe:
    """Lives in the command that trains; `look` is called now and then, and returns at once. Ray must be connected."""

    def __init__(self, run: Run, images: int, tell: Callable[[str], None]) -> None:
        self.run, self.images, self.tell = run, images, tell
        self.judged: Path | None = None  # the newest that was begun with
        self.random: dict[str, Any] | None = None  # health before training
        self.pending: Any = None

    def look(self) -> None:
        import ray

        if self.pending is not None:
            if not ray.wait([self.pending], timeout=0)[0]:
                return
            self._take()
        whole = [path for path in step_directories(self.run.checkpoints) if (path / MARKER).exists()]
        if whole and whole[-1] != self.judged:
            self.judged = whole[-1]
            task = ray.remote(num_cpus=0, max_retries=0)(_idly_judged)  # it takes what nobody else wants
            self.pending = task.remote(str(self.run.path), self.judged.name, self.images, self.random is None)

    def close(self) -> None:
        import ray

        if self.pending is not None:
            with suppress(Exception):  # Ray may be gone
                ray.cancel(self.pending, force=True)

    def _take(self) -> None:
        import ray

        pending, self.pending = self.pending, None
        assert self.judged is not None
        try:
            found = ray.get(pending)
        except Exception as error:  # nothing that a probe does is worth a run
            self.tell(f"{self.judged.name} was not judged: {str(error).strip().splitlines()[-1]}")
            return
        self.random = found.pop("random", None) or self.random
        append_event(self.run.path, "probe", **found)
        self.tell(self._line(found))

    def _line(self, found: dict[str, Any]) -> str:
        trained = Health.model_validate(found["health"])
        parts = [f"rank {trained.rank:.1f} of {trained.dim}"]
        if found["knn"] is not None:
            parts.insert(0, f"k-NN {found['knn']:.1%} of {found['queries']} held-back training images")
        if self.random and (fault := complaint(trained, Health.model_validate(self.random))):
            parts.append(fault)
        return f"step {found['step']}: {', '.join(parts)}"


def _idly_judged(run: str, checkpoint: str, images: int, first: bool) -> dict[str, Any]:
    with suppress(OSError, AttributeError):  # not on every system
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    return judge_checkpoint(Run(Path(run)), checkpoint, images, first)


def judge_checkpoint(run: Run, name: str, images: int, with_random: bool) -> dict[str, Any]:
    """What is known of a checkpoint from `images` training images; without labels, no k-NN.

    Raises:
        ValueError: the checkpoint is gone, or not whole.
    """
    try:
        checkpoint = Checkpoint.read(run.checkpoints / name)
    except (Damaged, OSError) as error:
        raise ValueError(f"it is gone, or damaged: {error}") from None
    experiment = run.experiment
    store = experiment.data.open()
    labels = store.column("label").to_numpy()
    numbers = np.asarray(store.select("train"))
    known = numbers[labels[numbers] >= 0]
    judged = len(np.unique(labels[known])) > 1
    numbers, is_query = held_back(known if judged else numbers, images, QUERY_SHARE)
    encoders = RunEncoders(run.path.name, experiment.model_dump(mode="json"), checkpoint)
    names = ("trained", "random") if with_random else ("trained",)
    embedding = Embedding(ClusterConfig(), threads=1)
    features = embedding.here(encoders, store, numbers, names)
    views = embedding.here(encoders, store, numbers[spread_over(len(numbers), MAX_PAIRS)], names, PAIRS)
    found: dict[str, Any] = {"step": checkpoint.step, "knn": None, "queries": 0}
    if judged:
        rows, config = features["trained"], experiment.evaluation
        k = min(config.neighbours, int((~is_query).sum()))
        answers = knn_predictions(
            rows[~is_query], labels[numbers[~is_query]], rows[is_query], k, config.neighbour_temperature
        )
        found |= {"knn": float((answers == labels[numbers[is_query]]).mean()), "queries": int(is_query.sum())}
    healths = {
        name: health(features[name], alignment(views[name], views[f"{name}_view2"])).model_dump(mode="json")
        for name in names
    }
    return found | {"health": healths["trained"]} | ({"random": healths["random"]} if with_random else {})
