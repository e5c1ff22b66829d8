"""The whole configuration of a run: composed of every part's Config, checked before anything starts."""

import hashlib
import json
from collections.abc import Mapping
from copy import deepcopy
from math import lcm
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, ValidationError, model_validator
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.cluster import ClusterConfig
from pipeline.evaluate.protocol import EvaluationConfig
from pipeline.ingest.store import Store
from pipeline.settings import explain, unknown_setting
from pipeline.stream.batches import DataConfig, training_samples
from pipeline.stream.mixture import refuse_shared_samples, total_samples
from pipeline.stream.plan import MAX_WEIGHT
from pipeline.stream.views import DeviceViews, ViewsConfig
from pipeline.train.continuing import SETTING, begins_at, check_continued, continue_checkpoint
from pipeline.train.loop import TrainingConfig
from pipeline.train.start import check_start, newest_of
from ssl_models.config import Config
from ssl_models.encoders import EncoderConfig
from ssl_models.objectives import OBJECTIVES, ObjectiveConfig, build_objective
from ssl_models.objectives.objective import SeparableObjective
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
        data = self.data
        if data.batch_size % data.lanes:
            raise ValueError(
                f"data.batch_size={data.batch_size} is not a multiple of data.lanes={data.lanes}: each lane gives an "
                f"equal share of every batch; use data.batch_size={-(-data.batch_size // data.lanes) * data.lanes}"
            )
        for workers in self.cluster.worlds:
            if data.lanes % workers:
                common = lcm(*self.cluster.worlds)
                raise ValueError(
                    f"{workers} workers (cluster.workers={self.cluster.workers}, cluster.min_workers="
                    f"{self.cluster.min_workers}) do not divide data.lanes={data.lanes}: a worker serves whole lanes; "
                    f"use divisors of {data.lanes}, or a multiple of {common} for data.lanes and data.batch_size"
                )
        if self.training.images_seen < data.batch_size:
            raise ValueError(
                f"training.images_seen={self.training.images_seen} is less than one batch of {data.batch_size}: "
                "raise it, or lower data.batch_size"
            )
        if self.views.local_crops and not OBJECTIVES[self.objective.name].takes_local_crops:
            takers = [name for name, objective in OBJECTIVES.items() if objective.takes_local_crops]
            raise ValueError(
                f"views.local_crops={self.views.local_crops}: objective {self.objective.name!r} takes no local crops; "
                f"those that do: {', '.join(takers) or 'none yet'}; use views.local_crops=0"
            )
        if self.views.rotate and OBJECTIVES[self.objective.name].upright:
            raise ValueError(
                f"views.rotate={self.views.rotate}: objective {self.objective.name!r} learns directions, and a turned "
                "view has other ones than its label says; use views.rotate=0"
            )
        if self.training.micro_batch and not issubclass(OBJECTIVES[self.objective.name], SeparableObjective):
            takers = [name for name, objective in OBJECTIVES.items() if issubclass(objective, SeparableObjective)]
            raise ValueError(
                f"training.micro_batch={self.training.micro_batch}: objective {self.objective.name!r} cannot encode a "
                f"batch in parts; those that can: {', '.join(takers)}; use training.micro_batch=null"
            )
        if data.few_labels and not self.needs_labels:
            raise ValueError(
                f"data.labels={data.labels}, data.shots={data.shots}: objective {self.objective.name!r} learns from no "
                "labels; use objective supervised, or null for both"
            )
        mixes = [name for name in ("mixup", "cutmix") if getattr(self.objective, name, 0)]
        odd = [workers for workers in self.cluster.worlds if data.batch_size // workers % 2]
        if mixes and odd:
            raise ValueError(
                f"objective.{mixes[0]}={getattr(self.objective, mixes[0])} mixes pairs of images, but each of {odd[0]} "
                f"workers has {data.batch_size // odd[0]} of data.batch_size={data.batch_size}, which is odd: use "
                f"data.batch_size={2 * data.batch_size}"
            )
        training = self.training
        if training.start_digest and not training.start_from:
            raise ValueError("training.start_digest names weights of a run: give training.start_from=RUN, too")
        if training.continue_digest and not training.continue_from:
            raise ValueError(f"training.continue_digest names weights of a run: give {SETTING}=RUN, too")
        if training.cooldown and not training.continue_from:
            raise ValueError(f"training.cooldown=true anneals a run that is on its plateau: give {SETTING}=RUN, too")
        if training.continue_from and training.start_from:
            raise ValueError(
                f"{SETTING}={training.continue_from} restores all of a run, training.start_from={training.start_from} "
                "an encoder alone: give one of them"
            )
        if data.replay and data.few_labels:
            raise ValueError("data.replay: few labels (data.labels, data.shots) are of one store; use data.replay=[]")
        patch, size = self.encoder.patch_size, self.encoder.image_size
        if patch is not None and size % patch:
            raise ValueError(
                f"encoder.image_size={size} is not a multiple of encoder.patch_size={patch}: "
                f"use encoder.image_size={-(-size // patch) * patch}"
            )
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
        """Builds the model on the meta device, which takes no memory: its ValueErrors come before anything starts."""
        with torch.device("meta"):
            model = build_objective(self.objective, self.encoder)
        if self.views.local_crops:
            model.encoder.check_size(self.views.local_size)
        if self.optimizer.layer_decay is not None:
            model.encoder.layers_below_head()
        norms = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
        if self.training.micro_batch and norms:
            raise ValueError(
                f"training.micro_batch={self.training.micro_batch}: {norms[0]} ({len(norms)} in all) is a BatchNorm, "
                "whose statistics would be of the part and not of the batch: choose an encoder without (encoder.name="
                "vit_tiny_patch16_224) and LayerNorm in heads that have norms (objective.projector_norm=layer), or use "
                "training.micro_batch=null"
            )

    def check(self, store: Store, *, begun: bool = False) -> None:
        """Compares what the model and the objective need with what the store holds, and, unless the run has `begun`
        and so has weights of its own, with the run that it starts from.

        Raises:
            ValueError: with what does not fit, and the way out.
        """
        self.check_model()
        stores = self.open_stores()
        if self.training.start_from and not begun:
            check_start(self.training, self.encoder)
        if self.training.continue_from and not begun:
            continue_checkpoint(self.training)
            check_continued(self, self._continued_from())
        for one in stores:
            if self.needs_text and one.manifest.captioned == 0:
                raise ValueError(
                    f"objective {self.objective.name!r} needs captions, but no image of {one.path} has one: curate "
                    "a source with captions, or choose an objective without text"
                )
        slots, admitted = getattr(self.objective, "num_samples", None), total_samples(stores)
        if slots is not None and slots < admitted:
            raise ValueError(
                f"objective.num_samples={slots} is less than the {admitted} samples of "
                f"{', '.join(str(one.path) for one in stores)}: leave it out, and it comes from there"
            )
        if self.data.replay:
            self._check_replay(stores)
        if getattr(self.objective, "num_classes", None) == 0:
            raise ValueError(
                f"objective {self.objective.name!r} learns from labels, but no image of {self.data.store} has one: "
                "curate class folders, or choose an objective without labels"
            )
        if self.data.few_labels:
            few = len(self.training_samples(store)[0])
            if few * MAX_WEIGHT < self.data.batch_size:
                raise ValueError(
                    f"data.batch_size={self.data.batch_size} is more than {MAX_WEIGHT} times the {few} images that "
                    f"data.labels={self.data.labels}, data.shots={self.data.shots} leave: lower data.batch_size (and "
                    "data.lanes), or use more labels"
                )
        elif not self.data.replay and (train := store.count("train")) < self.data.batch_size:
            raise ValueError(
                f"data.batch_size={self.data.batch_size} exceeds the {train} training images of {self.data.store}: "
                "lower data.batch_size (and data.lanes), or curate more images"
            )

    def _check_replay(self, stores: tuple[Store, ...]) -> None:
        refuse_shared_samples(stores)
        *old, new = stores
        other = next((store for store in old if store.manifest.classes != new.manifest.classes), None)
        if self.needs_labels and other is not None:
            raise ValueError(
                f"objective {self.objective.name!r} learns from labels, and {other.path} has other classes than "
                f"{new.path}: labels are counted by each store; curate both as one store, or choose an objective "
                "without labels"
            )
        again = self.data.replayed
        sizes = [len(self.training_samples(store)[0]) for store in stores]
        wanted = [(sum(sizes[:-1]), again, old), (sizes[-1], self.data.batch_size - again, [new])]
        if not again:
            wanted = [(sum(sizes), self.data.batch_size, [*stores])]
        for images, part, of in wanted:
            if images < part:
                raise ValueError(
                    f"{part} of the data.batch_size={self.data.batch_size} images of a batch are to come from "
                    f"{', '.join(str(store.path) for store in of)}, which has {images} training images: lower "
                    "data.batch_size (and data.lanes), or change data.replay_share (null: all images alike)"
                )

    def _continued_from(self) -> "Experiment":
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
            return begun.override({"data.first_step": begins_at(begun, begun._continued_from())})
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
