"""The whole configuration of a run: composed of every part's Config, checked before anything starts."""

import hashlib
import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, ValidationError, model_validator

from pipeline.cluster import ClusterConfig
from pipeline.crosschecks import check_model, check_other_runs, check_stores, misfits
from pipeline.evaluate.protocol import EvaluationConfig
from pipeline.ingest.store import Store
from pipeline.settings import explain, unknown_setting
from pipeline.stream.batches import DataConfig, training_samples
from pipeline.stream.mixture import total_samples
from pipeline.stream.views import DeviceViews, ViewsConfig
from pipeline.train.continuing import SETTING, begins_at
from pipeline.train.loop import TrainingConfig
from pipeline.train.start import newest_of
from ssl_models.config import Config
from ssl_models.encoders import EncoderConfig
from ssl_models.objectives import OBJECTIVES, ObjectiveConfig
from ssl_models.objectives.image_text import ImageTextObjective
from ssl_models.optimizers import OptimizerConfig

# Settings that runs of version 0.1 do not have, and what they are without: then they do not count in a digest, so that
# those runs and the trials that are named by it are found again.
ADDED: dict[str, Any] = {
    "evaluation.online_images": 0,
    "data.labels": None,
    "data.shots": None,
    "data.labels_draw": 0,
    "objective.normalize": True,
    "objective.mixup": 0.0,
    "objective.cutmix": 0.0,
    "optimizer.layer_decay": None,
    "training.start_from": None,
    "training.start_digest": None,
    "data.replay": [],
    "data.replay_share": 0.25,
    "data.digests": [],
    "data.first_step": 0,
    "training.continue_from": None,
    "training.continue_digest": None,
    "training.continue_step": 0,
    "training.cooldown": False,
}
# What `Experiment.fitted` finds out at the start of a run, which then keeps it.
FITTED = (
    "training.start_digest", "training.continue_digest", "training.continue_step", "data.digests", "data.first_step",
)  # fmt: skip
# What it finds it out of.
ORIGINS = ("training.start_from", "training.continue_from", "data.store", "data.selection", "data.replay")


