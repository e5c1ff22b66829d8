"""Health of embeddings, which needs no labels: does an encoder tell images apart, and in how many directions?"""

import numpy as np
import torch
from torch import Tensor

from pipeline.evaluate.protocol import Evaluation, Health, wilson

# Above this cosine of two images, what tells them apart is less than a tenth of an embedding's length: √(1 − 0.99).
# Encoders before training are near it (ResNet-18: 0.97): one that is above, but less so than before, is not named.
ALIKE = 0.99
# A smaller share of the dimensions in use is named: 5 of 256. An encoder that tells ten classes apart and nothing else
# keeps nine directions (neural collapse, arXiv 2008.08186), which is no fault.
FEW_DIRECTIONS = 0.02
# A score that says whether embeddings tell images apart: of labels, or of captions.
TELLING = ("knn_top1", "retrieval_image_to_text_r10")
MAX_IMAGES = 25_600  # the rank hardly grows with more (arXiv 2210.02885, section 4)
MAX_PAIRED = 2_000
CHUNK = 4096


def health(features: np.ndarray, aligned: float | None = None) -> Health:
    """Health of (N, d) embeddings as the encoder gives them, of at most 25,600 images spread over them.

    rank: RankMe (Garrido et al. 2023, arXiv 2210.02885, eq. 1), exp(−Σ p ln p) with p = σ / Σσ + 1e-7 over the
    singular values σ; between 1 and min(N, d). spread: the standard deviation of a dimension of the normalised
    embeddings, mean over the dimensions, times √d: 0 when all are equal, at most 1. mean_cosine: of two different
    images, over all pairs. uniformity: ln E exp(−2 ‖f(x) − f(y)‖²) over the pairs of at most 2,000 of them, normalised
    (Wang and Isola 2020, arXiv 2005.10242, eq. 3); 0 when all are equal, about −4 when spread evenly. `aligned`: their
    other axis, by `alignment`.

    Raises:
        ValueError: fewer than two embeddings.
    """
    count, dim = min(len(features), MAX_IMAGES), features.shape[1]
    if count < 2:
        raise ValueError(f"the health of embeddings needs at least two images, got {count}")
    features = features[np.linspace(0, len(features) - 1, count).astype(int)]  # neighbours may be of one class
    gram, total, squares = torch.zeros(dim, dim).double(), torch.zeros(dim).double(), torch.zeros(dim).double()
    for rows in torch.from_numpy(features).split(CHUNK):
        rows = rows.double()
        gram += rows.T @ rows
        unit = _unit(rows)
        total += unit.sum(0)
        squares += unit.square().sum(0)
    variance = (squares / count - (total / count).square()).clamp(min=0)
    return Health(
        num_images=count,
        dim=dim,
        rank=_effective_rank(torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()),
        spread=float(variance.sqrt().mean()) * dim**0.5,
        mean_cosine=float((total.square().sum() - count) / (count * (count - 1))),
        uniformity=_uniformity(_unit(torch.from_numpy(features[:: -(-count // MAX_PAIRED)]).double())),
        alignment=aligned,
    )


def alignment(first: np.ndarray, second: np.ndarray) -> float:
    """E ‖f(x) − f(x⁺)‖² over two random views of each image, (N, d) each, normalised (Wang and Isola 2020, arXiv
    2005.10242, eq. 1, α = 2): in [0, 4], lower is better, and 0 of a collapsed encoder, too: it is read beside the
    uniformity. It depends on the augmentation, so it compares only where that is the same."""
    views = (_unit(torch.from_numpy(rows).double()) for rows in (first, second))
    return float(torch.sub(*views).square().sum(1).mean())


def collapse(evaluation: Evaluation) -> str | None:
    """Names the collapse of an encoder that was judged, or None, also where nothing was measured.

    Embeddings that are much alike, as of SimCLR without BatchNorm, may still tell images apart: where they do so better
    than before training, they are not called collapsed. Nor is their rank judged, for it is not centred: what they have
    in common takes most of it."""
    if "trained" not in evaluation.health or "random" not in evaluation.health:
        return None
    if evaluation.health["trained"].mean_cosine > ALIKE and any(
        score.reach[0] > wilson(score.random_encoder, score.num_queries)[1]
        for score in evaluation.scores
        if score.name in TELLING
    ):
        return None
    return complaint(**evaluation.health)


def complaint(trained: Health, random: Health) -> str | None:
    """Names a collapse, or None. Compared with the encoder before training, which is no example of health."""
    if trained.mean_cosine > max(ALIKE, random.mean_cosine):
        return f"collapsed: all embeddings are alike (mean cosine {_below_one(trained.mean_cosine)})"
    most = min(trained.dim, trained.num_images)
    if trained.rank < min(max(1.5, FEW_DIRECTIONS * most), random.rank):  # 1.5: one direction, of however few
        return f"dimensional collapse: rank {trained.rank:.1f} of {most}"
    return None


def _below_one(cosine: float) -> str:
    """Enough digits to tell it from 1."""
    return next((text for digits in range(3, 7) if float(text := f"{cosine:.{digits}f}") < 1), "1")


def _unit(rows: Tensor) -> Tensor:
    """Rows of length 1. Rows of zeros have no direction; they are all alike, so all get the same."""
    lengths = rows.norm(dim=1, keepdim=True)
    return torch.where(lengths > 0, rows / lengths.clamp(min=1e-300), rows.shape[1] ** -0.5)


def _uniformity(unit: Tensor) -> float:
    squared_distances = torch.pdist(unit).square()
    return float((-2 * squared_distances).exp().mean().log())


def _effective_rank(singular_values: Tensor) -> float:
    total = singular_values.sum()
    if total == 0:
        return 1.0
    shares = singular_values / total + 1e-7
    return float(torch.exp(-(shares * shares.log()).sum()))
