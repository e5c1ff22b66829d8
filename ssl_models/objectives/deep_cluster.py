"""DeepCluster-v2: pseudo-labels from k-means over a bank of all samples' projections."""

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ssl_models.batch import Batch, Step, uniform
from ssl_models.collectives import gather, mean_over_ranks, rank, world_size
from ssl_models.config import Config
from ssl_models.encoders import EncoderConfig
from ssl_models.heads import Projector
from ssl_models.objectives.clustering import cosines, entropy, project_crops, sinkhorn
from ssl_models.objectives.objective import Objective
from ssl_models.precision import normalize

_ROWS_AT_A_TIME = 16_384  # whose similarities to all centroids are held at once
_SPLIT = 1 / 1024  # relative distance between the halves of a split cluster, as in faiss
_EPSILON, _ITERATIONS = 0.05, 3  # SwAV's Sinkhorn, for samples that k-means has not met


def nearest(rows: Tensor, centroids: Tensor) -> Tensor:
    """The number (n,) of the centroid (K, D) of greatest cosine with each row (n, D); the first of equals."""
    return torch.cat([(some @ centroids.T).argmax(1) for some in rows.split(_ROWS_AT_A_TIME)])


@torch.no_grad()
def spherical_kmeans(rows: Tensor, counted: Tensor, centroids: Tensor, iterations: int) -> Tensor:
    """Lloyd's algorithm by cosine, over the rows of all ranks; an empty cluster takes half of a large one.

    Sums are products with 0-1 matrices (adding rows in any order would not be repeatable on a GPU), reduced over ranks:
    the result is the same on all of them.

    Args:
        rows: (n, D) of length 1, this rank's share; counted: (n,) bool, the rows that take part.
        centroids: (K, D) of length 1, to start from; equal on all ranks.

    Returns:
        Centroids (K, D) of length 1.
    """
    for _ in range(iterations):
        sums, counts = torch.zeros_like(centroids), torch.zeros_like(centroids[:, 0])
        for some, present in zip(rows.split(_ROWS_AT_A_TIME), counted.split(_ROWS_AT_A_TIME), strict=True):
            members = F.one_hot(nearest(some, centroids), len(centroids)).to(rows.dtype) * present[:, None]  # (n, K)
            sums += members.T @ some
            counts += members.sum(0)
        sums, counts = mean_over_ranks(sums), mean_over_ranks(counts)
        means = normalize(torch.where(counts[:, None] > 0, sums, centroids))
        centroids = split_largest(means, counts)
    return centroids


def split_largest(centroids: Tensor, counts: Tensor) -> Tensor:
    """Each empty cluster becomes a near copy of a large one: the first of the largest, the second of the next, …"""
    order = counts.argsort(descending=True, stable=True)
    occupied = int((counts > 0).sum())
    num_split = min(occupied, len(counts) - occupied)
    large, empty = order[:num_split], order[occupied : occupied + num_split]
    shift = centroids.new_tensor([_SPLIT, -_SPLIT]).repeat(centroids.shape[1])[: centroids.shape[1]]
    halves = centroids[large]
    centroids = centroids.clone()
    centroids[large], centroids[empty] = normalize(halves * (1 - shift)), normalize(halves * (1 + shift))
    return centroids


def normalized_mutual_information(first: Tensor, second: Tensor, num_clusters: int) -> Tensor:
    """I / mean of the two entropies, in [0, 1], of two clusterings (n,) int64; 0 where one cluster holds all."""
    pairs = torch.bincount(first * num_clusters + second, minlength=num_clusters**2).double()
    joint = (pairs / pairs.sum().clamp(min=1)).view(num_clusters, num_clusters)
    entropies = entropy(joint.sum(0)) + entropy(joint.sum(1))
    return 2 * (entropies - entropy(joint.flatten())) / entropies.clamp(min=1e-12)


