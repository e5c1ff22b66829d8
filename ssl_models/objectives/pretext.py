"""Pretext tasks of geometry: which way is up, where does a tile belong?

Each is a classification whose labels are drawn, not given. A task that is solved at once was solved by a cue of the
file (compression, optics, edges of tiles), not of the scene: look at "pretext_accuracy".
"""

from functools import lru_cache
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_models import pixels
from ssl_models.batch import Batch, Step, normal, uniform
from ssl_models.config import Config
from ssl_models.encoders import EncoderConfig
from ssl_models.heads import Projector
from ssl_models.objectives.objective import Objective
from ssl_models.precision import single
from ssl_models.tiles import (
    Colours,
    blurring,
    cut,
    keep_one_channel,
    project_colours,
    refuse_unfit,
    resample,
    standardize,
)

# Row and column of each neighbour as seen from the middle; the label is the place in this list.
NEIGHBOURS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))


def classify(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Cross entropy in single precision or better, and the share of rows whose label is strictly highest (a collapsed
    model scores 0): (B, K), (B,)."""
    logits = single(logits)
    own = logits.detach().gather(1, labels[:, None])
    others = logits.detach().scatter(1, labels[:, None], -torch.inf).amax(1)
    return {"loss": F.cross_entropy(logits, labels), "pretext_accuracy": (own[:, 0] > others).float().mean()}


class Rotation(Objective):
    """Unsupervised representation learning by predicting image rotations (Gidaris et al. 2018, arXiv 1803.07728):
    all four turns of an image stand in the same batch.

    Turns exchange rows and columns and interpolate nothing. A crop that is stretched leaves a blur with a direction:
    use views.crop_ratio=(1, 1). Images without an upright position (aerial, texture, microscopy) teach it nothing.
    """

    class Config(Config):
        name: Literal["rotation"] = "rotation"

    upright: ClassVar[bool] = True

    def __init__(self, config: Config, encoder: EncoderConfig) -> None:
        super().__init__(config, encoder)
        self.head = nn.Linear(self.encoder.dim, 4)

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        images = batch.views[0]
        turned = torch.cat([pixels.rotate(images, quarters) for quarters in range(4)])  # (4B, 3, S, S)
        quarters = torch.arange(4, device=images.device).repeat_interleave(len(images))
        return classify(self.head(self.encoder(turned)), quarters)


class RelativePatch(Objective):
    """Unsupervised visual representation learning by context prediction (Doersch et al. 2015, arXiv 1505.05192): which
    of the eight neighbours of the first patch is the second? Both orders of a pair are used.

    Against cues that say nothing of the scene: a gap and a jitter (edges that go on), one channel or no green–magenta
    (colour fringes), patches shrunk and enlarged (resampling), each patch with its own mean and variance. Probes judge
    whole images with mean 0 and variance 1, as a patch has them.
    """

    class Config(Config):
        name: Literal["relative_patch"] = "relative_patch"
        patch_size: int = Field(8, ge=4, description="pixels a side; the paper's 96 of an image of 400 to 700")
        gap: int = Field(4, ge=0, description="pixels between two patches; half a patch in the paper")
        jitter: int = Field(1, ge=0, description="pixels by which the second patch is off, at most; the paper's 7")
        pairs: int = Field(4, ge=1, description="pairs of patches an image")
        colours: Colours = Field(
            "drop", description="keep; drop: all but one random channel become noise; project: no green–magenta axis"
        )
        shrink: float = Field(1 / 3, ge=0, le=1, description="share of patches that are shrunk and enlarged again")
        shrink_to: float = Field(
            0.5, gt=0, le=1, description="smallest side on the way, over patch_size; the paper's 0.1"
        )
        head_dim: int = Field(
            256, ge=1, description="width of the layer between a pair and its place; the paper's 4096"
        )

    upright: ClassVar[bool] = True
    shrinking: Tensor  # (sizes, p, p), a constant

    def __init__(self, config: Config, encoder: EncoderConfig) -> None:
        super().__init__(config, encoder)
        self.config, self.room = config, encoder.image_size
        need = 2 * config.patch_size + config.gap + config.jitter
        if need > encoder.image_size:
            raise ValueError(
                f"two patches of {config.patch_size} pixels, a gap of {config.gap} and a jitter of {config.jitter} "
                f"need {need} pixels, encoder.image_size={encoder.image_size}: use a smaller objective.patch_size"
            )
        refuse_unfit(self.encoder, config.patch_size)
        smallest = max(1, round(config.shrink_to * config.patch_size))
        self.register_buffer("shrinking", blurring(config.patch_size, smallest), persistent=False)
        self.head = Projector(2 * self.encoder.dim, (config.head_dim, len(NEIGHBOURS)))

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        places = uniform(step.seed, step.number, batch.ids, 5 * self.config.pairs, "pairs")
        top, left, label = pair_places(
            places.unflatten(1, (5, -1)), self.config, self.room
        )  # (B, pairs, 2), (B, pairs)
        images = batch.views[0]
        if self.config.colours == "project":
            images = self.encoder.normalized(project_colours(self.encoder.pixels(images)))
        patches = cut(images, top.flatten(1)[..., None], left.flatten(1)[..., None], self.config.patch_size)
        features = self.encoder(standardize(self.disguise(patches, batch.ids, step)).flatten(0, 1))
        first, second = features.view(*label.shape, 2, -1).flatten(0, 1).unbind(1)  # (B · pairs, dim) each
        label = label.flatten()
        both = torch.cat([torch.cat([first, second], 1), torch.cat([second, first], 1)])
        return classify(self.head(both), torch.cat([label, len(NEIGHBOURS) - 1 - label]))

    def disguise(self, patches: Tensor, ids: Tensor, step: Step) -> Tensor:
        """Colours and resolution of each patch (B, T, 3, p, p) changed by chance."""
        count = patches.shape[1]
        draws = uniform(step.seed, step.number, ids, 3 * count, "disguise").unflatten(1, (3, count))
        shrinks, size, channel = draws.unbind(1)  # (B, T) each
        if self.config.shrink:
            same = len(self.shrinking) - 1
            chosen = torch.where(shrinks < self.config.shrink, (size * same).long(), same)
            patches = resample(patches, self.shrinking[chosen])
        if self.config.colours == "drop":
            noise = normal(step.seed, step.number, ids, patches[0].numel(), "noise").view_as(patches)
            patches = keep_one_channel(patches, (3 * channel).long(), noise.to(patches.dtype))
        return patches

    def embed(self, images: Tensor) -> Tensor:
        return self.encoder(standardize(images))


def pair_places(draws: Tensor, config: RelativePatch.Config, room: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of patches anywhere in an image: (B, 5, P) uniform draws → top, left (B, P, 2) int64 and label (B, P).

    The second patch stands patch + gap pixels away from the first in its direction, give or take the jitter (the same
    number of pixels is likely in both signs), and never outside: the first patch is placed so that the pair fits.
    """
    direction, *free = draws.unbind(1)
    label = (len(NEIGHBOURS) * direction).long()
    steps = torch.tensor(NEIGHBOURS, device=draws.device)[label]  # (B, P, 2)
    corners = []
    for axis, (jitter, place) in enumerate(zip(free[:2], free[2:], strict=True)):
        away = steps[..., axis] * (config.patch_size + config.gap)
        away = away + ((2 * config.jitter + 1) * jitter).long() - config.jitter
        space = room - config.patch_size - away.abs() + 1  # places of a pair, at least one
        first = (place * space).long() + (-away).clamp(min=0)
        corners.append(torch.stack([first, first + away], dim=-1))
    top, left = corners
    return top, left, label


@lru_cache(maxsize=4)
def far_permutations(count: int, tiles: int = 9) -> Tensor:
    """`count` permutations of `tiles` things, (count, tiles) int64, far from each other in Hamming distance.

    Greedily the permutation with the largest distance to the nearest chosen one, among those the largest total
    distance. Noroozi and Favaro's rule looks at the average alone, which leaves pairs that differ in one swap; this has
    the same average, and at 100 of 9 a minimum of 6 places. The same set at every call.
    """
    every = torch.zeros(1, 1, dtype=torch.uint8, device="cpu")  # (tiles, tiles!)
    for new in range(1, tiles):
        line = torch.full((1, every.shape[1]), new, dtype=torch.uint8, device="cpu")
        every = torch.cat([torch.cat([every[:place], line, every[place:]]) for place in range(new + 1)], dim=1)
    chosen = [every[:, every.shape[1] // 3]]
    nearest = torch.full((every.shape[1],), tiles, dtype=torch.uint8, device="cpu")
    total = torch.zeros(every.shape[1], dtype=torch.int32, device="cpu")
    while len(chosen) < count:
        distance = torch.zeros_like(nearest)
        for line, place in zip(every, chosen[-1], strict=True):
            distance += line != place
        torch.minimum(nearest, distance, out=nearest)
        total += distance
        chosen.append(every[:, torch.where(nearest == nearest.max(), total, -1).argmax()])
    return torch.stack(chosen).long()


class Jigsaw(Objective):
    """Unsupervised learning of visual representations by solving jigsaw puzzles (Noroozi and Favaro 2016, arXiv
    1603.09246): nine tiles of a 3 × 3 grid in one of a set of orders; which one?

    Against cues that say nothing of the scene: a tile stands anywhere in its cell (edges that go on), has its own mean
    and variance, and its channels may be shifted (colour fringes); give a third of the views no colours. Probes judge
    whole images with mean 0 and variance 1, as a tile has them.
    """

    permutations: Tensor  # (K, 9) int64, in the state: another set is another task

    class Config(Config):
        name: Literal["jigsaw"] = "jigsaw"
        tile_size: int = Field(8, ge=4, description="pixels a side; three quarters of a cell, a third of the image")
        num_permutations: int = Field(100, ge=2, le=10_000, description="orders to tell apart; the paper's 1,000")
        channel_shift: int = Field(0, ge=0, description="pixels by which channels are off; the paper's 2 at 225 pixels")
        tile_dim: int = Field(64, ge=1, description="width of a tile's feature in the head; the paper's 512")

    upright: ClassVar[bool] = True

    def __init__(self, config: Config, encoder: EncoderConfig) -> None:
        super().__init__(config, encoder)
        self.config, self.cell = config, encoder.image_size // 3
        if config.tile_size > self.cell:
            raise ValueError(
                f"objective.tile_size={config.tile_size} is more than a cell of {self.cell} pixels, a third of "
                f"encoder.image_size={encoder.image_size}: use tiles of about {max(4, self.cell * 3 // 4)} pixels"
            )
        refuse_unfit(self.encoder, config.tile_size)
        self.register_buffer("permutations", far_permutations(config.num_permutations).clone())
        self.trunk = nn.Sequential(
            nn.Linear(self.encoder.dim, config.tile_dim, bias=False), nn.BatchNorm1d(config.tile_dim), nn.ReLU()
        )
        self.head = nn.Linear(9 * config.tile_dim, config.num_permutations)

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        images = batch.views[0]
        label = uniform(step.seed, step.number, batch.ids, 1, "permutation")[:, 0]
        label = (label * self.config.num_permutations).long()
        tiles = self.tiles(images, batch.ids, step)  # (B, 9, 3, t, t), row-major
        shown = tiles[torch.arange(len(images), device=images.device)[:, None], self.permutations[label]]
        features = self.trunk(self.encoder(shown.flatten(0, 1)))  # (9B, tile_dim)
        return classify(self.head(features.view(len(images), -1)), label)

    def tiles(self, images: Tensor, ids: Tensor, step: Step) -> Tensor:
        """Each tile at a random place of its cell, standardised: (B, 9, 3, t, t)."""
        size, shift = self.config.tile_size, self.config.channel_shift
        draws = uniform(step.seed, step.number, ids, 2 * 9, "tiles").view(-1, 2, 9, 1)
        cells = torch.arange(9, device=images.device)
        corners = torch.stack([cells // 3, cells % 3])[..., None] * self.cell  # (2, 9, 1)
        corners = corners + (draws * (self.cell - size + 1)).long()  # (B, 2, 9, 1)
        if shift:
            draws = uniform(step.seed, step.number, ids, 2 * 9 * 3, "channels").view(-1, 2, 9, 3)
            corners = (
                corners + ((2 * shift + 1) * draws).long() - shift
            )  # (B, 2, 9, 3): −shift to +shift, both included
            corners = corners.clamp(0, images.shape[-1] - size)
        top, left = corners.unbind(1)
        return standardize(cut(images, top, left, size))

    def embed(self, images: Tensor) -> Tensor:
        return self.encoder(standardize(images))
