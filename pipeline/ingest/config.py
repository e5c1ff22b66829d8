"""What is let into a store, and in which form."""

from pydantic import Field

from ssl_models.config import Config


class CurateConfig(Config):
    """Settings of reading and decoding. What of it is used afterwards is a policy's business (`pipeline.select`)."""

    side: int = Field(default=288, ge=16, le=4096, description="short side of the stored pictures, at most, in pixels")
    quality: int = Field(default=90, ge=30, le=100, description="JPEG quality of the stored pictures")
    decode_min_side: int = Field(default=8, ge=1, description="pictures with a shorter side are refused undecoded")
    max_pixels: int = Field(
        default=50_000_000, ge=1, le=89_000_000, description="larger pictures are refused undecoded"
    )
    decode_seconds: float = Field(default=20, gt=0, le=3600, description="time for one picture, then it is refused")
    decode_memory_bytes: int = Field(
        default=2 * 2**30, ge=2**28, description="memory for decoding a picture, then it is refused"
    )
    samples_per_shard: int = Field(default=2000, ge=1, le=100_000, description="samples in a shard, at most")
    holdout: float = Field(default=0.1, ge=0, lt=1, description="share that becomes test if the source names no split")
    in_place: bool = Field(default=False, description="write no copy: the index refers to the source's own files")
    compressed: bool = Field(
        default=False, description="read compressed tars (.tar.gz …): only from a source you trust"
    )
    image_column: str | None = Field(default=None, description="Parquet column of images; None: the usual names")
    caption_column: str | None = Field(default=None, description="Parquet column of captions; None: the usual names")
