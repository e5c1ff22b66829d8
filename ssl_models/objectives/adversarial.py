"""Adversarial objectives: a generator, and an encoder that learns its inverse from a discriminator alone."""

from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ssl_models.batch import Batch, Step, uniform
from ssl_models.config import Config
from ssl_models.encoders import EncoderConfig
from ssl_models.heads import ConvolutionalDecoder, halvings
from ssl_models.objectives.objective import Objective
from ssl_models.precision import single


def discriminator_loss(encoded: Tensor, generated: Tensor) -> Tensor:
    """−log D(x, E(x)) − log(1 − D(G(z), z)), D the sigmoid of the logits (B,) (Donahue et al. 2016, arXiv 1605.09782,
    eq. 3). Equals 2 ln 2 where nothing is told apart."""
    return F.softplus(-encoded).mean() + F.softplus(generated).mean()


def encoder_generator_loss(encoded: Tensor, generated: Tensor) -> Tensor:
    """The same with the labels exchanged: not the negative, whose gradient fades where the discriminator is sure
    (section 3.4)."""
    return discriminator_loss(generated, encoded)


class JointDiscriminator(nn.Module):
    """Is this an image with its code, or a code with its image? (B, 3, H, W) and (B, latent_dim) → logits (B,).

    Without normalisation, as pairs of both kinds lie in one pass.
    """

    def __init__(self, image_size: int, latent_dim: int, width: int) -> None:
        super().__init__()
        sides = halvings(image_size)
        widths = [3, *(width * min(8, 2**place) for place in range(len(sides) - 1))]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.look = nn.Sequential(*layers, nn.Flatten())
        hidden = widths[-1] * 4
        self.judge = nn.Sequential(
            nn.Linear(widths[-1] * sides[0] ** 2 + latent_dim, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, 1),
        )

    def forward(self, images: Tensor, codes: Tensor) -> Tensor:
        return self.judge(torch.cat([self.look(images), codes], dim=1))[:, 0]


class BiGAN(Objective):
    """Adversarial feature learning (Donahue et al. 2016): the discriminator sees pairs (x, E(x)) and (G(z), z).

    Encoder and generator never see each other's output: what ties them together is the discriminator. E(x) is a linear
    layer on the encoder; probes judge the encoder, before that layer. Images are made as pixels in [0, 1] (sigmoid) and
    shown to the discriminator as the encoder sees them. `inversion` is logged: ‖x − G(E(x))‖² over the same for another
    image x; below 1, the encoder has begun to invert the generator.
    """

    class Config(Config):
        name: Literal["bigan"] = "bigan"
        latent_dim: int = Field(64, ge=1, description="width of z, uniform in [-1, 1); the paper's is 200")
        generator_width: int = Field(32, ge=4, multiple_of=4, description="channels at full size")
        discriminator_width: int = Field(32, ge=1, description="channels at half the size; more at smaller ones")

    phases: ClassVar[tuple[str, ...]] = ("discriminator", "encoder_generator")

    def __init__(self, config: Config, encoder: EncoderConfig) -> None:
        super().__init__(config, encoder)
        self.latent_dim = config.latent_dim
        self.code = nn.Linear(self.encoder.dim, config.latent_dim)
        self.generator = ConvolutionalDecoder(config.latent_dim, encoder.image_size, config.generator_width)
        self.discriminator = JointDiscriminator(encoder.image_size, config.latent_dim, config.discriminator_width)

    def trainable(self, phase: str) -> list[tuple[str, nn.Parameter]]:
        judging = phase == "discriminator"
        return [(name, value) for name, value in super().trainable(phase) if name.startswith("discrim") == judging]

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        judging = step.phase == "discriminator"
        images = batch.views[0]
        drawn = uniform(step.seed, step.number, batch.ids, self.latent_dim, "latent").to(images.dtype) * 2 - 1
        with torch.set_grad_enabled(not judging):
            codes, made = self.code(self.encoder(images)), self.generate(drawn)
        pairs = torch.cat([images, made.to(images.dtype)]), torch.cat([codes.to(images.dtype), drawn])
        # In the other phase through the discriminator, but not into its weights.
        weights = {name: value if judging else value.detach() for name, value in self.discriminator.named_parameters()}
        encoded, generated = single(functional_call(self.discriminator, weights, pairs)).chunk(2)
        if judging:
            told = torch.cat([encoded > 0, generated < 0]).float().mean()
            return {"loss": discriminator_loss(encoded, generated), "accuracy": told}
        with torch.no_grad():
            again = self.generate(codes)
            inversion = (again - images).square().mean() / (again - images.roll(1, 0)).square().mean()
        return {"loss": encoder_generator_loss(encoded, generated), "inversion": inversion}

    def generate(self, codes: Tensor) -> Tensor:
        """(B, latent_dim) → (B, 3, H, W), as the encoder sees images."""
        return self.encoder.normalized(self.generator(codes).sigmoid())
