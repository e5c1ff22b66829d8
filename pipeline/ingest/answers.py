"""What a decoder child may answer. It has seen hostile bytes, so nothing is believed that was not checked."""

import math
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from pipeline.ingest.decode import FLAGS, FORMATS, MAX_PIXELS, Decoded
from pipeline.ingest.decoder_child import KEPT, REFUSED
from pipeline.ingest.measures import Measures
from pipeline.ingest.refusals import Refusal
from pipeline.ingest.samples import printable
from ssl_models.config import Config

LONGEST = 65_500  # pixels a side of a JPEG
HEADER_BYTES = 2**14


class DecodeLimits(Config):
    """What a picture may cost, and what is made of it."""

    side: int = Field(288, ge=1)  # pixels; the most that the shorter side of the canonical picture has
    quality: int = Field(90, ge=1, le=100)  # of its JPEG
    min_side: int = Field(8, ge=1)  # pixels
    max_pixels: int = Field(MAX_PIXELS, ge=1)
    encode: bool = True  # False, for an index in place: no JPEG is made, and sizes are natural
    seconds: float = Field(20.0, gt=0)  # wall clock a picture
    memory_bytes: int = Field(2 * 2**30, ge=2**28)  # address space of the child beyond that of its start

    @property
    def body_bytes(self) -> int:
        """No JPEG of a canonical picture is larger."""
        return 4 * min(self.max_pixels, self.side * LONGEST) + 2**16


_Hex48 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{96}$")]
_Finite = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Measured(Config):
    mean: Annotated[_Finite, Field(le=255)]
    std: Annotated[_Finite, Field(le=255)]
    entropy: Annotated[_Finite, Field(le=8.001)]
    sharpness: _Finite
    phash: Annotated[int, Field(ge=0, lt=2**64)]
    thumb: _Hex48


class _Kept(Config):
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    original_width: int = Field(ge=1)
    original_height: int = Field(ge=1)
    format: Literal[FORMATS]  # type: ignore[valid-type]
    flags: Annotated[tuple[Literal[FLAGS], ...], Field(max_length=len(FLAGS))]  # type: ignore[valid-type]
    pixels: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    measures: _Measured


class _Refused(Config):
    reason: Literal[
        "format_forbidden", "header_bad", "pixels_over_cap", "side_under_min", "aspect_over_max", "decode_failed",
        "decode_oom", "blank",
    ]  # fmt: skip
    detail: Annotated[str, StringConstraints(max_length=300)]


def refused(kind: int, header: bytes) -> Refusal | None:
    """The refusal that an answer is, as it may be; None: it holds something. Raises: ValueError."""
    if kind == REFUSED:
        found = _Refused.model_validate_json(header, strict=True)
        return Refusal(found.reason, printable(found.detail))
    if kind != KEPT:
        raise ValueError(f"an answer of kind {kind}")
    return None


def checked(kind: int, header: bytes, body: bytes, limits: DecodeLimits) -> Decoded | Refusal:
    """An answer as it may be. Raises: ValueError."""
    if (refusal := refused(kind, header)) is not None:
        return refusal
    kept = _Kept.model_validate_json(header, strict=True)
    natural = (kept.original_width, kept.original_height)
    if math.prod(natural) > limits.max_pixels or min(natural) < limits.min_side:
        raise ValueError(f"a picture of {natural[0]}×{natural[1]} pixels, which is out of bounds")
    if limits.encode:
        good = body.startswith(b"\xff\xd8\xff") and body.endswith(b"\xff\xd9")
        good &= kept.width <= natural[0] and kept.height <= natural[1] and min(kept.width, kept.height) <= limits.side
    else:
        good = not body and (kept.width, kept.height) == natural
    if not good:
        raise ValueError(f"{len(body)} bytes that are no JPEG of {kept.width}×{kept.height} pixels")
    measured = vars(kept.measures) | {"thumb": bytes.fromhex(kept.measures.thumb)}
    return Decoded(**vars(kept) | {"jpeg": body, "measures": Measures(**measured)})
