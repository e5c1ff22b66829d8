"""Clustering objectives: an image is assigned to a cluster that its other views must find."""

from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from ssl_models.batch import Batch, Step
from ssl_models.collectives import gather, mean_over_ranks, world_size
from ssl_models.config import Config
from ssl_models.encoders import EncoderConfig
from ssl_models.heads import Projector
from ssl_models.objectives.objective import Objective
from ssl_models.pixels import sobel_gradient
from ssl_models.precision import normalize, outside_autocast, single


def entropy(probability: Tensor) -> Tensor:
    """−Σ p ln p over the last dimension."""
    return torch.special.entr(probability).sum(-1)


@outside_autocast
def iic_loss(first: Tensor, second: Tensor, marginal_weight: float = 1.0) -> Tensor:
    """−I(Φ(x), Φ(x')), the mutual information of two views' clusters (Ji et al. 2018, arXiv 1807.06653, eq. 3).

    Σ_cc' P_cc' (λ ln P_c + λ ln P_c' − ln P_cc'), P the mean of Φ(x) Φ(x')ᵀ over the *global* batch, made symmetric.
    P is reduced over ranks before its logarithm: joints of single ranks point elsewhere. With λ = 1 it is 0 when all
    rows fall in one cluster, or are uniform, and at best −ln k.

    Args:
        first, second: (n, heads, k), this rank's cluster probabilities of the two views.

    Returns:
        (heads,).
    """
    joint = mean_over_ranks(torch.einsum("nhi,nhj->hij", first, second) / len(first))  # (heads, k, k)
    joint = ((joint + joint.mT) / 2).clamp(min=torch.finfo(joint.dtype).eps)
    joint = joint / joint.sum((1, 2), keepdim=True)
    marginal = joint.sum(2).log()  # (heads, k): of rows and of columns, P being symmetric
    marginals = marginal[:, :, None] + marginal[:, None, :]
    return (joint * (marginal_weight * marginals - joint.log())).sum((1, 2))


class IIC(Objective):
    """Invariant information clustering (Ji et al. 2018), with over-clustering heads.

    The encoder sees no colours, which would be the clusters: its three channels are the change of the luma across and
    down, in the units of Sobel's undivided kernels (the paper's two), and the length of both. So do probes.

    Main and over-clustering heads learn at every step, from the mean of their losses: that is, up to a factor that Adam
    does not see, what the paper's alternation of whole epochs minimises, with one pass of the encoder for all.
    """

    class Config(Config):
        name: Literal["iic"] = "iic"
        num_clusters: int = Field(10, ge=2, description="k of the main head, best the number of classes expected")
        over_clusters: tuple[int, ...] = Field((70,), description="k of each over-clustering head; 70 for CIFAR-10")
        num_sub_heads: int = Field(5, ge=1, description="copies of each head, whose losses are averaged")
        marginal_weight: float = Field(1.0, gt=0, description="λ: above 1 favours clusters of equal size")

        @field_validator("over_clusters")
        @classmethod
        def _at_least_two(cls, over_clusters: tuple[int, ...]) -> tuple[int, ...]:
            if min(over_clusters, default=2) < 2:
                raise ValueError("each must be at least 2")
            return over_clusters

    num_views: ClassVar[int] = 2

    def __init__(self, config: Config, encoder: EncoderConfig) -> None:
        super().__init__(config, encoder)
        self.marginal_weight = config.marginal_weight
        self.shapes = [(config.num_sub_heads, k) for k in (config.num_clusters, *config.over_clusters)]
        self.heads = nn.ModuleList(nn.Linear(self.encoder.dim, copies * k) for copies, k in self.shapes)

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        embeddings = self.embed(torch.cat(batch.views[:2]))
        losses, logged = [], {}
        for head, shape in zip(self.heads, self.shapes, strict=True):
            logits = head(embeddings).unflatten(1, shape)  # (2B, sub-heads, k)
            first, second = single(logits).softmax(-1).chunk(2)
            losses.append(iic_loss(first, second, self.marginal_weight).mean())
            logged[f"cluster_entropy_{shape[1]}"] = entropy(mean_over_ranks(first.detach().mean(0))).mean()
        return {"loss": torch.stack(losses).mean(), "main_loss": losses[0].detach(), **logged}

    def embed(self, images: Tensor) -> Tensor:
        return self.encoder(self.edges(images))

    def edges(self, images: Tensor) -> Tensor:
        """What the encoder sees of normalised images: (B, 3, H, W)."""
        gradient = 8 * sobel_gradient(self.encoder.pixels(images))
        return torch.cat([gradient, gradient.norm(dim=1, keepdim=True)], dim=1)


@outside_autocast
@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int, shared: Tensor | None = None) -> Tensor:
    """Soft assignments of which all prototypes get equal shares (Caron et al. 2020, arXiv 2006.09882, eq. 3 to 5).

    Sinkhorn and Knopp: exp(scores / ε), of which in turn each prototype's sum over the global batch and each row's sum
    over prototypes are made equal. Scores are cosines: less their greatest value, the constant 1, which is the same on
    all ranks, nothing overflows, and at ε ≥ 0.025 nothing vanishes in single precision.

    Args:
        scores: (…, n, K), of this rank's rows.
        shared: (…, L, K), of rows that all ranks hold (a queue): they take part, and are left out of the result.

    Returns:
        (…, n, K), rows of sum 1, without gradient.
    """
    own = ((scores - 1) / epsilon).exp()
    others = None if shared is None else ((shared - 1) / epsilon).exp()
    for _ in range(iterations):
        totals = mean_over_ranks(own.sum(-2, keepdim=True)) * world_size()  # (…, 1, K)
        if others is not None:
            totals = totals + others.sum(-2, keepdim=True)
            others = others / totals
            others = others / others.sum(-1, keepdim=True)
        own = own / totals
        own = own / own.sum(-1, keepdim=True)
    return own


