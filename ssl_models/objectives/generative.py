"""Generative objectives: an image goes through a narrow code and is made again from it.

Images are made in the space that the encoder sees, where a value has about unit variance: an error of 1 is that of
predicting the mean colour.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ssl_models.batch import Batch, Step, normal, uniform
from ssl_models.collectives import mean_over_ranks
from ssl_models.config import Config
from ssl_models.curves import curve
from ssl_models.encoders import EncoderConfig
from ssl_models.heads import ConvolutionalDecoder
from ssl_models.objectives.objective import Objective
from ssl_models.precision import single

Width = Field(16, ge=4, multiple_of=4, description="channels of the decoder at full size; more at smaller ones")


def mask(pixels: Tensor, draws: Tensor, share: float) -> Tensor:
    """Masking noise (Vincent et al. 2010, section 3.3): pixels (B, 3, H, W) are 0 where draws (B, 1, H, W) < share."""
    return pixels * (draws >= share)


def salt_and_pepper(pixels: Tensor, draws: Tensor, share: float) -> Tensor:
    """Salt-and-pepper noise (same place): where draws (B, 1, H, W) < share, black or white with equal odds."""
    return torch.where(draws < share, (draws < share / 2).to(pixels.dtype), pixels)


def sparsity_penalty(code: Tensor, target: float) -> Tensor:
    """Σ_j KL(ρ ‖ ρ̂_j) of Bernoulli variables, ρ̂_j the mean activation of unit j over the *global* batch (Ng 2011,
    "Sparse autoencoder", CS294A lecture notes).

    Not a mean over samples: every rank computes the whole from the mean of all ranks.

    Args:
        code: (n, D), activations in (0, 1).
        target: ρ.
    """
    rate = mean_over_ranks(code.mean(0)).clamp(1e-6, 1 - 1e-6)  # (D,)
    return (target * (target / rate).log() + (1 - target) * ((1 - target) / (1 - rate)).log()).sum()


class Autoencoder(Objective):
    """Autoencoder: plain, denoising (Vincent et al. 2010, JMLR 11, "Stacked denoising autoencoders"), sparse.

    Several kinds of noise may be on together; they are drawn anew for each step, on pixels in [0, 1], and whole pixels
    are hit: what is left of a pixel's other channels would tell it. The target is the clean image. With sparsity the
    code goes through a sigmoid. Probes judge the encoder, before the code.

    Raises:
        ValueError: nothing keeps the code from being the image itself.
    """

    class Config(Config):
        name: Literal["autoencoder"] = "autoencoder"
        code_dim: int = Field(128, ge=1, description="width of the code that the image is made from")
        masking: float = Field(0, ge=0, lt=1, description="share of pixels that become black")
        gaussian: float = Field(0, ge=0, description="standard deviation of noise added to pixels in [0, 1]")
        salt_pepper: float = Field(0, ge=0, lt=1, description="share of pixels that become black or white")
        sparsity: float = Field(
            0,
            ge=0,
            description="weight of Σ KL(ρ‖ρ̂); 3 is usual beside a sum over pixels: 0.001 beside our mean",
        )
        activation: float = Field(0.05, gt=0, lt=1, description="ρ, the mean activation that sparsity asks for")
        decoder_width: int = Width

    def __init__(self, config: Config, encoder: EncoderConfig) -> None:
        super().__init__(config, encoder)
        values = 3 * encoder.image_size**2
        free = not (config.masking or config.gaussian or config.salt_pepper or config.sparsity)
        if free and config.code_dim >= values:
            raise ValueError(
                f"objective.code_dim={config.code_dim} is not below the {values} values of an image of "
                f"{encoder.image_size} px: they could be copied; narrow it, or set masking, gaussian, salt_pepper or "
                "sparsity"
            )
        self.config = config
        self.code = nn.Linear(self.encoder.dim, config.code_dim)
        self.decoder = ConvolutionalDecoder(config.code_dim, encoder.image_size, config.decoder_width)

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        clean = batch.views[0]
        code = self.code(self.encoder(self.corrupted(clean, batch.ids, step)))
        if self.config.sparsity:
            code = single(code).sigmoid()
        error = (single(self.decoder(code)) - clean).square().mean()
        if not self.config.sparsity:
            return {"loss": error}
        loss = error + self.config.sparsity * sparsity_penalty(code, self.config.activation)
        return {"loss": loss, "reconstruction": error, "activation": code.mean()}

    def corrupted(self, images: Tensor, ids: Tensor, step: Step) -> Tensor:
        """What the encoder is given of the images (B, 3, H, W): a function of (seed, step, sample id)."""
        config, (height, width) = self.config, images.shape[2:]

        def draws(purpose: str) -> Tensor:
            return uniform(step.seed, step.number, ids, height * width, purpose).view(-1, 1, height, width)

        if not (config.masking or config.gaussian or config.salt_pepper):
            return images
        pixels = self.encoder.pixels(images)
        if config.gaussian:
            noise = normal(step.seed, step.number, ids, pixels[0].numel(), "gaussian noise").view_as(pixels)
            pixels = pixels + config.gaussian * noise.to(pixels.dtype)
        if config.masking:
            pixels = mask(pixels, draws("masking noise"), config.masking)
        if config.salt_pepper:
            pixels = salt_and_pepper(pixels, draws("salt and pepper"), config.salt_pepper)
        return self.encoder.normalized(pixels)


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, 1)) = ½(μ² + σ² − 1 − ln σ²) of each sample and dimension, (B, D), in nats (Kingma and
    Welling 2013, arXiv 1312.6114, appendix B)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)


class VAE(Objective):
    """Auto-encoding variational Bayes (Kingma and Welling 2013), with a Gaussian decoder of a fixed σ.

    −ELBO = Σ_pixels (x − x̂)² / 2σ² + β Σ_latents KL, sums as in the paper (a mean over pixels alone would multiply β by
    their number), the constant D/2 · ln 2πσ² left out. The whole is divided by D, the number of values of an image: so
    a learning rate is good for any size. Logged in nats an image. Probes judge the encoder, before μ; never a sample.
    """

    class Config(Config):
        name: Literal["vae"] = "vae"
        latent_dim: int = Field(128, ge=1, description="width of z")
        sigma: float = Field(0.5, gt=0, description="σ of the decoder, where pixels have about unit variance")
        beta: tuple[float, float] = Field(
            (0.0, 1.0), description="weight of the KL at first and in the end; 1: the bound on the likelihood"
        )
        beta_warmup: float = Field(0.2, ge=0, le=1, description="share of the run in which β rises, linearly")
        decoder_width: int = Width

    def __init__(self, config: Config, encoder: EncoderConfig) -> None:
        super().__init__(config, encoder)
        self.config = config
        self.posterior = nn.Linear(self.encoder.dim, 2 * config.latent_dim)
        self.decoder = ConvolutionalDecoder(config.latent_dim, encoder.image_size, config.decoder_width)

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        images = batch.views[0]
        mean, log_variance = single(self.posterior(self.encoder(images))).chunk(2, dim=1)  # (B, latent_dim) each
        log_variance = log_variance.clamp(-10, 10)
        noise = normal(step.seed, step.number, batch.ids, mean.shape[1], "posterior").to(mean.dtype)
        made = single(self.decoder(mean + (0.5 * log_variance).exp() * noise))
        distortion = (made - images).square().flatten(1).sum(1).mean() / (2 * self.config.sigma**2)
        divergence = gaussian_kl(mean, log_variance).mean(0)  # (latent_dim,)
        beta = curve(*self.config.beta, step.begun(self.config.beta_warmup), shape="linear")
        return {
            "loss": (distortion + beta * divergence.sum()) / images[0].numel(),
            "distortion": distortion,
            "divergence": divergence.sum(),
            "active_units": (mean_over_ranks(divergence.detach()) > 0.01).sum().float(),  # of latent_dim
            "beta": distortion.new_tensor(beta),
        }
