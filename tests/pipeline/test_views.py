"""Views: torchvision's operations one after the other, with draws of the sample's own; the same on any machine."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from pipeline.stream import views
from pipeline.stream.views import DRAWS, DeviceViews, ViewsConfig
from ssl_models import pixels
from ssl_models.batch import normal, uniform
from ssl_models.encoders import IMAGENET_MEAN, IMAGENET_STD

IDS = torch.tensor([4, 9, 1000, 3, 12, 77, 2**40, 8])
EVERYTHING = ViewsConfig(
    flip=0.5, rotate=0.5, jitter=(0.8, 0.8, 0.8, 0.2), grayscale=0.3, blur=0.5, solarize=0.3, sobel=0.2, noise=0.5,
    cutout=0.5,
)  # fmt: skip
OFF = {"flip": 0, "jitter_probability": 0, "grayscale": 0}


def random_crops(size: int, count: int = 8, num_views: int = 2) -> Tensor:
    """Smooth, so that blur and Sobel have something to do."""
    rough = torch.rand(count * num_views, 3, size // 4, size // 4, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(rough, (size, size), mode="bicubic").clamp(0, 1)
    return (smooth * 255).byte().reshape(count, num_views, 3, size, size).permute(0, 1, 3, 4, 2).contiguous()


def expected_view(config: ViewsConfig, seed: int, epoch: int, crop: Tensor, number: int, view: int) -> Tensor:
    """One view (3, S, S) in [0, 1], slowly: torchvision's operation where it has one, in the order of ViewsConfig."""
    draws = uniform(seed, epoch, torch.tensor([number]), len(DRAWS), f"colour{view}")[0].tolist()
    drawn = dict(zip(DRAWS, draws, strict=True))
    image, size = crop.permute(2, 0, 1) / 255, crop.shape[0]

    def amount(name: str, middle: float, strength: float) -> float:
        return middle - strength + 2 * strength * drawn[name]

    if drawn["flip"] < config.flip:
        image = reference.horizontal_flip(image)
    if drawn["rotate"] < config.rotate:
        image = reference.rotate(image, 90.0 * (1 + int(3 * drawn["angle"])))
    if drawn["jitter"] < config.jitter_probability:
        brightness, contrast, saturation, hue = config.jitter
        operations = {
            "brightness": lambda image: reference.adjust_brightness(image, amount("brightness", 1, brightness)),
            "contrast": lambda image: reference.adjust_contrast(image, amount("contrast", 1, contrast)),
            "saturation": lambda image: reference.adjust_saturation(image, amount("saturation", 1, saturation)),
            "hue": lambda image: reference.adjust_hue(image, amount("hue", 0, hue)),
        }
        for name in sorted(operations, key=lambda name: drawn[f"turn_{name}"]):
            image = operations[name](image)
    if drawn["grayscale"] < config.grayscale:
        image = reference.rgb_to_grayscale(image, 3)
    if drawn["blur"] < config.blur:
        low, high = config.blur_sigma
        kernel = [max(3, size // 10 // 2 * 2 + 1)] * 2
        image = reference.gaussian_blur(image, kernel, [low + (high - low) * drawn["sigma"]] * 2)
    if drawn["solarize"] < config.solarize:
        image = reference.solarize(image, 0.5)
    if drawn["sobel"] < config.sobel:
        image = pixels.sobel(image[None])[0]
    if drawn["noise"] < config.noise:
        noise = normal(seed, epoch, torch.tensor([number]), image.numel(), f"noise{view}").view_as(image)
        image = (image + config.noise_sigma * noise).clamp(0, 1)
    if drawn["cutout"] < config.cutout:
        side = round(config.cutout_size * size)
        top, left = (int(drawn[name] * (size - side + 1)) for name in ("top", "left"))
        image = reference.erase(image, top, left, side, side, torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
    return image


@pytest.mark.parametrize("size", [24, 48])
def test_a_view_is_torchvisions_operations_one_after_the_other(size):
    """Float32's rounding, grown by up to 1.8³ in the jitter."""
    crops, ids = random_crops(size, count=64, num_views=1), torch.arange(64) * 7
    device_views = DeviceViews(EVERYTHING, seed=5)
    found = device_views.denormalize(device_views(crops, ids, 3)[0])
    for crop, number, image in zip(crops[:, 0], ids.tolist(), found, strict=True):
        assert (image - expected_view(EVERYTHING, 5, 3, crop, number, 0)).abs().max() < 1e-5


@pytest.mark.parametrize("size", [24, 40, 112])
def test_views_of_a_sample_do_not_depend_on_its_batch_to_the_bit(size, monkeypatch):
    """A batch of 8, two of 4, and singles; and however much a CPU takes at a time."""
    device_views, crops = DeviceViews(EVERYTHING, seed=1), random_crops(size)
    together = device_views(crops, IDS, 2)
    for part in (4, 1):
        parts = [device_views(crops[i : i + part], IDS[i : i + part], 2) for i in range(0, 8, part)]
        for view, pieces in zip(together, zip(*parts, strict=True), strict=True):
            assert torch.equal(view, torch.cat(pieces))
    monkeypatch.setattr(views, "_at_a_time", lambda values: 3)
    for view, again in zip(together, device_views(crops, IDS, 2), strict=True):
        assert torch.equal(view, again)


def test_views_are_usual_tensors_with_their_channels_last():
    (view,) = DeviceViews(EVERYTHING, seed=1)(random_crops(24, num_views=1), IDS, 2)
    assert view.is_contiguous(memory_format=torch.channels_last)
    layer = torch.nn.Conv2d(3, 2, 3)
    layer(view).sum().backward()  # of an inference tensor, this would be refused
    assert layer.weight.grad is not None


def test_views_change_with_epoch_seed_and_view():
    crops = random_crops(24, num_views=1).expand(-1, 2, -1, -1, -1)
    first, second = DeviceViews(EVERYTHING, seed=0)(crops, IDS, 0)
    for other in (
        second,
        DeviceViews(EVERYTHING, seed=0)(crops, IDS, 1)[0],
        DeviceViews(EVERYTHING, seed=1)(crops, IDS, 0)[0],
    ):
        assert not torch.isclose(first, other).all((1, 2, 3)).any()


def test_the_count_of_views_goes_on_from_first_view():
    """Global crops and then local ones of another size draw as one series."""
    crops, device_views = random_crops(24, num_views=3), DeviceViews(ViewsConfig(blur=(1.0, 0.1, 0.5)), seed=0)
    whole = device_views(crops, IDS, 0)
    parts = device_views(crops[:, :2], IDS, 0) + device_views(crops[:, 2:], IDS, 0, first_view=2)
    assert len(parts) == 3
    for one, other in zip(whole, parts, strict=True):
        assert torch.equal(one, other)


def test_a_probability_may_differ_between_views_and_its_last_value_repeats():
    crops = random_crops(24, num_views=1).expand(-1, 3, -1, -1, -1)
    config = ViewsConfig(**OFF | {"blur": (1, 0), "solarize": (0, 0, 1)})
    plain = DeviceViews(config, seed=0, plain=True)(crops, IDS, 0)[0]
    first, second, third = DeviceViews(config, seed=0)(crops, IDS, 0)
    assert not torch.isclose(first, plain).all((1, 2, 3)).any()
    assert torch.equal(second, plain)
    assert not torch.isclose(third, plain).all((1, 2, 3)).any()


def test_plain_views_only_normalise():
    crops = random_crops(24, num_views=1)
    device_views = DeviceViews(EVERYTHING, seed=0, plain=True)
    (images,) = device_views(crops, IDS, 0)
    assert torch.allclose(device_views.denormalize(images), crops[:, 0].permute(0, 3, 1, 2) / 255, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["flip", "rotate", "jitter_probability", "grayscale", "blur", "solarize", "sobel", "noise", "cutout"]
)
def test_an_operation_has_its_probability_and_0_is_off(name):
    config = ViewsConfig(**OFF | {name: 0.3})
    crops = random_crops(8, count=1, num_views=1).expand(3000, -1, -1, -1, -1)
    plain, images = (DeviceViews(config, 0, plain=plain)(crops, torch.arange(3000), 0)[0] for plain in (True, False))
    changed = (images != plain).any((1, 2, 3)).double().mean().item()
    assert changed == pytest.approx(0.3, abs=4 * (0.21 / 3000) ** 0.5)
    nothing = DeviceViews(ViewsConfig(**OFF), 0)(crops, torch.arange(3000), 0)[0]
    assert torch.equal(nothing, plain)


def test_amounts_are_uniform_in_their_range():
    """Brightness of a gray image shows its factor, a white pixel spread by the blur its σ, a square its place."""
    ids = torch.arange(2000)
    gray = torch.full((2000, 1, 8, 8, 3), 100, dtype=torch.uint8)
    factors = seen(ViewsConfig(**OFF | {"jitter_probability": 1, "jitter": (0.4, 0, 0, 0)}), gray, ids)[:, 0, 0, 0] / (
        100 / 255
    )
    assert_uniform(factors, 0.6, 1.4)
    dot = torch.zeros(2000, 1, 30, 30, 3, dtype=torch.uint8)
    dot[:, :, 15, 15] = 255
    blurred = seen(ViewsConfig(**OFF | {"blur": 1, "blur_sigma": (0.5, 2.0)}), dot, ids)[:, 0]
    sigma = (-0.5 / (blurred[:, 15, 16] / blurred[:, 15, 15]).log()).sqrt()  # the neighbour has e^(-1/2σ²) of it
    assert_uniform(sigma, 0.5, 2.0)
    white = DeviceViews(ViewsConfig(**OFF | {"cutout": 1, "cutout_size": 0.25}), 0, mean=(1, 1, 1))
    hidden = white(gray, ids, 0)[0][:, 0] == 0  # normalised
    assert (hidden.sum((1, 2)) == 4).all()
    assert set(hidden.any(2).int().argmax(1).tolist()) == set(range(7))


def test_the_four_of_the_jitter_come_in_every_order_and_the_three_turns_equally_often():
    ids = torch.arange(4800)
    columns = uniform(0, 0, ids, len(DRAWS), "colour0")
    turns = columns[:, [DRAWS.index(f"turn_{name}") for name in views.JITTER]].argsort(1)
    counts = turns.unique(dim=0, return_counts=True)[1]
    assert len(counts) == 24
    assert counts.min() > 200 - 4 * 200**0.5
    corner = torch.zeros(3000, 1, 8, 8, 3, dtype=torch.uint8)
    corner[:, :, 0, 0] = 255
    turned = seen(ViewsConfig(**OFF | {"rotate": 1}), corner, ids[:3000])[:, 0]
    for row, column, share in ((7, 0, 1 / 3), (7, 7, 1 / 3), (0, 7, 1 / 3), (0, 0, 0)):
        assert turned[:, row, column].mean().item() == pytest.approx(share, abs=0.035)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"blur": (0.5, 1.5)}, "less than or equal to 1"),
        ({"solarize": ()}, "at least 1 item"),
        ({"flip": -0.1}, "greater than or equal to 0"),
        ({"local_scale": (0.3, 0.1)}, r"local_scale=\(0.3, 0.1\) must be 0 < low <= high <= 1"),
        ({"blur_sigma": (0.0, 1.0)}, r"blur_sigma=\(0.0, 1.0\) must be 0 < low <= high"),
        ({"jitter": (0.4, 0.4, 0.4, 0.6)}, "hue in"),
        ({"cutout_size": 0}, "greater than 0"),
    ],
)
def test_settings_out_of_bounds_are_refused(settings, problem):
    with pytest.raises(ValueError, match=problem):
        ViewsConfig(**settings)


