"""How fast views are made: ours, torchvision's v2 transforms as most people use them, and kornia where installed.

All do the same work on the same pictures: torchvision one uint8 image at a time, kornia a batch of floats with one
parameter a sample, ours a batch of uint8 crops. kornia is no dependency of feral: `pip install kornia` adds its column.
"""

import importlib.util
import io
import itertools
from collections.abc import Callable
from functools import partial
from typing import Annotated

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from jobs.bench import Cell, Table
from pipeline.stream.crops import RandomCrops, crop
from pipeline.stream.views import DeviceViews, ViewsConfig
from ssl_models import pixels
from ssl_models.batch import normal
from ssl_models.encoders import IMAGENET_MEAN, IMAGENET_STD
from tests.benchmarks.processes import costs
from tests.benchmarks.scenes import pictures

SIMCLR = ViewsConfig(crop_scale=(0.08, 1.0), jitter=(0.8, 0.8, 0.8, 0.2), blur=0.5)
SIDE = 288  # short side of the pictures that are cropped, as in a canonical store
WITHOUT_KORNIA = "kornia is not installed here: pip install kornia"

Work = Callable[[], object]


def main(
    images: Annotated[int, Field(ge=8)] = 64,
    size: Annotated[int, Field(ge=16, le=512)] = 224,
    threads: Annotated[int, Field(ge=1)] = 1,
    repeats: Annotated[int, Field(ge=1)] = 3,
) -> list[Table]:
    """Speed of SimCLR's augmentation and of each of its operations against torchvision v2 and kornia."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        stored = [_shrunk(raw) for raw in pictures(images, 500)]
        tables = [_whole(stored, size, repeats), _each(stored[: max(8, images // 4)], size, repeats)]
        if torch.cuda.is_available():
            tables.append(_on_gpu(stored, size))
        return tables
    finally:
        torch.set_num_threads(before)


def _shrunk(raw: bytes) -> Tensor:
    """(3, H, W) uint8 with the strides that torchvision's decoder gives."""
    image = Image.open(io.BytesIO(raw)).convert("RGB")
    scale = SIDE / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _crops(stored: list[Tensor], size: int) -> Tensor:
    """(B, 1, S, S, 3) uint8."""
    ids, heights, widths = (
        torch.tensor(numbers)
        for numbers in (range(len(stored)), [image.shape[1] for image in stored], [image.shape[2] for image in stored])
    )
    boxes = RandomCrops(SIMCLR, size, 1, seed=0).boxes(0, ids, heights, widths)
    return torch.stack([crop(image, box, size) for image, box in zip(stored, boxes, strict=True)])


def _whole(stored: list[Tensor], size: int, repeats: int) -> Table:
    """The colour part, then crop and colour."""
    crops, ids = _crops(stored, size), torch.arange(len(stored))
    planes = [image.permute(2, 0, 1).contiguous() for image in crops[:, 0]]
    canvas = torch.stack([image[:, :SIDE, :SIDE] for image in stored]).contiguous()  # kornia crops from a batch
    views = DeviceViews(SIMCLR, seed=0)
    colours, to_float = _torchvision(size), v2.ToDtype(torch.float32, scale=True)
    resized = v2.RandomResizedCrop(size, SIMCLR.crop_scale, antialias=True)
    with_crop = v2.Compose([resized, colours])
    first = v2.Compose([to_float, colours])
    epochs = itertools.count()  # new draws each time, as the others have
    works: list[tuple[str, str, Work]] = [
        ("colour", "feral", lambda: views(crops, ids, next(epochs))),
        ("colour", "torchvision v2, uint8", lambda: [colours(image) for image in planes]),
        ("colour", "torchvision v2, float", lambda: [first(image) for image in planes]),
        ("crop, colour", "feral", lambda: views(_crops(stored, size), ids, next(epochs))),
        ("crop, colour", "torchvision v2, uint8", lambda: [with_crop(image) for image in stored]),
    ]
    if _has_kornia():
        import kornia.augmentation as K

        kornia = _kornia(size)
        cropped = K.AugmentationSequential(K.RandomResizedCrop((size, size), SIMCLR.crop_scale), kornia)
        works.insert(3, ("colour", "kornia, batched", lambda: kornia(torch.stack(planes).float() / 255)))
        works.append(("crop, colour", "kornia, batched", lambda: cropped(canvas.float() / 255)))
    for _, _, work in works:
        work()
    found = [cost.cpu / len(stored) for cost in costs(repeats, *(work for *_, work in works))]
    ours = {part: seconds for (part, name, _), seconds in zip(works, found, strict=True) if name == "feral"}
    rows: list[tuple[Cell, ...]] = [
        (part, name, 1 / seconds, 1000 * seconds, seconds / ours[part])
        for (part, name, _), seconds in zip(works, found, strict=True)
    ]
    note = f"one SimCLR view of {len(stored)} pictures at {size} px, {torch.get_num_threads()} threads; medians of "
    note += f"{repeats}" + ("" if _has_kornia() else f". {WITHOUT_KORNIA}")
    return Table("a view", ("work", "by", "images per CPU-second", "CPU ms an image", "× feral"), rows, note)


