"""Contrast with a momentum encoder's keys: those of a queue (MoCo v1, v2) or of the batch (MoCo v3)."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_models.batch import Batch, Step, uniform
from ssl_models.collectives import gather, rank, world_size
from ssl_models.config import Config
from ssl_models.curves import curve
from ssl_models.encoders import EncoderConfig
from ssl_models.heads import NormalizedProjector, PlainProjector, Projector
from ssl_models.momentum import MomentumTeacher
from ssl_models.objectives.objective import Objective
from ssl_models.precision import normalize, outside_autocast
from ssl_models.split_batchnorm import split_batchnorm


@outside_autocast
def queue_loss(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """InfoNCE against a queue (He et al. 2019, arXiv 1911.05722, eq. 1).

    −log( exp(q·k⁺/τ) / (exp(q·k⁺/τ) + Σ_j exp(q·queue_j/τ)) ), the mean over this rank's queries. Equals ln(K + 1) when
    all rows are equal.

    Args:
        query, key: (n, D), of this rank; normalised here. queue: (K, D), normalised.

    Returns:
        The loss, and the share of queries whose key is strictly nearest: ties, as of a collapsed model, do not count.
    """
    query = normalize(query)
    positive = (query * normalize(key)).sum(1, keepdim=True)  # (n, 1)
    negative = query @ queue.T  # (n, K)
    logits = torch.cat([positive, negative], dim=1) / temperature
    accuracy = (positive[:, 0] > negative.amax(1)).float().mean()
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long)), accuracy


@outside_autocast
def batch_loss(query: Tensor, key: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """InfoNCE of MoCo v3 (Chen, Xie, He 2021, arXiv 2104.02057, algorithm 1): 2τ · CE over the global batch's keys.

    The factor makes the size of the gradient independent of τ. Equals 2τ ln N when all rows are equal.

    Args:
        query, key: (n, D), of this rank; keys are gathered from all ranks, without gradient.

    Returns:
        The loss, and the share of queries whose key is strictly nearest.
    """
    logits = normalize(query) @ gather(normalize(key).detach()).T / temperature  # (n, N)
    target = torch.arange(len(query), device=query.device) + rank() * len(query)
    loss = 2 * temperature * F.cross_entropy(logits, target)
    logits = logits.detach()
    others = logits.scatter(1, target[:, None], -torch.inf)
    accuracy = (logits.gather(1, target[:, None])[:, 0] > others.amax(1)).float().mean()
    return loss, accuracy


class MoCo(Objective):
    """Momentum contrast (He et al. 2019, arXiv 1911.05722), and its version 2 (Chen et al. 2020, arXiv 2003.04297).

    Version 1 is `projector_dims=[128]` (a linear head) at a temperature of 0.07; version 2 has a hidden layer, 0.2, and
    stronger views.

    A query and its key must not share BatchNorm's statistics: the encoder would know the positive by them, for the
    queue's keys have those of other batches. (Statistics over all ranks do share them.) The paper normalises each GPU's
    images alone, and shuffles which images a GPU has for the keys. This does so on any number of ranks, one included:
    `split_batchnorm` groups stand for the GPUs. Groups of queries are consecutive parts of the global batch; for the
    keys the images of all ranks are put in an order drawn from sample ids, and the keys are put back.

    The queue is a ring: the keys of a step overwrite the oldest ones from the pointer on, around its end, whatever the
    batch; of more keys than it holds, the last ones stay. It begins with random directions.
    """

    class Config(Config):
        name: Literal["moco"] = "moco"
        temperature: float = Field(0.2, gt=0, le=10, description="τ; version 1: 0.07")
        projector_dims: tuple[int, ...] = Field(
            (512, 128), min_length=1, description="widths; the last is the output. Paper: 128 (v1); 2048, 128 (v2)"
        )
        queue_size: int = Field(4096, ge=1, description="keys that are negatives; the paper's 65536 is for ImageNet")
        momentum: float = Field(0.99, ge=0, lt=1, description="of the key encoder, a step; the paper's is 0.999")
        symmetric: bool = Field(
            False, description="each view is a query and a key: the mean of both losses, two passes"
        )
        split_batchnorm: int = Field(
            8, ge=1, description="groups of the global batch with BatchNorm of their own; 1: none, for encoders without"
        )
        num_samples: int | None = Field(None, ge=1, description="of the store, and from there; the queue is shorter")

    num_views: ClassVar[int] = 2

    queue: Tensor  # (K, D), normalised
    pointer: Tensor  # where the next key goes

    def __init__(self, config: Config, encoder: EncoderConfig) -> None:
        super().__init__(config, encoder)
        self.temperature, self.momentum, self.symmetric = config.temperature, config.momentum, config.symmetric
        if config.num_samples is not None and config.queue_size > config.num_samples:
            raise ValueError(
                f"objective.queue_size={config.queue_size} exceeds the {config.num_samples} samples of the store: an "
                f"image would meet its own older keys; use at most {config.num_samples // 2}"
            )
        self.shuffles = config.split_batchnorm > 1
        if self.shuffles and not split_batchnorm(self.encoder, config.split_batchnorm):
            raise ValueError(
                f"objective.split_batchnorm={config.split_batchnorm}: {encoder.name!r} has no BatchNorm to split; use "
                "objective.split_batchnorm=1"
            )
        self.projector = PlainProjector(self.encoder.dim, config.projector_dims)
        self.teacher = MomentumTeacher(self.encoder, self.projector)
        self.register_buffer("queue", normalize(torch.randn(config.queue_size, config.projector_dims[-1])))
        self.register_buffer("pointer", torch.tensor(0))
        self.new_keys: list[Tensor] = []  # each (N, D), from forward to after_step

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        first, second = batch.views[:2]
        order = self._order(batch.ids, step) if self.shuffles else None
        pairs = [(first, second), (second, first)] if self.symmetric else [(first, second)]
        self.new_keys, found = [], []
        for seen, target in pairs:
            query = self.projector(self.encoder(seen))
            keys = self._keys(target, order)
            own = keys[rank() * len(query) : (rank() + 1) * len(query)]
            found.append(queue_loss(query, own, self.queue, self.temperature))
            self.new_keys.append(keys)
        loss, accuracy = (torch.stack(values).mean() for values in zip(*found, strict=True))
        return {"loss": loss, "contrastive_accuracy": accuracy}

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        self.teacher.follow(self.momentum, self.encoder, self.projector)
        self._enqueue(torch.cat(self.new_keys))  # after their use: none was its own negative

    @staticmethod
    def _order(ids: Tensor, step: Step) -> Tensor:
        """A permutation (N,) of the global batch, the same on all ranks."""
        return uniform(step.seed, step.number, gather(ids), 1, "shuffle")[:, 0].argsort(stable=True)

    @torch.no_grad()
    def _keys(self, images: Tensor, order: Tensor | None) -> Tensor:
        """The keys (N, D) of the global batch, in its order; `order` is that in which the encoder sees its images."""
        if order is None:
            return gather(normalize(self.teacher(images)))
        own = order.chunk(world_size())[rank()]
        return gather(normalize(self.teacher(gather(images)[own])))[order.argsort()]

    def _enqueue(self, keys: Tensor) -> None:
        size, count = len(self.queue), len(keys)
        places = (self.pointer + torch.arange(count, device=keys.device)) % size
        self.queue[places[-size:]] = keys[-size:].to(self.queue.dtype)
        self.pointer.copy_((self.pointer + count) % size)


class MoCoV3(Objective):
    """An empirical study of training self-supervised vision transformers (Chen, Xie, He 2021, arXiv 2104.02057).

    The keys are the other views of the batch, which must be large. The two views pass the encoder apart, each with its
    own BatchNorm statistics (over all ranks), as in the paper.
    """

    class Config(Config):
        name: Literal["moco_v3"] = "moco_v3"
        temperature: float = Field(0.2, gt=0, le=10, description="τ; the paper's is 0.2 for ViTs and 1 for ResNet-50")
        projector_dims: tuple[int, ...] = Field(
            (1024, 256), min_length=1, description="paper: 4096, 256 for ResNets; 4096, 4096, 256 for ViTs"
        )
        predictor_dim: int = Field(1024, ge=1, description="hidden width of the predictor; the paper's is 4096")
        normalize_prediction: bool = Field(
            False, description="BatchNorm without weights on the prediction, too: the paper's choice for ViTs"
        )
        momentum: tuple[float, float] = Field((0.99, 1.0), description="of the teacher, by a cosine over the run")
        freeze_patch_embedding: bool = Field(
            False, description="of a ViT: it stays as initialised, which keeps large batches stable; the paper's choice"
        )

    num_views: ClassVar[int] = 2

    def __init__(self, config: Config, encoder: EncoderConfig) -> None:
        super().__init__(config, encoder)
        self.temperature, self.momentum = config.temperature, config.momentum
        if config.freeze_patch_embedding:
            self._freeze_patch_embedding(encoder)
        dim = config.projector_dims[-1]
        self.projector = NormalizedProjector(self.encoder.dim, config.projector_dims)
        predictor = NormalizedProjector if config.normalize_prediction else Projector
        self.predictor = predictor(dim, (config.predictor_dim, dim))
        self.teacher = MomentumTeacher(self.encoder, self.projector)

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        first, second = batch.views[:2]
        queries = [self.predictor(self.projector(self.encoder(view))) for view in (first, second)]
        keys = [self.teacher(view) for view in (second, first)]
        losses, accuracies = zip(
            *(batch_loss(*pair, self.temperature) for pair in zip(queries, keys, strict=True)), strict=True
        )
        return {"loss": sum(losses), "contrastive_accuracy": torch.stack(accuracies).mean()}

    def after_step(self, step: Step) -> None:
        self.teacher.follow(curve(*self.momentum, step.progress), self.encoder, self.projector)

    def _freeze_patch_embedding(self, encoder: EncoderConfig) -> None:
        projection = getattr(getattr(self.encoder.model, "patch_embed", None), "proj", None)
        if not isinstance(projection, nn.Conv2d):
            raise ValueError(
                f"objective.freeze_patch_embedding=true: {encoder.name!r} has no patch embedding: choose a ViT"
            )
        nn.init.xavier_uniform_(projection.weight.view(len(projection.weight), -1))  # as a linear layer over pixels
        if projection.bias is not None:
            nn.init.zeros_(projection.bias)
        projection.requires_grad_(False)