class Experiment(Config):
    """What is trained, on what, how long, and how it is judged. Batch size is global, the learning rate is per 256
    images, curves are in fractions of the run: an experiment means the same on 1 or 64 workers."""

    data: DataConfig
    views: ViewsConfig = ViewsConfig()
    encoder: EncoderConfig = EncoderConfig()
    objective: Annotated[ObjectiveConfig, Field(discriminator="name")]
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _parts_fit(self) -> "Experiment":
        for misfit in misfits(self):
            raise ValueError(misfit)
        return self

    @property
    def total_steps(self) -> int:
        """Of the run, with those that the run that it goes on from had done."""
        return self.training.continue_step + self.training.images_seen // self.data.batch_size

    @property
    def num_views(self) -> int:
        return OBJECTIVES[self.objective.name].num_views

    @property
    def needs_text(self) -> bool:
        return OBJECTIVES[self.objective.name].needs_text

    @property
    def needs_labels(self) -> bool:
        return "num_classes" in type(self.objective).model_fields

    @property
    def compares_text(self) -> bool:
        """Whether its encoder can be judged by retrieval of captions."""
        return issubclass(OBJECTIVES[self.objective.name], ImageTextObjective)

    @property
    def context_length(self) -> int | None:
        """Tokens of a caption; None when the objective reads no text."""
        text = getattr(self.objective, "text", None)
        return text.context_length if text is not None else None

    @property
    def digest(self) -> str:
        """Names what is computed; where it is computed (`cluster`) does not count."""
        content = self.named_by()
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def named_by(self) -> dict[str, Any]:
        """What digests are of: all settings but `cluster`, without those of newer versions that are off."""
        content = self.model_dump(mode="json", exclude={"cluster"})
        for key, absent in ADDED.items():
            group, name = key.split(".")
            if content[group].get(name, absent) == absent:
                content[group].pop(name, None)
        return content

    def open_stores(self) -> tuple[Store, ...]:
        """All stores that are trained on, oldest first.

        Raises:
            ValueError: one of them, or its selection, is not what it was when the run began.
        """
        stores = self.data.open_all()
        for store, digest in zip(stores, self.data.digests, strict=False):
            if store.selected_digest != digest:
                raise ValueError(
                    f"{store.path}, selection {store.selection!r}, has other samples than when the run began: restore "
                    "it, or begin another run with --run"
                )
        return stores

    def training_samples(self, store: Store) -> tuple[np.ndarray, np.ndarray | None]:
        """What is trained on, with its weights: see `pipeline.stream.batches.training_samples`."""
        return training_samples(store, self.data, with_text=self.needs_text)

    def device_views(self, seed: int | None = None, *, plain: bool = False) -> DeviceViews:
        """What makes views of crops: with the run's seed, and the normalisation of its encoder."""
        seed = self.training.seed if seed is None else seed
        return DeviceViews(self.views, seed, plain, self.encoder.mean, self.encoder.std)

    def check_model(self) -> None:
        """Raises ValueError: there is no such model, or it cannot be trained so."""
        check_model(self)

    def check(self, store: Store, *, begun: bool = False) -> None:
        """Compares what the model and the objective need with what the store holds, and, unless the run has `begun`
        and so has weights of its own, with the run that it starts from.

        Raises:
            ValueError: with what does not fit, and the way out.
        """
        check_model(self)
        stores = self.open_stores()
        if not begun:
            check_other_runs(self)
        check_stores(self, stores if self.data.replay else (store,))

    def continued_from(self) -> "Experiment":
        """The experiment of the run that this one goes on from."""
        return build_experiment(json.loads((Path(self.training.continue_from or "") / "experiment.json").read_text()))

    def fitted(self, store: Store) -> "Experiment":
        """With what a recipe leaves open filled in: what the objective wants to know of the data, from the stores; and
        which weights of another run it starts or goes on from, if it does: the newest. Going on, or of several stores,
        also what these hold.

        Raises:
            ValueError: there is no such run, or it has no checkpoint.
        """
        samples = total_samples(self.data.open_all()) if self.data.replay else store.manifest.admitted
        found = {"num_samples": samples, "num_classes": len(store.manifest.classes)}
        changes: dict[str, Any] = {
            f"objective.{name}": value for name, value in found.items() if getattr(self.objective, name, 0) is None
        }
        start = self.training.start_from
        if start and self.training.start_digest is None:
            changes["training.start_digest"] = newest_of(start, "training.start_from").digest
        going_on = self.training.continue_from
        if (self.data.replay or going_on) and not self.data.digests:
            changes["data.digests"] = list(self.data.found_digests())
        if going_on and self.training.continue_digest is None:
            newest = newest_of(going_on, SETTING)
            changes |= {"training.continue_digest": newest.digest, "training.continue_step": newest.step}
            begun = self.override(changes)
            return begun.override({"data.first_step": begins_at(begun, begun.continued_from())})
        return self.override(changes) if changes else self

    def override(self, changes: Mapping[str, Any]) -> "Experiment":
        """A new experiment with dotted keys replaced: {"objective.temperature": 0.2}.

        Raises:
            ValueError: an unknown key or a refused value, in words for a person.
        """
        content = self.model_dump(mode="json")
        for key, value in changes.items():
            *parents, leaf = key.split(".")
            group: Any = content
            for parent in parents:
                group = group.get(parent) if isinstance(group, dict) else None
            open_ended = parents[-1:] == ["arguments"]
            if not isinstance(group, dict) or (leaf not in group and not open_ended):
                raise ValueError(unknown_setting(key, content))
            group[leaf] = deepcopy(value)  # a later key may change a part of it, which is the caller's
        return build_experiment(content)


def build_experiment(content: Mapping[str, Any]) -> Experiment:
    """Validates plain data, as read from JSON.

    Raises:
        ValueError: what is wrong, one line a fault.
    """
    try:
        return Experiment.model_validate(content)
    except ValidationError as error:
        raise ValueError(explain(error)) from None
