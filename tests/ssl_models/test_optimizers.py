"""Parameter groups, curves of the learning rate and of weight decay, clipping."""

import math

import pytest
import torch
from torch import nn

from ssl_models.curves import Span
from ssl_models.encoders import EncoderConfig, ImageEncoder
from ssl_models.optimizers import (
    OptimizerConfig,
    build_optimizer,
    clip_gradients,
    learning_rate_factor,
    set_hyperparameters,
)

MODEL = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def groups(config, **more):
    optimizer = build_optimizer(MODEL.named_parameters(), config, batch_size=512, **more)
    return optimizer, {
        (group["weight_decay"], group["constant_rate"]): [tuple(parameter.shape) for parameter in group["params"]]
        for group in optimizer.param_groups
    }


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_weights_decay_and_biases_and_norms_do_not(name):
    _, found = groups(OptimizerConfig(name=name, weight_decay=0.1))
    assert found == {(0.1, False): [(4, 3), (2, 4)], (0.0, False): [(4,), (4,), (4,), (2,)]}
    _, found = groups(OptimizerConfig(name=name, weight_decay=0.1, decay_all=True))
    assert {key: len(shapes) for key, shapes in found.items()} == {(0.1, False): 6}


def test_a_decay_of_zero_is_a_value_like_others():
    """LARS adapts the step of a layer all the same, and another value at the end of the run is reached."""
    steps = []
    for decay in (0.0, 1e-12):
        torch.manual_seed(0)
        layer = nn.Linear(3, 4)
        optimizer = build_optimizer(layer.named_parameters(), OptimizerConfig(name="lars", weight_decay=decay), 256)
        before = layer.weight.detach().clone()
        layer.weight.grad, layer.bias.grad = torch.ones_like(layer.weight), torch.ones_like(layer.bias)
        optimizer.step()
        steps.append((layer.weight - before).detach())
    torch.testing.assert_close(*steps)
    config = OptimizerConfig(weight_decay=0.0, final_weight_decay=0.4)
    optimizer, _ = groups(config)
    set_hyperparameters(optimizer, config, 512, 100, Span(0, 100))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [pytest.approx(0.4), 0.0]


def test_a_constant_rate_follows_no_curve_and_decay_follows_its_own():
    config = OptimizerConfig(name="sgd", learning_rate=0.1, warmup=0.1, weight_decay=0.04, final_weight_decay=0.4)
    optimizer, _ = groups(config, constant_rate=("2.",))
    for step, factor in ((0, 0.05), (9, 0.95), (55, 0.5 * (1 + math.cos(math.pi * 45.5 / 90)))):
        assert set_hyperparameters(optimizer, config, 512, step, Span(0, 100)) == pytest.approx(0.2 * factor)
        decay = 0.04 + 0.36 * 0.5 * (1 - math.cos(math.pi * step / 100))
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(0.2 if group["constant_rate"] else 0.2 * factor)
            assert group["weight_decay"] in (0.0, pytest.approx(decay))
    assert {group["constant_rate"] for group in optimizer.param_groups} == {False, True}


def test_curves_of_a_run_without_end():
    """They depend on the images seen alone, and need the warm-up in images."""
    falling = OptimizerConfig(schedule="inverse_sqrt", warmup_images=1000)
    assert learning_rate_factor(falling, 500, None) == learning_rate_factor(falling, 500, 10**6) == 0.5
    assert learning_rate_factor(falling, 4000, None) == learning_rate_factor(falling, 4000, 10**6) == 0.5
    flat = OptimizerConfig(schedule="constant", warmup_images=1000)
    assert learning_rate_factor(flat, 10**9, None) == 1
    with pytest.raises(ValueError, match="cosine needs the length of the run"):
        learning_rate_factor(OptimizerConfig(warmup_images=1000), 2000, None)
    with pytest.raises(ValueError, match="set warmup_images"):
        learning_rate_factor(OptimizerConfig(schedule="inverse_sqrt", warmup=0), 2000, None)


