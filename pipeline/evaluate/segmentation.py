"""Linear segmentation: how well one linear layer on the frozen feature map tells the class of every pixel."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.cluster import ClusterConfig
from pipeline.evaluate.encoders import ENCODERS, Encoders
from pipeline.evaluate.examples import Examples
from pipeline.evaluate.masks import IGNORED, Segmented
from pipeline.evaluate.outputs import feature_map
from pipeline.evaluate.protocol import Score
from pipeline.evaluate.scoring import bootstrap, score
from pipeline.evaluate.separation import spread_over
from pipeline.stream.views import DeviceViews

MIOU, PIXELS = "segmentation_miou", "segmentation_pixel_accuracy"
LAYERS = 4  # whose maps are joined where that is asked for
JOINED = f"_{LAYERS}_layers"  # ends the names of those scores
STRENGTHS = (1e-2, 1e-3, 1e-4, 1e-5)  # of weight decay, chosen on held-back training images
HELD_BACK = 0.1
ITERATIONS = 100
MAX_BYTES = 2 * 2**30  # of the maps of training images; more images are left out
CHUNK = 2**16  # cells
BATCH = 32  # images
SHOWN = 6  # test images that people look at

# (images (B, 3, S, S) normalised, on a device) → (B, D, h, w)
Features = Callable[[Tensor], Tensor]


def segmentation(
    encoders: Encoders, pictures: Segmented, cluster: ClusterConfig, threads: int, joined: bool = False
) -> list[Score | Examples | str]:
    """Mean IoU and pixel accuracy of a linear layer on frozen patch tokens, or on the last map of a network; and some
    test images with what it made of them. `joined`: the same of the last four layers, see `feature_map`.

    As DINOv2's linear protocol (Oquab et al. 2023, arXiv 2304.07193, section 7.4): normalised tokens, one linear layer,
    logits upsampled bilinearly. Other than there, the layer is the solution of a convex problem (L-BFGS), not the end
    of 40,000 steps with augmentation; in training a token answers for the share of each class below it, which is
    cross-entropy of logits upsampled by nearest neighbour; and judged is the encoder's own view, the largest central
    square at its size. On a GPU of the cluster, if the run uses one; then Ray must be connected.
    """
    depths = (1, LAYERS) if joined else (1,)

    def here() -> list[Score | Examples | str]:
        return [result for layers in depths for result in judged(encoders, pictures, threads, layers)]

    if not cluster.use_gpu:
        return here()
    import ray

    return ray.get(ray.remote(num_gpus=1, max_retries=0)(here).remote())


def judged(encoders: Encoders, pictures: Segmented, threads: int, layers: int = 1) -> Iterator[Score | Examples | str]:
    """`segmentation` by the maps of so many last layers, in this process."""
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded, views = encoders.load(), encoders.sees.views
    ending = JOINED if layers > 1 else ""
    try:
        with torch.no_grad():
            one = _seen(pictures.images[:1], views, device)
            grid = tuple(feature_map(loaded["trained"].to(device), one, layers).shape[2:])
    except ValueError as error:
        yield f"{MIOU}{ending}, {PIXELS}{ending}: {error}"
        return
    probes = {}
    for name in ENCODERS:
        own = partial(feature_map, loaded[name].to(device), layers=layers) if name != "pixels" else _places(grid)
        probes[name] = _probed(own, pictures, views, device)
    counts = {name: probe.counts for name, probe in probes.items()}
    train, test = pictures.masks[~pictures.is_test], pictures.masks[pictures.is_test]
    most = int(np.bincount(train[train != IGNORED]).argmax())
    counts["chance"] = counted(
        torch.from_numpy(np.full_like(test, most)), torch.from_numpy(test), len(pictures.classes)
    )
    trained = probes["trained"]
    maps = "frozen map" if layers == 1 else f"last {layers} frozen maps, joined"
    protocol = (
        f"linear layer on the {grid[0]} × {grid[1]} places of the {maps} ({trained.dim} channels), "
        f"fitted to {trained.images:,} training images of {pictures.name} by L-BFGS, weight decay chosen on a "
        f"tenth of them; logits upsampled to {test.shape[1]} pixels; {len(pictures.classes)} classes; raw pixels: mean "
        "colour and position; chance: the most frequent class everywhere; interval over images"
    )
    for name, measure in ((MIOU, mean_iou), (PIXELS, pixel_accuracy)):
        found = {one: measure(of.sum(0)) for one, of in counts.items()}
        interval = bootstrap(partial(_resampled, measure, counts["trained"]), len(test))
        yield score(f"{name}{ending}", protocol, len(test), found, found["chance"], interval)
    yield trained.examples


def _resampled(measure: Callable[[np.ndarray], float], counts: np.ndarray, rows: np.ndarray) -> float:
    return measure(counts[rows].sum(0))


# ---- what is counted -----------------------------------------------------------------------------------------------


def counted(answers: Tensor, truth: Tensor, classes: int) -> np.ndarray:
    """(N, H, W) each → (N, 3, classes) int64: of every class, the pixels that are answered rightly, those that are of
    it, and those that are taken for it. Ignored pixels are none of these."""
    known = truth != IGNORED
    images = torch.arange(len(truth), device=truth.device)[:, None, None].expand_as(truth)[known] * classes
    truth, answers = truth[known].long(), answers[known].long()
    hits = truth == answers
    columns = [
        torch.bincount(images[some] + of[some], minlength=len(known) * classes).view(-1, classes)
        for of, some in ((truth, hits), (truth, slice(None)), (answers, slice(None)))
    ]
    return torch.stack(columns, 1).cpu().numpy()


def mean_iou(counts: np.ndarray) -> float:
    """(3, classes), over all images → intersection over union, mean over the classes that occur in the truth."""
    hits, truth, answers = counts
    there = truth > 0
    return float((hits[there] / (truth + answers - hits)[there]).mean()) if there.any() else 0.0


def pixel_accuracy(counts: np.ndarray) -> float:
    return float(counts[0].sum() / max(1, counts[1].sum()))


# ---- the linear layer ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Linear:
    weight: Tensor  # (D, classes)
    bias: Tensor  # (classes,)

    def __call__(self, maps: Tensor) -> Tensor:
        """(B, D, h, w) → logits (B, classes, h, w)."""
        return torch.einsum("bdhw,dc->bchw", maps, self.weight) + self.bias[:, None, None]


def fitted(cells: Tensor, shares: Tensor, strength: float, start: Linear | None = None) -> Linear:
    """The linear layer on standardised cells with the least cross-entropy a pixel plus `strength` / 2 times its squared
    weights.

    Args:
        cells: (M, D). shares: (M, classes), the labelled pixels of each class in a cell; a row of zeros counts nothing.
        start: the solution for another strength, to begin with.
    """
    mean, std = cells.mean(0), cells.std(0, correction=0).clamp(min=1e-6)
    total = shares.sum()
    weight = (
        torch.zeros(cells.shape[1], shares.shape[1], device=cells.device)
        if start is None
        else start.weight * std[:, None]
    )
    bias = torch.zeros_like(weight[0]) if start is None else start.bias + mean @ start.weight
    parameters = [weight.clone().requires_grad_(), bias.clone().requires_grad_()]
    solver = torch.optim.LBFGS(parameters, max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def folded() -> Linear:  # so that no standardised copy of the cells is made
        scaled = parameters[0] / std[:, None]
        return Linear(scaled, parameters[1] - mean @ scaled)

    def loss() -> Tensor:
        solver.zero_grad()
        value = strength / 2 * parameters[0].square().sum()
        value.backward()
        for first in range(0, len(cells), CHUNK):
            layer, part = folded(), slice(first, first + CHUNK)
            logits = cells[part] @ layer.weight + layer.bias
            one = -(F.log_softmax(logits, 1) * shares[part]).sum() / total
            one.backward()
            value = value.detach() + one.detach()
        return value

    solver.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return folded()


def class_shares(masks: Tensor, grid: tuple[int, int], classes: int) -> Tensor:
    """(B, S, S) → (B, h, w, classes): how many labelled pixels of each class lie in each cell. A pixel is of the cell
    that upsampling by nearest neighbour gives it."""
    batch, side = len(masks), masks.shape[1]
    rows, columns = (torch.arange(side, device=masks.device) * count // side for count in grid)
    cell = rows[:, None] * grid[1] + columns  # (S, S)
    known = masks != IGNORED
    images = torch.arange(batch, device=masks.device)[:, None, None].expand_as(masks)
    places = (images * (grid[0] * grid[1]) + cell) * classes + masks.long()
    found = torch.bincount(places[known], minlength=batch * grid[0] * grid[1] * classes)
    return found.view(batch, *grid, classes).float()


@dataclass(frozen=True)
class Probed:
    """What one linear layer came to."""

    counts: np.ndarray  # (N, 3, classes) of test images
    images: int  # that it was fitted to
    dim: int  # of the map
    examples: Examples


def _probed(features: Features, pictures: Segmented, views: DeviceViews, device: torch.device) -> Probed:
    classes = len(pictures.classes)
    train = np.flatnonzero(~pictures.is_test)
    with torch.no_grad():
        one = features(_seen(pictures.images[train[:1]], views, device))
        train = train[spread_over(len(train), MAX_BYTES // (4 * one.numel()))]
        maps = torch.empty(len(train), *one.shape[2:], one.shape[1], device=device)  # (N, h, w, D)
        for part in _parts(len(train)):
            maps[part] = features(_seen(pictures.images[train[part]], views, device)).float().permute(0, 2, 3, 1)
    shares = torch.cat([
        class_shares(torch.from_numpy(pictures.masks[train[part]]).to(device), (one.shape[2], one.shape[3]), classes)
        for part in _parts(len(train))
    ])  # fmt: skip

    def flat(rows: np.ndarray | slice) -> tuple[Tensor, Tensor]:
        return maps[rows].flatten(0, 2), shares[rows].flatten(0, 2)

    held = np.random.default_rng(0).permutation(len(train))[: max(1, round(HELD_BACK * len(train)))]
    rest = np.setdiff1d(np.arange(len(train)), held)
    layer, values = None, {}
    for strength in STRENGTHS if len(rest) else ():
        layer = fitted(*flat(rest), strength, layer)
        found = [
            _count(layer, maps[part].permute(0, 3, 1, 2), pictures.masks[train[part]])
            for part in np.array_split(held, -(-len(held) // BATCH))
        ]
        values[strength] = mean_iou(np.concatenate(found).sum(0))
    best = max(STRENGTHS, key=lambda strength: values.get(strength, 0.0))
    layer = fitted(*flat(slice(None)), best, layer)
    test = np.flatnonzero(pictures.is_test)

    def map_of(rows: np.ndarray) -> Tensor:
        return features(_seen(pictures.images[rows], views, device)).float()

    shown = test[spread_over(len(test), SHOWN)]
    with torch.no_grad():
        counts = [_count(layer, map_of(test[part]), pictures.masks[test[part]]) for part in _parts(len(test))]
        answers = _answers(layer, map_of(shown), pictures.masks.shape[1:]).byte().cpu().numpy()
    examples = Examples(pictures.classes, pictures.images[shown], pictures.masks[shown], answers)
    return Probed(np.concatenate(counts), len(train), one.shape[1], examples)


def _count(layer: Linear, maps: Tensor, masks: np.ndarray) -> np.ndarray:
    truth = torch.from_numpy(masks).to(maps.device)
    return counted(_answers(layer, maps, masks.shape[1:]), truth, len(layer.bias))


def _answers(layer: Linear, maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """(B, D, h, w) → the class of every pixel, (B, S, S)."""
    return F.interpolate(layer(maps), size, mode="bilinear", align_corners=False).argmax(1)


def _parts(count: int) -> list[slice]:
    bounds = [*range(0, count, BATCH), count]
    return [slice(*pair) for pair in pairwise(bounds)]


# ---- features ------------------------------------------------------------------------------------------------------


def _seen(images: np.ndarray, views: DeviceViews, device: torch.device) -> Tensor:
    """(B, S, S, 3) uint8 → (B, 3, S, S), as the encoder sees it."""
    crops = torch.from_numpy(images).to(device)[:, None]
    return views(crops, torch.zeros(len(images), dtype=torch.int64), 0)[0]


def _places(grid: tuple[int, ...]) -> Features:
    """What raw pixels tell of a place: its mean colour, and where it is, row and column in [−1, 1]: (B, 5, h, w)."""

    def features(images: Tensor) -> Tensor:
        colours = F.interpolate(images, grid, mode="area")
        rows, columns = (torch.linspace(-1, 1, count, device=images.device) for count in grid)
        places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
        return torch.cat([colours, places.expand(len(images), -1, -1, -1)], 1)

    return features
