"""The contract of a self-supervised task."""

from typing import ClassVar

from torch import Tensor, nn

from ssl_models.batch import Batch, Step
from ssl_models.config import Config as AnyConfig
from ssl_models.encoders import EncoderConfig, ImageEncoder
from ssl_models.momentum import MomentumTeacher


class Objective(nn.Module):
    """A self-supervised task: an encoder, the heads that train it, its losses.

    All that must survive a restart (teacher, queue, centre, prototypes) is a submodule or a buffer: `state_dict` is
    the whole state. Random draws come from `uniform(step.seed, step.number, batch.ids, …)`, so that k ranks compute
    what one rank would. An objective never sees an optimizer, a file, an epoch or Ray.

    What belongs to the data comes through fields of its Config that are None in a recipe and filled from the store:
    `num_samples` (sample ids are below it: for a bank with a slot a sample) and `num_classes`. Where nobody has filled
    them in, a model is only built to be looked at.

    A new method is a subclass with a nested `Config` (its `name` a Literal), and one line in the table.
    """

    Config: ClassVar[type[AnyConfig]]
    num_views: ClassVar[int] = 1
    takes_local_crops: ClassVar[bool] = False  # smaller views after the first `num_views`, any number of them
    needs_text: ClassVar[bool] = False
    remembers_samples: ClassVar[bool] = False  # holds something of each sample: a row of a bank, a class
    upright: ClassVar[bool] = False  # learns directions: views that are turned by chance would be noise in its labels
    phases: ClassVar[tuple[str, ...]] = ("main",)  # one optimizer each, stepped in this order
    constant_rate: ClassVar[tuple[str, ...]] = ()  # parameters, by the start of their names, whose rate has no curve

    encoder: ImageEncoder

    def __init__(self, config: AnyConfig, encoder: EncoderConfig) -> None:
        super().__init__()
        self.encoder = ImageEncoder(encoder)

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        """Scalars by name: "loss" is minimised, all are logged."""
        raise NotImplementedError

    def trainable(self, phase: str) -> list[tuple[str, nn.Parameter]]:
        """The parameters that a phase moves."""
        return [(name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad]

    def after_step(self, step: Step) -> None:
        """Moves what no optimizer moves: teacher, queue, centre, clamped scale. Called once, after all phases, on every
        rank; what it moves must end up equal on all ranks."""

    def start_encoder(self, weights: dict[str, Tensor]) -> None:
        """Gives the encoder, and momentum teachers of it, the weights that another run's encoder has. Once, before the
        first step.

        Raises:
            RuntimeError: they are not those of such an encoder, or not all.
        """
        self.encoder.load_state_dict(weights)
        copies = (layer for module in self.modules() if isinstance(module, MomentumTeacher) for layer in module.layers)
        for copy in copies:
            if isinstance(copy, ImageEncoder):
                copy.load_state_dict(weights)

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, dim): what probes judge."""
        return self.encoder(images)


class SeparableObjective(Objective):
    """An objective that encodes each sample by itself, and whose loss sees the embeddings of all. So a batch can be
    encoded in parts, with the memory of one part: see `training.micro_batch`. `forward` is the two, one after the
    other. What it draws from `uniform` does not depend on the parts; BatchNorm does, and is refused there.
    """

    def encode(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        """Embeddings by name, each (B, …): row i is a function of sample i alone."""
        raise NotImplementedError

    def loss(self, encoded: dict[str, Tensor], step: Step) -> dict[str, Tensor]:
        """What `forward` returns, from the embeddings of this rank's whole share of the batch."""
        raise NotImplementedError

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        return self.loss(self.encode(batch, step), step)
