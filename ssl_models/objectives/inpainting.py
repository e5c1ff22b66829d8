"""Inpainting: a hole is cut into an image and filled from what is around it."""

import math
from statistics import NormalDist
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ssl_models.batch import Batch, Step, normal
from ssl_models.collectives import mean_over_ranks
from ssl_models.config import Config
from ssl_models.encoders import EncoderConfig
from ssl_models.objectives.objective import Objective
from ssl_models.precision import single


def weighted_mse(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Σ w (x − x̂)² / Σ w over pixels and channels of the *global* batch (Pathak et al. 2016, arXiv 1604.07379, eq. 1,
    per hidden pixel): holes differ in area, so that a mean of the ranks' means would be another loss.

    Args:
        prediction, target: (B, 3, H, W) of this rank.
        weight: (B, 1, H, W) of at least 0.
    """
    error = (prediction.to(target.dtype) - target).square().mean(1, keepdim=True)
    average = mean_over_ranks(weight.detach().sum()).clamp(min=1)  # of a rank: DDP's mean over ranks does the rest
    return (error * weight).sum() / average


def band(hole: Tensor, width: int) -> Tensor:
    """The pixels outside a hole that are at most `width` away from it: (B, 1, H, W) of 0 and 1."""
    return F.max_pool2d(hole, 2 * width + 1, stride=1, padding=width) - hole


def field(side: int, knots: int) -> Tensor:
    """The matrix A (side, knots) float64 of a smooth random field: for N (knots, knots) standard normal, every pixel of
    A N Aᵀ is standard normal. Bumps a knot wide; rows of unit length."""
    place = (torch.arange(side, dtype=torch.float64) + 0.5) / side * knots - 0.5
    bumps = torch.exp(-0.5 * (place[:, None] - torch.arange(knots, dtype=torch.float64)) ** 2)
    return F.normalize(bumps, dim=1)


class Decoder(nn.Module):
    """A channel-wise fully connected layer (each channel's whole map, with weights of its own), a 1 × 1 convolution
    across channels, and doublings by transposed convolution: (B, dim, h, h) → (B, 3, H, H)."""

    def __init__(self, dim: int, grid: int, side: int, width: int) -> None:
        super().__init__()
        places = grid**2
        self.spread = nn.Parameter(torch.randn(dim, places, places) / math.sqrt(places))
        layers: list[nn.Module] = [nn.Conv2d(dim, width, 1), nn.BatchNorm2d(width), nn.ReLU()]
        for _ in range(int(math.log2(side // grid)) - 1):
            narrower = max(16, width // 2)
            layers += [nn.ConvTranspose2d(width, narrower, 4, 2, 1, bias=False), nn.BatchNorm2d(narrower), nn.ReLU()]
            width = narrower
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(width, 3, 4, 2, 1))

    def forward(self, features: Tensor) -> Tensor:
        spread = torch.einsum("bcp,cpq->bcq", features.flatten(2), self.spread.to(features.dtype))
        return self.layers(spread.view_as(features))


class ContextEncoder(Objective):
    """Context encoders: feature learning by inpainting (Pathak et al. 2016, arXiv 1604.07379), by squared error.

    The hole shows the mean colour. A random hole is a low-frequency pattern, as the paper has it for features: an
    encoder that only ever saw a central hole meets whole images for the first time when it is judged.
    """

    class Config(Config):
        name: Literal["context_encoder"] = "context_encoder"
        hole: Literal["random", "central"] = Field("random", description="a random pattern, or a square in the middle")
        hole_area: float = Field(
            0.25, gt=0, le=0.5, description="share of the image that is hidden; of a random hole, on average"
        )
        knots: int = Field(4, ge=2, le=32, description="bumps a side of the pattern of a random hole")
        overlap: int = Field(
            0, ge=0, description="pixels around the hole that are predicted, too; the paper's 7 of 128"
        )
        overlap_weight: float = Field(10.0, gt=0, description="weight of an error there; in the hole it is 1")
        decoder_dim: int = Field(128, ge=16, description="width of the decoder's first layer; halved at each doubling")

    def __init__(self, config: Config, encoder: EncoderConfig) -> None:
        super().__init__(config, encoder)
        self.config, self.side = config, encoder.image_size
        self.encoder.refuse_class_token()
        with torch.no_grad():
            device = next(self.encoder.parameters()).device
            self.encoder.eval()
            grid = self.encoder.features(torch.zeros(1, 3, self.side, self.side, device=device)).shape[-1]
            self.encoder.train()
        doublings = math.log2(self.side / grid)
        if doublings < 1 or doublings % 1:
            raise ValueError(
                f"the decoder doubles the encoder's {grid} × {grid} map until it is an image, which never gives "
                f"encoder.image_size={self.side}: use an image size or encoder.patch_size that is a power of two"
            )
        self.decoder = Decoder(self.encoder.dim, grid, self.side, config.decoder_dim)
        self.hole_side = max(1, round(math.sqrt(config.hole_area) * self.side))
        self.threshold = NormalDist().inv_cdf(config.hole_area)  # of a standard normal number

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        images = batch.views[0]
        hole = self.holes(images, batch.ids, step)
        return {"loss": self.reconstruction(images, self.fill(images, hole), hole), "hole": hole.mean()}

    def holes(self, images: Tensor, ids: Tensor, step: Step) -> Tensor:
        """(B, 1, H, W), 1 where hidden."""
        if self.config.hole == "central":
            hole = images.new_zeros(len(images), 1, self.side, self.side)
            first = (self.side - self.hole_side) // 2
            hole[:, :, first : first + self.hole_side, first : first + self.hole_side] = 1
            return hole
        knots = self.config.knots
        draws = normal(step.seed, step.number, ids, knots**2, "hole").double().view(-1, 1, knots, knots)
        bumps = field(self.side, knots).to(images.device)
        return (bumps @ draws @ bumps.T < self.threshold).to(images.dtype)

    def fill(self, images: Tensor, hole: Tensor) -> Tensor:
        """The decoder's image (B, 3, H, W) for images whose hole is empty."""
        return self.decoder(self.encoder.features(images * (1 - hole)))

    def reconstruction(self, images: Tensor, filled: Tensor, hole: Tensor) -> Tensor:
        weight = hole
        if self.config.overlap:
            weight = hole + self.config.overlap_weight * band(hole, self.config.overlap)
        return weighted_mse(filled, images, weight)


class AdversarialContextEncoder(ContextEncoder):
    """A context encoder whose filling must also pass for a true patch (Pathak et al. 2016, eq. 2 and 3), with the
    non-saturating loss of the generator.

    The discriminator sees the square of the hole alone: given the surroundings it would look at the border.
    """

    class Config(ContextEncoder.Config):
        name: Literal["context_encoder_adversarial"] = "context_encoder_adversarial"  # type: ignore[assignment]
        hole: Literal["central"] = Field("central", description="a square in the middle: what the discriminator sees")
        overlap: int = Field(
            1, ge=0, description="pixels around the hole that are predicted, too; the paper's 7 of 128"
        )
        adversarial_weight: float = Field(
            0.001, gt=0, lt=1, description="of the discriminator's part; the rest is L2's"
        )
        discriminator_dim: int = Field(32, ge=4, description="width of its first layer; doubled at each halving")

    phases: ClassVar[tuple[str, ...]] = ("discriminator", "main")

    def __init__(self, config: Config, encoder: EncoderConfig) -> None:
        super().__init__(config, encoder)
        if self.hole_side < 4:
            raise ValueError(
                f"objective.hole_area={config.hole_area} is a hole of {self.hole_side} pixels a side, too small for a "
                "discriminator: use a larger area or encoder.image_size"
            )
        self.adversarial_weight = config.adversarial_weight
        self.discriminator = discriminator(self.hole_side, config.discriminator_dim)

    def trainable(self, phase: str) -> list[tuple[str, nn.Parameter]]:
        judges = phase == "discriminator"
        return [pair for pair in super().trainable(phase) if pair[0].startswith("discriminator.") == judges]

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        images = batch.views[0]
        hole = self.holes(images, batch.ids, step)
        if step.phase == "discriminator":
            with torch.no_grad():
                filled = self.fill(images, hole)
            true, false = (single(self.discriminator(self.patch(some))) for some in (images, filled))
            accuracy = ((true > 0).float().mean() + (false < 0).float().mean()) / 2
            loss = F.softplus(-true).mean() + F.softplus(false).mean()  # −ln D(x) − ln(1 − D(x̂))
            return {"loss": loss, "discriminator_accuracy": accuracy}
        filled = self.fill(images, hole)
        frozen = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        fooled = F.softplus(-single(functional_call(self.discriminator, frozen, (self.patch(filled),)))).mean()
        squared = self.reconstruction(images, filled, hole)
        loss = (1 - self.adversarial_weight) * squared + self.adversarial_weight * fooled
        return {"loss": loss, "reconstruction": squared, "adversarial": fooled}

    def patch(self, images: Tensor) -> Tensor:
        """The square of the hole."""
        first = (self.side - self.hole_side) // 2
        return images[:, :, first : first + self.hole_side, first : first + self.hole_side]


def discriminator(side: int, width: int) -> nn.Sequential:
    """DCGAN's (Radford et al. 2015): halvings by strided convolution down to at most 7 pixels, (B, 3, side, side) →
    (B, 1), the logit of being true."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
    side //= 2
    while side > 7:
        layers += [nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2)]
        side, width = side // 2, 2 * width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * side**2, 1))