def test_gradients_are_clipped_together_or_each():
    for clip in ("all", "each"):
        parameters = [nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))]
        parameters[0].grad, parameters[1].grad = torch.full((4,), 3.0), torch.full((4,), 0.1)  # norms 6 and 0.2
        norm = clip_gradients(parameters, OptimizerConfig(clip_gradient=3.0, clip=clip))
        assert norm.item() == pytest.approx(math.hypot(6, 0.2))
        scale = 3 / math.hypot(6, 0.2)
        expected = (1.5, 0.1) if clip == "each" else (3 * scale, 0.1 * scale)
        for parameter, value in zip(parameters, expected, strict=True):
            assert torch.allclose(parameter.grad, torch.full((4,), value), atol=1e-5)
    assert clip_gradients(parameters, OptimizerConfig()) is None


def layered(name: str, **arguments) -> tuple[ImageEncoder, dict[str, int]]:
    encoder = ImageEncoder(EncoderConfig(name=name, arguments=arguments))
    return encoder, encoder.layers_below_head()


def test_layers_are_counted_down_from_the_head():
    """Embeddings are layer 0, block i is i + 1, a head comes after the last (He et al. 2021, MAE, appendix A.1)."""
    encoder, below = layered("vit_tiny_patch16_224", depth=3, embed_dim=24, num_heads=2)
    assert below.keys() == dict(encoder.named_parameters()).keys()
    for name, count in below.items():
        block = int(name.split(".")[2]) if name.startswith("model.blocks.") else None
        layer = (
            block + 1 if block is not None else 3 if name.startswith("model.norm") else 0
        )  # timm: with the last block
        assert count == 4 - layer, name
    _, resnet = layered("resnet18", channels=[4, 4, 4, 4])
    assert resnet["model.conv1.weight"] == 9
    assert resnet["model.layer1.0.conv1.weight"] == 8
    assert resnet["model.layer4.1.conv2.weight"] == 1


def test_the_rate_decays_with_the_layer_and_composes_with_the_other_groups():
    encoder, below = layered("vit_tiny_patch16_224", depth=2, embed_dim=24, num_heads=2)
    named = [*encoder.named_parameters(), ("head.weight", nn.Parameter(torch.zeros(2, 24))),
             ("slow.weight", nn.Parameter(torch.zeros(2, 24)))]  # fmt: skip
    config = OptimizerConfig(name="sgd", learning_rate=0.1, warmup=0, weight_decay=0.04, layer_decay=0.5)
    optimizer = build_optimizer(named, config, 256, constant_rate=("slow",), layers_below_head=below)
    rate = set_hyperparameters(optimizer, config, 256, 49, Span(0, 100))
    assert rate == pytest.approx(0.05, rel=0.05)
    names = {id(parameter): name for name, parameter in named}
    seen = 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name, seen = names[id(parameter)], seen + 1
            full = 0.1 if name.startswith("slow") else rate
            assert group["lr"] == pytest.approx(full * 0.5 ** below.get(name, 0)), name
            assert (group["weight_decay"] > 0) == (
                parameter.ndim > 1 and not name.endswith(("cls_token", "pos_embed"))
            ), name
    assert seen == len(named)


def test_without_layer_decay_nothing_is_grouped_by_layer():
    encoder, below = layered("resnet18", channels=[4, 4, 4, 4])
    optimizer = build_optimizer(encoder.named_parameters(), OptimizerConfig(), 256, layers_below_head=below)
    assert len(optimizer.param_groups) == 2
    assert {group.pop("rate_scale") for group in optimizer.param_groups} == {1.0}
    set_hyperparameters(
        optimizer, OptimizerConfig(warmup=0), 256, 0, Span(0, 10**9)
    )  # as of a checkpoint of version 0.1
    assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(1e-3)] * 2


def test_an_encoder_whose_layers_are_not_known_is_refused():
    encoder, _ = layered("resnet18", channels=[4, 4, 4, 4])
    encoder.model = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(ValueError, match=r"timm knows no layers of Sequential .*optimizer.layer_decay=null"):
        encoder.layers_below_head()
