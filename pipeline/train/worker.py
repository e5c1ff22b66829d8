"""What runs on every worker of Ray Train: it takes the run up where it stands, and trains on."""

import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.cluster import cores_each
from pipeline.experiment import Experiment, build_experiment
from pipeline.ingest.blocklist import replaced_numbers
from pipeline.ingest.store import Store
from pipeline.run import Run
from pipeline.stream.batches import Batches, Stream, to_batch
from pipeline.stream.crops import RandomCrops
from pipeline.stream.mixture import Mixture, Supply, first_numbers, mixture
from pipeline.stream.read import Columns, Reader
from pipeline.train.alarm import Alarm
from pipeline.train.attempts import Attempt, Skips, note_failure, read_failure, stop_requested
from pipeline.train.checkpoints import Checkpoint, CheckpointFailed, CheckpointWriter, Saved, Superseded
from pipeline.train.continuing import continue_checkpoint
from pipeline.train.loop import TrainState, train
from pipeline.train.meter import LogRow, NotFinite
from pipeline.train.record import Recorder, append_event, fingerprint
from pipeline.train.start import start_weights
from ssl_models.collectives import mean_over_ranks
from ssl_models.encoders import ImageEncoder
from ssl_models.objectives import build_objective

MAX_SKIPS = 5  # times that a run goes back before a value that is not finite is its own fault


def open_stream(experiment: Experiment, store: Store) -> Stream:
    """The stream of what an experiment trains on in its own store, in the order of its seed."""
    supply = _supply(experiment, store)
    data = experiment.data
    plan = data.plan(len(supply.numbers), supply.weights, experiment.training.seed)
    return Stream(store, supply.numbers, plan, supply.reader, data.first_step)


def open_batches(experiment: Experiment) -> Batches:
    """What an experiment trains on: its store, and the older ones that it replays.

    Raises:
        ValueError: a store, or its selection, is not the one that the run began with.
    """
    stores = experiment.open_stores()
    if len(stores) == 1:
        return open_stream(experiment, stores[0])
    firsts = first_numbers(stores)
    supplies = [_supply(experiment, store, first) for store, first in zip(stores, firsts, strict=True)]
    return mixture(supplies, experiment.data, experiment.training.seed)


def _supply(experiment: Experiment, store: Store, first_number: int = 0) -> Supply:
    selection, weights = experiment.training_samples(store)
    seed, views = experiment.training.seed, experiment.views
    reader = Reader(
        geometry=RandomCrops(views, experiment.encoder.image_size, experiment.num_views, seed),
        seed=seed,
        context_length=experiment.context_length,
        place=store.place,
        local=RandomCrops(views, views.local_size, views.local_crops, seed, local=True) if views.local_crops else None,
        first_number=first_number,
    )
    return Supply(store, replaced_numbers(selection, store.blocked), weights, reader)


def fresh_state(experiment: Experiment, device: torch.device, *, restored: bool = False) -> TrainState:
    """The state before the first step, the same on every rank; of a run that goes on from another, that one's last.
    Where all weights are `restored` in a moment, those of the other run are not asked for; it may be gone.

    Raises:
        ValueError: the run to start from has no such encoder, or the one to go on from is another.
    """
    training = experiment.training
    torch.manual_seed(training.seed)
    objective = build_objective(experiment.objective, experiment.encoder)
    if training.start_from and not restored:
        objective.start_encoder(start_weights(training, experiment.encoder))
    state = TrainState.fresh(objective, experiment.optimizer, experiment.data.batch_size, device)
    if training.continue_from and not restored:
        continue_checkpoint(training).restore(state)
    if training.compile:
        for module in objective.modules():  # teachers, too
            if isinstance(module, ImageEncoder):
                module.compile()
    return state


@dataclass(frozen=True)
class Start:
    """Where a worker group takes the run up: rank 0 looks, all ranks follow."""

    attempt: Attempt
    checkpoint: Checkpoint | None
    skips: Skips

    @classmethod
    def look(cls, run: Run) -> "Start | None":
        """None: an earlier worker group has said why no restart would help."""
        if read_failure(run.path):
            return None
        return cls(Attempt.claim(run.path), run.newest_checkpoint(), Skips.read(run.path))


def train_worker(config: dict[str, Any]) -> None:
    """The function that Ray Train starts on every worker; `config` holds the run directory and the experiment.

    It returns when the run is done, when it was asked to leave, and when no restart would help (`failure.json`); every
    other error lets Ray start the workers again.
    """
    import ray.train
    import ray.train.torch
    from ray.train.collective import broadcast_from_rank_zero

    began = time.time()
    run, experiment = Run(Path(config["run"])), build_experiment(config["experiment"])
    context = ray.train.get_context()
    rank, device = context.get_world_rank(), ray.train.torch.get_device()
    if device.type == "cpu":
        # Ray gives a 1-CPU worker one thread; the workers of a node share all its cores.
        torch.set_num_threads(cores_each(context.get_local_world_size() * config["sharing"]))
    start = broadcast_from_rank_zero(Start.look(run) if rank == 0 else None)
    if start is None:
        return
    worker = Worker(
        run, experiment, start, device, rank, context.get_world_size(), began, config["save_at"], config["keep_at"]
    )
    try:
        worker.train()
    except NotFinite as error:  # on all ranks alike: none is left to be restarted
        worker.note(error)
    except (ValueError, CheckpointFailed) as error:
        worker.note(error)
        raise


