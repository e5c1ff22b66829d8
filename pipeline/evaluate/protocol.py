"""How an encoder is judged: the settings, and the table of scores that every evaluator fills."""

from math import sqrt
from typing import Literal

from pydantic import Field

from ssl_models.config import Config


class EvaluationConfig(Config):
    """Every score is on the test split, which neither training nor any choice has seen."""

    neighbours: int = Field(20, ge=1, description="k of the weighted k-nearest-neighbour classifier")
    neighbour_temperature: float = Field(0.07, gt=0, description="a neighbour weighs exp(cosine / temperature)")
    max_images: int = Field(100_000, ge=100, description="at most this many images of each split")
    linear_iterations: int = Field(300, ge=1, description="L-BFGS iterations of the linear probe")
    online_images: int = Field(
        0,
        ge=0,
        description="training images that new checkpoints are judged on while training goes on; 0: they are not",
    )


class Score(Config):
    """One measure of the trained encoder beside its baselines, with the protocol that gave it."""

    name: str
    protocol: str
    num_queries: int
    trained: float
    random_encoder: float
    raw_pixels: float
    chance: float
    unit: Literal["share", "index"] = "share"  # an index, as the silhouette, is no share of the queries
    interval: tuple[float, float] | None = None  # of the trained one; None in older files
    supervised: float | None = None  # of the same encoder, trained with labels; None: there is none, or it has no such

    def shown(self, value: float | None) -> str:
        if value is None:
            return "–"
        return f"{100 * value:.1f} %" if self.unit == "share" else f"{value:.3f}"

    @property
    def reach(self) -> tuple[float, float]:
        """The interval that the trained encoder's true score lies in, at 95 %."""
        return self.interval or wilson(self.trained, self.num_queries)


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a binomial share (Wilson 1927): it stays in [0, 1], and is right near its ends too."""
    centre = share + z * z / (2 * count)
    reach = z * sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    low, high = (centre - reach) / scale, (centre + reach) / scale
    return max(0.0, min(share, low)), min(1.0, max(share, high))  # but for rounding, the share lies between


class Health(Config):
    """What embeddings show without labels: see `pipeline.evaluate.health`."""

    num_images: int
    dim: int
    rank: float  # effective, from 1 to min(num_images, dim)
    spread: float  # per-dimension standard deviation over that of evenly spread directions, in [0, 1]
    mean_cosine: float  # of two different images
    uniformity: float | None = None  # 0: all alike; None in older files
    alignment: float | None = None  # of two views of an image; 0: equal; None: not measured


class Confusion(Config):
    """What the k-NN classifier takes the test images of each class for."""

    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]  # [truth][answer]


class Map(Config):
    """Test images in the plane, neighbours near each other."""

    method: str
    numbers: tuple[int, ...]
    points: tuple[tuple[float, float], ...]


class Evaluation(Config):
    """`evaluation.json` of a run; of another encoder `checkpoint` says which, and `step` is 0."""

    checkpoint: str
    step: int
    store_digest: str
    encoder_digest: str = ""  # of all that the embeddings depend on, but for the images; none in older files
    asked: str = ""  # digest of how and about which samples it was asked; none in older files
    scores: list[Score]
    skipped: list[str]  # evaluators that could not run, each with its reason
    neighbours: dict[int, list[int]]  # a few test samples → their nearest training samples, for the report
    seconds: float
    also: tuple[str, ...] = ()  # evaluators that were asked for, beside those that always run
    health: dict[str, Health] = Field(default_factory=dict)  # "trained", "random"; none in older files
    confusion: Confusion | None = None
    map: Map | None = None

    @property
    def has_twin(self) -> bool:
        """Whether the same encoder, trained with labels, stands beside it."""
        return any(score.supervised is not None for score in self.scores)

    @property
    def columns(self) -> dict[str, str]:
        """The values of a score, and what tables call them."""
        twin = {"supervised": "supervised twin"} if self.has_twin else {}
        return {
            "trained": "trained",
            "random_encoder": "random encoder",
            "raw_pixels": "raw pixels",
            "chance": "chance",
            **twin,
        }

    def score(self, name: str) -> Score | None:
        return next((score for score in self.scores if score.name == name), None)
