"""Losses over all pairs of a large batch, with the logits of a few rows in memory at a time."""

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Chunk = Annotated[
    int | None,
    Field(
        ge=1,
        description="rows of the loss's logits in memory at a time, per worker, made again for the gradient: memory "
        "grows with it, not with the square of the batch; null: all rows",
    ),
]


def sums_over_rows(
    sums: Callable[..., tuple[Tensor, ...]], rows: tuple[Tensor, ...], chunk: int | None
) -> tuple[Tensor, ...]:
    """`sums(*rows)`, for a function that sums over rows: here over `chunk` of them at a time.

    What a chunk computes is dropped, and computed again in backward (Chen et al. 2016, arXiv 1604.06174): memory for
    one chunk instead of all, for one more forward of `sums`.

    Args:
        sums: given some rows of each tensor, their sums. It may use other tensors that need gradient, but no random
            numbers. What it computes after all that has a gradient is not computed again.
        rows: tensors with equally many rows.
        chunk: None: all rows at once, and nothing is computed twice.
    """
    if chunk is None or chunk >= len(rows[0]):
        return sums(*rows)
    chunks = zip(*(tensor.split(chunk) for tensor in rows), strict=True)
    parts = [checkpoint(sums, *some, use_reentrant=False, preserve_rng_state=False) for some in chunks]
    return tuple(torch.stack(part).sum(0) for part in zip(*parts, strict=True))


def similarities(anchors: Tensor, keys: Tensor) -> Tensor:
    """Dot products (n, N) of rows (n, D) and (N, D), in their own precision: autocast would round them to bf16."""
    with torch.autocast(anchors.device.type, enabled=False):
        return anchors @ keys.T


def cross_entropy_sums(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Over rows: the sum of cross entropies, and how often the target is strictly the largest (ties do not count).

    Args:
        logits: (n, N); target: (n, 1), a column.
    """
    loss = F.cross_entropy(logits, target[:, 0], reduction="sum")
    return loss, num_nearest(logits, target)


@torch.no_grad()
def num_nearest(logits: Tensor, target: Tensor) -> Tensor:
    """How many rows of logits (n, N) have their strictly largest value in their target column (n, 1)."""
    others = logits.scatter(1, target, -torch.inf)
    return (logits.gather(1, target)[:, 0] > others.amax(1)).sum().to(logits.dtype)
