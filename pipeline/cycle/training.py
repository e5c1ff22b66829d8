"""The middle stages: a plateau goes on with what is new and a share of what is old; a candidate cools down from it."""

import math
from pathlib import Path
from typing import Any

from pipeline.cycle.config import Cycle
from pipeline.cycle.curating import block_listed, listed_pictures
from pipeline.cycle.job import Ended, Job
from pipeline.evaluate.validation import judges
from pipeline.experiment import Experiment
from pipeline.ingest.store import Store
from pipeline.ledger.promotion import Named, resolve
from pipeline.ledger.records import record_checkpoint, record_run
from pipeline.pretrain import Progress, plan_line, prepared, train, working_on
from pipeline.redaction import typed_command
from pipeline.run import Run
from pipeline.stream.batches import named_store
from pipeline.train.continuing import continued, cooled_down
from ssl_models.objectives import OBJECTIVES

_OF_THE_CYCLE = (
    "training.images_seen", "training.continue_from", "training.start_from", "data.store", "data.selection",
    "data.replay", "data.replay_share",
)  # fmt: skip
FEWEST_HELD_BACK = 2  # images: fewer cannot be judged on


def endless(recipe: Experiment, cycle: Cycle) -> Experiment:
    """A recipe with the settings of a cycle, as its first run: without an end, so that others can go on from it.

    Raises:
        ValueError: it cannot be trained on one dump after the other; says why.
    """
    for key in _OF_THE_CYCLE:
        if key in cycle.settings:
            raise ValueError(
                f"settings.{key}: the cycle sets it for each dump; see images_per_dump, epochs_per_dump, replay_share"
            )
    experiment = recipe.override(cycle.settings)
    objective, optimizer = experiment.objective.name, experiment.optimizer
    if experiment.needs_labels or OBJECTIVES[objective].remembers_samples:
        holds = "labels, which each store counts by itself" if experiment.needs_labels else "something of every sample"
        raise ValueError(
            f"recipe = {cycle.recipe!r}: objective {objective!r} holds {holds}, so that it cannot go on with the next "
            "dump; choose a recipe of another objective (`feral recipes`)"
        )
    if optimizer.endless:
        return experiment
    for key in ("optimizer.schedule", "optimizer.warmup", "optimizer.warmup_images"):
        if key in cycle.settings:
            raise ValueError(
                f"settings.{key} = {cycle.settings[key]!r}: a cycle goes on from dump to dump, and needs "
                'optimizer.schedule = "constant" (or "inverse_sqrt") with optimizer.warmup_images = N; give both, or '
                "none: then they follow from the recipe"
            )
    return experiment.override({"optimizer.schedule": "constant"})


def plateau(job: Job, recipe: Experiment) -> Experiment:
    """What is trained on a dump, with what its store and the base say.

    Raises:
        ValueError: it does not fit the base, or the base is not what was recorded.
    """
    cycle, store = job.cycle, named_store(job.outputs["curate"])
    first, base = endless(recipe, cycle), _base(job)
    own = {"data.store": str(store.path), "data.selection": store.selection}
    if base is None:
        length = _images(cycle, first, store, replay=0)
        changes: dict[str, Any] = own | {"training.images_seen": length}
        if not first.optimizer.endless:
            changes["optimizer.warmup_images"] = math.ceil(first.optimizer.warmup * length)
        return first.override(changes).fitted(store)
    there = Run(base.run, pinned=base.digest).experiment
    replay: dict[str, Any] = {"data.replay_share": cycle.replay_share} if cycle.replay_share else {"data.replay": []}
    images = {"training.images_seen": _images(cycle, there, store, cycle.replay_share)}
    experiment = continued(there, base.run, {**cycle.settings, **own, **replay, **images}).fitted(store)
    if experiment.training.continue_digest != base.digest:
        raise ValueError(
            f"{cycle.base} is step {base.path.name} of {base.run}, and that run has gone on since: nothing may train a "
            "plateau further; restore it, or give `base` another name to begin anew"
        )
    return experiment


def _base(job: Job) -> Named | None:
    with job.ledger.reading() as connection:
        return resolve(connection, job.cycle.base)