def _torchvision(size: int) -> v2.Transform:
    config = SIMCLR
    return v2.Compose([
        v2.RandomHorizontalFlip(config.flip),
        v2.RandomApply([v2.ColorJitter(*config.jitter)], config.jitter_probability),
        v2.RandomGrayscale(config.grayscale),
        v2.RandomApply([v2.GaussianBlur(_kernel(size), config.blur_sigma)], config.blur),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ])  # fmt: skip


def _kornia(size: int):
    import kornia.augmentation as K

    config = SIMCLR
    return K.AugmentationSequential(
        K.RandomHorizontalFlip(p=config.flip),
        K.ColorJitter(*config.jitter, p=config.jitter_probability),
        K.RandomGrayscale(p=config.grayscale),
        K.RandomGaussianBlur((_kernel(size), _kernel(size)), config.blur_sigma, p=config.blur),
        K.Normalize(torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)),
    )


def _each(stored: list[Tensor], size: int, repeats: int) -> Table:
    """Each operation on every image, ours one image after the other as on a CPU at this size."""
    crops = _crops(stored, size)[:, 0].permute(0, 3, 1, 2)
    planes, floats = list(crops.contiguous()), (crops / 255).contiguous()
    count, ids = len(stored), torch.arange(len(stored))
    amount, sigma = torch.full((count,), 0.7), torch.full((count,), 1.0)
    corner, side = torch.full((count,), size // 4), size // 2

    def ours(operation: Callable[..., Tensor], *amounts: Tensor) -> Work:
        def work() -> None:  # keeps no result: new memory for each would be measured, not the operation
            for row in range(count):
                operation(floats[row : row + 1], *(values[row : row + 1] for values in amounts))

        return work

    def theirs(operation: Callable[[Tensor], object], images: list[Tensor]) -> Work:
        def work() -> None:
            for image in images:
                operation(image)

        return work

    def noisy(images: Tensor, ids: Tensor) -> Tensor:
        return pixels.add_noise(images, 0.1 * normal(0, 0, ids, images[0].numel(), "noise").view_as(images))

    kernel = [_kernel(size)] * 2
    square = partial(pixels.cutout, side=side, fill=(0.5, 0.5, 0.5))
    gray = torch.full((3, 1, 1), 127, dtype=torch.uint8)
    works: dict[str, tuple[Work, Work | None]] = {
        "flip": (ours(pixels.flip), theirs(tv.horizontal_flip, planes)),
        "rotate by 90°": (ours(partial(pixels.rotate, quarters=1)), theirs(lambda image: tv.rotate(image, 90), planes)),
        "brightness": (ours(pixels.adjust_brightness, amount),
                       theirs(lambda image: tv.adjust_brightness(image, 0.7), planes)),
        "contrast": (ours(pixels.adjust_contrast, amount),
                     theirs(lambda image: tv.adjust_contrast(image, 0.7), planes)),
        "saturation": (ours(pixels.adjust_saturation, amount),
                       theirs(lambda image: tv.adjust_saturation(image, 0.7), planes)),
        "hue": (ours(pixels.adjust_hue, amount - 0.5), theirs(lambda image: tv.adjust_hue(image, 0.2), planes)),
        "grayscale": (ours(pixels.grayscale), theirs(lambda image: tv.rgb_to_grayscale(image, 3), planes)),
        "blur": (ours(pixels.gaussian_blur, sigma),
                 theirs(lambda image: tv.gaussian_blur(image, kernel, [1.0, 1.0]), planes)),
        "solarize": (ours(pixels.solarize), theirs(lambda image: tv.solarize(image, 128), planes)),
        "Sobel": (ours(pixels.sobel), None),
        "noise": (ours(noisy, ids), theirs(tv.gaussian_noise, list(floats))),
        "cutout": (ours(square, corner, corner),
                   theirs(lambda image: tv.erase(image, size // 4, size // 4, side, side, gray), planes)),
    }  # fmt: skip
    others: dict[str, Work] = _kornia_each(floats, size) if _has_kornia() else {}
    rows: list[tuple[Cell, ...]] = []
    for name, (mine, torchvision) in works.items():
        all_ = [work for work in (mine, torchvision, others.get(name)) if work is not None]
        for work in all_:
            work()
        found = iter([1e6 * cost.cpu / count for cost in costs(repeats, *all_)])
        us, tv_us, kornia_us = (None if work is None else next(found) for work in (mine, torchvision, others.get(name)))
        assert us is not None
        rows.append((name, us, tv_us, kornia_us, tv_us and tv_us / us, kornia_us and kornia_us / us))
    columns = (
        "operation",
        "feral, CPU µs",
        "torchvision v2, µs",
        "kornia, µs",
        "torchvision ÷ feral",
        "kornia ÷ feral",
    )
    note = f"an image at {size} px; torchvision on uint8 but for noise, which it has for floats alone; it has no Sobel"
    return Table("each operation", columns, rows, note + ("" if others else f". {WITHOUT_KORNIA}"))


def _kornia_each(floats: Tensor, size: int) -> dict[str, Work]:
    import kornia.augmentation as K
    from kornia import enhance, filters, geometry

    count, kernel = len(floats), (_kernel(size),) * 2
    amount = torch.full((count,), 0.7)
    erase = K.RandomErasing((0.25, 0.25), (1.0, 1.0), value=0.5, p=1)
    return {
        "flip": lambda: geometry.hflip(floats),
        "rotate by 90°": lambda: geometry.rotate(floats, torch.full((count,), 90.0)),
        "brightness": lambda: enhance.adjust_brightness_accumulative(floats, amount),
        "contrast": lambda: enhance.adjust_contrast_with_mean_subtraction(floats, amount),
        "saturation": lambda: enhance.adjust_saturation_with_gray_subtraction(floats, amount),
        "hue": lambda: enhance.adjust_hue(floats, (amount - 0.5) * 2 * torch.pi),
        "grayscale": lambda: K.RandomGrayscale(p=1)(floats),
        "blur": lambda: filters.gaussian_blur2d(floats, kernel, torch.ones(count, 2)),
        "solarize": lambda: enhance.solarize(floats, 0.5),
        "Sobel": lambda: filters.sobel(floats),
        "noise": lambda: K.RandomGaussianNoise(std=0.1, p=1)(floats),
        "cutout": lambda: erase(floats),
    }


def _on_gpu(stored: list[Tensor], size: int, turns: int = 10) -> Table:
    """The colour part of a batch of 256 on the GPU, by its own clock."""
    crops = _crops(stored, size).repeat(-(-256 // len(stored)), 1, 1, 1, 1)[:256].cuda()
    ids, views = torch.arange(len(crops)), DeviceViews(SIMCLR, seed=0)
    works: dict[str, Work] = {"feral": lambda: views(crops, ids, 0)}
    planes = crops[:, 0].permute(0, 3, 1, 2).contiguous()
    colours = _torchvision(size)
    works["torchvision v2, uint8"] = lambda: [colours(image) for image in planes]
    if _has_kornia():
        kornia = _kornia(size).cuda()
        works["kornia, batched"] = lambda: kornia(planes.float() / 255)
    seconds = {}
    for name, work in works.items():
        work()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(turns):
            work()
        end.record()
        torch.cuda.synchronize()
        seconds[name] = start.elapsed_time(end) / 1000 / turns / len(crops)
    rows: list[tuple[Cell, ...]] = [(name, 1 / one, 1e6 * one, one / seconds["feral"]) for name, one in seconds.items()]
    return Table(torch.cuda.get_device_name(), ("colour by", "images/s", "µs an image", "× feral"), rows)


def _kernel(size: int) -> int:
    return max(3, size // 10 // 2 * 2 + 1)


def _has_kornia() -> bool:
    return importlib.util.find_spec("kornia") is not None
