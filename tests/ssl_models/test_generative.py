"""Generative losses against slow loops from the papers' formulas, and what each method must not do."""

import math

import pytest
import torch

from ssl_models.batch import Step
from ssl_models.encoders import EncoderConfig
from ssl_models.heads import ConvolutionalDecoder, halvings
from ssl_models.objectives.adversarial import BiGAN, discriminator_loss, encoder_generator_loss
from ssl_models.objectives.generative import (
    VAE,
    Autoencoder,
    gaussian_kl,
    mask,
    salt_and_pepper,
    sparsity_penalty,
)
from tests.ssl_models.cases.case import RESNET
from tests.ssl_models.contract import batch, build, optimizers_of, step


def doubles(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def assert_equal(fast, slow, *inputs):
    """Value and gradients."""
    assert torch.allclose(fast, slow, atol=1e-12)
    for a, b in zip(torch.autograd.grad(fast, inputs), torch.autograd.grad(slow, inputs), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_sparsity_equals_the_formula():
    units, rho = doubles(6, 4), 0.05
    code = units.sigmoid()
    slow = torch.zeros((), dtype=torch.float64)
    for j in range(4):
        rate = sum(code[i, j] for i in range(6)) / 6
        slow = slow + rho * torch.log(rho / rate) + (1 - rho) * torch.log((1 - rho) / (1 - rate))
    assert_equal(sparsity_penalty(units.sigmoid(), rho), slow, units)


def test_sparsity_is_nothing_at_its_target_and_finite_at_the_ends():
    assert sparsity_penalty(torch.full((8, 5), 0.05), 0.05).item() == pytest.approx(0, abs=1e-6)
    assert math.isfinite(sparsity_penalty(torch.tensor([[0.0, 1.0]]), 0.05))


def test_noise_hits_its_share_of_whole_pixels():
    pixels = torch.full((4, 3, 64, 64), 0.5)
    draws = torch.rand(4, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    hidden, peppered = mask(pixels, draws, 0.3), salt_and_pepper(pixels, draws, 0.3)
    assert (hidden == 0).float().mean() == pytest.approx(0.3, abs=0.015)  # four σ of 16,384 draws
    assert (peppered == 0).float().mean() == pytest.approx(0.15, abs=0.012)
    assert (peppered == 1).float().mean() == pytest.approx(0.15, abs=0.012)
    for noisy in (hidden, peppered):
        assert torch.equal(noisy[:, 0], noisy[:, 1])
        assert torch.equal(noisy[:, 0], noisy[:, 2])
    assert torch.equal(peppered == 0.5, hidden == 0.5)  # the same places


@pytest.mark.parametrize("kind", [{"masking": 0.3}, {"gaussian": 0.2}, {"salt_pepper": 0.3}])
def test_corruption_is_drawn_anew_for_each_step_and_sample(kind):
    objective, noise = Autoencoder(Autoencoder.Config(**kind), RESNET), batch("autoencoder")
    images = noise.views[0][:1].expand(16, -1, -1, -1)
    first, again, later = (objective.corrupted(images, noise.ids, Step(n, 0.0, 0)) for n in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert not torch.equal(first[0], first[1])


def test_noise_has_its_strength_in_pixels():
    objective, noise = Autoencoder(Autoencoder.Config(gaussian=0.2), RESNET), batch("autoencoder")
    seen = objective.encoder.pixels(objective.corrupted(noise.views[0], noise.ids, Step(0, 0.0, 0)))
    assert (seen - objective.encoder.pixels(noise.views[0])).std().item() == pytest.approx(0.2, rel=0.03)


def test_the_target_of_denoising_is_the_clean_image():
    objective, noise = Autoencoder(Autoencoder.Config(code_dim=8, masking=0.9), RESNET).double(), batch("autoencoder")
    images, where = noise.views[0].double(), Step(0, 0.0, 0)
    made = objective.decoder(objective.code(objective.encoder(objective.corrupted(images, noise.ids, where))))
    expected = sum((a - b) ** 2 for a, b in zip(made.flatten(), images.flatten(), strict=True)) / images.numel()
    found = objective(type(noise)((images,), noise.ids), where)["loss"]
    assert torch.allclose(found, expected, atol=1e-12)


def test_a_code_that_could_hold_the_image_is_refused():
    wide = 3 * 16**2
    with pytest.raises(ValueError, match="could be copied"):
        Autoencoder(Autoencoder.Config(code_dim=wide), RESNET)
    Autoencoder(Autoencoder.Config(code_dim=wide, masking=0.1), RESNET)
    Autoencoder(Autoencoder.Config(code_dim=wide - 1), RESNET)


def test_kl_equals_the_formula_and_the_integral():
    mean, log_variance = doubles(5, 3), doubles(5, 3, seed=1)
    slow = sum(
        -0.5 * (1 + log_variance[i, j] - mean[i, j] ** 2 - torch.exp(log_variance[i, j]))
        for i in range(5)
        for j in range(3)
    )
    assert_equal(gaussian_kl(mean, log_variance).sum(), slow, mean, log_variance)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    standard = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    assert torch.allclose(gaussian_kl(mean, log_variance), torch.distributions.kl_divergence(posterior, standard))
    assert gaussian_kl(torch.zeros(1), torch.zeros(1)) == 0


def test_vae_is_the_bound_of_the_paper_over_the_number_of_values():
    """Sums over pixels and latents: −log N(x; x̂, σ²) without its constant, and the KL, at β = 1."""
    sigma = 0.5
    objective = VAE(VAE.Config(latent_dim=4, sigma=sigma, decoder_width=4), RESNET).double()
    made = {}
    objective.decoder.register_forward_hook(lambda module, inputs, output: made.update(z=inputs[0], image=output))
    images = batch("vae", dtype=torch.float64).views[0]
    values = objective(batch("vae", dtype=torch.float64), Step(0, 0.9, 0))
    likelihood = torch.distributions.Normal(made["image"], sigma).log_prob(images).sum((1, 2, 3))
    constant = -images[0].numel() * 0.5 * math.log(2 * math.pi * sigma**2)
    assert torch.allclose(values["distortion"], -(likelihood - constant).mean(), atol=1e-9)
    assert values["loss"].item() == pytest.approx(
        (values["distortion"] + values["divergence"]).item() / (3 * 16 * 16), abs=1e-12
    )
    assert made["z"].std() > 0.8  # a sample: σ is near 1 at first


def test_vae_warms_its_kl_up():
    objective, noise = VAE(VAE.Config(latent_dim=4, beta=(0.0, 2.0), beta_warmup=0.5), RESNET), batch("vae")
    betas = [objective(noise, Step(0, progress, 0))["beta"].item() for progress in (0.0, 0.25, 0.5, 0.9)]
    assert betas == pytest.approx([0.0, 1.0, 2.0, 2.0])


def test_vae_survives_an_extreme_posterior_and_counts_active_units():
    objective, noise = VAE(VAE.Config(latent_dim=6), RESNET), batch("vae")
    torch.nn.init.zeros_(objective.posterior.weight)
    with torch.no_grad():
        objective.posterior.bias.copy_(torch.tensor([1.0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1e4, -1e4]))
    values = objective(noise, Step(0, 0.9, 0))
    assert torch.isfinite(values["loss"])
    assert values["active_units"] == 4  # two by their mean, two by their variance
    kl = 2 * 0.5 + 0.5 * (math.exp(10) - 11) + 0.5 * (math.exp(-10) + 9)  # clamped to ±10
    assert values["divergence"].item() == pytest.approx(kl, rel=1e-5)


def test_no_sample_is_judged():
    objective, noise = build("vae").eval(), batch("vae")
    assert torch.equal(objective.embed(noise.views[0]), objective.encoder(noise.views[0]))


def test_adversarial_losses_equal_the_formula():
    real, made = doubles(5), doubles(5, seed=1)
    slow = -sum(torch.log(torch.sigmoid(a)) + torch.log(1 - torch.sigmoid(b)) for a, b in zip(real, made, strict=True))
    assert_equal(discriminator_loss(real, made), slow / 5, real, made)
    swapped = -sum(
        torch.log(1 - torch.sigmoid(a)) + torch.log(torch.sigmoid(b)) for a, b in zip(real, made, strict=True)
    )
    assert_equal(encoder_generator_loss(real, made), swapped / 5, real, made)
    nothing = torch.zeros(4)
    assert discriminator_loss(nothing, nothing).item() == pytest.approx(2 * math.log(2))
    assert encoder_generator_loss(nothing, nothing).item() == pytest.approx(2 * math.log(2))
    sure = torch.full((1,), 200.0, requires_grad=True)
    assert torch.autograd.grad(encoder_generator_loss(sure, -sure), sure)[0].item() == pytest.approx(2)  # does not fade


def test_a_phase_gives_gradients_to_its_own_parameters_only():
    objective = build("bigan").train()
    for phase in objective.phases:
        objective.zero_grad()
        objective(batch("bigan"), Step(0, 0.0, 0, phase))["loss"].backward()
        touched = {name for name, value in objective.named_parameters() if value.grad is not None}
        assert touched == {name for name, _ in objective.trainable(phase)}


def test_encoder_and_generator_never_see_each_other():
    """A discriminator that looks at images alone gives the encoder no gradient, one that looks at codes alone none to
    the generator: a term of reconstruction would."""
    for looks_at, silent in (("images", "encoder"), ("codes", "generator")):
        objective = build("bigan").train()
        first = objective.discriminator.judge[0].weight.data  # columns: what it saw of the image, then the code
        codes = objective.latent_dim
        (first[:, -codes:] if looks_at == "images" else first[:, :-codes]).zero_()
        objective(batch("bigan"), Step(0, 0.0, 0, "encoder_generator"))["loss"].backward()
        moved = {name for name, value in objective.named_parameters() if value.grad is not None and value.grad.any()}
        assert not any(name.startswith((silent, "code") if silent == "encoder" else silent) for name in moved)
        assert any(name.startswith("generator" if silent == "encoder" else "encoder") for name in moved)


def test_encoder_and_generator_deceive_a_discriminator_that_stands_still():
    objective, fixed = build("bigan").train(), batch("bigan")
    judge = {"discriminator": optimizers_of(objective)["discriminator"]}
    for _ in range(20):
        step(objective, objective, judge, fixed, 0)
    alone = {"encoder_generator": optimizers_of(objective, 1e-2)["encoder_generator"]}
    losses = [step(objective, objective, alone, fixed, 0)["encoder_generator"].item() for _ in range(100)]
    assert losses[0] > 2 * math.log(2) > losses[-1]


def test_bigan_is_judged_before_its_code():
    objective, noise = build("bigan").eval(), batch("bigan")
    assert objective.embed(noise.views[0]).shape[1] == objective.encoder.dim != BiGAN.Config().latent_dim


@pytest.mark.parametrize(("side", "expected"), [(8, [4, 8]), (32, [4, 8, 16, 32]), (50, [4, 7, 13, 25, 50])])
def test_decoder_makes_any_size(side, expected):
    assert halvings(side) == expected
    decoder = ConvolutionalDecoder(5, side, 4)
    vectors = torch.randn(3, 5)
    assert decoder(vectors).shape == (3, 3, side, side)
    assert torch.allclose(decoder(vectors)[:1], decoder(vectors[:1]), atol=1e-5)  # alone as among others


@pytest.mark.parametrize("name", ["autoencoder", "vae", "bigan"])
def test_vision_transformers_fit_too(name):
    vit = EncoderConfig(
        name="vit_tiny_patch16_224",
        image_size=16,
        patch_size=4,
        arguments={"embed_dim": 24, "depth": 1, "num_heads": 2},
    )
    kind = {"autoencoder": Autoencoder, "vae": VAE, "bigan": BiGAN}[name]
    objective = kind(kind.Config(), vit)
    for phase in objective.phases:
        objective(batch(name), Step(0, 0.5, 0, phase))["loss"].backward()
    assert objective.encoder.model.blocks[0].attn.qkv.weight.grad.abs().sum() > 0
