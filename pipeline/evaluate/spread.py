"""How far means of repeated measurements reach: over seeds, over draws of labels, over test images."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt
from statistics import fmean, stdev
from typing import Literal

# A score beside another: better by more than chance; not better; better, but seeds that differ so may explain it.
Sign = Literal["better", "weak", "unsure"]


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds, or draws."""

    mean: float
    std: float | None  # None: of a single seed there is none
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(fmean(values), stdev(values) if len(values) > 1 else None, len(values))

    def percent(self) -> str:
        """As in 58.9 ± 0.3."""
        return f"{100 * self.mean:.1f}" + ("" if self.std is None else f" ± {100 * self.std:.1f}")


def sampling(share: float, count: int) -> float:
    """The variance of an accuracy on so many test images."""
    return share * (1 - share) / count


def reach(spreads: Sequence[Spread], noise: float) -> float:
    """Half the 95 % interval of a sum or difference of means: of `spreads`, and of `noise`, a variance that is known.
    The degrees of freedom are Satterthwaite's."""
    from scipy.stats import t

    variances = [(spread.std**2 / spread.count, spread.count - 1) for spread in spreads if spread.std is not None]
    total = noise + sum(variance for variance, _ in variances)
    doubt = sum(variance**2 / freedom for variance, freedom in variances)
    return float(t.ppf(0.975, total**2 / doubt if doubt else inf)) * sqrt(total)
