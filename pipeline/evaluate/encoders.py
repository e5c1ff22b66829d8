"""What is judged: an encoder, and the same one before training. Small enough to be sent to processes, which load it."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.evaluate.twin import called
from pipeline.experiment import Experiment, build_experiment
from pipeline.run import Run
from pipeline.stream.views import DeviceViews, ViewsConfig
from pipeline.train.checkpoints import Checkpoint
from pipeline.train.checkpoints.commit import read_commit
from ssl_models.encoders import Channels
from ssl_models.objectives import Objective, build_objective

ENCODERS = ("trained", "random", "pixels")
THUMBNAIL = 12  # side of the raw-pixel baseline: on small photos stronger than all pixels


@runtime_checkable
class ComparesText(Protocol):
    """An encoder whose images and texts meet in one space."""

    def project_image(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) → (B, D), L2-normalised."""

    def project_text(self, tokens: Tensor) -> Tensor:
        """(B, L) → (B, D), L2-normalised."""


@dataclass(frozen=True)
class Sees:
    """The images that an encoder was made for."""

    image_size: int
    mean: Channels
    std: Channels

    @property
    def views(self) -> DeviceViews:
        return self.views_of(None)

    def views_of(self, augmentation: ViewsConfig | None) -> DeviceViews:
        """None: nothing is changed, as in evaluation."""
        plain = augmentation is None
        return DeviceViews(augmentation or ViewsConfig(), seed=0, plain=plain, mean=self.mean, std=self.std)


class Pixels(nn.Module):
    """The baseline of raw pixels: (B, 3, S, S) → (B, 3 · 12 · 12)."""

    def embed(self, images: Tensor) -> Tensor:
        return F.interpolate(images, (THUMBNAIL, THUMBNAIL), mode="bilinear", antialias=True).flatten(1)


class Encoders(Protocol):
    """An encoder under the names "trained" and "random"; and "pixels"."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def checkpoint_name(self) -> str: ...

    @property
    def step(self) -> int:
        """That it was trained for; 0: not told."""

    @property
    def digest(self) -> str:
        """Of all that its embeddings depend on, but for the images."""

    @property
    def sees(self) -> Sees: ...

    @property
    def augmentation(self) -> ViewsConfig:
        """That it was trained with; of others' encoders, where nobody knows, SimCLR's."""

    @property
    def context_length(self) -> int | None:
        """Tokens of a text; None: it knows no text."""

    def load(self) -> dict[str, Any]:
        """Each of `ENCODERS`, on the CPU, for evaluation."""


@dataclass(frozen=True)
class RunEncoders:
    """The newest checkpoint of a run, and its objective before the first step."""

    run: str
    settings: dict[str, Any]
    checkpoint: Checkpoint

    @classmethod
    def of(cls, run: Run) -> "RunEncoders":
        """
        Raises:
            ValueError: the run has no whole checkpoint.
        """
        checkpoint = run.newest_checkpoint()
        if checkpoint is None:
            raise ValueError(f"{run.path} has no whole checkpoint: train it first, with `feral pretrain`")
        return cls(called(run), run.experiment.model_dump(mode="json"), checkpoint)

    @property
    def experiment(self) -> Experiment:
        return build_experiment(self.settings)

    @property
    def name(self) -> str:
        return self.run

    @property
    def directory(self) -> Path:
        """Of the run."""
        return self.checkpoint.path.parent.parent

    @property
    def checkpoint_name(self) -> str:
        return self.checkpoint.path.name

    @property
    def step(self) -> int:
        return self.checkpoint.step

    @property
    def digest(self) -> str:
        experiment, commit = self.experiment, read_commit(self.checkpoint.path, digests=False)
        named = experiment.named_by()
        parts = {name: named[name] for name in ("encoder", "objective")}
        return digest_of({**parts, "seed": experiment.training.seed, "checkpoint": commit.digest})

    @property
    def sees(self) -> Sees:
        encoder = self.experiment.encoder
        return Sees(encoder.image_size, encoder.mean, encoder.std)

    @property
    def augmentation(self) -> ViewsConfig:
        return self.experiment.views

    @property
    def context_length(self) -> int | None:
        return self.experiment.context_length

    def load(self) -> dict[str, nn.Module]:
        return {**load_pair(self.experiment, self.checkpoint), "pixels": Pixels()}


def load_pair(experiment: Experiment, checkpoint: Checkpoint) -> dict[str, Objective]:
    """The trained objective and the same one before its first step, both for evaluation."""
    torch.manual_seed(experiment.training.seed)
    random = build_objective(experiment.objective, experiment.encoder)
    trained = build_objective(experiment.objective, experiment.encoder)
    checkpoint.restore_objective(trained)
    return {"trained": trained.eval(), "random": random.eval()}


def digest_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
