"""Image encoders from timm, with a stem for small images and token access for masking; the text encoder."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ssl_models.config import Config

CHANGES_NOTHING = {"zero_init_last", "drop_path_rate", "drop_rate", "dynamic_img_size"}  # of timm's, in evaluation

Channels = tuple[float, float, float]
IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)


class EncoderConfig(Config):
    name: str = Field("resnet18", description="any image model of timm")
    image_size: int = Field(32, ge=8, description="side of a training view and of an evaluation image, in pixels")
    stem: Literal["auto", "imagenet", "small", "small_stride2", "small_pool"] = Field(
        "auto",
        description="first layers of a ResNet. imagenet: 7×7 stride 2 and pooling; small: 3×3 stride 1; small_stride2: "
        "3×3 stride 2, four times cheaper; small_pool: 3×3 stride 1 and pooling. auto: small up to 32 px, small_pool "
        "up to 64 px, else imagenet",
    )
    patch_size: int | None = Field(None, ge=1, description="side of a ViT's patch in pixels; None: the model's own")
    pool: Literal["auto", "mean"] = Field("auto", description="auto: the model's own; mean: average of patch tokens")
    arguments: dict[str, Any] = Field(default_factory=dict, description="passed to timm.create_model")
    mean: Channels = Field(IMAGENET_MEAN, description="of red, green, blue in [0, 1]: subtracted from what it sees")
    std: Channels = Field(IMAGENET_STD, description="of red, green, blue: what it sees is divided by it")

    @field_validator("std")
    @classmethod
    def _positive(cls, std: Channels) -> Channels:
        if min(std) <= 0:
            raise ValueError("each must be above 0")
        return std

    @property
    def resnet_stem(self) -> str:
        """What `stem` says of a ResNet, with "auto" resolved."""
        size = self.image_size
        return (
            self.stem if self.stem != "auto" else "small" if size <= 32 else "small_pool" if size <= 64 else "imagenet"
        )


class ImageEncoder(nn.Module):
    """A timm model without classifier: (B, 3, H, W) → (B, dim).

    Raises:
        ValueError: the model does not exist in timm, or does not take these settings.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        import timm

        arguments = dict(config.arguments)
        is_vit = config.name.startswith(("vit_", "deit_"))
        if is_vit:
            arguments["img_size"] = config.image_size
            if config.patch_size is not None:
                arguments["patch_size"] = config.patch_size
        elif config.patch_size is not None:
            raise ValueError(
                f"encoder.patch_size={config.patch_size} needs a ViT, {config.name!r} is none: leave it out, or null"
            )
        if not timm.is_model(config.name):
            close = timm.list_models(f"*{config.name.split('_')[0]}*")[:6]
            raise ValueError(f"encoder.name={config.name!r} is no model of timm; similar: {', '.join(close) or 'none'}")
        try:
            self.model = timm.create_model(config.name, pretrained=False, num_classes=0, **arguments)
        except (TypeError, AssertionError) as error:
            raise ValueError(f"encoder {config.name!r} does not take {arguments}: {error}") from error
        self.mean_pool = config.pool == "mean"
        if self.mean_pool and not is_vit:
            raise ValueError(f"encoder.pool=mean needs a ViT, {config.name!r} is none: leave encoder.pool=auto")
        _set_stem(self.model, config)
        _shield_strided(self.model)
        self.mean, self.std = config.mean, config.std
        self.dim: int = self.model.num_features

    def forward(self, images: Tensor) -> Tensor:
        if not self.mean_pool:
            return self.model(images)
        return self.model.forward_features(images)[:, self.model.num_prefix_tokens :].mean(1)

    def features(self, images: Tensor) -> Tensor:
        """The feature map before pooling: (B, 3, H, W) → (B, dim, h, w); of a ViT the patch tokens in their places.

        Raises:
            ValueError: the model keeps no map.
        """
        found = self.model.forward_features(images)
        if found.ndim == 3:  # (B, prefix + h · w, dim)
            embed = self.model.patch_embed
            rows, columns = (side // patch for side, patch in zip(images.shape[2:], embed.patch_size, strict=True))
            return found[:, self.model.num_prefix_tokens :].mT.unflatten(2, (rows, columns))
        if found.ndim == 4:
            return found if found.shape[1] == self.dim else found.permute(0, 3, 1, 2)  # Swin's channels are last
        raise ValueError(f"encoder {type(self.model).__name__} has no feature map: choose a ResNet or a ViT")

    def refuse_class_token(self) -> None:
        """For objectives whose loss is on the map.

        Raises:
            ValueError: probes would judge a class token, which such a loss does not train.
        """
        if getattr(self.model, "global_pool", None) == "token" and not self.mean_pool:
            raise ValueError(
                "this objective trains the patch tokens of a ViT, but encoder.pool=auto judges its class token: use "
                "encoder.pool=mean"
            )

    def compile(self) -> None:  # type: ignore[override]
        """torch.compile of each part of the network, in place: whichever of them an objective calls, in the forward
        pass of a whole image, of visible patches, or of a map."""
        for part in self.model.children():
            part.compile()

    def check_size(self, side: int) -> None:
        """Whether images of `side` pixels can be encoded. On the meta device this computes nothing.

        Raises:
            ValueError: they cannot: a ViT is built for one size, unless it is told otherwise.
        """
        weight = next(self.parameters())
        try:
            self(torch.zeros(2, 3, side, side, device=weight.device, dtype=weight.dtype))
        except (AssertionError, RuntimeError) as error:
            hint = ": set encoder.arguments.dynamic_img_size=true" if hasattr(self.model, "patch_embed") else ""
            raise ValueError(f"the encoder takes no images of {side} pixels ({error}){hint}") from error

    def layers_below_head(self) -> dict[str, int]:
        """How many layers stand between each parameter and a head: 1 for those of the last block, one more for each
        block before it, most for the stem or the embeddings. The layers are timm's own.

        Raises:
            ValueError: timm knows no layers of this model.
        """
        from timm.models._manipulate import group_with_matcher

        head = "feral's head"  # like all that timm's patterns do not match, it comes after the last layer
        found: dict[str, int] = {}
        if hasattr(self.model, "group_matcher"):
            names = [(name, None) for name, _ in self.model.named_parameters()]
            found = group_with_matcher([*names, (head, None)], self.model.group_matcher(coarse=False), reverse=True)
        if max(found.values(), default=0) < 2:
            raise ValueError(
                f"timm knows no layers of {type(self.model).__name__} that a rate could decay over: set "
                "optimizer.layer_decay=null, or choose a ResNet or a ViT"
            )
        last = found.pop(head)
        return {f"model.{name}": last - layer for name, layer in found.items()}

    def pixels(self, images: Tensor) -> Tensor:
        """What the encoder sees → values in [0, 1] again: (B, 3, H, W)."""
        return images * self._channels(self.std, images) + self._channels(self.mean, images)

    def normalized(self, pixels: Tensor) -> Tensor:
        """The inverse of `pixels`."""
        return (pixels - self._channels(self.mean, pixels)) / self._channels(self.std, pixels)

    @staticmethod
    def _channels(values: Channels, like: Tensor) -> Tensor:
        return like.new_tensor(values).view(1, 3, 1, 1)

    def visible_tokens(self, images: Tensor, keep: Tensor) -> Tensor:
        """Encodes only the patches in `keep` (B, K): (B, prefix + K, dim), class token first.

        The positional embedding is added before the patches are dropped (He et al. 2021, MAE).
        """
        vit = self.model
        patches = vit.patch_embed(images) + vit.pos_embed[:, vit.num_prefix_tokens :]  # (B, L, dim)
        patches = torch.gather(patches, 1, keep[:, :, None].expand(-1, -1, patches.shape[-1]))
        prefix = vit.cls_token + vit.pos_embed[:, : vit.num_prefix_tokens]  # (1, 1, dim)
        tokens = torch.cat([prefix.expand(len(images), -1, -1), patches], dim=1)
        return vit.norm(vit.blocks(vit.norm_pre(tokens)))

    def masked_tokens(self, images: Tensor, mask: Tensor, token: Tensor) -> Tensor:
        """Encodes all patches, those in `mask` (B, L) replaced by `token` (dim,): (B, L, dim).

        Positions are added to the token as to any patch (Xie et al. 2021, SimMIM).
        """
        vit = self.model
        patches = vit.patch_embed(images)  # (B, L, dim), or (B, rows, columns, dim) where sizes may vary
        hidden = mask.view(*patches.shape[:-1], 1)
        tokens = vit._pos_embed(torch.where(hidden, token.to(patches.dtype), patches))  # (B, prefix + L, dim)
        return vit.norm(vit.blocks(vit.norm_pre(tokens)))[:, vit.num_prefix_tokens :]

    def fix_positions(self) -> None:
        """Replaces the learned positional embedding of a ViT by fixed 2-D sine-cosine.

        Raises:
            ValueError: the encoder is no plain ViT with one class token and a learned absolute position table.
        """
        from timm.models import VisionTransformer

        vit = self.model
        if not isinstance(vit, VisionTransformer) or vit.pos_embed is None or vit.num_prefix_tokens != 1:
            raise ValueError(
                f"this objective needs a plain ViT with a class token as encoder, got {type(vit).__name__}: choose for "
                "example encoder.name=vit_tiny_patch16_224"
            )
        if vit.pos_embed.shape[1] != vit.patch_embed.num_patches + 1:
            raise ValueError("this objective needs a ViT whose class token has a position of its own (no_embed_class)")
        vit.pos_embed.requires_grad_(False)
        table = sine_cosine_positions(self.dim, *vit.patch_embed.grid_size)
        vit.pos_embed.data.copy_(torch.cat([torch.zeros(1, self.dim), table]))  # the class token stands at zero


def is_resnet(model: nn.Module) -> bool:
    """Whether a timm model is a plain ResNet, whose stem can be changed."""
    return isinstance(getattr(model, "conv1", None), nn.Conv2d) and hasattr(model, "maxpool")


def _set_stem(model: Any, config: EncoderConfig) -> None:
    stem = config.resnet_stem
    if stem == "imagenet" or (config.stem == "auto" and not is_resnet(model)):
        return
    if not is_resnet(model):
        raise ValueError(f"encoder.stem={stem} needs a plain ResNet of timm, {config.name!r} is none: use stem=auto")
    width = model.conv1.out_channels
    model.conv1 = nn.Conv2d(3, width, kernel_size=3, stride=2 if stem == "small_stride2" else 1, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    if stem != "small_pool":
        model.maxpool = nn.Identity()


class ShieldedConv2d(nn.Conv2d):
    """A strided convolution that sees maps no larger than its kernel in single precision, on CPU.

    There parts of the kernel touch the padding only, and oneDNN's backward pass in bf16 leaves the gradient of their
    weights as it finds the memory (torch 2.15 with AMX: 3 × 3, stride 2, on 1 × 1 of tiles of 8 px: NaN and 1e33).
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type == "cpu" and min(input.shape[2:]) <= max(self.kernel_size):
            with torch.autocast("cpu", enabled=False):
                return super().forward(input.to(self.weight.dtype))
        return super().forward(input)


def _shield_strided(model: nn.Module) -> None:
    for module in model.modules():
        if type(module) is nn.Conv2d and max(module.stride) > 1 and max(module.kernel_size) > 1:
            module.__class__ = ShieldedConv2d  # it keeps its weights' names and their draws


def sine_cosine_positions(dim: int, rows: int, columns: int) -> Tensor:
    """(rows · columns, dim): the fixed positions of MAE. Half of the width is the column's, half the row's, each
    [sin | cos] at frequencies 10000^(-2i/dim); computed in double precision."""
    if dim % 4:
        raise ValueError(f"a 2-D sine-cosine position needs a width divisible by 4, got {dim}")
    frequencies = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    row, column = torch.meshgrid(
        torch.arange(rows, dtype=torch.float64), torch.arange(columns, dtype=torch.float64), indexing="ij"
    )
    angles = [axis.reshape(-1, 1) * frequencies for axis in (column, row)]  # width axis first, as MAE's checkpoints
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float()


class TextConfig(Config):
    width: int = Field(256, ge=16, description="width of the transformer")
    layers: int = Field(4, ge=1)
    heads: int = Field(4, ge=1, description="attention heads; must divide width")
    context_length: int = Field(32, ge=8, le=256, description="tokens of a caption, the end token included")
    vocabulary_size: int = Field(49408, ge=49408, description="CLIP's byte-pair vocabulary")


class TextEncoder(nn.Module):
    """CLIP's causal text transformer (open_clip's implementation): (B, L) int64 tokens → (B, dim).

    The feature is read at the end token, which has the largest id of a row.
    """

    def __init__(self, config: TextConfig, dim: int) -> None:
        super().__init__()
        from open_clip.transformer import TextTransformer

        if config.width % config.heads:
            raise ValueError(f"text.width={config.width} is not divisible by text.heads={config.heads}")
        self.model = TextTransformer(
            context_length=config.context_length,
            vocab_size=config.vocabulary_size,
            width=config.width,
            heads=config.heads,
            layers=config.layers,
            output_dim=dim,
        )

    def forward(self, tokens: Tensor) -> Tensor:
        with short_attention(tokens.device):
            return self.model(tokens)


def short_attention(device: torch.device) -> AbstractContextManager[None]:
    """Plain attention on CPU, where torch's fused one is slow in bf16 at the length of captions: a step of a small CLIP
    took an eighth longer."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
