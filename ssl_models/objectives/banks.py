"""Objectives in which every image of the store is a class of its own, told from all others: by a bank with a row for
each sample, or by a classifier."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_models.batch import Batch, Step, uniform
from ssl_models.collectives import gather, mean_over_ranks
from ssl_models.config import Config
from ssl_models.encoders import EncoderConfig
from ssl_models.heads import Projector
from ssl_models.objectives.objective import Objective
from ssl_models.precision import normalize

MAX_CLASSES = (
    200_000  # of a classifier: at an encoder width of 512, 0.4 GB of weights, and as much for each of gradient,
)
# momentum and, in a batch of 512, logits


def softmax_loss(own: Tensor, others: Tensor) -> Tensor:
    """−log( exp(s_i) / (exp(s_i) + Σ_j exp(s_j)) ): own (n,), others (n, M), logits of which −∞ do not count → (n,).

    Over all other rows of the bank it is the non-parametric softmax (Wu et al. 2018, arXiv 1805.01978, eq. 2); over M
    drawn ones the sampled form that the authors' later code trains with. ln(M + 1) when all rows are equal.
    """
    return torch.cat([own[:, None], others], 1).logsumexp(1) - own


def nce_loss(own: Tensor, noise: Tensor, log_z: Tensor, num_samples: int) -> Tensor:
    """−log h(own) − Σ_noise log(1 − h), h = P / (P + M/num_samples), P = exp(s) / Z (Wu et al. 2018, eq. 5 to 7).

    Noise-contrastive estimation: own (n,) and noise (n, M) are logits, the noise uniform over all rows of the bank, the
    anchor's own among them; log_z: 0-dim, a constant. Returns (n,).
    """
    offset = log_z + math.log(noise.shape[1] / num_samples)
    return F.softplus(offset - own) + F.softplus(noise - offset).sum(1)


class BankConfig(Config):
    loss: Literal["softmax", "sampled_softmax", "nce"] = Field(
        "softmax",
        description="softmax: against every row of the bank, up to about 100,000 of them; sampled_softmax: against "
        "rows drawn for each step; nce: noise-contrastive estimation with them",
    )
    negatives: int = Field(4096, ge=1, description="rows drawn for sampled_softmax and nce, fewer than there are")
    temperature: float = Field(0.1, ge=0.01, le=10, description="τ of the logits; the papers' 0.07 is for ImageNet")
    momentum: float = Field(0.5, ge=0, lt=1, description="share of a row that stays when its image is seen again")
    num_samples: int | None = Field(None, ge=1, description="rows of the bank; left out, it comes from the store")


class Bank(nn.Module):
    """A row of length 1 for each sample id, which moves towards the image's features each time it is seen.

    Rows start at random, and those of ids that are never trained on (other splits) stay there: fixed negatives that say
    nothing and cost little.

    Raises:
        ValueError: as many rows are to be drawn as there are.
    """

    rows: Tensor  # (num_samples, D)
    log_z: Tensor  # 0-dim, of NCE: log Σ_j exp(s_j), estimated from the first batch, then a constant; ∞ before that

    def __init__(self, config: BankConfig, dim: int) -> None:
        super().__init__()
        if config.num_samples is not None and config.loss != "softmax" and config.negatives >= config.num_samples:
            raise ValueError(
                f"objective.negatives={config.negatives} of {config.num_samples} images: use objective.loss=softmax, "
                "which takes them all, or fewer negatives"
            )
        self.loss, self.negatives, self.temperature = config.loss, config.negatives, config.temperature
        self.momentum = config.momentum
        self.register_buffer("rows", normalize(torch.randn(config.num_samples or 1, dim)))
        self.register_buffer("log_z", torch.tensor(torch.inf))

    def forward(self, features: Tensor, ids: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """features: (n, D), normalised; ids: (n,). Returns the loss of each (n,), and the share of them that their own
        row is strictly nearest to, among those compared."""
        own = (features * self.rows[ids]).sum(1) / self.temperature  # (n,)
        columns = self._drawn(step, ids)
        others = features @ self.rows[columns].T / self.temperature  # (n, M)
        itself = ids[:, None] == columns
        elsewhere = others.masked_fill(itself, -torch.inf)
        hits = (own > elsewhere.amax(1)).float().mean()
        if self.loss == "nce":
            self._fresh_log_z = self.log_z.where(self.log_z.isfinite(), self._estimated_log_z(others.detach()))
            return nce_loss(own, others, self._fresh_log_z, len(self.rows)), hits
        return softmax_loss(own, elsewhere), hits

    @torch.no_grad()
    def update(self, features: Tensor, ids: Tensor) -> None:
        """v ← normalise(m v + (1 − m) f), on all ranks for the features (n, D) of all ranks. Of an image that is in the
        batch several times, f is the mean: no order of writing decides."""
        seen, place = gather(ids).unique(return_inverse=True)
        shares = F.one_hot(place, len(seen)).T.to(features.dtype)  # (distinct, N)
        means = shares @ gather(features) / shares.sum(1, keepdim=True)
        self.rows[seen] = normalize(self.momentum * self.rows[seen] + (1 - self.momentum) * means)
        if self.loss == "nce":
            self.log_z.copy_(self._fresh_log_z)

    def _drawn(self, step: Step, ids: Tensor) -> Tensor:
        """Columns to compare with (M,): all, or a draw that is the same for all samples of the step, on every rank. The
        paper draws for each sample, and has to gather n · M rows."""
        if self.loss == "softmax":
            return torch.arange(len(self.rows), device=ids.device)
        draws = uniform(step.seed, step.number, ids.new_zeros(1), self.negatives, "negatives")[0]
        return (draws * len(self.rows)).long()

    def _estimated_log_z(self, logits: Tensor) -> Tensor:
        """log(num_samples · mean exp(s)) over the drawn rows and all samples of the global batch (Wu et al., eq. 8)."""
        highest = 1 / self.temperature
        return mean_over_ranks((logits - highest).exp().mean()).log() + highest + math.log(len(self.rows))


class InstDisc(Objective):
    """Unsupervised feature learning via non-parametric instance discrimination (Wu et al. 2018, arXiv 1805.01978).

    The paper's proximal term is not in its authors' code, and left out here.
    """

    class Config(BankConfig):
        name: Literal["instdisc"] = "instdisc"
        projector_dims: tuple[int, ...] = Field((128,), min_length=1, description="widths; the last is the bank's")

    num_views: ClassVar[int] = 1
    remembers_samples: ClassVar[bool] = True

    def __init__(self, config: Config, encoder: EncoderConfig) -> None:
        super().__init__(config, encoder)
        self.projector = Projector(self.encoder.dim, config.projector_dims)
        self.bank = Bank(config, config.projector_dims[-1])

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        features = normalize(self.projector(self.encoder(batch.views[0])))
        with torch.autocast(features.device.type, enabled=False):
            losses, accuracy = self.bank(features, batch.ids, step)
        self._seen = features.detach(), batch.ids
        return {"loss": losses.mean(), "instance_accuracy": accuracy}

    def after_step(self, step: Step) -> None:
        self.bank.update(*self._seen)


class PIRL(Objective):
    """Self-supervised learning of pretext-invariant representations (Misra and van der Maaten 2019, arXiv 1912.01991).

    The bank's row of an image attracts the image (one view) and its jigsaw (nine tiles of the other view, in any
    order); only the image moves the row. With loss=nce both branches share one Z.

    Raises:
        ValueError: the encoder cannot see images as small as the tiles.
    """

    class Config(BankConfig):
        name: Literal["pirl"] = "pirl"
        dim: int = Field(128, ge=2, description="width of the bank, and of a tile's features")
        jigsaw_weight: float = Field(0.5, ge=0, le=1, description="λ: the jigsaw's share of the loss, else the image's")
        tile_ratio: float = Field(0.75, gt=0, le=1, description="side of a tile over that of its cell, of 3 × 3")

    num_views: ClassVar[int] = 2
    remembers_samples: ClassVar[bool] = True

    def __init__(self, config: Config, encoder: EncoderConfig) -> None:
        super().__init__(config, encoder)
        self.weight = config.jigsaw_weight
        patch = getattr(getattr(self.encoder.model, "patch_embed", None), "patch_size", (1,))[0]
        self.tile = (
            round(encoder.image_size // 3 * config.tile_ratio) // patch * patch
        )  # pixels; whole patches of a ViT
        self._see_a_tile(encoder)
        self.project_image = nn.Linear(self.encoder.dim, config.dim)
        self.project_tile = nn.Linear(self.encoder.dim, config.dim)
        self.project_jigsaw = nn.Linear(9 * config.dim, config.dim)
        self.bank = Bank(config, config.dim)

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        image = normalize(self.project_image(self.encoder(batch.views[0])))
        jigsaw = normalize(self._jigsaw(batch.views[1], batch.ids, step))
        with torch.autocast(image.device.type, enabled=False):
            losses, accuracy = self.bank(torch.cat([image, jigsaw]), batch.ids.repeat(2), step)
        of_image, of_jigsaw = (part.mean() for part in losses.chunk(2))
        self._seen = image.detach(), batch.ids
        loss = self.weight * of_jigsaw + (1 - self.weight) * of_image
        return {
            "loss": loss,
            "instance_accuracy": accuracy,
            "loss_image": of_image.detach(),
            "loss_jigsaw": of_jigsaw.detach(),
        }

    def after_step(self, step: Step) -> None:
        self.bank.update(*self._seen)

    def _jigsaw(self, images: Tensor, ids: Tensor, step: Step) -> Tensor:
        """(B, 3, H, W) → (B, D), before normalisation. Offsets and order are functions of (seed, step, sample id)."""
        draws = uniform(step.seed, step.number, ids, 27, "jigsaw")  # (B, 27)
        tiles = cut_tiles(images, self.tile, draws[:, :18].unflatten(1, (9, 2)))
        with without_tracking(self.encoder):
            embeddings = self.encoder(tiles.flatten(0, 1))  # (9B, dim)
        features = self.project_tile(embeddings).unflatten(0, (-1, 9))  # (B, 9, D)
        order = draws[:, 18:].argsort(1)[:, :, None].expand_as(features)
        return self.project_jigsaw(features.gather(1, order).flatten(1))

    def _see_a_tile(self, config: EncoderConfig) -> None:
        weight = next(self.encoder.parameters())
        try:
            with torch.no_grad():
                self.encoder.eval()(weight.new_zeros(1, 3, self.tile, self.tile))
        except (AssertionError, RuntimeError) as error:
            raise ValueError(
                f"encoder {config.name!r} cannot see tiles of {self.tile} pixels, the ninths of encoder.image_size="
                f'{config.image_size}: choose a larger image_size, a ResNet, or a ViT with encoder.arguments={{"'
                f'dynamic_img_size": true}} ({error})'
            ) from error
        self.encoder.train()


def cut_tiles(images: Tensor, side: int, offsets: Tensor) -> Tensor:
    """A square from each of 3 × 3 cells: (B, 3, H, W) → (B, 9, 3, side, side), cells in row-major order.

    offsets: (B, 9, 2) in [0, 1): where in its cell a tile lies, from top and left. The cells lie in the middle.
    """
    cells = torch.tensor([size // 3 for size in images.shape[2:]], device=images.device)
    margins = torch.tensor([size % 3 // 2 for size in images.shape[2:]], device=images.device)
    number = torch.arange(9, device=images.device)
    corners = margins + torch.stack([number // 3, number % 3], 1) * cells + (offsets * (cells - side + 1)).long()
    places = corners[..., None] + torch.arange(side, device=images.device)  # (B, 9, 2, side)
    rows, columns = places[:, :, 0, None, :, None], places[:, :, 1, None, None, :]
    sample = torch.arange(len(images), device=images.device).view(-1, 1, 1, 1, 1)
    channel = torch.arange(images.shape[1], device=images.device).view(1, 1, -1, 1, 1)
    return images[sample, channel, rows, columns]


@contextmanager
def without_tracking(module: nn.Module) -> Iterator[None]:
    """BatchNorm uses the batch's statistics and leaves the running ones: those are to be of whole images, which is what
    the encoder is for afterwards."""
    norms = [child for child in module.modules() if isinstance(child, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


class Exemplar(Objective):
    """Exemplar-CNN (Dosovitskiy et al. 2014, "Discriminative unsupervised feature learning with exemplar convolutional
    neural networks", arXiv 1406.6909): which image is this a view of?

    A surrogate class is an image, and its transformations are the views of its visits. A linear classifier over all of
    them is for small data; near copies in it are classes that cannot be told apart. For large data, the same task as a
    triplet loss (Kolesnikov et al. 2019, arXiv 1901.09005) is objective.name=siamese.

    Raises:
        ValueError: too many images for a classifier.
    """

    class Config(Config):
        name: Literal["exemplar"] = "exemplar"
        num_samples: int | None = Field(None, ge=1, description="classes; left out, it comes from the store")

    num_views: ClassVar[int] = 1
    remembers_samples: ClassVar[bool] = True

    def __init__(self, config: Config, encoder: EncoderConfig) -> None:
        super().__init__(config, encoder)
        num_samples = config.num_samples or 1
        if num_samples > MAX_CLASSES:
            raise ValueError(
                f"objective.num_samples={num_samples}: more than {MAX_CLASSES} images are too many classes; use "
                "objective.name=siamese (the same task as a triplet loss), or instdisc (a bank instead of a classifier)"
            )
        self.classify = nn.Linear(self.encoder.dim, num_samples)

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        logits = self.classify(self.encoder(batch.views[0]))
        logits = logits if logits.dtype == torch.float64 else logits.float()
        hits = logits.detach().argmax(1) == batch.ids
        return {"loss": F.cross_entropy(logits, batch.ids), "instance_accuracy": hits.float().mean()}
