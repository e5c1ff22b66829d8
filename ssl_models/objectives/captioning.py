"""Captioning: an image encoder that learns from having to say, word by word, what is in the picture."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_models.batch import Batch, Step
from ssl_models.chunks import Chunk, num_nearest, sums_over_rows
from ssl_models.collectives import mean_over_ranks
from ssl_models.config import Config
from ssl_models.encoders import EncoderConfig, TextConfig, short_attention
from ssl_models.objectives.objective import Objective


def num_words(tokens: Tensor) -> Tensor:
    """(B, L) → (B,): tokens after the first one, up to the end token, the largest id of a row. Zeros do not tell the
    padding: 0 is a token of its own in CLIP's vocabulary."""
    return tokens.argmax(1)


def reversed_captions(tokens: Tensor) -> Tensor:
    """(B, L) → (B, L): start, a, b, end → end, b, a, start. What stands after these means nothing."""
    place = num_words(tokens)[:, None] - torch.arange(tokens.shape[1], device=tokens.device)
    return tokens.gather(1, place.clamp(min=0))


def next_token_loss(
    states: Tensor, tokens: Tensor, counts: Tensor, words: nn.Linear, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """Cross entropy of each token given those before it, a mean over all tokens of the *global* batch: ranks whose
    captions are longer count for more. Equals ln(vocabulary) when nothing is learned.

    Args:
        states: (B, L, H), what the decoder makes of tokens 0 … i at place i; tokens: (B, L).
        counts: (B,), how many tokens after the first are to be predicted; the others are padding.
        words: H → vocabulary.
        chunk: tokens whose logits, (chunk, vocabulary), are in memory at a time; None: all.

    Returns:
        The loss, and the share of tokens that were most probable.
    """
    asked = torch.arange(tokens.shape[1] - 1, device=tokens.device) < counts[:, None]  # (B, L − 1)
    rows, targets = states[:, :-1][asked], tokens[:, 1:][asked][:, None]  # (T, H), (T, 1)

    def sums(rows: Tensor, targets: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        logits = F.linear(rows, weight, bias)  # (T, vocabulary)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return F.cross_entropy(logits, targets[:, 0], reduction="sum"), num_nearest(logits, targets)

    loss, right = sums_over_rows(sums, (rows, targets), (words.weight, words.bias), chunk)
    share = mean_over_ranks(counts.sum().to(loss.dtype))  # global count / ranks: the mean over ranks is the global mean
    return loss / share, right / share


class CaptionDecoder(nn.Module):
    """A transformer decoder that reads a caption from its first token on, and looks at the picture: VirTex's, with
    normalisation after each sub-layer. Without its dropout of 0.1, whose draws would not be the same on k ranks as on
    one."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        width = config.width
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(width, config.heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True)
            for _ in range(config.layers)
        )

    def forward(self, embedded: Tensor, picture: Tensor) -> Tensor:
        """embedded: (B, L, H); picture: (B, h · w, H). Returns (B, L, H): place i has seen places up to i."""
        length = embedded.shape[1]
        later = torch.ones(length, length, dtype=torch.bool, device=embedded.device).triu(1)
        with short_attention(embedded.device):
            for layer in self.layers:
                embedded = layer(embedded, picture, tgt_mask=later)
        return embedded


class Captioning(Objective):
    """VirTex: learning visual representations from textual annotations (Desai and Johnson 2020, arXiv 2006.06666).

    One decoder writes the caption forwards and one backwards, each from the encoder's map; the losses are summed. They
    share the embedding of words, which is also the output layer, and never see each other.
    """

    class Config(Config):
        name: Literal["captioning"] = "captioning"
        text: TextConfig = Field(
            TextConfig(width=256, layers=1, heads=4), description="of each decoder; the paper's width is 1024 to 2048"
        )
        chunk: Chunk = None

    needs_text: ClassVar[bool] = True

    def __init__(self, config: Config, encoder: EncoderConfig) -> None:
        super().__init__(config, encoder)
        text = config.text
        if text.width % text.heads:
            raise ValueError(f"objective.text.width={text.width} is not divisible by text.heads={text.heads}")
        self.chunk = config.chunk
        self._try_features(encoder.image_size)
        self.encoder.refuse_class_token()
        self.look = nn.Linear(self.encoder.dim, text.width)
        self.words = nn.Linear(text.width, text.vocabulary_size)  # its weight is the embedding, too
        self.positional_embedding = nn.Parameter(torch.empty(text.context_length, text.width))
        self.norm = nn.LayerNorm(text.width)
        self.forwards, self.backwards = CaptionDecoder(text), CaptionDecoder(text)
        nn.init.normal_(self.look.weight, std=self.encoder.dim**-0.5)  # the paper's 0.02 is that, for its 2,048
        for weight in (self.words.weight, self.positional_embedding):
            nn.init.normal_(weight, std=0.02)
        nn.init.zeros_(self.words.bias)

    @torch.no_grad()
    def _try_features(self, side: int) -> None:
        """Raises ValueError for an encoder without a map, before anything starts."""
        self.encoder.eval()
        try:
            self.encoder.features(next(self.encoder.parameters()).new_zeros(1, 3, side, side))
        except AttributeError as error:  # tokens, and no word of their places
            name = type(self.encoder.model).__name__
            raise ValueError(
                f"objective captioning looks at the map before pooling, and encoder {name} has none: choose a ResNet "
                "or a ViT, for example encoder.name=resnet18"
            ) from error
        self.encoder.train()

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        assert batch.tokens is not None
        picture = self.look(self.encoder.features(batch.views[0]).flatten(2).mT)  # (B, h · w, H)
        counts = num_words(batch.tokens)
        forward, accuracy = self._loss(self.forwards, batch.tokens, counts, picture)
        backward, _ = self._loss(self.backwards, reversed_captions(batch.tokens), counts, picture)
        return {
            "loss": forward + backward,
            "forward_loss": forward,
            "backward_loss": backward,
            "token_accuracy": accuracy,
        }

    def _loss(self, decoder: CaptionDecoder, tokens: Tensor, counts: Tensor, picture: Tensor) -> tuple[Tensor, Tensor]:
        embedded = self.norm(F.embedding(tokens, self.words.weight) + self.positional_embedding[: tokens.shape[1]])
        return next_token_loss(decoder(embedded, picture), tokens, counts, self.words, self.chunk)
