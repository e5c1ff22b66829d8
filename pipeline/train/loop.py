"""The one training loop. It holds no method's name, and needs neither Ray nor files."""

import warnings
from collections.abc import Callable, Container, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from pipeline.train.ahead import Ahead
from pipeline.train.cached import cached_backward
from pipeline.train.meter import LogRow, Meter
from ssl_models.batch import Batch, Step
from ssl_models.collectives import rank, synchronize_batchnorm, world_size
from ssl_models.config import Config
from ssl_models.curves import Span
from ssl_models.objectives import Objective
from ssl_models.objectives.objective import SeparableObjective
from ssl_models.optimizers import (
    OptimizerConfig,
    build_optimizer,
    clip_gradients,
    set_hyperparameters,
)

Raw = TypeVar("Raw")


class TrainingConfig(Config):
    images_seen: int = Field(
        1_000_000, ge=1, description="length of the run, without what another did before; images × epochs"
    )
    seed: int = Field(0, ge=0, description="of initialisation, order, views and every draw of an objective")
    start_from: str | None = Field(
        None, description="directory of a run whose encoder this one begins with; null: from scratch"
    )
    start_digest: str | None = Field(
        None, description="of that run's checkpoint: weights that change meanwhile are noticed; null: the newest"
    )
    continue_from: str | None = Field(
        None, description="directory of a run on its plateau that this one goes on from, with all of its state"
    )
    continue_digest: str | None = Field(None, description="of that run's checkpoint; null: the newest")
    continue_step: int = Field(0, ge=0, description="steps that were done there; filled in")
    cooldown: bool = Field(
        False, description="let all curves end over this run: a candidate for use, from which nothing goes on"
    )
    precision: Literal["bf16", "fp32"] = Field("bf16", description="bf16: autocast; losses stay in single precision")
    compile: bool = Field(False, description="torch.compile the encoder: for GPUs; takes a minute, needs a C compiler")
    micro_batch: int | None = Field(
        None,
        ge=1,
        description="images encoded at a time, per worker: memory for these instead of the whole batch, for one more "
        "forward pass (gradient caching); null: all at once",
    )
    log_every: int = Field(10, ge=1, description="steps between two rows of metrics")
    checkpoint_every: int = Field(200, ge=1, description="steps between two checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="the newest ones that are kept")
    keep_best: int = Field(0, ge=0, description="checkpoints kept beside them: those with the lowest logged loss")
    on_nonfinite: Literal["stop", "skip"] = Field(
        "stop", description="when a value is not finite; skip: go back to the last checkpoint, skip the batches since"
    )


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
        layers = None if config.layer_decay is None else objective.encoder.layers_below_head()
        below = {f"encoder.{name}": layer for name, layer in (layers or {}).items()}
        optimizers = {
            phase: build_optimizer(objective.trainable(phase), config, batch_size, objective.constant_rate, below)
            for phase in objective.phases
        }
        return cls(objective, optimizers)


def train(
    state: TrainState,
    batches: Iterable[Raw],
    *,
    training: TrainingConfig,
    optimizer: OptimizerConfig,
    batch_size: int,
    total_steps: int | None,
    save_at: Container[int] = (),
    prepare: Callable[[Raw], Batch] = lambda raw: raw,  # type: ignore[assignment, return-value]
    account: Callable[[Raw], tuple[int, ...]] = lambda raw: (0, 0),
    on_step: Callable[[int], None] = lambda step: None,
    on_log: Callable[[LogRow], None] = lambda row: None,
    on_checkpoint: Callable[[TrainState, LogRow], None] = lambda state, row: None,
    must_leave: Callable[[], bool] = lambda: False,
) -> None:
    """Trains on `batches`, which must begin with the batch of step `state.step`; moves `state` in place.

    Args:
        save_at: steps after which a checkpoint is due, beside those that `training` asks for.
        prepare: makes a Batch on the device of what the stream yields.
        account: of a batch, the fingerprint of its samples, the reads that were tried again and, of several stores, the
            samples of each; summed in `LogRow`.
        on_step: called on every rank after each step.
        on_log: called on every rank every `log_every` steps, and at the last.
        on_checkpoint: called on every rank after a log step when a checkpoint is due, and at the last.
        must_leave: asked on every rank about once a second, at the same steps; True, which all ranks must answer
            alike, ends the training after a checkpoint.

    Raises:
        NotFinite: on all ranks, when a logged value, or a weight that is to be saved, is not finite.
    """
    objective = state.objective
    device = next(objective.parameters()).device
    model = parallel(objective) if world_size() > 1 and training.micro_batch is None else objective
    model.train()
    weights = list(objective.parameters())
    meter = Meter(batch_size, state.step)
    look_every, leaving = 1, False
    span = curves_span(training, optimizer, total_steps)
    iterator, ahead = iter(batches), Ahead(prepare, device)

    def fetch() -> tuple[Raw, Batch] | None:
        if state.step == total_steps:
            return None
        meter.wait_begins()
        raw = next(iterator, None)
        meter.wait_ends()
        return None if raw is None else (raw, ahead.prepare(raw))

    coming = fetch()
    while coming is not None and not leaving:
        raw, batch = coming[0], ahead.ready(coming[1])
        values, rate = _step(model, state, batch, training, optimizer, batch_size, span, device)
        meter.add(values, batch.ids, account(raw))
        state.step += 1
        on_step(state.step)
        coming = fetch()  # while the device is still at the step
        log = state.step % training.log_every == 0
        leaving = (log or state.step % look_every == 0) and must_leave()
        due = state.step % training.checkpoint_every == 0 or state.step in save_at
        save = leaving or due or state.step == total_steps
        if log or save:
            row = meter.row(rate)
            on_log(row)
            look_every = max(1, min(training.log_every, round(1 / row.step_seconds)))  # the same on all ranks
            if save:
                meter.refuse_nonfinite_weights(weights, rate)
                on_checkpoint(state, row)
            meter.restart(state.step)


def curves_span(training: TrainingConfig, optimizer: OptimizerConfig, total_steps: int | None) -> Span:
    """The steps that the curves of a run stretch over."""
    if training.cooldown:
        return Span(training.continue_step, total_steps)
    return Span(0, None if optimizer.endless else total_steps)


def parallel(objective: Objective) -> DistributedDataParallel:
    """All buffers are equal on all ranks by construction, so none is sent. A phase uses a part of the parameters."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")  # its successor is not in torch 2.11
        return DistributedDataParallel(
            objective, broadcast_buffers=False, find_unused_parameters=len(objective.phases) > 1
        )


def _seed(seed: int, step: int) -> None:
    """What an encoder drops (stochastic depth, dropout) comes from torch's generator: a function of the step, so that a
    resumed run drops the same, and of the rank, so that ranks drop different things."""
    torch.manual_seed(int.from_bytes(sha256(f"{seed} {step} {rank()}".encode()).digest()[:8]))


def _step(
    model: nn.Module,
    state: TrainState,
    batch: Batch,
    training: TrainingConfig,
    optimizer: OptimizerConfig,
    batch_size: int,
    span: Span,
    device: torch.device,
) -> tuple[dict[str, Tensor], float]:
    place = Step(state.step, span.progress(state.step), training.seed, warmed=optimizer.warmed(state.step * batch_size))
    logged: dict[str, Tensor] = {}
    rate = 0.0

    def precision() -> AbstractContextManager:
        return torch.autocast(device.type, torch.bfloat16) if training.precision == "bf16" else nullcontext()

    _seed(training.seed, state.step)
    for phase, phase_optimizer in state.optimizers.items():
        step = replace(place, phase=phase)
        moved = [parameter for group in phase_optimizer.param_groups for parameter in group["params"]]
        if training.micro_batch is None:
            with precision():
                values = model(batch, step)
            for parameter in moved:
                parameter.grad = None
            values["loss"].backward()
        else:
            assert isinstance(state.objective, SeparableObjective)
            values = cached_backward(state.objective, batch, step, training.micro_batch, moved, precision)
        norm = clip_gradients(moved, optimizer)
        if norm is not None:
            values["gradient_norm"] = norm
        rate = set_hyperparameters(phase_optimizer, optimizer, batch_size, state.step, span)
        phase_optimizer.step()
        prefix = "" if len(state.optimizers) == 1 else f"{phase}/"
        logged |= {prefix + name: value.detach() for name, value in values.items()}
    if len(state.optimizers) > 1:
        logged["loss"] = torch.stack([logged[f"{phase}/loss"] for phase in state.optimizers]).sum()
    state.objective.after_step(place)
    return logged, rate