class Worker:
    """One rank of one attempt at a run."""

    def __init__(
        self,
        run: Run,
        experiment: Experiment,
        start: Start,
        device: torch.device,
        rank: int,
        world_size: int,
        began: float,
        save_at: Sequence[int] = (),
        keep_at: Sequence[int] = (),
    ) -> None:
        self.run, self.experiment, self.device = run, experiment, device
        self.rank, self.world_size, self.began = rank, world_size, began
        self.attempt, self.skips = start.attempt, start.skips
        self.save_at, self.keep_at = {*save_at, *keep_at}, keep_at
        log = run.path / "logs" / f"hang-{self.attempt.number:03d}-rank{rank}.txt"
        self.alarm = Alarm(log, experiment.cluster.hang_seconds)
        self.views = experiment.device_views()
        self.checkpoint = start.checkpoint
        self.recorder: Recorder | None = None
        self.writer: CheckpointWriter | None = None

    def train(self) -> None:
        """To the end of the run, or until it must leave; goes back and skips batches where the experiment says so.

        Raises:
            NotFinite: on all ranks, when it was not to be skipped, or has come too often.
            ValueError: a store is not what the run began with, or a sample is damaged.
        """
        self.stream = open_batches(self.experiment)
        while True:
            try:
                self.alarm.put_off()
                self._train(self._restored())
                return
            except NotFinite as error:
                skip = self.experiment.training.on_nonfinite == "skip" and len(self.skips.made) < MAX_SKIPS
                self._event("nonfinite", step=error.step, values=repr(error.values), ids=error.ids, skipped=skip)
                if not skip:
                    raise
                self._go_back(error.step)
            finally:
                self.alarm.cancel()
                if self.writer is not None:
                    self.writer.close()

    def note(self, error: Exception) -> None:
        if self.attempt.is_current:
            note_failure(self.run.path, error)

    def _restored(self) -> TrainState:
        restoring = time.perf_counter()
        state = fresh_state(self.experiment, self.device, restored=self.checkpoint is not None)
        if self.checkpoint is not None:
            self.checkpoint.restore(state)
        if self.rank == 0:
            training = self.experiment.training
            self.recorder = Recorder(self.run.path, self.attempt.number, state.step)
            self.writer = CheckpointWriter(
                self.run.checkpoints,
                keep=training.keep_checkpoints,
                keep_best=training.keep_best,
                keep_at=self.keep_at,
                is_current=lambda: self.attempt.is_current,
                on_saved=self._saved,
            )
        seconds = time.perf_counter() - restoring
        self._event(
            "attempt", step=state.step, world_size=self.world_size, began=self.began, restore_seconds=round(seconds, 3)
        )
        return state

    def _train(self, state: TrainState) -> None:
        experiment = self.experiment
        with closing(self._batches(state.step)) as batches:
            train(
                state,
                batches,
                training=experiment.training,
                optimizer=experiment.optimizer,
                batch_size=experiment.data.batch_size,
                total_steps=experiment.total_steps,
                save_at=self.save_at,
                prepare=lambda columns: to_batch(columns, self.views, self.device),
                account=self._account,
                on_step=self._stepped,
                on_log=self._logged,
                on_checkpoint=self._save,
                must_leave=self._must_leave,
            )

    def _batches(self, step: int) -> Generator[Columns, None, None]:
        cpus = max(1.0, self.experiment.cluster.data_cpus / self.world_size)
        for first, stop in self.skips.stretches(step, self.experiment.total_steps):
            yield from self.stream.distributed(first, stop, self.rank, self.world_size, cpus=cpus)

    def _account(self, columns: Columns) -> tuple[int, ...]:
        of_stores = self.stream.counts(columns) if isinstance(self.stream, Mixture) else ()
        return fingerprint(columns["number"], columns["visit"]), int(columns["retries"].sum()), *of_stores

    def _stepped(self, step: int) -> None:
        self.alarm.put_off()
        if self.writer is not None and self.writer.failure is not None:
            raise self.writer.failure

    def _logged(self, row: LogRow) -> None:
        if self.recorder is None:
            return
        if not self.attempt.is_current:
            raise Superseded(f"attempt {self.attempt.number} was taken for dead, and another has taken over")
        self.recorder.write(row)

    def _save(self, state: TrainState, row: LogRow) -> None:
        if self.writer is not None:
            self.writer.save(state, score=row.metrics["loss"])

    def _saved(self, saved: Saved) -> None:
        self._event(
            "checkpoint", step=saved.step, time=saved.began, blocked_seconds=round(saved.blocked_seconds, 4),
            seconds=round(saved.seconds, 3), bytes=saved.bytes,
        )  # fmt: skip

    def _must_leave(self) -> bool:
        """Whether the command was told to stop, or a node of ours is about to go; all ranks answer alike."""
        import ray.train

        preempted = ray.train.get_preemption_info()  # a barrier of its own
        told = torch.tensor(float(self.rank == 0 and stop_requested(self.run.path)), device=self.device)
        stopping = bool(mean_over_ranks(told) > 0)
        if stopping:
            self._event("stopping")
        elif preempted is not None:
            self._event("preempted", ranks=preempted.preempted_ranks, deadline_ms=preempted.deadline_ms)
        return stopping or preempted is not None

    def _go_back(self, bad_step: int) -> None:
        from ray.train.collective import broadcast_from_rank_zero

        if self.writer is not None:
            self.writer.close()
            self.checkpoint = self.run.newest_checkpoint()
            restored = self.checkpoint.step if self.checkpoint else self.experiment.training.continue_step
            self.skips = self.skips.with_skip(self.run.path, restored, bad_step)
            self.attempt, self.began = Attempt.claim(self.run.path), time.time()  # its rows replace those since
        self.checkpoint, self.skips, self.attempt = broadcast_from_rank_zero(
            (self.checkpoint, self.skips, self.attempt)
        )

    def _event(self, event: str, **facts: Any) -> None:
        if self.rank == 0:
            append_event(self.run.path, event, **{"attempt": self.attempt.number, **facts})
