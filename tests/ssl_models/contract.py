"""One tiny case of every objective, for the contract tests."""

from dataclasses import dataclass

import torch

from ssl_models.batch import Batch
from ssl_models.encoders import EncoderConfig, TextConfig
from ssl_models.objectives import OBJECTIVES, Objective, build_objective
from ssl_models.objectives.contrastive import SimCLR
from ssl_models.objectives.image_text import CLIP
from ssl_models.objectives.masked import MAE

RESNET = EncoderConfig(
    name="resnet18", image_size=16, stem="small_stride2", arguments={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
)
VIT = EncoderConfig(
    name="vit_tiny_patch16_224",
    image_size=16,
    patch_size=4,
    pool="mean",
    arguments={"embed_dim": 24, "depth": 2, "num_heads": 2},
)
TEXT = TextConfig(width=16, layers=1, heads=2, context_length=8)


@dataclass(frozen=True)
class Case:
    config: object
    encoder: EncoderConfig
    at_start: tuple[float, float]  # bounds of the loss of a fresh model on noise, batch 16


CASES = {
    "simclr": Case(SimCLR.Config(temperature=0.5, projector_dims=(16, 8)), RESNET, (2.5, 4.5)),  # ln 31 = 3.43
    "mae": Case(
        MAE.Config(decoder_dim=16, decoder_depth=1, decoder_heads=2), VIT, (0.9, 1.6)
    ),  # 1 if zero is predicted
    "clip": Case(CLIP.Config(text=TEXT, dim=8, temperature=0.5), RESNET, (2.3, 3.5)),  # ln 16 = 2.77
}
assert CASES.keys() == OBJECTIVES.keys(), "every objective of the table has a case"


def build(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Objective:
    torch.manual_seed(seed)
    return build_objective(CASES[name].config, CASES[name].encoder).to(dtype)


def batch(name: str, size: int = 16, dtype: torch.dtype = torch.float32, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    side = CASES[name].encoder.image_size
    views = tuple(
        torch.randn(size, 3, side, side, generator=generator, dtype=torch.float64).to(dtype)
        for _ in range(OBJECTIVES[name].num_views)
    )
    tokens = None
    if OBJECTIVES[name].needs_text:
        tokens = torch.randint(1, 49000, (size, TEXT.context_length), generator=generator)
        tokens[:, -1] = 49407
    return Batch(views, torch.arange(size) * 7 + 3, tokens)


def part(whole: Batch, rank: int, world_size: int) -> Batch:
    """One rank's share of a batch."""

    def cut(tensor):
        return None if tensor is None else tensor.chunk(world_size)[rank]

    return Batch(tuple(cut(view) for view in whole.views), cut(whole.ids), cut(whole.tokens))
