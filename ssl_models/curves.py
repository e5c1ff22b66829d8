"""Curves over a run: momentum, temperature, weight decay and learning rate as functions of its progress."""

import math
from typing import Literal

Shape = Literal["cosine", "linear"]


def curve(start: float, end: float, progress: float | None, *, shape: Shape = "cosine", over: float = 1.0) -> float:
    """From `start` to `end` while progress goes from 0 to `over`, then flat; `start` all along in a run without end.

    The cosine is BYOL's (Grill et al. 2020, arXiv 2006.07733, section 3.3): end − (end − start) · ½(1 + cos πp).

    Args:
        progress: fraction of the run, [0, 1); None when the run has no horizon.
        over: the share of the run that the change takes.
    """
    if progress is None:
        return start
    done = min(1.0, progress / over) if over > 0 else 1.0
    if shape == "cosine":
        done = 0.5 * (1 - math.cos(math.pi * done))
    return start + (end - start) * done
