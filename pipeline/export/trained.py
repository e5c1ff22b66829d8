"""What is exported: the newest checkpoint of a run."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from pipeline.evaluate.encoders import RunEncoders, load_pair
from pipeline.experiment import Experiment
from pipeline.run import Run
from pipeline.train.checkpoints import Checkpoint
from ssl_models.encoders import EncoderConfig
from ssl_models.objectives import Objective


@dataclass(frozen=True)
class Trained:
    """The trained objective of a run, on the CPU and for evaluation."""

    run: Run
    experiment: Experiment
    checkpoint: Checkpoint
    objective: Objective

    @classmethod
    def of(cls, run: Run) -> "Trained":
        """
        Raises:
            ValueError: the run has no whole checkpoint.
        """
        found = RunEncoders.of(run)
        return cls(run, found.experiment, found.checkpoint, load_pair(found.experiment, found.checkpoint)["trained"])

    @property
    def config(self) -> EncoderConfig:
        return self.experiment.encoder

    @cached_property
    def whole(self) -> "Whole":
        return Whole(self.objective).eval()

    @cached_property
    def examples(self) -> Tensor:
        """(4, 3, S, S) in [0, 1]: made pictures, to compare embeddings on."""
        side = self.config.image_size
        coarse = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        return nn.functional.interpolate(coarse, (side, side), mode="bilinear").contiguous()

    def timm_model(self, form: str) -> tuple[nn.Module, dict]:
        """A timm model that gives the embeddings by itself, and the arguments that make such a one.

        Raises:
            ValueError: timm has no such model.
        """
        import timm

        if self.stem is not None:
            raise ValueError(
                f"encoder.stem={self.config.stem} is a stem of feral's own, for small images; {form} has no model with "
                "it: use --to safetensors (three more lines of code), onnx or torch_export"
            )
        arguments = self.timm_arguments(form)
        model = timm.create_model(self.config.name, num_classes=0, **arguments)
        model.load_state_dict(self.objective.encoder.model.state_dict())
        return model.eval(), arguments

    def timm_arguments(self, form: str) -> dict:
        """Of `timm.create_model`, beside `num_classes=0`.

        Raises:
            ValueError: the embedding is not that of the encoder alone.
        """
        if type(self.objective).embed is not Objective.embed:
            raise ValueError(
                f"{self.experiment.objective.name} embeds by more than one pass of its encoder; {form} holds plain "
                "encoders: use --to onnx or torch_export"
            )
        config, arguments = self.config, dict(self.config.arguments)
        if config.name.startswith(("vit_", "deit_")):
            arguments["img_size"] = config.image_size
            arguments |= {"patch_size": config.patch_size} if config.patch_size is not None else {}
            # the mean of tokens that the last norm has seen: timm's own mean norms it after
            arguments |= {"global_pool": "avg", "fc_norm": False} if config.pool == "mean" else {}
        return arguments

    @property
    def stem(self) -> dict | None:
        """What stands in place of a ResNet's 7×7 convolution and pooling, if something does."""
        convolution, pool = (getattr(self.objective.encoder.model, name, None) for name in ("conv1", "maxpool"))
        if not isinstance(convolution, nn.Conv2d) or pool is None or convolution.kernel_size != (3, 3):
            return None
        return {"stride": convolution.stride[0], "pool": not isinstance(pool, nn.Identity)}

    @property
    def normalisation(self) -> dict[str, list[float]]:
        return {"mean": list(self.config.mean), "std": list(self.config.std)}


class Whole(nn.Module):
    """Pixels (B, 3, S, S) in [0, 1] → embeddings (B, dim), by all that the objective's method `embed` does."""

    def __init__(self, objective: Objective, embed: str = "embed") -> None:
        super().__init__()
        self.objective, self.embed = objective, embed

    def forward(self, pixels: Tensor) -> Tensor:
        return getattr(self.objective, self.embed)(self.objective.encoder.normalized(pixels))
