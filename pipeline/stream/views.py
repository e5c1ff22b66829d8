"""Views: what is done to the pixels of a crop, on the device and on a whole batch at once. Geometry is in crops.py.

All parameters come from (seed, visit, sample id), so the views of sample i in epoch e are the same on every machine. A
*visit* is the epoch and, where weights give a sample several entries in an epoch, which of them: see `Stream`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Annotated

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from ssl_models import pixels
from ssl_models.batch import normal, uniform
from ssl_models.config import Config
from ssl_models.encoders import IMAGENET_MEAN, IMAGENET_STD, Channels

Probability = Annotated[float, Field(ge=0, le=1)]
PerView = Probability | Annotated[tuple[Probability, ...], Field(min_length=1)]  # the last one repeats

Operation = Callable[..., Tensor]  # images, and amounts (B,) → images

# What a view draws, one uniform number each; `turn_*` order the four of the jitter.
DRAWS = (
    "flip", "jitter", "brightness", "contrast", "saturation", "hue", "turn_brightness", "turn_contrast",
    "turn_saturation", "turn_hue", "grayscale", "blur", "sigma", "solarize", "rotate", "angle", "sobel", "noise",
    "cutout", "top", "left",
)  # fmt: skip
JITTER: dict[str, tuple[Operation, float]] = {  # with the amount that changes nothing
    "brightness": (pixels.adjust_brightness, 1),
    "contrast": (pixels.adjust_contrast, 1),
    "saturation": (pixels.adjust_saturation, 1),
    "hue": (pixels.adjust_hue, 0),
}


class ViewsConfig(Config):
    """How a view is made of an image. A probability or strength of 0 turns an operation off.

    A probability may be a list, one for each view; then its last value holds for all further views. Global views come
    first, then the local ones. What is on is done in this order: crop, flip, rotate, jitter, grayscale, blur, solarize,
    sobel, noise, cutout, normalise.
    """

    crop_scale: tuple[float, float] = Field((0.2, 1.0), description="share of the image's area")
    crop_ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="width : height of the crop")
    local_crops: int = Field(0, ge=0, le=64, description="further, small views (multi-crop)")
    local_size: int = Field(96, ge=8, le=1024, description="pixels a side of a local crop")
    local_scale: tuple[float, float] = Field((0.05, 0.25), description="share of the image's area")
    flip: PerView = Field(0.5, description="probability of a horizontal flip")
    rotate: PerView = Field(0.0, description="probability of a turn by 90, 180 or 270 degrees")
    jitter: tuple[float, float, float, float] = Field(
        (0.4, 0.4, 0.4, 0.1), description="strength of brightness, contrast, saturation, hue (at most 0.5)"
    )
    jitter_probability: PerView = Field(0.8, description="probability of the four, in random order")
    grayscale: PerView = Field(0.2, description="probability of dropping the colours")
    blur: PerView = Field(0.0, description="probability of a Gaussian blur")
    blur_sigma: tuple[float, float] = Field((0.1, 2.0), description="range in pixels")
    solarize: PerView = Field(0.0, description="probability of inverting the values above one half")
    sobel: PerView = Field(0.0, description="probability of showing the edges only")
    noise: PerView = Field(0.0, description="probability of Gaussian noise")
    noise_sigma: float = Field(0.1, ge=0, le=1, description="its standard deviation; black is 0, white 1")
    cutout: PerView = Field(0.0, description="probability of hiding a square in the mean colour")
    cutout_size: float = Field(0.5, gt=0, le=1, description="share of the side that is hidden")

    @field_validator(
        "flip", "rotate", "jitter_probability", "grayscale", "blur", "solarize", "sobel", "noise", "cutout"
    )
    @classmethod
    def _one_if_equal(cls, value: float | tuple[float, ...]) -> float | tuple[float, ...]:
        return value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value  # so an operation off is 0

    @model_validator(mode="after")
    def _check(self) -> "ViewsConfig":
        for name in ("crop_scale", "local_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(f"views.{name}={getattr(self, name)} must be 0 < low <= high <= 1")
        for name in ("crop_ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"views.{name}={getattr(self, name)} must be 0 < low <= high")
        if min(self.jitter) < 0 or max(self.jitter[:3]) > 1 or self.jitter[3] > 0.5:
            raise ValueError(f"views.jitter={self.jitter} must be in [0, 1], and hue in [0, 0.5]")
        return self


@dataclass(frozen=True)
class DeviceViews:
    """Turns uint8 crops into what the encoder sees. The operations are those of ssl_models/pixels.py, in
    the order of ViewsConfig.

    Their parameters are those of torchvision's RandomHorizontalFlip, ColorJitter (its four operations in a random order
    for each view), RandomGrayscale, GaussianBlur and RandomSolarize, one a sample.
    """

    config: ViewsConfig
    seed: int
    plain: bool = False  # only normalise: evaluation
    mean: Channels = IMAGENET_MEAN  # of the pixels that the encoder was made for
    std: Channels = IMAGENET_STD

    def __call__(self, crops: Tensor, ids: Tensor, visits: int | Tensor, first_view: int = 0) -> tuple[Tensor, ...]:
        """(B, V, S, S, 3) uint8 → V tensors (B, 3, S, S) float32, normalised, channels last in memory.

        ids: (B,); where they lie on the CPU already, no device is waited for.
        visits: (B,) int64, or one for all.
        first_view: how many views came before these: for local crops, the number of global ones.
        """
        ids = ids.cpu()
        visits = torch.as_tensor(visits).cpu().expand(len(ids))
        return tuple(self._view(crops[:, i], ids, visits, first_view + i) for i in range(crops.shape[1]))

    def _view(self, crops: Tensor, ids: Tensor, visits: Tensor, view: int) -> Tensor:
        """(B, S, S, 3) uint8 → (B, 3, S, S)."""
        batch, size, device = len(crops), crops.shape[1], crops.device
        step = _at_a_time(3 * size**2) if device.type == "cpu" else batch
        views = torch.empty(batch, 3, size, size, device=device, memory_format=torch.channels_last)
        with torch.inference_mode():  # less to do for each of many small operations; `views` is a usual tensor
            mean, std = _channels(self.mean, device), _channels(self.std, device)
            distort = _Distortion(self, visits, ids, view, size, device)
            for first in range(0, batch, step):
                some = slice(first, first + step)
                images = torch.empty(len(ids[some]), 3, size, size, device=device)
                images.copy_(crops[some].permute(0, 3, 1, 2)).div_(255)
                if not self.plain:
                    images = distort(images, first)
                views[some] = images.sub_(mean).div_(std)
        return views

    def denormalize(self, images: Tensor) -> Tensor:
        """For people to look at: (B, 3, S, S) normalised → values in [0, 1]."""
        mean, std = (_channels(values, images.device) for values in (self.mean, self.std))
        return (images * std + mean).clamp(0, 1)


Decision = tuple[Operation, tuple[str, ...], list[int]]  # with the names of its amounts, and the rows it is for


class _Distortion:
    """One view of one batch: who takes which operation is decided on the CPU, how much of it lies on the device."""

    def __init__(
        self, views: DeviceViews, visits: Tensor, ids: Tensor, view: int, size: int, device: torch.device
    ) -> None:
        config, seed = views.config, views.seed
        self._config, self._seed, self._view, self._fill = config, seed, view, views.mean
        self._hidden = max(1, round(config.cutout_size * size))  # pixels a side of the square of cutout
        draws = uniform(seed, visits, ids, len(DRAWS), f"colour{view}")  # (B, draws)
        self._draws = dict(zip(DRAWS, draws.T.tolist(), strict=True))
        columns = dict(zip(DRAWS, to_device(draws, device).unbind(1), strict=True))
        ranges = {
            name: (middle - strength, middle + strength)
            for (name, (_, middle)), strength in zip(JITTER.items(), config.jitter, strict=True)
        } | {"sigma": config.blur_sigma}
        self._amounts = {name: between(columns[name], *bounds).float() for name, bounds in ranges.items()}
        self._amounts |= {name: (columns[name] * (size - self._hidden + 1)).long() for name in ("top", "left")}
        self._amounts |= {"id": to_device(ids, device), "visit": to_device(visits, device)}

    def __call__(self, images: Tensor, first: int) -> Tensor:
        """(n, 3, S, S) of the samples from `first` on, in [0, 1]; may be written to."""
        count = len(images)
        decisions = [decision for decision in self._decisions(first, count) if decision[2]]
        partial_rows = [rows for *_, rows in decisions if len(rows) < count]
        places = iter(_indices(partial_rows, images.device))
        for operation, amounts, rows in decisions:
            mine = [self._amounts[name][first : first + count] for name in amounts]
            if len(rows) == count:
                images = operation(images, *mine)
            else:
                chosen = next(places)
                images.index_copy_(0, chosen, operation(images[chosen], *(amount[chosen] for amount in mine)))
        return images

    def _decisions(self, first: int, count: int) -> Iterator[Decision]:
        """In the order of ViewsConfig."""

        def rows(operation: str) -> list[int]:
            return self._below(operation, getattr(self._config, operation), first, count)

        yield pixels.flip, (), rows("flip")
        rotated = rows("rotate")
        for quarters in (1, 2, 3):
            turned = [row for row in rotated if int(1 + 3 * self._draws["angle"][first + row]) == quarters]
            yield partial(pixels.rotate, quarters=quarters), (), turned
        yield from self._jitter(first, count)
        yield pixels.grayscale, (), rows("grayscale")
        yield pixels.gaussian_blur, ("sigma",), rows("blur")
        yield pixels.solarize, (), rows("solarize")
        yield pixels.sobel, (), rows("sobel")
        if self._config.noise_sigma:
            yield self._noisy, ("id", "visit"), rows("noise")
        square = partial(pixels.cutout, side=self._hidden, fill=self._fill)
        yield square, ("top", "left"), rows("cutout")

    def _jitter(self, first: int, count: int) -> Iterator[Decision]:
        """Each sample applies the four operations in its own order."""
        turns: list[dict[int, list[int]]] = [{number: [] for number in range(len(JITTER))} for _ in JITTER]
        draws = [self._draws[f"turn_{name}"] for name in JITTER]
        for row in self._below("jitter", self._config.jitter_probability, first, count):
            ranks = [column[first + row] for column in draws]
            for turn, number in zip(turns, sorted(range(len(JITTER)), key=ranks.__getitem__), strict=True):
                turn[number].append(row)
        for turn in turns:
            for number, (name, (operation, _)) in enumerate(JITTER.items()):
                if self._config.jitter[number]:
                    yield operation, (name,), turn[number]

    def _noisy(self, images: Tensor, ids: Tensor, visits: Tensor) -> Tensor:
        noise = normal(self._seed, visits, ids, images[0].numel(), f"noise{self._view}")
        return pixels.add_noise(images, noise.view_as(images) * self._config.noise_sigma)

    def _below(self, name: str, probability: float | tuple[float, ...], first: int, count: int) -> list[int]:
        """Which of the samples from `first` on drew less than the probability that this view has."""
        if isinstance(probability, tuple):
            probability = probability[min(self._view, len(probability) - 1)]
        draws = self._draws[name][first : first + count]
        return [row for row, draw in enumerate(draws) if draw < probability]


def _indices(rows: list[list[int]], device: torch.device) -> tuple[Tensor, ...]:
    """The lists as tensors, moved all at once."""
    joined = torch.tensor([row for some in rows for row in some], dtype=torch.int64)
    return to_device(joined, device).split([len(some) for some in rows])


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Does not wait for what a GPU still has to do, as copies from memory that is not pinned would."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _at_a_time(values: int) -> int:
    """How many images of so many values a CPU takes. A large one alone: it stays in the core's cache, and none has to
    be gathered. Small ones by the dozens: calls cost more there. Measured: 2 to 10 together are the slowest choice."""
    return 1 if values >= 2**15 else 2**20 // values


def between(draws: Tensor, low: float, high: float) -> Tensor:
    return low + draws * (high - low)


@lru_cache
def _channels(values: Channels, device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).view(1, 3, 1, 1)
