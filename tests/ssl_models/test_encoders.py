"""Encoders: stems, tokens, positions."""

import pytest
import torch
from pydantic import ValidationError

from ssl_models.encoders import EncoderConfig, ImageEncoder, TextConfig, TextEncoder, sine_cosine_positions

TINY_VIT = {"embed_dim": 48, "depth": 2, "num_heads": 3}


@pytest.mark.parametrize(
    ("stem", "side", "last_map"),
    [
        ("small", 32, 4),
        ("small_stride2", 32, 2),
        ("small_pool", 32, 2),
        ("imagenet", 32, 1),
        ("auto", 32, 4),
        ("auto", 64, 4),
    ],
)
def test_stem_sets_the_resolution(stem, side, last_map):
    arguments = {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]}
    encoder = ImageEncoder(EncoderConfig(image_size=side, stem=stem, arguments=arguments)).eval()
    images = torch.randn(2, 3, side, side)
    assert encoder.model.forward_features(images).shape == (2, 32, last_map, last_map)
    assert encoder(images).shape == (2, encoder.dim) == (2, 32)


def test_all_tokens_visible_is_the_plain_encoder():
    torch.manual_seed(0)
    config = EncoderConfig(name="vit_tiny_patch16_224", image_size=32, patch_size=8, pool="mean", arguments=TINY_VIT)
    encoder = ImageEncoder(config).eval()
    images = torch.randn(2, 3, 32, 32)
    everything = torch.arange(16).expand(2, -1)
    tokens = encoder.visible_tokens(images, everything)
    assert torch.allclose(tokens, encoder.model.forward_features(images), atol=1e-6)
    assert torch.allclose(tokens[:, 1:].mean(1), encoder(images), atol=1e-6)


def test_visible_tokens_follow_the_order_of_keep():
    torch.manual_seed(0)
    config = EncoderConfig(name="vit_tiny_patch16_224", image_size=32, patch_size=8, arguments=TINY_VIT)
    encoder = ImageEncoder(config).eval()
    images = torch.randn(1, 3, 32, 32)
    one = encoder.visible_tokens(images, torch.tensor([[3, 7, 1]]))
    other = encoder.visible_tokens(images, torch.tensor([[7, 1, 3]]))
    assert torch.allclose(one[:, 1:][:, [1, 2, 0]], other[:, 1:], atol=1e-5)


def test_whatever_an_objective_calls_is_compiled(monkeypatch):
    """Whole images, visible patches, masked ones, and the map."""
    ran: list[str] = []

    def compiled(call, **options):
        return lambda *inputs, **more: (ran.append(type(call.__self__).__name__), call(*inputs, **more))[1]

    monkeypatch.setattr(torch, "compile", compiled)
    config = EncoderConfig(name="vit_tiny_patch16_224", image_size=32, patch_size=8, pool="mean", arguments=TINY_VIT)
    encoder, images = ImageEncoder(config), torch.zeros(2, 3, 32, 32)
    encoder.compile()
    hidden = torch.zeros(2, 16, dtype=torch.bool)
    for call in (
        lambda: encoder(images),
        lambda: encoder.features(images),
        lambda: encoder.visible_tokens(images, torch.arange(4).expand(2, 4)),
        lambda: encoder.masked_tokens(images, hidden, torch.zeros(encoder.dim)),
    ):
        ran.clear()
        call()
        assert {"PatchEmbed", "Sequential", "LayerNorm"} <= set(ran)


def test_sine_cosine_positions_against_a_loop():
    table = sine_cosine_positions(8, 2, 3)
    for row in range(2):
        for column in range(3):
            expected = []
            for axis in (column, row):
                for function in (torch.sin, torch.cos):
                    expected += [function(torch.tensor(axis / 10000 ** (i / 2))).item() for i in range(2)]
            assert table[row * 3 + column].tolist() == pytest.approx(expected, abs=1e-6)


