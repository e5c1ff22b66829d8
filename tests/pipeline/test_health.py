"""Health of embeddings: exact against slow definitions, and a name for each planted collapse."""

from math import sqrt

import numpy as np
import pytest
import torch

from pipeline.evaluate import health as measured
from pipeline.evaluate.health import alignment, collapse, complaint, health
from pipeline.evaluate.protocol import Evaluation, Health, Score
from ssl_models.batch import Batch, Step
from ssl_models.encoders import EncoderConfig
from ssl_models.objectives import SimCLR

GENERATOR = np.random.default_rng(0)
COUNT, DIM = 500, 256
RANDOM = health(GENERATOR.normal(1, 0.3, (COUNT, DIM)))  # as of an encoder before training: much alike


def gaussian(directions: int = DIM, mean: float = 0.0) -> np.ndarray:
    return (
        GENERATOR.normal(size=(COUNT, directions)) @ np.linalg.qr(GENERATOR.normal(size=(DIM, directions)))[0].T + mean
    )


def test_health_equals_its_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "CHUNK", 64)
    features = gaussian(mean=0.1)
    found = health(features)
    sigma = np.linalg.svd(features, compute_uv=False)
    shares = sigma / sigma.sum() + 1e-7
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = [unit[i] @ unit[j] for i in range(COUNT) for j in range(i)]
    assert (found.num_images, found.dim) == (COUNT, DIM)
    assert found.rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-9)
    assert found.mean_cosine == pytest.approx(np.mean(cosines), abs=1e-12)
    assert found.spread == pytest.approx(unit.std(0).mean() * sqrt(DIM), rel=1e-9)


def test_even_directions_are_healthy() -> None:
    found = health(gaussian())
    assert complaint(found, RANDOM) is None
    assert found.spread == pytest.approx(1, abs=0.02)
    assert abs(found.mean_cosine) < 0.01
    assert health(np.eye(64)).rank == pytest.approx(64, rel=1e-3)


@pytest.mark.parametrize("noise", [0, 1e-6, 0.05])
def test_embeddings_that_are_all_alike_are_named(noise: float) -> None:
    found = health(1 + noise * gaussian())
    assert found.spread < 0.1
    assert str(complaint(found, RANDOM)).startswith("collapsed: all embeddings are alike (mean cosine ")


def test_embeddings_of_zeros_are_all_alike() -> None:
    found = health(np.zeros((COUNT, DIM)))
    assert (found.rank, found.spread, found.mean_cosine) == (1, 0, pytest.approx(1))
    assert complaint(found, RANDOM) == "collapsed: all embeddings are alike (mean cosine 1)"


@pytest.mark.parametrize("directions", [1, 3])
def test_few_directions_are_named(directions: int) -> None:
    found = health(gaussian(directions))
    assert 0.8 * directions <= found.rank <= directions + 0.01
    assert complaint(found, RANDOM) == f"dimensional collapse: rank {found.rank:.1f} of {DIM}"


def test_ten_equal_classes_are_no_collapse() -> None:
    """What a classifier of ten classes converges to."""
    corners = np.eye(10)[np.arange(COUNT) % 10] - 0.1
    features = corners @ np.linalg.qr(GENERATOR.normal(size=(DIM, 10)))[0].T
    assert health(features).rank == pytest.approx(9, abs=0.01)
    assert complaint(health(features), RANDOM) is None


def test_what_training_did_not_do_is_not_called_its_collapse() -> None:
    alike = health(1 + 0.05 * gaussian())
    better = health(1 + 0.06 * gaussian())
    assert better.mean_cosine > measured.ALIKE
    assert complaint(better, alike) is None


