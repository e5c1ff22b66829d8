"""Self-distillation: one view predicts what a teacher, or the model itself without gradient, makes of another."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ssl_models.batch import Batch, Step
from ssl_models.collectives import mean_over_ranks
from ssl_models.config import Config
from ssl_models.curves import curve
from ssl_models.encoders import EncoderConfig
from ssl_models.heads import DINOHead, NormalizedProjector, Projector
from ssl_models.momentum import MomentumTeacher
from ssl_models.objectives.objective import Objective
from ssl_models.precision import normalize, single


def cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """The mean cosine of the rows of two (n, D); the target has no gradient."""
    return (normalize(prediction) * normalize(target.detach())).sum(1).mean()


def spread(rows: Tensor) -> Tensor:
    """√D times the standard deviation of normalised rows (n, D), the mean over dimensions: about 1 when they point
    everywhere, 0 when all are equal (Chen and He 2020, arXiv 2011.10566, figure 2)."""
    return normalize(rows.detach()).std(0).mean() * rows.shape[1] ** 0.5


class BYOL(Objective):
    """Bootstrap your own latent (Grill et al. 2020, arXiv 2006.07733).

    The loss is the *sum* over both directions of ‖p̄ − z̄'‖² = 2 − 2 cos (eq. 2): 4 at cosine 0, 0 when collapsed. The
    mean would halve the step that the published rates give. Each view passes the encoder apart.
    """

    class Config(Config):
        name: Literal["byol"] = "byol"
        projector_dims: tuple[int, ...] = Field((1024, 256), min_length=1, description="widths; the paper's: 4096, 256")
        predictor_dim: int = Field(1024, ge=1, description="hidden width of the predictor; the paper's is 4096")
        momentum: tuple[float, float] = Field(
            (0.99, 1.0), description="of the teacher, by a cosine over the run; the paper's begins at 0.996"
        )

    num_views: ClassVar[int] = 2

    def __init__(self, config: Config, encoder: EncoderConfig) -> None:
        super().__init__(config, encoder)
        self.momentum = config.momentum
        dim = config.projector_dims[-1]
        self.projector = Projector(self.encoder.dim, config.projector_dims)
        self.predictor = Projector(dim, (config.predictor_dim, dim))
        self.teacher = MomentumTeacher(self.encoder, self.projector)

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        views = batch.views[:2]
        projections = [self.projector(self.encoder(view)) for view in views]
        first, second = (self.predictor(projection) for projection in projections)
        first_target, second_target = (self.teacher(view) for view in views)
        loss = 4 - 2 * cosine(first, second_target) - 2 * cosine(second, first_target)
        return {"loss": loss, "spread": spread(projections[0])}

    def after_step(self, step: Step) -> None:
        self.teacher.follow(curve(*self.momentum, step.progress), self.encoder, self.projector)


class SimSiam(Objective):
    """Exploring simple Siamese representation learning (Chen and He 2020, arXiv 2011.10566): BYOL without a teacher.

    −½ cos(p1, z2) − ½ cos(p2, z1), without gradient through z (algorithm 1): −1 when collapsed, but also when all is
    well; `spread` tells which. The predictor's learning rate stays constant (section 4.2). Each view passes apart.
    """

    class Config(Config):
        name: Literal["simsiam"] = "simsiam"
        projector_dims: tuple[int, ...] = Field(
            (512, 512), min_length=1, description="widths; the paper's: 2048, 2048, 2048, on CIFAR-10 two layers"
        )
        predictor_dim: int = Field(
            128, ge=1, description="hidden width of the predictor, a bottleneck; the paper's: 512"
        )

    num_views: ClassVar[int] = 2
    constant_rate: ClassVar[tuple[str, ...]] = ("predictor.",)

    def __init__(self, config: Config, encoder: EncoderConfig) -> None:
        super().__init__(config, encoder)
        dim = config.projector_dims[-1]
        self.projector = NormalizedProjector(self.encoder.dim, config.projector_dims)
        self.predictor = Projector(dim, (config.predictor_dim, dim))

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        first, second = (self.projector(self.encoder(view)) for view in batch.views[:2])
        loss = -(cosine(self.predictor(first), second) + cosine(self.predictor(second), first)) / 2
        return {"loss": loss, "spread": spread(first)}


def dino_loss(student: list[Tensor], teacher: list[Tensor], student_temperature: float) -> Tensor:
    """Cross entropy of the student's views under the teacher's (Caron et al. 2021, arXiv 2104.14294, eq. 3).

    The mean over samples and over all pairs of a teacher's view and *another* of the student's, global ones first in
    both, of −Σ_k P_t(k) log P_s(k). Equals ln K when the student is uniform.

    Args:
        student: logits, each (n, K). teacher: probabilities, each (n, K).
    """
    logs = [F.log_softmax(single(logits) / student_temperature, dim=1) for logits in student]
    terms = [-(target * log).sum(1).mean() for t, target in enumerate(teacher) for s, log in enumerate(logs) if s != t]
    return torch.stack(terms).mean()


class DINO(Objective):
    """Emerging properties in self-supervised vision transformers (Caron et al. 2021, arXiv 2104.14294).

    The teacher sees the two global views, the student all, local crops too where the views have them. The teacher's
    logits are centred by a moving average over all ranks, which is updated after its use, and sharpened. Views of one
    size pass the encoder together. A ViT that takes local crops needs encoder.arguments.dynamic_img_size=true.
    """

    class Config(Config):
        name: Literal["dino"] = "dino"
        head_dims: tuple[int, ...] = Field((512, 128), min_length=1, description="widths; the paper's: 2048, 2048, 256")
        num_prototypes: int = Field(1024, ge=2, description="outputs of the head; the paper's are 65536")
        batchnorm: bool = Field(False, description="in the head; for ResNets")
        momentum: tuple[float, float] = Field(
            (0.99, 1.0), description="of the teacher, by a cosine over the run; the paper's begins at 0.996"
        )
        student_temperature: float = Field(0.1, gt=0, description="τ of the student's softmax")
        teacher_temperature: tuple[float, float] = Field(
            (0.04, 0.07), description="of the teacher's: linear from the first to the second; above 0.07 is unstable"
        )
        teacher_warmup: float = Field(0.3, ge=0, le=1, description="share of the run that this takes")
        centre_momentum: float = Field(0.9, ge=0, lt=1, description="of the moving average of the teacher's logits")
        freeze_prototypes: float = Field(
            0.05, ge=0, lt=1, description="share of the run in which the last layer stays fixed; the paper's: 1 epoch"
        )

    num_views: ClassVar[int] = 2
    takes_local_crops: ClassVar[bool] = True

    centre: Tensor  # (K,)

    def __init__(self, config: Config, encoder: EncoderConfig) -> None:
        super().__init__(config, encoder)
        self.settings = config
        self.head = DINOHead(self.encoder.dim, config.head_dims, config.num_prototypes, config.batchnorm)
        self.teacher = MomentumTeacher(self.encoder, self.head)
        self.register_buffer("centre", torch.zeros(config.num_prototypes))
        self.batch_centre: Tensor | None = None  # (K,), of this rank, from forward to after_step

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        settings, num_views = self.settings, len(batch.views)
        sizes = [batch.views[:2], batch.views[2:]] if num_views > 2 else [batch.views]
        embeddings = torch.cat([self.encoder(torch.cat(views)) for views in sizes])  # (V · n, dim)
        frozen = step.begun(settings.freeze_prototypes) < 1
        student = self.head(embeddings, freeze_prototypes=frozen).chunk(num_views)
        logits = single(self.teacher(torch.cat(batch.views[:2])))  # (2n, K)
        temperature = curve(*settings.teacher_temperature, step.begun(settings.teacher_warmup), shape="linear")
        targets = ((logits - self.centre) / temperature).softmax(1)
        self.batch_centre = logits.mean(0)
        loss = dino_loss(list(student), list(targets.chunk(2)), settings.student_temperature)
        entropy = -(targets * targets.clamp_min(1e-12).log()).sum(1).mean()
        mean = targets.mean(0)
        return {
            "loss": loss,
            "teacher_entropy": entropy,  # of a target: ln K if uniform
            "prototype_entropy": -(mean * mean.clamp_min(1e-12).log()).sum(),  # of their mean: 0 if one takes all
        }

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        assert self.batch_centre is not None
        self.teacher.follow(curve(*self.settings.momentum, step.progress), self.encoder, self.head)
        self.centre.lerp_(mean_over_ranks(self.batch_centre), 1 - self.settings.centre_momentum)
