"""Gradient caching: a batch larger than the memory of the encoder (Gao et al. 2021, arXiv 2101.06983)."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from ssl_models.batch import Batch, Step
from ssl_models.collectives import average_gradients
from ssl_models.objectives.objective import SeparableObjective


def cached_backward(
    objective: SeparableObjective,
    batch: Batch,
    step: Step,
    micro_batch: int,
    moved: list[nn.Parameter],
    precision: Callable[[], AbstractContextManager],
) -> dict[str, Tensor]:
    """What forward and backward of the whole batch give, averaged over ranks; encoded `micro_batch` samples at a time.

    The batch is encoded without gradient; the loss on all embeddings gives their gradients, and those of its own
    parameters (a scale, a bias), once; then each part is encoded again, with the random numbers that it had (dropout),
    and its embeddings' gradients go on into the encoder. Ranks are averaged here and once: DistributedDataParallel
    would need all parameters in each of its forwards.

    Args:
        moved: parameters whose gradients are made, in place of what they had.
        precision: a context of the forward passes. A new one each time: autocast keeps the weights that it has cast
            until it is left, those of the pass without gradient, too.

    Returns:
        What `objective.loss` returned.
    """
    parts = batch.split(micro_batch)
    states, encoded = [], []
    for part in parts:
        states.append(_random_state(batch.ids.device))
        with torch.no_grad(), precision():
            encoded.append(objective.encode(part, step))
    embeddings = {name: torch.cat([some[name] for some in encoded]).requires_grad_() for name in encoded[0]}
    for parameter in moved:
        parameter.grad = None
    with precision():
        values = objective.loss(embeddings, step)
    values["loss"].backward()
    cached = zip(*(leaf.grad.split(micro_batch) for leaf in embeddings.values()), strict=True)  # type: ignore[union-attr]
    with torch.random.fork_rng(devices=[batch.ids.device] if batch.ids.device.type == "cuda" else []):
        for part, state, theirs in zip(parts, states, cached, strict=True):
            _set_random_state(batch.ids.device, state)
            with precision():
                again = objective.encode(part, step)
            torch.autograd.backward(list(again.values()), theirs)
    average_gradients(moved)
    return values


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
