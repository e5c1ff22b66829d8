"""Encoders that were not trained here: of timm, torchvision and open_clip, by name and a file of weights; or a folder
that `feral export` wrote."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.evaluate.encoders import Encoders, Pixels, RunEncoders, Sees, digest_of
from pipeline.ingest.store import file_sha256
from pipeline.ledger.names import run_called
from pipeline.stream.views import ViewsConfig
from ssl_models.encoders import IMAGENET_MEAN, IMAGENET_STD, EncoderConfig, ImageEncoder

LIBRARIES = ("timm", "torchvision", "open_clip")
WAYS = (
    "a run's directory, a name in the ledger (champion), a folder of `feral export`, or LIBRARY:MODEL@FILE with a file "
    "of weights, LIBRARY one of " + (", ".join(LIBRARIES))
)
EXPORTED = {  # a file of the folder, and what must stand in it → the form of the export
    ("open_clip_config.json", "model_cfg"): "open_clip",
    ("config.json", "architecture"): "timm",
    ("encoder.json", "architecture"): "safetensors",
    ("encoder.json", "model"): "torchvision",
}


def find_encoders(text: str) -> Encoders:
    """The encoder that a person names.

    Raises:
        ValueError: no such run, folder, library, model or file; the message says what is.
    """
    if run := run_called(text):
        return RunEncoders.of(run)
    path = Path(text)
    if path.is_dir():
        return ForeignEncoders(_form_of(path), str(path.absolute()), _weights_of(path)).checked()
    library, colon, rest = text.partition(":")
    model, at, weights = rest.partition("@")
    if library not in LIBRARIES or not colon:
        raise ValueError(f"{text} is no encoder: give {WAYS}")
    if not at or not Path(weights).is_file():
        missing = f"there is no file {weights}" if at else "it names no weights"
        raise ValueError(
            f"{text}: {missing}: give {library}:{model or 'MODEL'}@FILE (nothing is downloaded; untrained, it "
            "stands in the table as the random encoder)"
        )
    return ForeignEncoders(library, model, Path(weights).absolute()).checked()


def _form_of(folder: Path) -> str:
    for (name, key), form in EXPORTED.items():
        if (folder / name).is_file() and key in json.loads((folder / name).read_text()):
            return form
    graph = next((path.name for path in folder.iterdir() if path.suffix in (".onnx", ".pt2")), None)
    if graph:
        raise ValueError(
            f"{folder} holds a graph ({graph}), which has no untrained twin to compare with: evaluate the run, or "
            "another form of its export"
        )
    raise ValueError(f"{folder} is no encoder: give {WAYS}")


def _weights_of(folder: Path) -> Path:
    found = sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        raise ValueError(f"{folder} holds {len(found)} files of weights (*.safetensors), instead of one")
    return found[0].absolute()


@dataclass(frozen=True)
class ForeignEncoders:
    """`form`: a library, or "safetensors", a folder of ours. `model`: a name in the library, or an exported folder."""

    form: str
    model: str
    weights: Path

    def checked(self) -> "ForeignEncoders":
        """Itself, once it was built with its weights.

        Raises:
            ValueError: the library knows no such model, or the file is not of it.
        """
        try:
            self.load()
        except Exception as error:  # libraries raise anything, torch of a file that holds code a pickle's own error
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(f"{self.checkpoint_name} cannot be loaded: {first}") from error
        return self

    @property
    def folder(self) -> Path | None:
        return Path(self.model) if Path(self.model).is_dir() else None

    @property
    def name(self) -> str:
        return self.folder.name if self.folder else f"{self.form}:{self.model}"

    @property
    def checkpoint_name(self) -> str:
        return str(self.folder) if self.folder else f"{self.form}:{self.model}@{self.weights}"

    @property
    def step(self) -> int:
        return 0

    @cached_property
    def digest(self) -> str:
        return digest_of([self.form, self.folder is None and self.model, file_sha256(self.weights), repr(self.sees)])

    @cached_property
    def sees(self) -> Sees:
        return self._built[1]

    @property
    def augmentation(self) -> ViewsConfig:
        return ViewsConfig()

    @cached_property
    def context_length(self) -> int | None:
        return getattr(self._built[0], "context_length", None)

    def load(self) -> dict[str, nn.Module]:
        torch.manual_seed(0)
        random, _ = self._build(trained=False)
        trained, _ = self._build(trained=True)
        return {"trained": trained.eval(), "random": random.eval(), "pixels": Pixels()}

    @property
    def _built(self) -> tuple[nn.Module, Sees]:
        return self._build(trained=False)

    def _build(self, *, trained: bool) -> tuple[nn.Module, Sees]:
        return BUILDERS[self.form](self.model, self.folder, self.weights if trained else None)


class Foreign(nn.Module):
    """`model`: images (B, 3, S, S) → embeddings (B, dim)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def embed(self, images: Tensor) -> Tensor:
        return self.model(images).flatten(1)