def test_settings_come_back_from_json_and_an_operation_off_is_0():
    config = ViewsConfig(blur=(1.0, 0.1), solarize=(0.0, 0.2), rotate=(0.0, 0.0))
    assert ViewsConfig.model_validate_json(config.model_dump_json()) == config
    assert config.rotate == 0


@pytest.mark.gpu
def test_a_gpu_makes_the_same_views():
    crops = random_crops(48)
    for ours, theirs in zip(
        DeviceViews(EVERYTHING, 0)(crops, IDS, 1), DeviceViews(EVERYTHING, 0)(crops.cuda(), IDS, 1), strict=True
    ):
        assert (ours - theirs.cpu()).abs().max() < 1e-4


def seen(config: ViewsConfig, crops: Tensor, ids: Tensor) -> Tensor:
    device_views = DeviceViews(config, seed=0)
    return device_views(crops, ids, 0)[0] * _column(IMAGENET_STD) + _column(IMAGENET_MEAN)


def assert_uniform(values: Tensor, low: float, high: float) -> None:
    import scipy.stats

    places = (values.double().numpy() - low) / (high - low)
    assert scipy.stats.kstest(places, "uniform").pvalue > 0.01  # a fixed seed: no chance of failing


def _column(values: tuple[float, float, float]) -> Tensor:
    return torch.tensor(values).view(3, 1, 1)
