"""torchvision's name for an architecture and for each of its weights."""

import re
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ssl_models.encoders import CHANGES_NOTHING, EncoderConfig

# timm's ResNets have torchvision's names, but for these.
RESNETS = {
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
}
VIT = (  # timm's name → torchvision's
    (r"^cls_token$", "class_token"),
    (r"^pos_embed$", "encoder.pos_embedding"),
    (r"^patch_embed\.proj\.", "conv_proj."),
    (r"^norm\.", "encoder.ln."),
    (r"^blocks\.(\d+)\.norm1\.", r"encoder.layers.encoder_layer_\1.ln_1."),
    (r"^blocks\.(\d+)\.norm2\.", r"encoder.layers.encoder_layer_\1.ln_2."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.encoder_layer_\1.self_attention.in_proj_"),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.encoder_layer_\1.self_attention.out_proj."),
    (r"^blocks\.(\d+)\.mlp\.fc1\.", r"encoder.layers.encoder_layer_\1.mlp.0."),
    (r"^blocks\.(\d+)\.mlp\.fc2\.", r"encoder.layers.encoder_layer_\1.mlp.3."),
)


@dataclass(frozen=True)
class Found:
    name: str  # of torchvision.models
    arguments: dict[str, Any]
    head: str  # its attribute that is the classifier
    weights: dict[str, Tensor]


def torchvision_model(config: EncoderConfig, model: nn.Module) -> Found:
    """
    Raises:
        ValueError: torchvision has no such model; says what it has.
    """
    from timm.models import VisionTransformer

    weights = model.state_dict()
    changed = sorted(set(config.arguments) - CHANGES_NOTHING)
    if config.name in RESNETS and not changed:
        return Found(config.name, {}, "fc", weights)
    if isinstance(model, VisionTransformer) and config.pool == "auto":
        renamed = {_of_vit(name): value for name, value in weights.items()}
        if all(renamed):
            return Found("VisionTransformer", _vit_arguments(model), "heads", renamed)
    what = f"{config.name} with {', '.join(changed)}" if changed else config.name
    raise ValueError(
        f"torchvision has no model like {what} (encoder.pool={config.pool}): it has plain ResNets and ViTs whose class "
        "token is the embedding; use --to timm, safetensors, onnx or torch_export"
    )


def _vit_arguments(model: Any) -> dict[str, Any]:
    return {
        "image_size": model.patch_embed.img_size[0],
        "patch_size": model.patch_embed.patch_size[0],
        "num_layers": len(model.blocks),
        "num_heads": model.blocks[0].attn.num_heads,
        "hidden_dim": model.embed_dim,
        "mlp_dim": model.blocks[0].mlp.fc1.out_features,
    }


def _of_vit(name: str) -> str:
    """torchvision's name; empty where its ViT has no such weight (a norm of queries, a layer scale, registers)."""
    for ours, theirs in VIT:
        if re.match(ours, name):
            return re.sub(ours, theirs, name)
    return ""
