"""Optimizers, parameter groups and learning-rate curves."""

import math
from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from ssl_models.config import Config


class OptimizerConfig(Config):
    name: Literal["sgd", "adamw", "lars"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0, description="at a global batch of 256; scaled linearly with the batch")
    weight_decay: float = Field(1e-4, ge=0, description="not on biases, norms and other parameters below two dims")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd (Nesterov) and lars")
    betas: tuple[float, float] = Field((0.9, 0.95), description="of adamw")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the run with linearly rising rate")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="after warm-up: to zero, or flat")
    clip_gradient: float | None = Field(None, gt=0, description="bound of the gradient's global norm")


def scaled_learning_rate(config: OptimizerConfig, batch_size: int) -> float:
    """The linear rule (Goyal et al. 2017): rate × global batch / 256."""
    return config.learning_rate * batch_size / 256


def learning_rate_factor(config: OptimizerConfig, progress: float) -> float:
    """The curve: a factor in [0, 1] of the scaled rate, for progress in [0, 1)."""
    if progress < config.warmup:
        return progress / config.warmup
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (progress - config.warmup) / (1 - config.warmup)))


def build_optimizer(
    parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig, batch_size: int
) -> Optimizer:
    """An optimizer with two groups: weights decay; biases, norms, scales and tokens do not."""
    named = list(parameters)
    plain = [p for name, p in named if p.ndim < 2 or name.endswith(("cls_token", "mask_token", "positional_embedding"))]
    chosen = {id(parameter) for parameter in plain}
    weights = [p for _, p in named if id(p) not in chosen]
    groups = [
        {"params": weights, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    rate = scaled_learning_rate(config, batch_size)
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=config.betas, fused=True)
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=config.momentum, nesterov=config.momentum > 0)
    from timm.optim import Lars

    return Lars(groups, lr=rate, momentum=config.momentum, trust_coeff=0.001)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
