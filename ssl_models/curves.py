"""Curves over a run: momentum, temperature, weight decay and learning rate as functions of its progress."""

import math
from dataclasses import dataclass
from typing import Literal

Shape = Literal["cosine", "linear"]


@dataclass(frozen=True)
class Span:
    """The steps that curves stretch over: all of a run, a cooldown that leaves a plateau, or, on the plateau, none."""

    begin: int = 0  # 0, or the step where a cooldown leaves its plateau
    end: int | None = None  # None: there is no end, and what would change until then holds its first value

    def progress(self, step: float) -> float | None:
        """The share of the span that lies before a step, [0, 1); None: it has no end."""
        return None if self.end is None else (step - self.begin) / (self.end - self.begin)


def curve(start: float, end: float, progress: float | None, *, shape: Shape = "cosine") -> float:
    """From `start` to `end` while progress goes from 0 to 1; `start` all along where there is no end.

    The cosine is BYOL's (Grill et al. 2020, arXiv 2006.07733, section 3.3): end − (end − start) · ½(1 + cos πp).

    Args:
        progress: fraction of the run, [0, 1]; None when the run has no horizon.
    """
    if progress is None:
        return start
    done = progress if shape == "linear" else 0.5 * (1 - math.cos(math.pi * progress))
    return start + (end - start) * done
