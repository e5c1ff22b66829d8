"""What one Ray Train worker runs: its share of the stream through the loop, from the newest whole checkpoint."""

import os
from pathlib import Path
from typing import Any

import torch

from pipeline.experiment import Experiment, build_experiment
from pipeline.ingest.blocklist import replaced_numbers
from pipeline.ingest.store import Store
from pipeline.run import Run
from pipeline.stream.batches import Stream, captioned, to_batch
from pipeline.stream.plan import Plan
from pipeline.stream.read import Reader
from pipeline.stream.views import DeviceViews, RandomCrops
from pipeline.train.checkpoints import save_checkpoint
from pipeline.train.loop import LogRow, TrainState, train
from pipeline.train.metrics import MetricsWriter
from ssl_models.objectives import build_objective


def open_stream(experiment: Experiment, store: Store) -> Stream:
    """The training stream of an experiment: the train split, and only captioned samples where text is read."""
    selection = store.select("train", with_blocked=True)
    if experiment.needs_text:
        selection = captioned(store, selection)
    seed = experiment.training.seed
    plan = Plan(
        shards=store.column("shard").to_numpy()[selection],
        batch_size=experiment.data.batch_size,
        lanes=experiment.data.lanes,
        seed=seed,
    )
    reader = Reader(
        place=store.place,
        geometry=RandomCrops(experiment.views, experiment.encoder.image_size, experiment.num_views, seed),
        seed=seed,
        context_length=experiment.context_length,
    )
    return Stream(store, replaced_numbers(selection, store.blocked), plan, reader)


def fresh_state(experiment: Experiment, device: torch.device) -> TrainState:
    """The state before the first step, the same on every rank."""
    torch.manual_seed(experiment.training.seed)
    objective = build_objective(experiment.objective, experiment.encoder)
    return TrainState.fresh(objective, experiment.optimizer, experiment.data.batch_size, device)


def train_worker(config: dict[str, Any]) -> None:
    """The function that Ray Train starts on every worker; `config` holds the run directory and the experiment."""
    import ray.train
    import ray.train.torch

    run, experiment = Run(Path(config["run"])), build_experiment(config["experiment"])
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        # Ray gives a 1-CPU worker one thread; the workers of a node share all its cores.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    state = fresh_state(experiment, device)
    checkpoint = run.newest_checkpoint()
    if checkpoint is not None:
        checkpoint.restore(state)
    stream = open_stream(experiment, experiment.data.open())
    views = DeviceViews(experiment.views, experiment.training.seed)
    writer = MetricsWriter(run.path, state.step) if rank == 0 else None

    def on_log(row: LogRow) -> None:
        if writer is not None:
            writer.write(row)

    def on_checkpoint(state: TrainState) -> None:
        if rank == 0:
            save_checkpoint(run.checkpoints, state, experiment.training.keep_checkpoints)
        ray.train.report({"step": state.step})  # a barrier: no rank runs ahead of a checkpoint

    train(
        state,
        stream.distributed(
            state.step,
            experiment.total_steps,
            rank,
            world_size,
            cpus=max(1.0, experiment.cluster.data_cpus / world_size),
        ),
        training=experiment.training,
        optimizer=experiment.optimizer,
        batch_size=experiment.data.batch_size,
        total_steps=experiment.total_steps,
        prepare=lambda columns: to_batch(columns, views, device),
        on_log=on_log,
        on_checkpoint=on_checkpoint,
    )
