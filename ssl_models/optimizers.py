"""Optimizers, parameter groups and learning-rate curves."""

import math
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from ssl_models.config import Config
from ssl_models.curves import Span, curve

_NO_DECAY = ("cls_token", "reg_token", "dist_token", "mask_token", "positional_embedding", "pos_embed")


class OptimizerConfig(Config):
    name: Literal["sgd", "adamw", "lars"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0, description="at a global batch of 256; scaled linearly with the batch")
    weight_decay: float = Field(1e-4, ge=0, description="not on biases, norms, scales, tokens and positions")
    final_weight_decay: float | None = Field(None, ge=0, description="at the end of the run, by a cosine; None: as is")
    decay_all: bool = Field(False, description="weight decay (and LARS adaptation) on biases and norms, too")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd (Nesterov) and lars")
    betas: tuple[float, float] = Field((0.9, 0.95), description="of adamw")
    trust: float = Field(0.001, gt=0, description="of lars: a layer's step over the norm of its weights")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the run with linearly rising rate")
    warmup_images: int | None = Field(
        None, ge=0, description="images instead of a share; with another schedule than cosine the run then has no end"
    )
    schedule: Literal["cosine", "constant", "inverse_sqrt"] = Field(
        "cosine", description="after warm-up: to zero, flat, or by one over the square root of the images seen"
    )
    layer_decay: float | None = Field(
        None,
        gt=0,
        le=1,
        description="factor of the encoder's rate for each layer below the head (0.65 to 0.75 when a ViT is "
        "fine-tuned); null: one rate for all",
    )
    clip_gradient: float | None = Field(None, gt=0, description="bound of the gradient's norm")
    clip: Literal["all", "each"] = Field("all", description="the norm of all parameters together, or of each tensor")

    @property
    def endless(self) -> bool:
        """Whether nothing in a run depends on its length: it is a warm-up and a plateau, on which others can go on."""
        return self.schedule != "cosine" and self.warmup_images is not None

    def warmed(self, images: float) -> float | None:
        """The fraction of the warm-up, [0, 1], that is done after so many images; None where a run has an end."""
        if not self.endless:
            return None
        return min(1.0, images / self.warmup_images) if self.warmup_images else 1.0


def scaled_learning_rate(config: OptimizerConfig, batch_size: int) -> float:
    """The linear rule (Goyal et al. 2017): rate × global batch / 256."""
    return config.learning_rate * batch_size / 256


def learning_rate_factor(config: OptimizerConfig, images: float, total_images: float | None) -> float:
    """The curve: a factor in [0, 1] of the scaled rate, after so many images of a run of `total_images` (None: no end).

    Raises:
        ValueError: the curve needs an end, or a warm-up in images, and there is none.
    """
    warmup = config.warmup_images if config.warmup_images is not None else config.warmup * (total_images or 0)
    if images < warmup:
        return images / warmup
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "inverse_sqrt":
        if warmup == 0:
            raise ValueError("optimizer.schedule=inverse_sqrt falls from the end of the warm-up: set warmup_images")
        return math.sqrt(warmup / images)
    if total_images is None:
        raise ValueError("optimizer.schedule=cosine needs the length of the run: use constant or inverse_sqrt")
    return 0.5 * (1 + math.cos(math.pi * (images - warmup) / (total_images - warmup)))


def build_optimizer(
    parameters: Iterable[tuple[str, nn.Parameter]],
    config: OptimizerConfig,
    batch_size: int,
    constant_rate: tuple[str, ...] = (),
    layers_below_head: Mapping[str, int] | None = None,
) -> Optimizer:
    """An optimizer whose groups differ in three things: weights decay, while biases, norms, scales, tokens and
    positions do not, nor does LARS adapt these (but with `decay_all`); parameters whose names start with one of
    `constant_rate` keep the scaled rate all along; and with `layer_decay` the rate is less by this factor for each of a
    parameter's `layers_below_head` (Clark et al. 2020, arXiv 2003.10555; Bao et al. 2021, BEiT)."""
    members: dict[tuple[bool, bool, float], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        decays = config.decay_all or not (parameter.ndim < 2 or name.endswith(_NO_DECAY))
        scale = (config.layer_decay or 1.0) ** (layers_below_head or {}).get(name, 0)
        members.setdefault((decays, name.startswith(constant_rate), scale), []).append(parameter)
    groups = [
        {
            "params": group,
            "weight_decay": config.weight_decay if decays else 0.0,
            "decays": decays,
            "constant_rate": constant,
            "rate_scale": scale,
        }
        for (decays, constant, scale), group in sorted(members.items(), key=lambda item: item[0], reverse=True)
    ]
    rate = scaled_learning_rate(config, batch_size)
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=config.betas, fused=True)
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=config.momentum, nesterov=config.momentum > 0)
    from timm.optim import Lars

    for group in groups:
        group["always_adapt"] = group["decays"]  # a decay of 0, too, is that of LARS: timm would take it for SGD
    return Lars(groups, lr=rate, momentum=config.momentum, trust_coeff=config.trust)


def cooldown_factor(progress: float) -> float:
    """1 − √p: from the plateau's rate to zero (Hägele et al. 2024, arXiv 2405.18392, section 4: better than linear)."""
    return 1 - math.sqrt(progress)


def set_hyperparameters(optimizer: Optimizer, config: OptimizerConfig, batch_size: int, step: int, span: Span) -> float:
    """Gives each group its learning rate and weight decay for a step, and returns the rate of the curve."""
    images, total = (step + 0.5) * batch_size, None if span.end is None else span.end * batch_size
    full = scaled_learning_rate(config, batch_size)
    rate = full * learning_rate_factor(config, images, total)
    if span.begin:
        rate *= cooldown_factor(span.progress(step + 0.5) or 0.0)
    progress = span.progress(step)
    for group in optimizer.param_groups:
        scale = group.get("rate_scale", 1.0)  # checkpoints of version 0.1 have none
        group["lr"] = scale * (full if group["constant_rate"] else rate)
        if group.get("decays", group["weight_decay"] > 0) and config.final_weight_decay is not None:
            group["weight_decay"] = curve(config.weight_decay, config.final_weight_decay, progress)
    return rate


def clip_gradients(parameters: list[nn.Parameter], config: OptimizerConfig) -> torch.Tensor | None:
    """Scales gradients down to the bound, all together or (DINO's way) each tensor alone. Returns the norm of all."""
    if config.clip_gradient is None:
        return None
    if config.clip == "all":
        return nn.utils.clip_grad_norm_(parameters, config.clip_gradient)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = torch._foreach_norm(gradients)
    torch._foreach_mul_(gradients, [(config.clip_gradient / (norm + 1e-6)).clamp(max=1) for norm in norms])
    return torch.stack(norms).norm()
