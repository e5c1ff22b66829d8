"""The losses of metric learning, between the two views of each image of the global batch.

n images on this rank, N on all; D the width of a row. Anchors are this rank's rows, what they are compared with are the
rows of all ranks, gathered with gradient. Choices (which negative is hard, which term is active) have no gradient.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_models.collectives import gather, mean_over_ranks, rank
from ssl_models.precision import normalize

Mining = Literal["all", "hard", "semi_hard"]


class Pairs(NamedTuple):
    """Rows to compare: first views come first, then the second ones."""

    anchors: Tensor  # (2n, D)
    keys: Tensor  # (2N, D)
    itself: Tensor  # (2n, 1) int64: the anchor's own place among the keys
    positive: Tensor  # (2n, 1) int64: that of its other view

    def negatives(self, values: Tensor, otherwise: float) -> Tensor:
        """values (2n, 2N) where the key is of another image, `otherwise` at the anchor itself and its other view."""
        return values.scatter(1, torch.cat([self.itself, self.positive], 1), otherwise)

    def mean_of_negatives(self, values: Tensor) -> Tensor:
        return self.negatives(values, 0).sum() / (len(self.anchors) * (len(self.keys) - 2))

    def similarities(self) -> Tensor:
        """Inner products (2n, 2N); cosines when the rows are normalised."""
        return self.anchors @ self.keys.T

    def squared_distances(self) -> Tensor:
        """Euclidean and squared (2n, 2N). What rounding cannot tell from zero is zero, with gradient zero."""
        sizes = self.anchors.square().sum(1)[:, None] + self.keys.square().sum(1)
        squared = sizes - 2 * self.similarities()
        return squared.where(squared > 4 * torch.finfo(squared.dtype).eps * sizes.detach(), 0)


def pair_up(first: Tensor, second: Tensor, normalized: bool) -> Pairs:
    """first, second: (n, D), this rank's projections of the two views. In single precision or better."""
    first, second = (
        normalize(rows) if normalized else rows if rows.dtype == torch.float64 else rows.float()
        for rows in (first, second)
    )
    keys = torch.cat([gather(first), gather(second)])
    total = len(keys) // 2
    row = torch.arange(len(first), device=keys.device)[:, None] + rank() * len(first)
    itself, positive = torch.cat([row, row + total]), torch.cat([row + total, row])
    return Pairs(torch.cat([first, second]), keys, itself, positive)


def root(squared: Tensor) -> Tensor:
    """√ with gradient 0 at 0, where that of the square root is infinite and makes NaN of what follows."""
    positive = squared > 0
    return squared.where(positive, 1).sqrt().where(positive, 0)


def nearest_is_positive(pairs: Pairs) -> Tensor:
    """The share of anchors whose other view is strictly the nearest row (a collapsed model scores 0)."""
    squared = pairs.squared_distances().detach()
    return (squared.gather(1, pairs.positive)[:, 0] < pairs.negatives(squared, torch.inf).amin(1)).float().mean()


def margin_contrastive(pairs: Pairs, margin: float) -> Tensor:
    """½ D² for two views of an image, ½ max(0, m − D)² for two images, D Euclidean (Hadsell, Chopra and LeCun 2006,
    "Dimensionality reduction by learning an invariant mapping", eq. 4).

    Each kind is averaged by itself, and the two means added: negatives are 2N − 2 times as many. m²/2 when collapsed.
    On the unit sphere D is at most 2: at a margin from 2 on, every negative repels for ever.
    """
    squared = pairs.squared_distances()
    similar = squared.gather(1, pairs.positive).mean()
    return (similar + pairs.mean_of_negatives((margin - root(squared)).relu().square())) / 2


