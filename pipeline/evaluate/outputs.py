"""What is taken of an encoder: its embedding, or what tells more of it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.evaluate.encoders import ComparesText, Pixels
from pipeline.stream.views import DeviceViews
from ssl_models import pixels as operations
from ssl_models.batch import normal
from ssl_models.encoders import ImageEncoder
from ssl_models.objectives import Objective

# (encoder, images (B, 3, S, S) normalised, their ids (B,), what normalised them) → values (B, …), by suffix
Output = Callable[[Any, Tensor, Tensor, DeviceViews], dict[str, Tensor]]

NOISE = 0.2  # standard deviation of the corruption, of values in [0, 1]


def embeddings(encoder: Any, images: Tensor, ids: Tensor, views: DeviceViews) -> dict[str, Tensor]:
    found = {"": encoder.embed(images)}
    if isinstance(encoder, ComparesText):
        found["_projection"] = encoder.project_image(images)
    return found


def depths(encoder: Any, images: Tensor, ids: Tensor, views: DeviceViews) -> dict[str, Tensor]:
    """The mean over the places of the feature map after each stage of a network, or each of four parts of a ViT."""
    if isinstance(encoder, Pixels):
        return {"": encoder.embed(images)}
    seen = _seen(encoder, images)
    if any(len(pictures) != len(images) for _, pictures in seen):
        return {}  # it embeds parts of an image
    network = None if seen else _network(encoder)
    networks = [(one.model, pictures) for one, pictures in seen] + ([(network, images)] if network is not None else [])
    if not networks or not all(hasattr(one, "forward_intermediates") for one, _ in networks):
        return {}
    stages = zip(*(_stages(one, pictures) for one, pictures in networks), strict=True)
    return {f"_depth{number}": torch.cat(means, 1) for number, means in enumerate(stages, 1)}


def _stages(network: Any, images: Tensor) -> list[Tensor]:
    """(B, C) of each."""
    maps = network.forward_intermediates(images, intermediates_only=True)
    chosen = maps if len(maps) <= 5 else [maps[len(maps) * part // 4 - 1] for part in (1, 2, 3, 4)]
    return [one.mean((2, 3)) for one in chosen]


def _seen(encoder: Any, images: Tensor) -> list[tuple[ImageEncoder, Tensor]]:
    """The networks of ours that an embedding passes through, each with the pictures that are made of `images` for it:
    pretext tasks show theirs lightness alone, edges, or patches."""
    if isinstance(encoder, Objective) and type(encoder).embed is Objective.embed:
        return [(encoder.encoder, images)]
    seen: list[tuple[ImageEncoder, Tensor]] = []
    hooks = [
        one.register_forward_pre_hook(lambda network, inputs: seen.append((network, inputs[0])))
        for one in encoder.modules()
        if isinstance(one, ImageEncoder)
    ]
    try:
        if hooks:
            encoder.embed(images)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _network(encoder: Any) -> Any:
    """The outermost module that gives maps of its stages, as timm's models do; None: there is none."""
    if isinstance(encoder, ComparesText) and not hasattr(encoder, "encoder"):
        return None  # both towers of open_clip are one module
    return next((one for one in encoder.modules() if hasattr(one, "forward_intermediates")), None)


def feature_map(encoder: Any, images: Tensor, layers: int = 1) -> Tensor:
    """The last map before pooling, of the pictures that embedding makes of `images`: (B, 3, S, S) → (B, D, h, w). Of a
    ViT the patch tokens after the last norm; of an encoder of two networks both maps, one behind the other.

    `layers`: the maps of so many last stages of a network, or blocks of a ViT, at the size of the largest, bilinearly,
    one behind the other, as DINOv2's segmentation has it (Oquab et al. 2023, arXiv 2304.07193, section 7.4, "+ms").

    Raises:
        ValueError: it has no such map, or not so many.
    """
    seen = _seen(encoder, images)
    if any(len(pictures) != len(images) for _, pictures in seen):
        raise ValueError("this encoder embeds parts of an image, and keeps no map of the whole")
    if seen:
        return torch.cat([_map_of(network, pictures, layers) for network, pictures in seen], 1)
    network = _network(encoder)
    if network is None:
        raise ValueError("this encoder gives no maps (timm's forward_intermediates)")
    return _last_maps(network, images, layers)


def _map_of(network: ImageEncoder, images: Tensor, layers: int) -> Tensor:
    return network.features(images) if layers == 1 else _last_maps(network.model, images, layers)


def _last_maps(network: Any, images: Tensor, layers: int) -> Tensor:
    try:
        maps = network.forward_intermediates(images, indices=layers, norm=True, intermediates_only=True)
    except AssertionError as error:  # timm's way to say so
        raise ValueError(f"this encoder has no {layers} layers with maps: {error}") from None
    size = maps[0].shape[2:]
    maps = [one if one.shape[2:] == size else F.interpolate(one, size, mode="bilinear") for one in maps]
    return torch.cat(maps, 1)


VARIANTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # of pixels in [0, 1] and ids
    "as_is": lambda pixels, ids: pixels,
    "grey": lambda pixels, ids: operations.grayscale(pixels),
    "turned_90": lambda pixels, ids: operations.rotate(pixels, 1),
    "turned_180": lambda pixels, ids: operations.rotate(pixels, 2),
    "turned_270": lambda pixels, ids: operations.rotate(pixels, 3),
    "noisy": lambda pixels, ids: operations.add_noise(pixels, _noise(pixels, ids)),
    "edges": lambda pixels, ids: operations.sobel(pixels),
}


def variants(encoder: Any, images: Tensor, ids: Tensor, views: DeviceViews) -> dict[str, Tensor]:
    """Embeddings h, and their projections g(h) where the objective has a projector, of changed images."""
    found, plain = {}, views.denormalize(images)
    mean, std = (plain.new_tensor(values).view(1, 3, 1, 1) for values in (views.mean, views.std))
    for name, change in VARIANTS.items():
        h = encoder.embed((change(plain.clone(), ids) - mean) / std)
        found[f"_{name}_h"] = h
        if hasattr(encoder, "projector"):
            found[f"_{name}_z"] = encoder.projector(h)
    return found


def _noise(pixels: Tensor, ids: Tensor) -> Tensor:
    return NOISE * normal(0, 0, ids, pixels[0].numel(), "corruption").view_as(pixels).to(pixels)


def pairs(encoder: Any, images: Tensor, ids: Tensor, views: DeviceViews) -> dict[str, Tensor]:
    """The embedding of one of the two views that are made where `PAIRS` is asked for."""
    return {"": encoder.embed(images)}


PAIRS = "pairs"  # of two random views an image: columns "trained" and "trained_view2"
OUTPUTS: dict[str, Output] = {"": embeddings, "depths": depths, "variants": variants, PAIRS: pairs}
