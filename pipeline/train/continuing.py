"""A run that goes on from another: with all of its state, on its plateau, or down from it (the cooldown)."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.ingest.store import DEFAULT
from pipeline.train.checkpoints import Checkpoint
from pipeline.train.loop import TrainingConfig
from pipeline.train.start import named_checkpoint
from ssl_models.objectives import OBJECTIVES

if TYPE_CHECKING:
    from pipeline.experiment import Experiment

COOLDOWN_SHARE = 0.15  # of the images of the plateau; 10 to 20 % are usual (Hägele et al. 2024, arXiv 2405.18392)
SETTING = "training.continue_from"
# What makes of the experiment of a run that went on, or started, from another one that begins for itself.
ALONE: dict[str, Any] = {
    SETTING: None,
    "training.continue_digest": None,
    "training.continue_step": 0,
    "training.cooldown": False,
    "training.start_from": None,
    "training.start_digest": None,
    "data.digests": [],
    "data.first_step": 0,
}


def continued(there: "Experiment", run: Path, changes: Mapping[str, Any] | None = None) -> "Experiment":
    """The experiment that goes on from `run`, whose experiment is `there`, with some settings changed. With another
    store, all stores that were trained on before are replayed, unless `changes` say otherwise.

    Raises:
        ValueError: as `Experiment.override`.
    """
    changes = dict(changes or {})
    own = {**ALONE, SETTING: str(run)}
    own |= {key: None for key in ("objective.num_samples",) if hasattr(there.objective, "num_samples")}  # of the stores
    if changes.get("data.store", there.data.store) != there.data.store:
        data = there.data
        here = data.store if data.selection == DEFAULT else f"{data.store}@{data.selection}"
        before = [name for name in (*data.replay, here) if name != changes["data.store"]]
        own |= {"data.replay": before, "data.selection": DEFAULT}
    return there.override({**own, **changes})


def cooled_down(there: "Experiment", run: Path, changes: Mapping[str, Any] | None = None) -> "Experiment":
    """The experiment that anneals `run` on the data that it was trained on. Raises ValueError as `continued`."""
    images = max(there.data.batch_size, round(COOLDOWN_SHARE * there.training.images_seen))
    return continued(there, run, {"training.cooldown": True, "training.images_seen": images, **(changes or {})})


def continue_checkpoint(training: TrainingConfig) -> Checkpoint:
    """The checkpoint that `training` goes on from, with every byte as it was saved.

    Raises:
        ValueError: the run keeps no such checkpoint any more.
    """
    return named_checkpoint(SETTING, training.continue_from, "training.continue_digest", training.continue_digest)


def begins_at(here: "Experiment", there: "Experiment") -> int:
    """The step at which the order of samples begins: the other run's, where the data and the seed are the same, for
    then the order goes on; else the first step of `here`."""

    def order(experiment: "Experiment") -> tuple[Any, ...]:
        data = experiment.data.model_dump(exclude={"store", "selection", "replay", "digests", "first_step"})
        return data, experiment.training.seed, _digests(experiment)

    return there.data.first_step if order(here) == order(there) else here.training.continue_step


def check_continued(here: "Experiment", there: "Experiment") -> None:
    """Raises ValueError: `here` cannot go on from `there`; says why, and what can be done instead."""
    run, encoder = here.training.continue_from, f"training.start_from={here.training.continue_from}"
    if there.training.cooldown:
        raise ValueError(
            f"{SETTING}={run} is a cooldown: its rate has fallen to zero, and one that rises again forgets; go on from "
            f"{there.training.continue_from}, whose plateau it left"
        )
    if not there.optimizer.endless:
        schedule, warmup = there.optimizer.schedule, there.optimizer.warmup_images
        raise ValueError(
            f"{SETTING}={run} was trained towards an end (optimizer.schedule={schedule}, optimizer.warmup_images="
            f"{'null' if warmup is None else warmup}): train it with optimizer.schedule=constant and "
            f"optimizer.warmup_images=N, or begin anew with its encoder alone, with {encoder}"
        )
    differ = _differences(here, there)
    if differ:
        raise ValueError(
            f"{SETTING}={run} has other settings: {'; '.join(differ[:5])}; what is restored fits only the same: leave "
            f"them out (`feral continue` takes them from there), or begin anew with its encoder alone, with {encoder}"
        )
    images, warmup = here.training.continue_step * here.data.batch_size, there.optimizer.warmup_images or 0
    if images < warmup:
        raise ValueError(
            f"{SETTING}={run} has seen {images:,} images and is still in its warm-up of {warmup:,}: train it longer"
        )
    name = here.objective.name
    holds = "labels, which each store counts by itself" if here.needs_labels else "something of every sample"
    if (here.needs_labels or OBJECTIVES[name].remembers_samples) and _digests(here) != _digests(there):
        raise ValueError(
            f"objective {name!r} holds {holds}: it can go on with the same data only, not with that of "
            f"{', '.join((*here.data.replay, here.data.store))}; begin anew on all of it, with {encoder}, or choose an "
            "objective without"
        )


def _differences(here: "Experiment", there: "Experiment") -> list[str]:
    mine, theirs = (
        {
            f"{group}.{name}": value
            for group in ("encoder", "objective", "optimizer")
            for name, value in getattr(experiment, group).model_dump(mode="json", exclude={"num_samples"}).items()
        }
        | {"data.batch_size": experiment.data.batch_size}
        for experiment in (here, there)
    )
    keys = {**theirs, **mine}
    return [
        f"{key} is {theirs.get(key)} there, {mine.get(key)} here" for key in keys if mine.get(key) != theirs.get(key)
    ]


def _digests(experiment: "Experiment") -> tuple[str, ...]:
    """Of a run of one store they are not noted: then of what the store is now; nothing, where it is no more."""
    with suppress(ValueError):
        return experiment.data.digests or experiment.data.found_digests()
    return ()
