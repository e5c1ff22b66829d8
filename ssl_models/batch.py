"""What one training step consumes, and the random numbers that belong to a sample rather than to a process."""

import math
import zlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_LOW_53_BITS = 2.0**-53


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch."""

    views: tuple[Tensor, ...]  # each (B, 3, H, W), normalised; global crops first, then local
    ids: Tensor  # (B,) int64, stable sample number
    tokens: Tensor | None = None  # (B, L) int64
    labels: Tensor | None = None  # (B,) int64, -1 = unlabelled; only the supervised baseline and probes read it

    def to(self, device: torch.device) -> "Batch":
        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return replace(
            self,
            views=tuple(view.to(device, non_blocking=True) for view in self.views),
            ids=self.ids.to(device, non_blocking=True),
            tokens=move(self.tokens),
            labels=move(self.labels),
        )

    def split(self, size: int) -> list["Batch"]:
        """In order, in parts of `size` samples; the last may have fewer."""

        def parts(tensor: Tensor | None) -> list[Tensor | None]:
            return [None] * -(-len(self.ids) // size) if tensor is None else list(tensor.split(size))

        views = zip(*(view.split(size) for view in self.views), strict=True)
        rest = zip(self.ids.split(size), parts(self.tokens), parts(self.labels), strict=True)
        return [Batch(some, ids, tokens, labels) for some, (ids, tokens, labels) in zip(views, rest, strict=True)]


@dataclass(frozen=True)
class Step:
    """Where in the run a batch stands."""

    number: int
    progress: float | None  # fraction of the run (of the cooldown, in one), [0, 1); None when the run has no horizon
    seed: int  # of the run; all draws of an objective derive from (seed, number, sample id)
    phase: str = "main"
    warmed: float | None = None  # in a run without horizon: fraction of the rate's warm-up, [0, 1]

    def begun(self, share: float) -> float:
        """How much is done, [0, 1], of what takes the first `share` of a run: a warm-up, layers that are frozen.
        Without a horizon it takes as long as the rate's warm-up, and is never done again."""
        if share <= 0:
            return 1.0
        if self.warmed is not None:
            return self.warmed
        return 1.0 if self.progress is None else min(1.0, self.progress / share)


def uniform(seed: int, step: int | Tensor, ids: Tensor, count: int, purpose: str) -> Tensor:
    """Uniform numbers in [0, 1) that are a function of (seed, step, sample id, purpose) alone.

    They do not depend on the rank, the batch or the device that draws them, so k ranks draw exactly what one rank
    would. Each sample seeds its own SplitMix64 sequence (Steele, Lea, Flood 2014, "Fast splittable pseudorandom
    number generators").

    Args:
        step: one for all, or (B,) int64.
        ids: (B,) int64 sample numbers.
        count: how many numbers each sample needs.
        purpose: separates independent uses, for example "crop" from "mask".

    Returns:
        (B, count) float64.
    """
    key = torch.tensor(seed, dtype=torch.int64, device=ids.device)
    for part in (zlib.crc32(purpose.encode()), step, ids):
        key = _mix(key + part + _GOLDEN)  # (B,) from the last part on
    counter = torch.arange(1, count + 1, dtype=torch.int64, device=ids.device)
    bits = _mix(key[:, None] + counter * _GOLDEN)  # (B, count)
    return _shift(bits, 11).double() * _LOW_53_BITS


def normal(seed: int, step: int | Tensor, ids: Tensor, count: int, purpose: str) -> Tensor:
    """Normal numbers (B, count) float32 that are a function of (seed, step, sample id, purpose) alone.

    Each number of `uniform` gives two: its high 26 bits the radius and its low 27 the angle of Box and Muller (1958).
    """
    draws = uniform(seed, step, ids, (count + 1) // 2, purpose).mul_(2.0**26)
    high = draws.floor()
    angle = draws.sub_(high).mul_(2 * math.pi).float()
    radius = high.add_(0.5).mul_(2.0**-26).float().log_().mul_(-2).sqrt_()
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count]


# 64-bit constants of SplitMix64, written as the signed integers that torch stores.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def _mix(bits: Tensor) -> Tensor:
    bits = (bits ^ _shift(bits, 30)) * _FIRST
    bits = (bits ^ _shift(bits, 27)) * _SECOND
    return bits ^ _shift(bits, 31)


def _shift(bits: Tensor, by: int) -> Tensor:
    """Logical right shift: torch's `>>` copies the sign bit."""
    return (bits >> by) & ((1 << (64 - by)) - 1)
