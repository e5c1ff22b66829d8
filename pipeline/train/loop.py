"""The one training loop. It holds no method's name, and needs neither Ray nor files."""

import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ssl_models.batch import Batch, Step
from ssl_models.collectives import mean_over_ranks, synchronize_batchnorm, world_size
from ssl_models.config import Config
from ssl_models.objectives import Objective
from ssl_models.optimizers import (
    OptimizerConfig,
    build_optimizer,
    learning_rate_factor,
    scaled_learning_rate,
    set_learning_rate,
)

Raw = TypeVar("Raw")


class TrainingConfig(Config):
    images_seen: int = Field(1_000_000, ge=1, description="length of the run; images × epochs")
    seed: int = Field(0, ge=0, description="of initialisation, order, views and every draw of an objective")
    precision: Literal["bf16", "fp32"] = Field("bf16", description="bf16: autocast; losses stay in single precision")
    log_every: int = Field(10, ge=1, description="steps between two rows of metrics")
    checkpoint_every: int = Field(200, ge=1, description="steps between two checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="the newest ones that are kept")


@dataclass
class TrainState:
    """All that a run carries from one step to the next. What is not here can be computed from the step number."""

    objective: Objective
    optimizers: dict[str, Optimizer]  # by phase
    step: int = 0  # steps done

    @classmethod
    def fresh(cls, objective: Objective, config: OptimizerConfig, batch_size: int, device: torch.device):
        """The state before the first step: the objective on its device, BatchNorm over all ranks, new optimizers."""
        if world_size() > 1:
            synchronize_batchnorm(objective, device)
        objective.to(device).to(memory_format=torch.channels_last)
        if device.type == "cpu":
            for module in objective.modules():
                if hasattr(module, "fused_attn"):  # timm's: plain attention is a third faster on CPU at short lengths
                    module.fused_attn = False  # type: ignore[assignment]
        optimizers = {
            phase: build_optimizer(objective.trainable(phase), config, batch_size) for phase in objective.phases
        }
        return cls(objective, optimizers)


@dataclass
class LogRow:
    """What is known at a log step. All means are over the steps since the row before, and over ranks."""

    step: int
    images_seen: int
    learning_rate: float
    images_per_second: float
    data_wait_ratio: float  # share of the time that the loop waited for its next batch
    seconds: float  # since the loop began
    metrics: dict[str, float] = field(default_factory=dict)


def train(
    state: TrainState,
    batches: Iterable[Raw],
    *,
    training: TrainingConfig,
    optimizer: OptimizerConfig,
    batch_size: int,
    total_steps: int | None,
    prepare: Callable[[Raw], Batch] = lambda raw: raw,  # type: ignore[assignment, return-value]
    on_log: Callable[[LogRow], None] = lambda row: None,
    on_checkpoint: Callable[[TrainState], None] = lambda state: None,
) -> None:
    """Trains on `batches`, which must begin with the batch of step `state.step`; moves `state` in place.

    Args:
        prepare: makes a Batch on the device of what the stream yields.
        on_log: called on every rank every `log_every` steps, and at the last.
        on_checkpoint: called on every rank after a log step when a checkpoint is due, and at the last.

    Raises:
        FloatingPointError: on all ranks, when a logged value is not finite.
    """
    objective = state.objective
    device = next(objective.parameters()).device
    model = DistributedDataParallel(objective) if world_size() > 1 else objective
    model.train()
    meter = Meter(batch_size)
    iterator = iter(batches)
    while total_steps is None or state.step < total_steps:
        meter.wait_begins()
        raw = next(iterator, None)
        meter.wait_ends()
        if raw is None:
            break
        batch = prepare(raw)
        values, rate = _step(model, state, batch, training, optimizer, batch_size, total_steps, device)
        meter.add(values)
        state.step += 1
        last = state.step == total_steps
        save = last or state.step % training.checkpoint_every == 0
        if save or state.step % training.log_every == 0:
            row = meter.row(state.step, rate)
            _refuse_nonfinite(row, batch)
            on_log(row)
        if save:
            on_checkpoint(state)
            meter.restart()


def _step(
    model: nn.Module,
    state: TrainState,
    batch: Batch,
    training: TrainingConfig,
    optimizer: OptimizerConfig,
    batch_size: int,
    total_steps: int | None,
    device: torch.device,
) -> tuple[dict[str, Tensor], float]:
    progress = None if total_steps is None else state.step / total_steps
    rate = scaled_learning_rate(optimizer, batch_size) * (
        1.0 if progress is None else learning_rate_factor(optimizer, (state.step + 0.5) / (total_steps or 1))
    )
    logged: dict[str, Tensor] = {}
    for phase, phase_optimizer in state.optimizers.items():
        step = Step(state.step, progress, training.seed, phase)
        half = torch.autocast(device.type, torch.bfloat16) if training.precision == "bf16" else nullcontext()
        with half:
            values = model(batch, step)
        for group in phase_optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        values["loss"].backward()
        if optimizer.clip_gradient is not None:
            parameters = [p for group in phase_optimizer.param_groups for p in group["params"]]
            values["gradient_norm"] = nn.utils.clip_grad_norm_(parameters, optimizer.clip_gradient)
        set_learning_rate(phase_optimizer, rate)
        phase_optimizer.step()
        prefix = "" if len(state.optimizers) == 1 else f"{phase}/"
        logged |= {prefix + name: value.detach() for name, value in values.items()}
    state.objective.after_step(Step(state.step, progress, training.seed))
    return logged, rate


class Meter:
    """Means and rates between two log rows."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.began = self.since = time.perf_counter()
        self.waited = 0.0
        self.steps = 0
        self.sums: dict[str, Tensor] = {}

    def wait_begins(self) -> None:
        self.waited -= time.perf_counter()

    def wait_ends(self) -> None:
        self.waited += time.perf_counter()

    def add(self, values: dict[str, Tensor]) -> None:
        """Sums stay on the device: reading them would stall it."""
        self.steps += 1
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value.float() if name in self.sums else value.float()

    def row(self, step: int, rate: float) -> LogRow:
        metrics = {name: float(mean_over_ranks(total / self.steps)) for name, total in self.sums.items()}
        now = time.perf_counter()  # after the metrics were read, which waits for the device
        elapsed = now - self.since
        row = LogRow(
            step=step,
            images_seen=step * self.batch_size,
            learning_rate=rate,
            images_per_second=self.steps * self.batch_size / elapsed,
            data_wait_ratio=self.waited / elapsed,
            seconds=now - self.began,
            metrics=metrics,
        )
        self.restart()
        return row

    def restart(self) -> None:
        """Begins a new interval; the time of a checkpoint is nobody's training speed."""
        self.since, self.waited, self.steps, self.sums = time.perf_counter(), 0.0, 0, {}


def _refuse_nonfinite(row: LogRow, batch: Batch) -> None:
    bad: dict[str, Any] = {name: value for name, value in row.metrics.items() if value - value != 0}
    if bad:
        raise FloatingPointError(
            f"step {row.step}: {bad} at learning rate {row.learning_rate:.3g}; last samples {batch.ids[:8].tolist()} "
            "…: lower optimizer.learning_rate, lengthen optimizer.warmup, or set optimizer.clip_gradient"
        )
