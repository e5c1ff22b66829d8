"""Do the parts of an experiment fit each other, its model, and its stores? Each check says what is wrong, the value,
the bound, and the way out."""

from collections.abc import Iterator
from math import lcm
from typing import TYPE_CHECKING

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.ingest.store import Store
from pipeline.stream.mixture import refuse_shared_samples, total_samples
from pipeline.stream.plan import MAX_WEIGHT
from pipeline.train.continuing import SETTING, check_continued, continue_checkpoint
from pipeline.train.start import check_start
from ssl_models.objectives import OBJECTIVES, build_objective
from ssl_models.objectives.objective import SeparableObjective

if TYPE_CHECKING:
    from pipeline.experiment import Experiment


def misfits(experiment: "Experiment") -> Iterator[str]:
    """What does not fit in an experiment, as far as its settings alone tell."""
    yield from _batches(experiment)
    yield from _objective(experiment)
    yield from _other_runs(experiment)


def _batches(experiment: "Experiment") -> Iterator[str]:
    data, cluster, patch = experiment.data, experiment.cluster, experiment.encoder.patch_size
    if data.batch_size % data.lanes:
        yield (
            f"data.batch_size={data.batch_size} is not a multiple of data.lanes={data.lanes}: each lane gives an equal "
            f"share of every batch; use data.batch_size={-(-data.batch_size // data.lanes) * data.lanes}"
        )
    for workers in cluster.worlds:
        if data.lanes % workers:
            yield (
                f"{workers} workers (cluster.workers={cluster.workers}, cluster.min_workers={cluster.min_workers}) do "
                f"not divide data.lanes={data.lanes}: a worker serves whole lanes; use divisors of {data.lanes}, or a "
                f"multiple of {lcm(*cluster.worlds)} for data.lanes and data.batch_size"
            )
    if experiment.training.images_seen < data.batch_size:
        yield (
            f"training.images_seen={experiment.training.images_seen} is less than one batch of {data.batch_size}: "
            "raise it, or lower data.batch_size"
        )
    if patch is not None and (size := experiment.encoder.image_size) % patch:
        yield (
            f"encoder.image_size={size} is not a multiple of encoder.patch_size={patch}: use encoder.image_size="
            f"{-(-size // patch) * patch}"
        )