@outside_autocast
def swapped_prediction(scores: list[Tensor], codes: list[Tensor], temperature: float) -> Tensor:
    """−mean over (i, v ≠ i) of Σ_k q_ik ln softmax(s_v / τ)_k (Caron et al. 2020, eq. 1, 2 and 6).

    The code of view i is predicted from every other view v, local crops among them. Equals ln K when all scores are
    equal.

    Args:
        scores: of each view, global ones first, (n, K); codes: of the global views, (n, K).
    """
    predicted = [(view / temperature).log_softmax(1) for view in scores]
    terms = [-(code * view).sum(1).mean() for i, code in enumerate(codes) for v, view in enumerate(predicted) if v != i]
    return torch.stack(terms).mean()


@outside_autocast
def cosines(rows: Tensor, prototypes: Tensor) -> Tensor:
    """(n, D) of any length and (…, K, D) of length 1 → (…, n, K)."""
    return normalize(rows) @ prototypes.mT


def project_crops(encoder: nn.Module, projector: nn.Module, views: tuple[Tensor, ...], num_global: int) -> list[Tensor]:
    """Projections of each view: one pass of the encoder for global and one for local crops, one of the projector."""
    sizes = [some for some in (views[:num_global], views[num_global:]) if some]
    return list(projector(torch.cat([encoder(torch.cat(some)) for some in sizes])).chunk(len(views)))


class SwAV(Objective):
    """Unsupervised learning of visual features by contrasting cluster assignments (Caron et al. 2020).

    Global views are assigned to prototypes, with equal shares for all prototypes over the global batch (and the queue,
    if there is one), and every other view predicts the assignment. Prototypes stay on the unit sphere. A ViT that takes
    local crops needs encoder.arguments.dynamic_img_size=true.
    """

    class Config(Config):
        name: Literal["swav"] = "swav"
        num_prototypes: int = Field(256, ge=2, description="K; 3000 in the paper")
        temperature: float = Field(0.1, gt=0, le=10, description="τ of the prediction; the paper's value")
        epsilon: float = Field(
            0.025,
            ge=0.025,
            le=10,
            description="of Sinkhorn; 0.05 in the paper. Where the loss stays at ln K, codes are too soft: lower it",
        )
        iterations: int = Field(3, ge=1, description="of Sinkhorn; the paper's value")
        freeze_prototypes: float = Field(
            0.2, ge=0, lt=1, description="share of the run with fixed prototypes (the paper's first epoch)"
        )
        queue_length: int = Field(
            0, ge=0, description="earlier projections of each global view that take part in Sinkhorn; 3840 in the paper"
        )
        queue_from: float = Field(0.1, ge=0, lt=1, description="share of the run before the queue is used")
        projector_dims: tuple[int, ...] = Field(
            (512, 128), min_length=1, description="widths; the last is the output; 2048, 128 in the paper"
        )

    num_views: ClassVar[int] = 2
    takes_local_crops: ClassVar[bool] = True

    queue: Tensor  # (num_views, L, D), the newest first; equal on all ranks

    def __init__(self, config: Config, encoder: EncoderConfig) -> None:
        super().__init__(config, encoder)
        self.config = config
        self.projector = Projector(self.encoder.dim, config.projector_dims)
        dim = config.projector_dims[-1]
        self.prototypes = nn.Parameter(normalize(torch.randn(config.num_prototypes, dim)))
        self.register_buffer("queue", torch.zeros(self.num_views, config.queue_length, dim))
        self.keys: list[Tensor] = []  # of this step's global views, (N, D) each, from forward to after_step

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        config = self.config
        projections = project_crops(self.encoder, self.projector, batch.views, self.num_views)
        prototypes: Tensor = self.prototypes
        if step.begun(config.freeze_prototypes) < 1:
            prototypes = prototypes.detach() + 0 * prototypes  # data-parallel training wants every parameter used
        scores = [cosines(rows, prototypes) for rows in projections]
        codes = []
        for view in range(self.num_views):
            earlier = cosines(self.queue[view], prototypes.detach()) if self._uses_queue(step, len(batch.ids)) else None
            codes.append(sinkhorn(scores[view], config.epsilon, config.iterations, earlier))
        if config.queue_length:
            self.keys = [gather(normalize(rows.detach())) for rows in projections[: self.num_views]]
        predicted = mean_over_ranks((scores[0].detach() / config.temperature).softmax(1).mean(0))  # (K,)
        loss = swapped_prediction(scores, codes, config.temperature)
        return {"loss": loss, "prototype_entropy": entropy(predicted)}  # at most ln K, low when prototypes are dead

    def _uses_queue(self, step: Step, rows: int) -> bool:
        """Its time has come, and the steps before have filled it."""
        length, begun = self.config.queue_length, step.begun(self.config.queue_from) == 1
        return begun and 0 < length <= step.number * rows * world_size()

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        self.prototypes.copy_(normalize(self.prototypes))
        for queue, keys in zip(self.queue, self.keys, strict=False):
            queue.copy_(torch.cat([keys.to(queue.dtype), queue])[: len(queue)])
        self.keys = []
