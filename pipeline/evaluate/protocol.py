"""How an encoder is judged: the settings, and the table of scores that every evaluator fills."""

from pydantic import Field

from ssl_models.config import Config


class EvaluationConfig(Config):
    """Every score is on the test split, which neither training nor any choice has seen."""

    neighbours: int = Field(20, ge=1, description="k of the weighted k-nearest-neighbour classifier")
    neighbour_temperature: float = Field(0.07, gt=0, description="a neighbour weighs exp(cosine / temperature)")
    max_images: int = Field(100_000, ge=100, description="at most this many images of each split")
    linear_iterations: int = Field(300, ge=1, description="L-BFGS iterations of the linear probe")


class Score(Config):
    """One measure of the trained encoder beside its baselines, with the protocol that gave it."""

    name: str
    protocol: str
    num_queries: int
    trained: float
    random_encoder: float
    raw_pixels: float
    chance: float


class Health(Config):
    """What embeddings show without labels: see `pipeline.evaluate.health`."""

    num_images: int
    dim: int
    rank: float  # effective, from 1 to min(num_images, dim)
    spread: float  # per-dimension standard deviation over that of evenly spread directions, in [0, 1]
    mean_cosine: float  # of two different images


class Evaluation(Config):
    """`evaluation.json` of a run."""

    checkpoint: str
    step: int
    store_digest: str
    scores: list[Score]
    skipped: list[str]  # evaluators that could not run, each with its reason
    neighbours: dict[int, list[int]]  # a few test samples → their nearest training samples, for the report
    seconds: float
    health: dict[str, Health] = Field(default_factory=dict)  # "trained", "random"; none in older files

    def score(self, name: str) -> Score | None:
        return next((score for score in self.scores if score.name == name), None)