class DeepClusterV2(Objective):
    """DeepCluster-v2 (Caron et al. 2020, arXiv 2006.09882, appendix).

    A bank holds each sample's last projection, of its first view. Every `assign_every` steps spherical k-means of the
    bank makes fixed prototypes, and a pseudo-label for every sample that the bank has met, which all its views then
    predict: once for each of several sets of prototypes.

    A sample without a pseudo-label is one not met before the last k-means, or any sample before the first: it takes the
    prototype that Sinkhorn's balanced assignment of the batch gives to its first view, as in SwAV. So the prototypes,
    which are random at first, are all in use from the first step on; the nearest one could be the same for all.
    A ViT that takes local crops needs encoder.arguments.dynamic_img_size=true.
    """

    class Config(Config):
        name: Literal["deepcluster_v2"] = "deepcluster_v2"
        num_prototypes: int = Field(128, ge=2, description="clusters of a set; 3000 in the paper")
        num_sets: int = Field(3, ge=1, description="k-means from several starts, each with its loss; the paper's value")
        assign_every: int = Field(200, ge=1, description="steps between two clusterings; an epoch in the paper")
        iterations: int = Field(10, ge=1, description="of k-means; the paper's value")
        temperature: float = Field(0.1, gt=0, le=10, description="τ of the prediction; the paper's value")
        projector_dims: tuple[int, ...] = Field(
            (512, 128), min_length=1, description="widths; the last is the output; 2048, 128 in the paper"
        )
        num_samples: int | None = Field(None, ge=1, description="slots of the bank; None: as many as the store has")

    num_views: ClassVar[int] = 2
    remembers_samples: ClassVar[bool] = True
    takes_local_crops: ClassVar[bool] = True

    # Buffers, equal on all ranks
    bank: Tensor  # (num_samples, D) of length 1; 0 where a sample was not met
    prototypes: Tensor  # (sets, K, D) of length 1
    labels: Tensor  # (sets, num_samples) int64, −1 where there is none
    agreement: Tensor  # (), NMI of the last two clusterings

    def __init__(self, config: Config, encoder: EncoderConfig) -> None:
        super().__init__(config, encoder)
        slots = config.num_samples or 1
        if config.num_samples is not None and config.num_prototypes > slots:
            raise ValueError(
                f"objective.num_prototypes={config.num_prototypes} exceeds the {slots} samples that are clustered: "
                "choose fewer prototypes, or curate more images"
            )
        self.config = config
        dim = config.projector_dims[-1]
        self.projector = Projector(self.encoder.dim, config.projector_dims)
        self.register_buffer("bank", torch.zeros(slots, dim))
        self.register_buffer("prototypes", normalize(torch.randn(config.num_sets, config.num_prototypes, dim)))
        self.register_buffer("labels", torch.full((config.num_sets, slots), -1))
        self.register_buffer("agreement", torch.zeros(()))
        self.met: tuple[Tensor, Tensor] | None = None  # this step's ids (N,) and projections (N, D), until after_step

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        projections = project_crops(self.encoder, self.projector, batch.views, self.num_views)
        self.met = gather(batch.ids), gather(normalize(projections[0].detach()))
        scores = [cosines(rows, self.prototypes) for rows in projections]  # (sets, B, K) each
        labels = self.labels[:, batch.ids]  # (sets, B)
        labels = torch.where(labels < 0, sinkhorn(scores[0], _EPSILON, _ITERATIONS).argmax(2), labels)
        logits = [view.flatten(0, 1) / self.config.temperature for view in scores]  # (sets · B, K) each
        loss = torch.stack([F.cross_entropy(view, labels.flatten()) for view in logits]).mean()
        hits = (scores[1].detach().argmax(2) == labels).float().mean()
        return {"loss": loss, "assignment_accuracy": hits, "assignment_nmi": self.agreement.float()}

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        assert self.met is not None, "a forward comes before"
        ids, rows = self.met
        order = ids.argsort(stable=True)  # a sample that is there twice writes once, as its last place in the batch
        ids, rows = ids[order], rows[order]
        last = torch.ones_like(ids, dtype=torch.bool)
        last[:-1] = ids[1:] != ids[:-1]
        self.bank[ids[last]] = rows[last].to(self.bank.dtype)
        self.met = None
        if (step.number + 1) % self.config.assign_every == 0:
            self._cluster(step)

    def _cluster(self, step: Step) -> None:
        """New prototypes and labels from the bank. Each rank assigns its share of the samples, for all."""
        samples = torch.arange(len(self.bank), device=self.bank.device)
        known = self.bank.any(1)  # (num_samples,)
        length = math.ceil(len(samples) / world_size())
        places = torch.arange(length, device=samples.device) + rank() * length
        own = places.clamp(max=len(samples) - 1)
        rows, counted = self.bank[own], known[own] & (places < len(samples))
        draws = uniform(step.seed, step.number, samples, len(self.prototypes), "centroids") + (~known)[:, None]
        agreements = []
        for number, prototypes in enumerate(self.prototypes):
            start = draws[:, number].argsort()[: len(prototypes)]  # samples that were met, where there are as many
            prototypes.copy_(torch.where(known[start, None], self.bank[start], prototypes))
            prototypes.copy_(spherical_kmeans(rows, counted, prototypes, self.config.iterations))
            labels = gather(torch.where(counted, nearest(rows, prototypes), -1))[: len(samples)]
            both = (self.labels[number] >= 0) & (labels >= 0)
            agreements.append(normalized_mutual_information(self.labels[number][both], labels[both], len(prototypes)))
            self.labels[number] = labels
        self.agreement.copy_(torch.stack(agreements).mean())
