"""The forms that an encoder is exported in: what each writes, and which library loads it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.export import loaders
from pipeline.export.torchvision_names import torchvision_model
from pipeline.export.trained import Trained, Whole
from ssl_models.encoders import CHANGES_NOTHING
from ssl_models.objectives.image_text import ImageTextObjective, SigLIP

OPSET = 18


@dataclass(frozen=True)
class Form:
    """`write(trained, folder)` writes the files; `load(folder)` gives a function from pixels to embeddings."""

    what: str
    packages: str  # that load it, as pip takes them
    write: Callable[[Trained, Path], None]
    load: Callable[[str], Callable[[Tensor], Tensor]]
    expected: Callable[[Trained], nn.Module] = lambda trained: trained.whole  # gives what the loaded one must give


def write_safetensors(trained: Trained, folder: Path) -> None:
    config = {
        "architecture": trained.config.name,
        "arguments": trained.timm_arguments("a file of weights"),
        "stem": trained.stem,
        "image_size": trained.config.image_size,
        **trained.normalisation,
    }
    (folder / "encoder.json").write_text(json.dumps(config, indent=1))
    _save(trained.objective.encoder.model.state_dict(), folder / "encoder.safetensors")


def write_timm(trained: Trained, folder: Path) -> None:
    from timm.models import save_for_hf

    model, arguments = trained.timm_model("timm")
    side = trained.config.image_size
    seen = {"input_size": [3, side, side], "interpolation": "bilinear", "crop_pct": 1.0, **trained.normalisation}
    save_for_hf(
        model,
        str(folder),
        model_args=arguments,
        model_config={"pretrained_cfg": seen | {"num_classes": 0}},
        safe_serialization=True,
        data_config=seen,
    )
    config = json.loads((folder / "config.json").read_text())
    config["model_args"].pop("num_classes", None)  # transformers gives it itself, and trips over a second one
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def write_torchvision(trained: Trained, folder: Path) -> None:
    model, _ = trained.timm_model("torchvision")
    found = torchvision_model(trained.config, model)
    config: dict[str, Any] = {"model": found.name, "arguments": found.arguments, "head": found.head}
    config |= {"image_size": trained.config.image_size, **trained.normalisation}
    (folder / "encoder.json").write_text(json.dumps(config, indent=1))
    _save(found.weights, folder / "encoder.safetensors")


def write_open_clip(trained: Trained, folder: Path) -> None:
    """Both towers, the scale and, of SigLIP, the bias."""
    import timm

    objective = _image_text(trained)
    model, arguments = trained.timm_model("open_clip")
    size = timm.get_pretrained_cfg(trained.config.name).input_size[-1]  # of the towers that open_clip makes
    if arguments.get("img_size") == size:
        del arguments["img_size"]
    if arguments := {name: value for name, value in arguments.items() if name not in CHANGES_NOTHING}:
        raise ValueError(
            f"open_clip makes its image towers by name alone, and this one has {json.dumps(arguments)}: train with "
            f"encoder.name alone (a ViT with encoder.image_size={size}), or use --to timm or onnx for the image tower"
        )
    text = trained.experiment.objective.text  # type: ignore[union-attr]
    sides = {"image_size": trained.config.image_size}
    config: dict[str, Any] = {
        "embed_dim": objective.projection.out_features,
        "vision_cfg": {"timm_model_name": trained.config.name, "timm_pool": "", "timm_proj": "linear", **sides},
        "text_cfg": {
            "context_length": text.context_length,
            "vocab_size": text.vocabulary_size,
            "width": text.width,
            "heads": text.heads,
            "layers": text.layers,
        },
        "custom_text": True,
    }
    weights = {f"visual.trunk.{name}": value for name, value in model.state_dict().items()}
    weights["visual.head.proj.weight"] = objective.projection.weight
    weights |= {f"text.{name}": value for name, value in objective.text_encoder.model.state_dict().items()}
    weights["logit_scale"] = objective.log_scale
    if isinstance(objective, SigLIP):
        config["init_logit_bias"] = 0.0
        weights["logit_bias"] = objective.bias
    seen = {"interpolation": "bilinear", "resize_mode": "shortest", **trained.normalisation}
    both = {"model_cfg": config, "preprocess_cfg": seen}
    (folder / "open_clip_config.json").write_text(json.dumps(both, indent=1))
    _save(weights, folder / "open_clip_model.safetensors")


def write_onnx(trained: Trained, folder: Path) -> None:
    batch = torch.export.Dim("batch")
    torch.onnx.export(
        trained.whole,
        (trained.examples,),
        str(folder / "encoder.onnx"),
        input_names=["pixels"],
        output_names=["embeddings"],
        dynamic_shapes={"pixels": {0: batch}},
        opset_version=OPSET,
        external_data=False,
        dynamo=True,
        verbose=False,
    )


def write_torch_export(trained: Trained, folder: Path) -> None:
    shapes = {"pixels": {0: torch.export.Dim("batch")}}
    program = torch.export.export(trained.whole, (trained.examples,), dynamic_shapes=shapes)
    torch.export.save(program, folder / "encoder.pt2")


def _image_text(trained: Trained) -> Any:
    if not isinstance(trained.objective, ImageTextObjective):
        raise ValueError(
            f"open_clip holds pairs of an image and a text tower, and {trained.experiment.objective.name} trains no "
            "text tower: use --to timm, or another form"
        )
    return trained.objective


def _save(weights: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: value.detach().contiguous() for name, value in weights.items()}, path)


FORMS = {
    "safetensors": Form("weights by timm's names", "timm safetensors", write_safetensors, loaders.load_safetensors),
    "timm": Form("a timm model of a local folder, or of the Hub", "timm", write_timm, loaders.load_timm),
    "hf": Form("the same folder, for transformers", "transformers timm", write_timm, loaders.load_hf),
    "torchvision": Form(
        "weights by torchvision's names", "torchvision safetensors", write_torchvision, loaders.load_torchvision
    ),
    "open_clip": Form(
        "both towers of an image-text run",
        "open_clip_torch",
        write_open_clip,
        loaders.load_open_clip,
        expected=lambda trained: Whole(_image_text(trained), "project_image"),
    ),
    "onnx": Form("a graph for ONNX Runtime", "onnxruntime torch", write_onnx, loaders.load_onnx),
    "torch_export": Form("a graph of torch.export", "torch", write_torch_export, loaders.load_torch_export),
}