def _images(cycle: Cycle, experiment: Experiment, store: Store, replay: float) -> int:
    """Images to be seen, in whole batches."""
    batch = experiment.data.batch_size
    wanted = cycle.images_per_dump
    if wanted is None:
        assert cycle.epochs_per_dump is not None
        wanted = math.ceil(cycle.epochs_per_dump * store.count("train") / (1 - replay))
    return max(1, math.ceil(wanted / batch)) * batch


def _too_few(experiment: Experiment, store: Store) -> str | None:
    """Why a dump is too small to be trained on."""
    new = experiment.data.batch_size - experiment.data.replayed
    train, held_back = len(experiment.training_samples(store)[0]), store.count("test")
    if train < new:
        return f"{train:,} new training images are less than the {new:,} of one batch: deliver more at once"
    if held_back < FEWEST_HELD_BACK:
        return f"{held_back} of its images are held back, too few to judge on: raise reading.holdout, or deliver more"
    return None


def _check_judges(job: Job, experiment: Experiment, own: Store) -> None:
    """Refuses to train what the gate would hold whatever comes of it.

    Raises:
        ValueError: a store that it will be judged on answers no question.
    """
    for store in [Store(path) for path in job.cycle.judge_on] or [own]:
        if judges(store, experiment):
            continue
        way_out = "name others in judge_on"
        if not job.cycle.judge_on:
            skip = f"feral ledger skip {job.dump.admit_no} --reason …"
            way_out = f"name a labelled store in judge_on, or leave the dump out: {skip}"
        raise ValueError(
            f"{store.path} cannot judge a candidate, so that it would be trained and then held: it has no labels on "
            f"both splits, nor captions for a recipe that compares images with text; {way_out}"
        )


def train_inputs(job: Job, recipe: Experiment) -> Any:
    experiment, store = plateau(job, recipe), named_store(job.outputs["curate"])
    if not _too_few(experiment, store):
        experiment.check(store)
        _check_judges(job, experiment, store)
    listed_pictures(job.cycle)  # what is wrong with a list is said before an attempt is made
    return {"experiment": experiment.digest}


def train_plateau(job: Job, recipe: Experiment, progress: Progress) -> Ended:
    experiment = plateau(job, recipe)
    if few := _too_few(experiment, named_store(job.outputs["curate"])):
        return Ended(few, state="skipped", reason=few)
    return _trained(job, experiment, "runs", progress, "trained")


def cooldown_inputs(job: Job) -> Any:
    experiment = _candidate(job)
    listed_pictures(job.cycle)
    return {"experiment": experiment.fitted(experiment.data.open()).digest}


def train_candidate(job: Job, progress: Progress) -> Ended:
    return _trained(job, _candidate(job), "candidates", progress, None)


def _candidate(job: Job) -> Experiment:
    there = Run.open(Path(job.outputs["train"]))
    batch, seen = there.experiment.data.batch_size, there.experiment.training.images_seen
    images = math.ceil(job.cycle.cooldown_share * seen / batch) * batch
    changes = {key: value for key, value in job.cycle.settings.items() if key.startswith(("cluster.", "evaluation."))}
    return cooled_down(there.experiment, there.path, {**changes, "training.images_seen": images})


def _trained(job: Job, experiment: Experiment, folder: str, progress: Progress, state: str | None) -> Ended:
    """Trains to the end, in a folder that is named by what is computed; goes on where it was stopped."""
    block_listed(job)
    named = experiment.fitted(experiment.data.open()).digest
    path = job.cycle.root / folder / f"{job.name}-{named[:6]}"
    experiment = prepared(experiment, path)
    with working_on(experiment, path, typed_command(), job.tell) as run:
        job.tell(f"  {plan_line(experiment, experiment.open_stores())}")
        train(run, progress, lambda line: job.tell(f"  {line}"))
    checkpoint = run.newest_checkpoint()
    assert checkpoint is not None

    def record(connection, work_id: str) -> None:
        record_run(connection, run, work_id=work_id)
        record_checkpoint(connection, run, checkpoint)

    images = experiment.training.images_seen
    return Ended(f"{images:,} images seen, to step {checkpoint.step:,}: {path}", str(path), state, record=record)
