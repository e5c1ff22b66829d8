"""What stands on an encoder during pretraining and is thrown away afterwards."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_models.encoders import sine_cosine_positions
from ssl_models.precision import normalize, outside_autocast


class Projector(nn.Sequential):
    """Linear-norm-ReLU for each hidden width, then a plain Linear: (B, in_dim) → (B, dims[-1]). No widths: nothing."""

    def __init__(self, in_dim: int, dims: tuple[int, ...], norm: Callable[[int], nn.Module] = nn.BatchNorm1d) -> None:
        layers: list[nn.Module] = []
        for hidden in dims[:-1]:
            layers += [nn.Linear(in_dim, hidden, bias=False), norm(hidden), nn.ReLU(inplace=True)]
            in_dim = hidden
        super().__init__(*layers, *(nn.Linear(in_dim, width) for width in dims[-1:]))


class PlainProjector(nn.Sequential):
    """A Projector without BatchNorm, Linear-ReLU for each hidden width, then Linear (Chen et al. 2020, MoCo v2)."""

    def __init__(self, in_dim: int, dims: tuple[int, ...]) -> None:
        layers: list[nn.Module] = []
        for hidden in dims[:-1]:
            layers += [nn.Linear(in_dim, hidden), nn.ReLU(inplace=True)]
            in_dim = hidden
        super().__init__(*layers, nn.Linear(in_dim, dims[-1]))


class NormalizedProjector(Projector):
    """A Projector with BatchNorm on its output, too, there without weights (SimSiam, MoCo v3)."""

    def __init__(self, in_dim: int, dims: tuple[int, ...]) -> None:
        super().__init__(in_dim, dims)
        self[-1].register_parameter("bias", None)  # BatchNorm would take it away again
        self.append(nn.BatchNorm1d(dims[-1], affine=False))


class DINOHead(nn.Module):
    """DINO's head (Caron et al. 2021, arXiv 2104.14294, appendix C): (B, in_dim) → (B, num_prototypes).

    An MLP with GELU to `dims`, whose output is L2-normalised, then cosines with the prototypes: a weight-normed layer
    with its gain fixed at 1. (The paper lets the gain learn for ViT-S alone, where that is stable.)
    """

    def __init__(self, in_dim: int, dims: tuple[int, ...], num_prototypes: int, batchnorm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for hidden in dims[:-1]:
            layers += [nn.Linear(in_dim, hidden), *([nn.BatchNorm1d(hidden)] if batchnorm else []), nn.GELU()]
            in_dim = hidden
        self.mlp = nn.Sequential(*layers, nn.Linear(in_dim, dims[-1]))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.prototypes = nn.Parameter(torch.randn(num_prototypes, dims[-1]))  # only their directions matter

    def forward(self, embeddings: Tensor, freeze_prototypes: bool = False) -> Tensor:
        prototypes: Tensor = self.prototypes
        if freeze_prototypes:
            prototypes = prototypes.detach() + 0 * prototypes  # a gradient of zero: DDP waits for one
        return cosines(self.mlp(embeddings), prototypes)


@outside_autocast
def cosines(rows: Tensor, directions: Tensor) -> Tensor:
    """(B, D), (K, D) → (B, K), in single precision: a temperature of 0.04 makes an error of bf16 25 times larger."""
    return F.linear(normalize(rows), normalize(directions))


class MaskedDecoder(nn.Module):
    """MAE's decoder (He et al. 2021): visible tokens and a shared mask token → pixels of every patch."""

    positions: Tensor  # (1 + L, dim), a constant

    def __init__(self, encoder_dim: int, grid: tuple[int, int], patch_dim: int, dim: int, depth: int, heads: int):
        super().__init__()
        from timm.models.vision_transformer import Block

        self.embed = nn.Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        nn.init.normal_(self.mask_token, std=0.02)
        positions = torch.cat([torch.zeros(1, dim), sine_cosine_positions(dim, *grid)])
        self.register_buffer("positions", positions, persistent=False)
        self.blocks = nn.Sequential(*(Block(dim, heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.predict = nn.Linear(dim, patch_dim)

    def forward(self, tokens: Tensor, restore: Tensor) -> Tensor:
        """tokens: (B, 1 + K, encoder_dim); restore: (B, L), the place of each patch among [kept | masked].

        Returns (B, L, patch_dim).
        """
        tokens = self.embed(tokens)
        masked = self.mask_token.to(tokens.dtype).expand(len(tokens), restore.shape[1] + 1 - tokens.shape[1], -1)
        patches = torch.cat([tokens[:, 1:], masked], dim=1)
        patches = torch.gather(patches, 1, restore[:, :, None].expand(-1, -1, patches.shape[-1]))
        tokens = torch.cat([tokens[:, :1], patches], dim=1) + self.positions
        return self.predict(self.norm(self.blocks(tokens))[:, 1:])


def halvings(side: int) -> list[int]:
    """Sides of the maps from at most 4 pixels up to `side`, each half of the next, rounded up: 32 → [4, 8, 16, 32]."""
    sides = [side]
    while sides[0] > 4:
        sides.insert(0, -(-sides[0] // 2))
    return sides


class ConvolutionalDecoder(nn.Module):
    """A vector → an image: (B, in_dim) → (B, 3, image_size, image_size), without bounds.

    Maps double from 4 × 4, by repeating pixels and a 3×3 convolution: strided transposes leave a checkerboard.
    GroupNorm: an image is what its vector makes it, whatever else is in the batch.

    Args:
        width: channels at full size, a multiple of 4; twice as many at half the size, up to eight times.
    """

    def __init__(self, in_dim: int, image_size: int, width: int) -> None:
        super().__init__()
        sides = halvings(image_size)
        widths = [width * min(8, 2 ** (len(sides) - 1 - place)) for place in range(len(sides))]
        self.shape = (widths[0], sides[0], sides[0])
        self.start = nn.Linear(in_dim, widths[0] * sides[0] ** 2)
        layers: list[nn.Module] = [nn.GroupNorm(4, widths[0]), nn.ReLU(inplace=True)]
        for side, before, after in zip(sides[1:], widths[:-1], widths[1:], strict=True):
            layers += [nn.Upsample(side), nn.Conv2d(before, after, 3, padding=1, bias=False)]
            layers += [nn.GroupNorm(4, after), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 3, 3, padding=1))

    def forward(self, vectors: Tensor) -> Tensor:
        return self.layers(self.start(vectors).unflatten(1, self.shape))


class MapDecoder(nn.Module):
    """An encoder's feature map → a prediction at every place of a `side` × `side` map: (B, in_dim, h, w) →
    (B, out_dim, side, side)."""

    def __init__(self, in_dim: int, width: int, out_dim: int, side: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_dim, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Upsample((side, side), mode="bilinear"),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, out_dim, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features)