def _objective(experiment: "Experiment") -> Iterator[str]:
    data, views, training, name = experiment.data, experiment.views, experiment.training, experiment.objective.name
    objective = OBJECTIVES[name]
    if views.local_crops and not objective.takes_local_crops:
        takers = [name for name, other in OBJECTIVES.items() if other.takes_local_crops]
        yield (
            f"views.local_crops={views.local_crops}: objective {name!r} takes no local crops; those that do: "
            f"{', '.join(takers)}; use views.local_crops=0"
        )
    if views.rotate and objective.upright:
        yield (
            f"views.rotate={views.rotate}: objective {name!r} learns directions, and a turned view has other ones than "
            "its label says; use views.rotate=0"
        )
    if training.micro_batch and not issubclass(objective, SeparableObjective):
        takers = [name for name, other in OBJECTIVES.items() if issubclass(other, SeparableObjective)]
        yield (
            f"training.micro_batch={training.micro_batch}: objective {name!r} cannot encode a batch in parts; those "
            f"that can: {', '.join(takers)}; use training.micro_batch=null"
        )
    if data.few_labels and not experiment.needs_labels:
        yield (
            f"data.labels={data.labels}, data.shots={data.shots}: objective {name!r} learns from no labels; use "
            "objective supervised, or null for both"
        )
    if data.few_labels and data.replay:
        yield "data.replay: few labels (data.labels, data.shots) are of one store; use data.replay=[]"
    mixes = [key for key in ("mixup", "cutmix") if getattr(experiment.objective, key, 0)]
    odd = [workers for workers in experiment.cluster.worlds if data.batch_size // workers % 2]
    if mixes and odd:
        yield (
            f"objective.{mixes[0]}={getattr(experiment.objective, mixes[0])} mixes pairs of images, but each of "
            f"{odd[0]} workers has {data.batch_size // odd[0]} of data.batch_size={data.batch_size}, which is odd: use "
            f"data.batch_size={2 * data.batch_size}"
        )


def _other_runs(experiment: "Experiment") -> Iterator[str]:
    training = experiment.training
    if training.start_digest and not training.start_from:
        yield "training.start_digest names weights of a run: give training.start_from=RUN, too"
    if training.continue_digest and not training.continue_from:
        yield f"training.continue_digest names weights of a run: give {SETTING}=RUN, too"
    if training.cooldown and not training.continue_from:
        yield f"training.cooldown=true anneals a run that is on its plateau: give {SETTING}=RUN, too"
    if training.continue_from and training.start_from:
        yield (
            f"{SETTING}={training.continue_from} restores all of a run, training.start_from={training.start_from} an "
            "encoder alone: give one of them"
        )


def check_model(experiment: "Experiment") -> None:
    """Builds the model on the meta device, which takes no memory: its ValueErrors come before anything starts."""
    with torch.device("meta"):
        model = build_objective(experiment.objective, experiment.encoder)
    if experiment.views.local_crops:
        model.encoder.check_size(experiment.views.local_size)
    if experiment.optimizer.layer_decay is not None:
        model.encoder.layers_below_head()
    norms = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    if experiment.training.micro_batch and norms:
        raise ValueError(
            f"training.micro_batch={experiment.training.micro_batch}: {norms[0]} ({len(norms)} in all) is a BatchNorm, "
            "whose statistics would be of the part and not of the batch: choose an encoder without (encoder.name="
            "vit_tiny_patch16_224) and LayerNorm in heads that have norms (objective.projector_norm=layer), or use "
            "training.micro_batch=null"
        )


def check_other_runs(experiment: "Experiment") -> None:
    """Compares an experiment with the run that it starts or goes on from. Raises ValueError: they do not fit."""
    if experiment.training.start_from:
        check_start(experiment.training, experiment.encoder)
    if experiment.training.continue_from:
        continue_checkpoint(experiment.training)
        check_continued(experiment, experiment.continued_from())


def check_stores(experiment: "Experiment", stores: tuple[Store, ...]) -> None:
    """Compares what an experiment needs with what the stores hold, which it is trained on, oldest first.

    Raises:
        ValueError: with what does not fit, and the way out.
    """
    name = experiment.objective.name
    for one in stores:
        if experiment.needs_text and one.manifest.captioned == 0:
            raise ValueError(
                f"objective {name!r} needs captions, but no image of {one.path} has one: curate a source with "
                "captions, or choose an objective without text"
            )
    slots, admitted = getattr(experiment.objective, "num_samples", None), total_samples(stores)
    if slots is not None and slots < admitted:
        raise ValueError(
            f"objective.num_samples={slots} is less than the {admitted} samples of "
            f"{', '.join(str(one.path) for one in stores)}: leave it out, and it comes from there"
        )
    if getattr(experiment.objective, "num_classes", None) == 0:
        raise ValueError(
            f"objective {name!r} learns from labels, but no image of {experiment.data.store} has one: curate class "
            "folders, or choose an objective without labels"
        )
    if experiment.data.replay:
        _check_replay(experiment, stores)
    else:
        _check_size(experiment, stores[-1])


def _check_size(experiment: "Experiment", store: Store) -> None:
    data = experiment.data
    if data.few_labels:
        few = len(experiment.training_samples(store)[0])
        if few * MAX_WEIGHT < data.batch_size:
            raise ValueError(
                f"data.batch_size={data.batch_size} is more than {MAX_WEIGHT} times the {few} images that data.labels="
                f"{data.labels}, data.shots={data.shots} leave: lower data.batch_size (and data.lanes), or use more "
                "labels"
            )
    elif (train := store.count("train")) < data.batch_size:
        raise ValueError(
            f"data.batch_size={data.batch_size} exceeds the {train} training images of {data.store}: lower "
            "data.batch_size (and data.lanes), or curate more images"
        )


def _check_replay(experiment: "Experiment", stores: tuple[Store, ...]) -> None:
    refuse_shared_samples(stores)
    *old, new = stores
    other = next((store for store in old if store.manifest.classes != new.manifest.classes), None)
    if experiment.needs_labels and other is not None:
        raise ValueError(
            f"objective {experiment.objective.name!r} learns from labels, and {other.path} has other classes than "
            f"{new.path}: labels are counted by each store; curate both as one store, or choose an objective without "
            "labels"
        )
    batch, again = experiment.data.batch_size, experiment.data.replayed
    sizes = [len(experiment.training_samples(store)[0]) for store in stores]
    wanted = [(sum(sizes[:-1]), again, old), (sizes[-1], batch - again, [new])]
    if not again:
        wanted = [(sum(sizes), batch, [*stores])]
    for images, part, of in wanted:
        if images < part:
            raise ValueError(
                f"{part} of the data.batch_size={batch} images of a batch are to come from "
                f"{', '.join(str(store.path) for store in of)}, which has {images} training images: lower "
                "data.batch_size (and data.lanes), or change data.replay_share (null: all images alike)"
            )
