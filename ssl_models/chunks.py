"""Losses over all pairs of a large batch, with the logits of a few rows in memory at a time."""

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Chunk = Annotated[
    int | None,
    Field(
        ge=1,
        description="rows of the loss's logits in memory at a time, per worker: memory grows with it, not with "
        "the square of the batch; null: all rows",
    ),
]


Sums = Callable[..., tuple[Tensor, Tensor]]


def sums_over_rows(
    sums: Sums, rows: tuple[Tensor, ...], shared: tuple[Tensor, ...], chunk: int | None
) -> tuple[Tensor, Tensor]:
    """`sums(*rows, *shared)`, for a function that sums over rows: here over `chunk` of them at a time.

    The gradient of a sum is known as soon as a chunk is computed, up to the factor that comes in backward. So it is
    taken then, added up, and the chunk's logits are dropped: memory for one chunk instead of all, and nothing is
    computed twice. (Checkpoints, which compute chunks again in backward, leave glibc's heap so fragmented on CPU that
    it grows as large as all logits together.)

    Args:
        sums: given some rows of each tensor, their loss, which has a gradient, and a count, which has none. It depends
            on nothing else that needs gradient, and draws nothing.
        rows: tensors with equally many rows.
        shared: tensors that every row meets: keys, a scale, a bias.
        chunk: None: all rows at once.
    """
    if chunk is None or chunk >= len(rows[0]):
        return sums(*rows, *shared)
    return _SumsOverRows.apply(sums, chunk, len(rows), torch.is_grad_enabled(), *rows, *shared)


class _SumsOverRows(Function):
    @staticmethod
    def forward(ctx, sums: Sums, chunk: int, num_rows: int, with_gradient: bool, *inputs: Tensor):
        wanted = [with_gradient and needed for needed in ctx.needs_input_grad[4:]]
        gradients = [torch.zeros_like(tensor) if want else None for tensor, want in zip(inputs, wanted, strict=True)]
        # Nothing that lives longer is allocated between chunks: it would split the heap that the next one is to reuse.
        totals = torch.zeros(2, dtype=torch.float64, device=inputs[0].device)
        for first in range(0, len(inputs[0]), chunk):
            some = slice(first, first + chunk)
            leaves = [
                (tensor[some] if place < num_rows else tensor).detach().requires_grad_(want)
                for place, (tensor, want) in enumerate(zip(inputs, wanted, strict=True))
            ]
            with torch.set_grad_enabled(any(wanted)):
                loss, count = sums(*leaves)
            asked = [leaf for leaf in leaves if leaf.requires_grad]
            with torch.autocast(loss.device.type, enabled=False):  # it would round the products of backward, too
                found = iter(torch.autograd.grad(loss, asked) if asked else ())
            for place, gradient in enumerate(gradients):
                if gradient is not None:
                    (gradient[some] if place < num_rows else gradient).add_(next(found))
            totals[0] += loss.detach()
            totals[1] += count
            dtype = loss.dtype
            del leaves, asked, found, loss, count
        ctx.save_for_backward(*gradients)
        total, counted = (value.to(dtype, copy=True) for value in totals)
        ctx.mark_non_differentiable(counted)
        return total, counted

    @staticmethod
    @once_differentiable
    def backward(ctx, factor: Tensor, _: Tensor):
        gradients = (None if gradient is None else gradient * factor for gradient in ctx.saved_tensors)
        return None, None, None, None, *gradients


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