def test_embeddings_that_tell_images_apart_are_not_called_collapsed() -> None:
    """SimCLR without BatchNorm: mean cosine 0.993, and 12 points better than before training."""
    alike = health(1 + 0.05 * gaussian())

    def judged(knn: float, health: dict[str, Health]) -> Evaluation:
        score = Score(
            name="knn_top1", protocol="", num_queries=2000, trained=knn, random_encoder=0.25, raw_pixels=0.4, chance=0.1
        )
        return Evaluation(
            checkpoint="", step=1, store_digest="", scores=[score], skipped=[], neighbours={}, seconds=1, health=health
        )

    both = {"trained": alike, "random": RANDOM}
    assert collapse(judged(0.37, both)) is None
    assert collapse(judged(0.27, both)) == complaint(alike, RANDOM) is not None  # test images explain two points
    assert collapse(judged(0.27, {})) is None
    few = health(gaussian(1))
    assert few.mean_cosine < measured.ALIKE
    assert collapse(judged(0.37, {"trained": few, "random": RANDOM})) == complaint(few, RANDOM) is not None


def test_a_large_bank_is_sampled_evenly() -> None:
    """Stores are often ordered by class: the first images of one are no sample of it."""
    count = 3 * measured.MAX_IMAGES
    halves = np.repeat([[1.0, 0.0], [0.0, 1.0]], count // 2, axis=0)
    found = health(halves)
    assert found.num_images == measured.MAX_IMAGES
    assert found.mean_cosine == pytest.approx(0.5, abs=1e-3)


def test_one_image_has_no_health() -> None:
    with pytest.raises(ValueError, match="at least two images, got 1"):
        health(np.ones((1, 4)))


def test_older_evaluations_are_read() -> None:
    old = {
        "checkpoint": "step",
        "step": 1,
        "store_digest": "",
        "scores": [],
        "skipped": [],
        "neighbours": {},
        "seconds": 1,
    }
    assert Evaluation.model_validate(old).health == {}


def test_an_objective_that_only_attracts_collapses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Views attract and nothing repels, without predictor, teacher or batch statistics: what methods must prevent."""

    def attract(self, batch, step):
        first, second = self.encoder(torch.cat(batch.views)).chunk(2)
        return {"loss": (first - second).square().mean()}

    monkeypatch.setattr(SimCLR, "forward", attract)
    torch.manual_seed(0)
    vit = {"name": "vit_tiny_patch16_224", "image_size": 16, "patch_size": 8}
    encoder = EncoderConfig(**vit, arguments={"depth": 1, "embed_dim": 32, "num_heads": 2})
    objective = SimCLR(SimCLR.Config(), encoder)
    images = torch.randn(64, 3, 16, 16)

    def measure() -> Health:
        with torch.inference_mode():
            return health(objective.embed(images).numpy())

    random = measure()
    optimizer = torch.optim.Adam(objective.encoder.parameters(), 0.01)
    for number in range(20):
        views = tuple(images + 0.5 * torch.randn_like(images) for _ in range(2))
        optimizer.zero_grad()
        objective(Batch(views, torch.arange(64)), Step(number, number / 20, 0))["loss"].backward()
        optimizer.step()
    assert complaint(random, random) is None
    assert str(complaint(measure(), random)).startswith("collapsed: all embeddings are alike (mean cosine ")


def test_alignment_is_the_mean_squared_distance_of_normalised_views() -> None:
    first, second = GENERATOR.normal(size=(2, 50, 8))
    slow = [
        sum((a / np.linalg.norm(one) - b / np.linalg.norm(other)) ** 2 for a, b in zip(one, other, strict=True))
        for one, other in zip(first, second, strict=True)
    ]
    assert alignment(first, second) == pytest.approx(np.mean(slow), rel=1e-12)
    assert alignment(first, 3 * first) == pytest.approx(0, abs=1e-12)
    assert alignment(first, -first) == pytest.approx(4)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_collapsed_encoder_is_aligned_and_not_uniform(value: float) -> None:
    collapsed = np.full((100, 8), value)
    found = health(collapsed, alignment(collapsed, collapsed))
    assert found.alignment == pytest.approx(0, abs=1e-12)
    assert found.uniformity == pytest.approx(0, abs=1e-12)