def test_text_is_read_at_its_end_token():
    torch.manual_seed(0)
    encoder = TextEncoder(TextConfig(width=32, layers=2, heads=2, context_length=8), 16).eval()
    tokens = torch.tensor([[49406, 5, 6, 49407, 0, 0, 0, 0]])
    after_end = tokens.clone()
    after_end[0, 6] = 99  # behind the end token: the causal transformer never looks there
    before_end = tokens.clone()
    before_end[0, 2] = 99
    assert torch.allclose(encoder(tokens), encoder(after_end), atol=1e-6)
    assert not torch.allclose(encoder(tokens), encoder(before_end), atol=1e-3)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (EncoderConfig(name="resnt18"), "is no model of timm"),
        (EncoderConfig(name="resnet18", pool="mean"), "needs a ViT"),
        (EncoderConfig(name="resnet18", patch_size=4), "encoder.patch_size=4 needs a ViT"),
        (EncoderConfig(name="vit_tiny_patch16_224", stem="small"), "needs a plain ResNet"),
        (EncoderConfig(name="resnet18", arguments={"depht": 3}), "does not take"),
    ],
)
def test_what_cannot_be_built_is_refused_in_words(config, says):
    with pytest.raises(ValueError, match=says):
        ImageEncoder(config)


def test_plain_attention_of_the_text_tower_is_the_fused():
    torch.manual_seed(0)
    encoder = TextEncoder(TextConfig(width=32, layers=2, heads=2, context_length=8), dim=8).double()
    tokens = torch.randint(1, 49000, (4, 8))
    gradients = []
    for tower in (encoder, encoder.model):
        encoder.zero_grad()
        features = tower(tokens)
        features.square().sum().backward()
        gradients.append((features.detach(), [parameter.grad for parameter in encoder.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize(
    "config",
    [
        EncoderConfig(image_size=32, arguments={"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]}),
        EncoderConfig(name="vit_tiny_patch16_224", image_size=32, patch_size=8, pool="mean", arguments=TINY_VIT),
        EncoderConfig(name="convnext_atto", image_size=64),
        EncoderConfig(name="swin_tiny_patch4_window7_224", image_size=224, arguments={"embed_dim": 24}),
    ],
    ids=lambda config: config.name,
)
def test_the_feature_map_is_what_pooling_pools(config):
    """Its mean is the embedding, where the model pools so and has no norm after pooling; channels come first."""
    torch.manual_seed(0)
    encoder = ImageEncoder(config).eval()
    images = torch.randn(2, 3, config.image_size, config.image_size)
    found = encoder.features(images)
    assert found.ndim == 4
    assert found.shape[:2] == (2, encoder.dim)
    if not config.name.startswith("convnext"):
        assert torch.allclose(found.mean((2, 3)), encoder(images), atol=1e-5)
    if "vit" in config.name:
        tokens = encoder.model.forward_features(images)[:, 1:]
        assert torch.equal(found[:, :, 1, 2], tokens[:, 1 * 4 + 2])


def test_pixels_undo_the_normalisation():
    encoder = ImageEncoder(EncoderConfig(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)))
    pixels = torch.rand(2, 3, 4, 4)
    seen = encoder.normalized(pixels)
    assert torch.allclose(seen[:, 2], (pixels[:, 2] - 0.3) / 0.7)
    assert torch.allclose(encoder.pixels(seen), pixels, atol=1e-6)
    with pytest.raises(ValidationError, match="must be above 0"):
        EncoderConfig(std=(0.2, 0.0, 0.2))


@pytest.mark.parametrize("side", [1, 2, 4, 8])
def test_gradients_on_the_smallest_maps_are_not_what_memory_held(side):
    """Without the shield, those of layer4.0.conv1 at 8 pixels were, in bf16 on a CPU with AMX."""
    torch.manual_seed(0)
    encoder = ImageEncoder(EncoderConfig(stem="small_stride2", arguments={"channels": [16, 32, 64, 128]}))
    images, gradients = torch.randn(64, 3, side, side), {}
    for dtype in (torch.float32, torch.bfloat16):
        encoder.zero_grad()
        held = [torch.full((2**n,), 1e30) for n in range(8, 24)]
        del held
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            encoder(images).float().square().sum().backward()
        gradients[dtype] = {name: weight.grad.clone() for name, weight in encoder.named_parameters()}
    for name, expected in gradients[torch.float32].items():
        found = gradients[torch.bfloat16][name]
        assert (found - expected).norm() < 0.5 * expected.norm() + 1e-3, name
