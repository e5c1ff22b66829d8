"""Where an encoder begins: with the weights of another run's."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from pipeline.train.checkpoints import Checkpoint, checkpoint_of, newest_checkpoint
from pipeline.train.checkpoints.commit import OBJECTIVE
from pipeline.train.loop import TrainingConfig
from ssl_models.encoders import CHANGES_NOTHING, EncoderConfig, ImageEncoder, is_resnet

PREFIX, POSITIONS = "encoder.", "model.pos_embed"
ALIKE = ("name", "patch_size", "mean", "std")  # settings of an encoder that must be as they are where it comes from


def newest_of(path: str, setting: str) -> Checkpoint:
    """The weights that a run has now; `setting` is what names it.

    Raises:
        ValueError: there is no such run, or it has no whole checkpoint.
    """
    run = Path(path)
    if not (run / "experiment.json").is_file():
        raise ValueError(f"{setting}={path} is no run: it has no experiment.json; name a run directory")
    checkpoint = newest_checkpoint(run / "checkpoints")
    if checkpoint is None:
        raise ValueError(f"{setting}={path} has no whole checkpoint: train it first (`feral pretrain`)")
    return checkpoint


def named_checkpoint(setting: str, path: str | None, digest_setting: str, digest: str | None) -> Checkpoint:
    """The checkpoint that two settings name by run and digest, with every byte as it was saved.

    Raises:
        ValueError: the run keeps no such checkpoint any more.
    """
    try:
        return checkpoint_of(Path(path or "") / "checkpoints", digest or "")
    except ValueError as error:
        raise ValueError(
            f"{setting}={path} has no checkpoint with {digest_setting}={digest} any more ({error}): restore it, or "
            f"begin a run in another directory, with {digest_setting}=null for the newest"
        ) from None


def start_weights(training: TrainingConfig, encoder: EncoderConfig) -> dict[str, Tensor]:
    """The weights of an `encoder` that begins as `training` says; a ViT's table of positions is resampled to its size.

    Raises:
        ValueError: what is there does not fit, in words for a person.
    """
    checkpoint, model = check_start(training, encoder)
    with safe_open(checkpoint.path / OBJECTIVE, "pt") as file:
        names = [name for name in file.keys() if name.startswith(PREFIX)]  # noqa: SIM118
        weights = {name.removeprefix(PREFIX): file.get_tensor(name) for name in names}
    if POSITIONS in weights:
        weights[POSITIONS] = _resampled(model, weights[POSITIONS])
    return weights


def check_start(training: TrainingConfig, encoder: EncoderConfig) -> tuple[Checkpoint, ImageEncoder]:
    """Compares settings, names and shapes, and reads no weights. Returns where they are, and the encoder on the meta
    device.

    Raises:
        ValueError: they are not those of such an encoder.
    """
    checkpoint = named_checkpoint(
        "training.start_from", training.start_from, "training.start_digest", training.start_digest
    )
    content = json.loads((Path(training.start_from or "") / "experiment.json").read_text())
    with torch.device("meta"):
        model = ImageEncoder(encoder)
    there = EncoderConfig.model_validate(content["encoder"])
    differ = {name: (getattr(there, name), getattr(encoder, name)) for name in ALIKE}
    if is_resnet(model.model):
        differ["stem"] = (there.resnet_stem, encoder.resnet_stem)
    for name in {**there.arguments, **encoder.arguments}.keys() - CHANGES_NOTHING:
        differ[f"arguments.{name}"] = (there.arguments.get(name), encoder.arguments.get(name))
    words = [f"encoder.{name} is {a} there, {b} here" for name, (a, b) in sorted(differ.items()) if a != b]
    if words:
        raise ValueError(f"{_other(training)}: {'; '.join(words)}; give it the same")
    with safe_open(checkpoint.path / OBJECTIVE, "pt") as file:
        found = {
            name.removeprefix(PREFIX): tuple(file.get_slice(name).get_shape())
            for name in file.keys()  # noqa: SIM118
            if name.startswith(PREFIX)
        }
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if POSITIONS in wanted and POSITIONS in found and _can_resample(model, found[POSITIONS]):
        found[POSITIONS] = wanted[POSITIONS]
    faults = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    faults += [f"{name} is unexpected" for name in found.keys() - wanted.keys()]
    faults += [f"{n} is {found[n]}, not {wanted[n]}" for n in wanted.keys() & found.keys() if wanted[n] != found[n]]
    if faults:
        size = (
            "" if there.image_size == encoder.image_size else f"; try encoder.image_size={there.image_size}, as there"
        )
        raise ValueError(f"{_other(training)}: {sorted(faults)[0]} ({len(faults)} such in all){size}")
    return checkpoint, model


def _other(training: TrainingConfig) -> str:
    return f"training.start_from={training.start_from} has another encoder than this experiment"


def _can_resample(encoder: ImageEncoder, shape: tuple[int, ...]) -> bool:
    """Whether a table of positions (1, prefix + h · w, dim) of another image size can serve: h = w, and a plain ViT."""
    from timm.models import VisionTransformer

    vit = encoder.model
    if not isinstance(vit, VisionTransformer) or len(shape) != 3:
        return False
    places = shape[1] - _prefix(vit)
    return shape[2] == vit.pos_embed.shape[2] and places > 0 and round(places**0.5) ** 2 == places


def _resampled(encoder: ImageEncoder, table: Tensor) -> Tensor:
    from timm.layers import resample_abs_pos_embed

    vit = encoder.model
    if table.shape == vit.pos_embed.shape:
        return table
    return resample_abs_pos_embed(table, list(vit.patch_embed.grid_size), num_prefix_tokens=_prefix(vit))


def _prefix(vit) -> int:
    """Tokens before the patches that have a position of their own."""
    return 0 if vit.no_embed_class else vit.num_prefix_tokens