def triplet(pairs: Pairs, margin: float, mining: Mining, average: Literal["active", "all"]) -> Tensor:
    """max(0, d²(a, p) − d²(a, n) + α), d² squared Euclidean (Schroff et al. 2015, FaceNet, arXiv 1503.03832).

    On the unit sphere d² = 2 − 2 cos: α is twice the margin of a loss on cosines (SimCLR's table 2). α when collapsed.

    Args:
        mining: the negatives of an anchor. all: every other image's row; hard: the nearest of them; semi_hard: the
            nearest of those farther away than the positive, or the farthest of all where none is.
        average: over the triplets with a loss above zero (of the global batch), or over all that were formed: then
            steps become smaller as training proceeds.
    """
    squared = pairs.squared_distances()
    positive = squared.gather(1, pairs.positive)
    negative = pairs.negatives(squared, torch.inf)
    if mining != "all":
        negative = negative.gather(1, _chosen(positive.detach(), negative.detach(), mining))
    losses = (positive - negative + margin).relu()  # (2n, 2N) or (2n, 1); 0 where the negative is infinitely far
    if average == "all":
        return losses.sum() / (len(losses) * (len(pairs.keys) - 2 if mining == "all" else 1))
    active = mean_over_ranks((losses.detach() > 0).sum().to(losses.dtype))  # a rank: not every rank has equally many
    return losses.sum() / active.clamp(min=torch.finfo(losses.dtype).tiny)


def n_pair(pairs: Pairs, norm_weight: float) -> Tensor:
    """log(1 + Σ_{j≠i} exp(f_i·f⁺_j − f_i·f⁺_i)): first views against all second ones (Sohn 2016, N-pair-mc).

    Inner products, not cosines: with unit rows and no temperature the loss could not come near zero. The paper holds
    the rows small instead: `norm_weight` times their mean squared length is added. ln N when collapsed (at length 0).
    """
    count, total = len(pairs.anchors) // 2, len(pairs.keys) // 2
    logits = pairs.anchors[:count] @ pairs.keys[total:].T  # (n, N)
    target = pairs.positive[:count, 0] - total
    return F.cross_entropy(logits, target) + norm_weight * pairs.anchors.square().sum(1).mean()


def lifted_structure(pairs: Pairs, margin: float) -> Tensor:
    """½ mean over pairs of max(0, log(Σ_{k} exp(α − D_ik) + Σ_{l} exp(α − D_jl)) + D_ij)², k and l all other images'
    rows, D Euclidean (Oh Song et al. 2016, arXiv 1511.06452, eq. 4). ½ (α + ln(4N − 4))² when collapsed."""
    distance = root(pairs.squared_distances())
    from_negatives = pairs.negatives(margin - distance, -torch.inf).logsumexp(1)  # (2n,)
    first, second = from_negatives.chunk(2)  # the two ends of a pair
    together = distance.gather(1, pairs.positive)[: len(first), 0]
    return (torch.logaddexp(first, second) + together).relu().square().mean() / 2


def nt_logistic(pairs: Pairs, temperature: float, mining: Mining) -> Tensor:
    """−log σ(s⁺/τ) − log σ(−s⁻/τ), s the cosine of two normalised rows (Chen et al. 2020, arXiv 2002.05709, table 2).

    Positives and negatives are averaged apart, as the latter are 2N − 2 times as many. With `semi_hard`, an anchor has
    one negative: the most similar of those less similar than the positive, or the least similar of all where none is.
    1/τ + 2 ln(1 + exp(−1/τ)) when collapsed, 2 ln 2 when all rows are orthogonal.
    """
    similarity = pairs.similarities() / temperature
    positive = similarity.gather(1, pairs.positive)
    attraction = F.softplus(-positive).mean()
    if mining == "all":
        return attraction + pairs.mean_of_negatives(F.softplus(similarity))
    negative = pairs.negatives(similarity, -torch.inf)
    chosen = negative.gather(1, _chosen(-positive.detach(), -negative.detach(), mining))
    return attraction + F.softplus(chosen).mean()


def _chosen(positive: Tensor, negative: Tensor, mining: Mining) -> Tensor:
    """One negative for each anchor: its column (2n, 1). Distances of any kind: (2n, 1), and (2n, 2N) with ∞ where there
    is no negative. Where no negative is farther than the positive, `semi_hard` takes the farthest, as TensorFlow's
    triplet_semihard_loss does."""
    if mining == "hard":
        return negative.argmin(1, keepdim=True)
    farther = negative.where(negative > positive, torch.inf)
    farthest = negative.where(negative.isfinite(), -torch.inf).argmax(1, keepdim=True)
    return farther.argmin(1, keepdim=True).where(farther.isfinite().any(1, keepdim=True), farthest)
