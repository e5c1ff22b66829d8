"""Redundancy reduction: two views agree, and the dimensions of the projection vary without saying the same.

The losses are functions of statistics of the *global* batch. Each rank reduces them over ranks with gradient and
computes the same loss from them, so that the averaged gradient is that of one process with the whole batch.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ssl_models.batch import Batch, Step
from ssl_models.collectives import mean_over_ranks, world_size
from ssl_models.config import Config
from ssl_models.encoders import EncoderConfig
from ssl_models.heads import Projector
from ssl_models.objectives.objective import Objective
from ssl_models.precision import outside_autocast


def centred(rows: Tensor) -> Tensor:
    """(n, D), this rank's rows, without the mean of the global batch."""
    return rows - mean_over_ranks(rows.mean(0))


def off_diagonal_squares(matrix: Tensor) -> Tensor:
    """Σ of the squares that are not on the diagonal of (D, D)."""
    return (matrix - matrix.diagonal().diag()).square().sum()


@outside_autocast
def barlow_twins_loss(first: Tensor, second: Tensor, redundancy_weight: float) -> tuple[Tensor, Tensor]:
    """Σ_i (1 − C_ii)² + λ Σ_{i≠j} C_ij² (Zbontar et al. 2021, arXiv 2103.03230, eq. 1 and 2).

    C is the cross-correlation of the two views over the global batch, both standardised as BatchNorm does (biased
    variance + 1e-5). The authors' program sums C over ranks outside of autograd, which makes its gradient 1/ranks of
    this one. Equals D when all rows are equal.

    Args:
        first, second: (n, D), this rank's projections of the two views.

    Returns:
        The loss, and the mean of the diagonal of C (1 when views agree in all dimensions).
    """
    first, second = (
        rows * (mean_over_ranks(rows.square().mean(0)) + 1e-5).rsqrt() for rows in (centred(first), centred(second))
    )
    correlation = mean_over_ranks(first.T @ second / len(first))  # (D, D)
    agreement = correlation.diagonal()
    loss = (1 - agreement).square().sum() + redundancy_weight * off_diagonal_squares(correlation)
    return loss, agreement.detach().mean()


@outside_autocast
def vicreg_loss(
    first: Tensor, second: Tensor, invariance_weight: float, variance_weight: float, covariance_weight: float
) -> tuple[Tensor, Tensor]:
    """λ · invariance + μ · variance + ν · covariance (Bardes et al. 2021, arXiv 2105.04906, eq. 1 to 6).

    Invariance is the mean of (z − z')² over rows *and* dimensions; variance the mean of max(0, 1 − √(var_j + 1e-4)),
    covariance Σ_{i≠j} cov_ij² / D, both unbiased and over the global batch. As in the authors' program (and lightly's),
    the two views' variance terms are averaged while their covariance terms are summed, and the squared distance is
    divided by D; the paper's equations sum both and do not divide. Rows are not normalised. With the weights 25, 25, 1
    it equals 24.75 when all rows are equal.

    Args:
        first, second: (n, D), this rank's projections of the two views; at least 2 rows on all ranks together.

    Returns:
        The loss, and the mean standard deviation of a dimension.
    """
    total, dim = len(first) * world_size(), first.shape[1]
    assert total > 1, "a variance needs two rows"
    invariance = mean_over_ranks(F.mse_loss(first, second))
    variance, covariance, spread = invariance.new_zeros(3)
    for rows in (centred(first), centred(second)):
        matrix = mean_over_ranks(rows.T @ rows / len(rows)) * (total / (total - 1))  # (D, D)
        std = (matrix.diagonal() + 1e-4).sqrt()
        variance = variance + F.relu(1 - std).mean() / 2
        covariance = covariance + off_diagonal_squares(matrix) / dim
        spread = spread + std.detach().mean() / 2
    loss = invariance_weight * invariance + variance_weight * variance + covariance_weight * covariance
    return loss, spread


class _Redundancy(Objective):
    """An encoder, and a projector without bias at its end: the losses do not see a shift."""

    num_views: ClassVar[int] = 2

    def __init__(self, config: "BarlowTwins.Config | VICReg.Config", encoder: EncoderConfig) -> None:
        super().__init__(config, encoder)
        self.config = config
        self.projector = Projector(self.encoder.dim, config.projector_dims)
        self.projector[-1].register_parameter("bias", None)

    def project(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, D) each: one pass, in which both views share BatchNorm's statistics."""
        return self.projector(self.encoder(torch.cat(batch.views[:2]))).chunk(2)


class BarlowTwins(_Redundancy):
    """Barlow Twins: self-supervised learning via redundancy reduction (Zbontar et al. 2021)."""

    class Config(Config):
        name: Literal["barlow_twins"] = "barlow_twins"
        redundancy_weight: float = Field(0.005, ge=0, description="λ of what is off the diagonal; the paper's value")
        loss_scale: float = Field(
            0.1, gt=0, description="factor of the loss: it grows with the width, which SGD feels; 1 in the paper (LARS)"
        )
        projector_dims: tuple[int, ...] = Field(
            (1024, 1024), min_length=1, description="widths; the last is the output; 8192, 8192, 8192 in the paper"
        )

    config: Config

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        loss, correlation = barlow_twins_loss(*self.project(batch), self.config.redundancy_weight)
        return {"loss": self.config.loss_scale * loss, "correlation": correlation}


class VICReg(_Redundancy):
    """VICReg: variance-invariance-covariance regularization for self-supervised learning (Bardes et al. 2021)."""

    class Config(Config):
        name: Literal["vicreg"] = "vicreg"
        invariance_weight: float = Field(25.0, ge=0, description="λ, of the views' distance; the paper's value")
        variance_weight: float = Field(25.0, ge=0, description="μ, of standard deviations below 1; the paper's value")
        covariance_weight: float = Field(1.0, ge=0, description="ν, of covariances; the paper's value")
        loss_scale: float = Field(
            0.1, gt=0, description="factor of the loss: SGD feels its size; 1 in the paper (LARS)"
        )
        projector_dims: tuple[int, ...] = Field(
            (1024, 1024), min_length=1, description="widths; the last is the output; 8192, 8192, 8192 in the paper"
        )

    config: Config

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        config = self.config
        loss, std = vicreg_loss(
            *self.project(batch), config.invariance_weight, config.variance_weight, config.covariance_weight
        )
        return {"loss": config.loss_scale * loss, "std": std}
