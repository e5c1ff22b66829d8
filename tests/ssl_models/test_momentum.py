"""The teacher and the curves that move it."""

import math

import pytest
import torch
from torch import nn

from ssl_models.curves import curve
from ssl_models.encoders import EncoderConfig, ImageEncoder
from ssl_models.momentum import MomentumTeacher


@pytest.mark.parametrize("shape", ["cosine", "linear"])
def test_a_curve_goes_from_start_to_end(shape):
    values = [curve(0.2, 0.9, progress / 100, shape=shape) for progress in range(101)]
    assert values[0] == 0.2
    assert values[50] == pytest.approx(0.55)
    assert values[100] == pytest.approx(0.9)
    assert values == sorted(values)
    assert curve(0.2, 0.9, None, shape=shape) == 0.2  # a run without end


def test_the_cosine_is_that_of_byol():
    for progress in (0.1, 0.37, 0.99):
        byol = 1 - (1 - 0.996) * (math.cos(math.pi * progress) + 1) / 2
        assert curve(0.996, 1.0, progress) == pytest.approx(byol, abs=1e-12)


def test_the_teacher_drops_nothing():
    """Of a ViT whose student drops patches, values and branches: two passes of the teacher are the same."""
    arguments = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_drop_rate": 0.5, "drop_rate": 0.5}
    config = EncoderConfig(
        name="vit_tiny_patch16_224", image_size=16, patch_size=4, arguments=arguments | {"drop_path_rate": 0.5}
    )
    student = ImageEncoder(config)
    teacher, images = MomentumTeacher(student).train(), torch.randn(2, 3, 16, 16)
    assert torch.equal(teacher(images), teacher(images))
    assert not torch.equal(student(images), student(images))


def test_the_teacher_averages_parameters_and_keeps_its_own_statistics():
    torch.manual_seed(0)
    first, second = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)), nn.Linear(5, 2)
    teacher = MomentumTeacher(first, second)
    kept = {key: value.clone() for key, value in teacher.state_dict().items()}
    with torch.no_grad():
        for parameter in [*first.parameters(), *second.parameters()]:
            parameter.add_(1.0)
    first(torch.randn(8, 4))  # moves the student's statistics only
    teacher.follow(0.9, first, second)
    for key, value in teacher.state_dict().items():
        expected = kept[key] + 0.1 if key in dict(teacher.named_parameters()) else kept[key]
        assert torch.allclose(value, expected, atol=1e-6), key
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    rows = torch.randn(8, 4)
    assert torch.equal(teacher(rows), teacher.layers[1](teacher.layers[0](rows)))
    assert teacher.layers[0][1].num_batches_tracked > 0