class ForeignPair(nn.Module):
    """Both towers of open_clip. What is judged as embedding is the projection, the last that the image tower gives."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.pair = model
        self.context_length: int = model.context_length

    def embed(self, images: Tensor) -> Tensor:
        return self.pair.encode_image(images)

    def project_image(self, images: Tensor) -> Tensor:
        return F.normalize(self.pair.encode_image(images), dim=-1)

    def project_text(self, tokens: Tensor) -> Tensor:
        return F.normalize(self.pair.encode_text(tokens), dim=-1)


def _timm(model: str, folder: Path | None, weights: Path | None) -> tuple[nn.Module, Sees]:
    import timm

    name = f"local-dir:{folder}" if folder else model
    overlay = {} if folder or weights is None else {"pretrained_cfg_overlay": {"file": str(weights)}}
    if not folder and not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:6])
        raise ValueError(f"timm has no model {name!r}; similar: {close or 'none'}")
    found = timm.create_model(name, pretrained=weights is not None, num_classes=0, **overlay)
    seen = timm.data.resolve_model_data_config(found)
    return Foreign(found), Sees(seen["input_size"][-1], tuple(seen["mean"]), tuple(seen["std"]))


def _torchvision(model: str, folder: Path | None, weights: Path | None) -> tuple[nn.Module, Sees]:
    import torchvision

    written = json.loads((folder / "encoder.json").read_text()) if folder else {}
    found = torchvision.models.get_model(written.get("model", model), weights=None, **written.get("arguments", {}))
    if written:
        setattr(found, written["head"], nn.Identity())
    if weights is not None:
        found.load_state_dict(_state(weights))
    if not written:
        _drop_last_linear(found)
    seen = Sees(written["image_size"], tuple(written["mean"]), tuple(written["std"])) if written else IMAGENET
    return Foreign(found), seen


IMAGENET = Sees(224, IMAGENET_MEAN, IMAGENET_STD)  # what torchvision's weights of classifiers were made for


def _drop_last_linear(model: nn.Module) -> None:
    """The classifier, by whatever name: what it reads is the embedding."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError("it ends in no linear classifier, so what its embedding is cannot be told")
    parent, _, last = linear[-1].rpartition(".")
    setattr(model.get_submodule(parent), last, nn.Identity())


def _open_clip(model: str, folder: Path | None, weights: Path | None) -> tuple[nn.Module, Sees]:
    import open_clip

    if folder:
        found = open_clip.create_model(f"local-dir:{folder}", load_weights=weights is not None)
    else:
        found = open_clip.create_model(model, pretrained=weights and str(weights), pretrained_text=False)
    text = (json.loads((folder / "open_clip_config.json").read_text())["model_cfg"] if folder else
            open_clip.get_model_config(model))["text_cfg"]  # fmt: skip
    if text.get("hf_tokenizer_name"):
        raise ValueError(f"its texts are tokens of {text['hf_tokenizer_name']}, and only CLIP's own are known here")
    seen = found.visual.preprocess_cfg
    size = seen["size"] if isinstance(seen["size"], int) else seen["size"][0]
    return ForeignPair(found), Sees(size, tuple(seen["mean"]), tuple(seen["std"]))


def _safetensors(model: str, folder: Path | None, weights: Path | None) -> tuple[nn.Module, Sees]:
    assert folder is not None
    written = json.loads((folder / "encoder.json").read_text())
    stems = {(1, False): "small", (2, False): "small_stride2", (1, True): "small_pool"}
    stem, arguments = written["stem"], dict(written["arguments"])
    arguments.pop("img_size", None)
    config = EncoderConfig(
        name=written["architecture"],
        image_size=written["image_size"],
        stem=stems[stem["stride"], stem["pool"]] if stem else "imagenet",  # type: ignore[arg-type]
        patch_size=arguments.pop("patch_size", None),
        arguments=arguments,
        mean=written["mean"],
        std=written["std"],
    )
    encoder = ImageEncoder(config)
    if weights is not None:
        encoder.model.load_state_dict(_state(weights))
    return Foreign(encoder), Sees(config.image_size, config.mean, config.std)


BUILDERS: dict[str, Callable[[str, Path | None, Path | None], tuple[nn.Module, Sees]]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "open_clip": _open_clip,
    "safetensors": _safetensors,
}


def _state(path: Path) -> dict[str, Tensor]:
    """Weights of a file: safetensors, or torch's own format, of which nothing but tensors is read."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    state = next((state[key] for key in ("state_dict", "model") if isinstance(state.get(key), dict)), state)
    return {name.removeprefix("module."): value for name, value in state.items()}
