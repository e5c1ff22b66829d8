"""What stands on an encoder during pretraining and is thrown away afterwards."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ssl_models.encoders import sine_cosine_positions


class Projector(nn.Sequential):
    """Linear-norm-ReLU for each hidden width, then a plain Linear: (B, in_dim) → (B, dims[-1])."""

    def __init__(self, in_dim: int, dims: tuple[int, ...], norm: Callable[[int], nn.Module] = nn.BatchNorm1d) -> None:
        layers: list[nn.Module] = []
        for hidden in dims[:-1]:
            layers += [nn.Linear(in_dim, hidden, bias=False), norm(hidden), nn.ReLU(inplace=True)]
            in_dim = hidden
        super().__init__(*layers, nn.Linear(in_dim, dims[-1]))


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
