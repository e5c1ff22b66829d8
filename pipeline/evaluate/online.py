"""Checkpoints judged while training goes on: k-NN among training images, and the health of their embeddings.

One at a time, in a process on one thread, beside the workers and never waited for: of the lowest priority, and where it
is slower than checkpoints come, some are passed over; unless certain steps were asked for. The test split is not read.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cluster import ClusterConfig
from pipeline.evaluate.embed import Embedding
from pipeline.evaluate.encoders import RunEncoders
from pipeline.evaluate.health import alignment, complaint, health
from pipeline.evaluate.outputs import PAIRS
from pipeline.evaluate.protocol import Health
from pipeline.evaluate.separation import spread_over
from pipeline.evaluate.validation import ONLINE_QUERY_SHARE, held_back, probed
from pipeline.ingest.store import Store
from pipeline.placement import data_nodes
from pipeline.run import Run
from pipeline.train.checkpoints import Checkpoint, Damaged
from pipeline.train.checkpoints.commit import MARKER, step_directories, step_of
from pipeline.train.record import append_event

MAX_PAIRS = 500  # images, of two views each: a view costs as much as an image


class OnlineProbe:
    """Lives in the command that trains; `look` is called now and then, and returns at once. Ray must be connected.

    With steps `at`, which fit then saves, one checkpoint is judged for each, as soon as it can be. `on_judged` receives
    what was found, as it stands in the event `probe`. `selection`: whose images; None: those that are trained on.
    """

    def __init__(
        self,
        run: Run,
        images: int,
        tell: Callable[[str], None],
        *,
        at: Sequence[int] = (),
        on_judged: Callable[[dict[str, Any]], None] = lambda found: None,
        selection: str | None = None,
    ) -> None:
        self.run, self.images, self.tell = run, images, tell
        self.at, self.on_judged, self.selection = sorted(at), on_judged, selection
        self.judged: Path | None = None  # the newest that was begun with
        self.random: dict[str, Any] | None = None  # health before training
        self.pending: Any = None

    def look(self) -> None:
        import ray

        if self.pending is not None:
            if not ray.wait([self.pending], timeout=0)[0]:
                return
            self._take()
        checkpoint = self._due()
        if checkpoint is not None and checkpoint != self.judged:
            self.judged = checkpoint
            judge = judge_checkpoint if self.at else _idly_judged
            # it takes what the others leave
            task = ray.remote(num_cpus=0, max_retries=0, label_selector=data_nodes())(judge)
            self.pending = task.remote(self.run, checkpoint.name, self.images, self.random is None, self.selection)

    def close(self) -> None:
        import ray

        if self.pending is not None:
            with suppress(Exception):  # Ray may be gone
                ray.cancel(self.pending, force=True)
            self.pending = self.judged = None

    def _due(self) -> Path | None:
        """The newest whole checkpoint; with steps, the first that has come as far as the next of them."""
        whole = [path for path in step_directories(self.run.checkpoints) if (path / MARKER).exists()]
        if not self.at:
            return whole[-1] if whole else None
        return next((path for path in whole if step_of(path) >= self.at[0]), None)

    def _take(self) -> None:
        import ray

        pending, self.pending = self.pending, None
        assert self.judged is not None
        self.at = [step for step in self.at if step > step_of(self.judged)]
        try:
            found = ray.get(pending)
        except Exception as error:  # nothing that a probe does is worth a run
            self.tell(f"{self.judged.name} was not judged: {str(error).strip().splitlines()[-1]}")
            return
        self.random = found.pop("random", None) or self.random
        append_event(self.run.path, "probe", **found)
        self.tell(self._line(found))
        self.on_judged(found)

    def _line(self, found: dict[str, Any]) -> str:
        trained = Health.model_validate(found["health"])
        parts = [f"rank {trained.rank:.1f} of {trained.dim}"]
        if found["knn"] is not None:
            parts.insert(0, f"k-NN {found['knn']:.1%} of {found['queries']} held-back training images")
        if self.random and (fault := complaint(trained, Health.model_validate(self.random))):
            parts.append(fault)
        return f"step {found['step']}: {', '.join(parts)}"


def _idly_judged(run: Run, name: str, images: int, with_random: bool, selection: str | None) -> dict[str, Any]:
    step_aside()
    return judge_checkpoint(run, name, images, with_random, selection)


def step_aside() -> None:
    """From now on this process takes only what nobody else wants."""
    with suppress(OSError, AttributeError):  # not on every system
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def judge_checkpoint(
    run: Run, name: str, images: int, with_random: bool, selection: str | None = None
) -> dict[str, Any]:
    """What is known of a checkpoint from `images` training images; without labels, no k-NN.

    Raises:
        ValueError: the checkpoint is gone, or not whole.
    """
    try:
        checkpoint = Checkpoint.read(run.checkpoints / name)
    except (Damaged, OSError) as error:
        raise ValueError(f"it is gone, or damaged: {error}") from None
    experiment = run.experiment
    store = Store(experiment.data.store, selection or experiment.data.selection)
    labels = store.column("label").to_numpy()
    numbers = np.asarray(store.select("train"))
    known = numbers[labels[numbers] >= 0]
    judged = len(np.unique(labels[known])) > 1
    numbers, is_query = held_back(known if judged else numbers, images, ONLINE_QUERY_SHARE)
    encoders = RunEncoders(run.path.name, experiment.model_dump(mode="json"), checkpoint)
    names = ("trained", "random") if with_random else ("trained",)
    embedding = Embedding(ClusterConfig(), threads=1)
    features = embedding.here(encoders, store, numbers, names)
    views = embedding.here(encoders, store, numbers[spread_over(len(numbers), MAX_PAIRS)], names, PAIRS)
    aligned = {name: alignment(views[name], views[f"{name}_view2"]) for name in names}
    found = probed(
        checkpoint.step,
        features["trained"],
        labels[numbers] if judged else None,
        is_query,
        experiment,
        aligned["trained"],
    )
    if with_random:
        found["random"] = health(features["random"], aligned["random"]).model_dump(mode="json")
    return found
