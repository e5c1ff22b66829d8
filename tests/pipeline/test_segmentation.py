"""Linear segmentation: what is counted, the linear layer, and from which map."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.cluster import ClusterConfig
from pipeline.evaluate import segmentation as dense
from pipeline.evaluate.encoders import RunEncoders
from pipeline.evaluate.examples import Examples, examples_file, read_examples
from pipeline.evaluate.foreign import find_encoders
from pipeline.evaluate.masks import IGNORED, Segmented, read_segmented
from pipeline.evaluate.outputs import feature_map
from pipeline.evaluate.protocol import EvaluationConfig
from pipeline.evaluate.segmentation import (
    MIOU,
    PIXELS,
    class_shares,
    counted,
    fitted,
    mean_iou,
    pixel_accuracy,
    segmentation,
)
from pipeline.evaluate.separation import spread_over
from pipeline.evaluate.suite import evaluate
from pipeline.evaluate.transfer import judge_all, table
from pipeline.experiment import build_experiment
from pipeline.export.exporting import export
from pipeline.report.run_report import write_report
from pipeline.report.segmented import segmentations
from pipeline.report.transfer_page import write_transfer_page
from pipeline.run import Run
from pipeline.stream.views import DeviceViews, ViewsConfig
from pipeline.train.checkpoints import save_checkpoint
from pipeline.train.worker import fresh_state
from ssl_models.encoders import IMAGENET_MEAN, IMAGENET_STD, EncoderConfig
from ssl_models.objectives import OBJECTIVES, build_objective
from tests.pipeline.embedding import HERE, embed_here
from tests.pipeline.shapes import COLOURS, write_shapes
from tests.pipeline.test_export import RESNET, make_run

CPU = torch.device("cpu")
CLASSES = len(COLOURS)
VIEWS = DeviceViews(ViewsConfig(), seed=0, plain=True)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Segmented:
    return read_segmented(str(write_shapes(tmp_path_factory.mktemp("shapes") / "voc")), 16)


@pytest.fixture
def run(small_experiment, tmp_path) -> Run:
    experiment = build_experiment(small_experiment.model_dump(mode="json") | {"encoder": VIT})
    found = Run.prepare(tmp_path / "run", experiment, ["feral", "pretrain"])
    save_checkpoint(found.checkpoints, fresh_state(experiment, CPU), keep=2)
    return found


def probed(pictures: Segmented, features) -> np.ndarray:
    return dense._probed(features, pictures, VIEWS, CPU).counts.sum(0)


def classes_of(images: Tensor) -> Tensor:
    """What an ideal encoder sees in the pictures of `shapes`: (B, classes, S, S)."""
    plain = images * torch.tensor(IMAGENET_STD).view(1, 3, 1, 1) + torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
    apart = plain[:, None] - torch.tensor(COLOURS).view(1, CLASSES, 3, 1, 1) / 255
    return F.one_hot(apart.square().sum(2).argmin(1), CLASSES).permute(0, 3, 1, 2).float()


# ---- what is counted -----------------------------------------------------------------------------------------------


def test_mean_iou_equals_a_loop_over_classes_and_ignored_pixels_never_count():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 5, (6, 9, 7), generator=generator)
    truth[truth == 3] = 4  # a class that never occurs
    answers = torch.randint(0, 5, (6, 9, 7), generator=generator)
    ignored = torch.rand(6, 9, 7, generator=generator) < 0.3
    truth[ignored] = IGNORED
    counts = counted(answers, truth.byte(), 5)
    kept = ~ignored
    ious = []
    for one in (0, 1, 2, 4):
        both = ((truth == one) & (answers == one) & kept).sum()
        either = (((truth == one) | (answers == one)) & kept).sum()
        ious.append(int(both) / int(either))
    assert mean_iou(counts.sum(0)) == pytest.approx(np.mean(ious), abs=1e-12)
    assert pixel_accuracy(counts.sum(0)) == pytest.approx(float((truth == answers)[kept].float().mean()), abs=1e-7)
    answers[ignored] = (answers[ignored] + 1) % 5
    assert np.array_equal(counted(answers, truth.byte(), 5), counts)
    assert counts[:, 1].sum() == kept.sum()


def test_images_are_counted_apart():
    truth = torch.tensor([[[0, 1]], [[1, 1]]]).byte()
    counts = counted(torch.tensor([[[0, 0]], [[1, 1]]]), truth, 2)
    assert counts.tolist() == [[[1, 0], [1, 1], [2, 0]], [[0, 2], [0, 2], [0, 2]]]


# ---- the linear layer ----------------------------------------------------------------------------------------------


def test_shares_are_the_cross_entropy_of_logits_upsampled_by_nearest_neighbour():
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 3, (2, 10, 10), generator=generator)
    masks[torch.rand(2, 10, 10, generator=generator) < 0.2] = IGNORED
    logits = torch.randn(2, 3, 4, 3, generator=generator)  # cells do not divide the side
    shares = class_shares(masks.byte(), (4, 3), 3)
    ours = -(F.log_softmax(logits, 1).permute(0, 2, 3, 1) * shares).sum() / shares.sum()
    whole = F.interpolate(logits, (10, 10), mode="nearest")
    assert float(ours) == pytest.approx(float(F.cross_entropy(whole, masks, ignore_index=IGNORED)), rel=1e-5)


def test_the_layer_is_the_solution_that_scikit_learn_finds():
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    generator = np.random.default_rng(0)
    rows = generator.normal(2, 3, (300, 4)).astype(np.float32)
    labels = (rows @ generator.normal(size=(4, 3)) + generator.normal(0, 3, (300, 3))).argmax(1)
    strength = 1e-2
    layer = fitted(torch.from_numpy(rows), F.one_hot(torch.from_numpy(labels), 3).float(), strength)
    ours = torch.softmax(torch.from_numpy(rows) @ layer.weight + layer.bias, 1)
    theirs = LogisticRegression(C=1 / (strength * 300), tol=1e-8, max_iter=5000)
    scaled = StandardScaler().fit_transform(rows)
    assert np.allclose(ours, theirs.fit(scaled, labels).predict_proba(scaled), atol=2e-3)


def test_many_cells_are_summed_in_pieces(monkeypatch):
    cells, shares = torch.randn(500, 3), F.one_hot(torch.arange(500) % 3, 3).float()
    whole = fitted(cells, shares, 1e-3)
    monkeypatch.setattr(dense, "CHUNK", 64)
    assert torch.allclose(fitted(cells, shares, 1e-3).weight, whole.weight, atol=1e-3)


def test_an_ideal_map_is_segmented_without_a_fault(pictures):
    assert mean_iou(probed(pictures, classes_of)) > 0.9  # JPEG blurs the borders of shapes
    clean = np.array([*COLOURS], np.uint8)[np.minimum(pictures.masks, CLASSES - 1)]
    assert mean_iou(probed(replace(pictures, images=clean), classes_of)) == 1.0


def test_a_coarse_map_is_upsampled_bilinearly(pictures):
    """Borders between two classes come to lie in the middle between their cells."""
    masks = np.zeros_like(pictures.masks)
    masks[:, :, 8:] = 1
    masks[::2] = 1 - masks[::2]
    halves = replace(pictures, masks=masks, images=np.array(COLOURS, np.uint8)[masks])
    assert mean_iou(probed(halves, lambda images: F.avg_pool2d(classes_of(images), 4))) == 1.0


def test_masks_of_other_pictures_give_what_guessing_gives(pictures):
    generator = np.random.default_rng(0)
    noise = generator.choice(CLASSES, pictures.masks.shape, p=(0.8, 0.15, 0.05)).astype(np.uint8)
    counts = probed(replace(pictures, masks=noise), classes_of)
    assert mean_iou(counts) == pytest.approx(0.8 / 3, abs=0.02)
    assert pixel_accuracy(counts) == pytest.approx(0.8, abs=0.02)


def test_the_strength_is_not_chosen_on_test_images(pictures, monkeypatch):
    """With other test masks the layer, and so what it answers, is the same."""
    layers: list[dense.Linear] = []
    original = dense.fitted
    monkeypatch.setattr(dense, "fitted", lambda *given: layers.append(original(*given)) or layers[-1])
    probed(pictures, classes_of)
    masks = pictures.masks.copy()
    masks[pictures.is_test] = 0
    probed(replace(pictures, masks=masks), classes_of)
    half = len(layers) // 2
    assert half == len(dense.STRENGTHS) + 1
    assert torch.equal(layers[half - 1].weight, layers[-1].weight)


def test_large_maps_take_fewer_training_images(pictures, monkeypatch):
    monkeypatch.setattr(dense, "MAX_BYTES", 4 * 10 * CLASSES * 16 * 16)
    found = dense._probed(classes_of, pictures, VIEWS, CPU)
    assert (found.images, found.dim) == (10, CLASSES)


# ---- encoders ------------------------------------------------------------------------------------------------------

VIT = {
    "name": "vit_tiny_patch16_224",
    "image_size": 16,
    "patch_size": 4,
    "arguments": {"depth": 2, "embed_dim": 32, "num_heads": 2},
}
SMALL = {"name": "resnet18", "image_size": 16, "arguments": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}}


@pytest.mark.parametrize(
    ("objective", "encoder", "shape"),
    [
        ({"name": "mae", "decoder_dim": 16}, VIT, (32, 4, 4)),
        ({"name": "simclr"}, SMALL, (16, 2, 2)),
        ({"name": "iic"}, SMALL, (16, 2, 2)),
        ({"name": "split_brain"}, SMALL, (32, 2, 2)),
    ],
)
def test_the_map_is_what_embeddings_are_pooled_from(objective, encoder, shape):
    torch.manual_seed(0)
    made = build(objective, encoder)
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        found = feature_map(made, images)
        assert found.shape == (3, *shape)
        if encoder is SMALL:
            assert torch.allclose(found.mean((2, 3)), made.embed(images), atol=1e-5)
        else:
            assert torch.allclose(found, made.encoder.features(images))


def test_the_last_layers_are_joined_at_the_size_of_the_largest():
    torch.manual_seed(0)
    vit, resnet = build({"name": "simclr"}, VIT), build({"name": "simclr"}, SMALL)
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        tokens, maps = feature_map(vit, images, 2), feature_map(resnet, images, 4)
        assert tokens.shape == (3, 64, 4, 4)
        assert torch.allclose(tokens[:, 32:], vit.encoder.features(images), atol=1e-6)  # the last block, after its norm
        stages = resnet.encoder.model.forward_intermediates(images, intermediates_only=True)[1:]
        assert maps.shape == (3, 8 + 8 + 16 + 16, *stages[0].shape[2:])
        assert torch.equal(maps[:, :8], stages[0])
        last = F.interpolate(stages[-1], stages[0].shape[2:], mode="bilinear")
        assert torch.allclose(maps[:, -16:], last, atol=1e-6)
        with pytest.raises(ValueError, match="has no 4 layers with maps"):
            feature_map(vit, images, 4)


def test_encoders_without_a_map_are_passed_over_with_the_reason(pictures, tmp_path):
    cpc = build(
        {"name": "cpc", "patch_size": 8, "stride": 4, "furthest": 2},
        {**VIT, "arguments": {**VIT["arguments"], "dynamic_img_size": True}},
    )
    with torch.no_grad(), pytest.raises(ValueError, match="parts of an image"):
        feature_map(cpc, torch.randn(3, 3, 16, 16))
    export(make_run(tmp_path / "run", "simclr", RESNET), "torchvision", tmp_path / "out")
    encoders = find_encoders(str(tmp_path / "out"))
    masks = replace(pictures, images=np.repeat(np.repeat(pictures.images, 4, 1), 4, 2))
    assert segmentation(encoders, masks, ClusterConfig(), 1) == [
        f"{MIOU}, {PIXELS}: this encoder gives no maps (timm's forward_intermediates)"
    ]


def build(objective: dict, encoder: dict):
    config = OBJECTIVES[objective["name"]].Config(**objective)
    return build_objective(config, EncoderConfig(**encoder)).eval()


def test_a_run_is_judged_on_masks_beside_its_store(run, pictures, monkeypatch):
    embed_here(monkeypatch)
    evaluation = evaluate(run, pictures=pictures, threads=1)
    assert evaluation.score("knn_top1") is not None
    iou, accuracy = (evaluation.score(name) for name in (MIOU, PIXELS))
    assert iou is not None
    assert accuracy is not None
    for score in (iou, accuracy):
        assert score.trained == score.random_encoder  # nothing was trained yet
        assert score.chance < score.raw_pixels
        low, high = score.reach
        assert low <= score.trained <= high
        assert score.num_queries == 10
    assert accuracy.chance == pytest.approx(3 * iou.chance)  # all is ground
    assert "4 × 4 places" in iou.protocol
    assert evaluate(run, pictures=pictures, threads=1).score(MIOU) == iou


def test_joined_layers_are_scores_of_their_own(run, pictures, monkeypatch):
    monkeypatch.setattr(dense, "LAYERS", 2)
    results = segmentation(RunEncoders.of(run), pictures, ClusterConfig(), 1, joined=True)
    plain, _, plain_examples, joined, accuracy, examples = results
    assert [plain.name, joined.name, accuracy.name] == [MIOU, f"{MIOU}_4_layers", f"{PIXELS}_4_layers"]
    assert "places of the frozen map (32 channels)" in plain.protocol
    assert "places of the last 2 frozen maps, joined (64 channels)" in joined.protocol
    assert joined.raw_pixels == plain.raw_pixels
    assert not np.array_equal(plain_examples.answers, examples.answers)


def test_examples_are_what_was_counted_and_are_shown(run, pictures, monkeypatch):
    embed_here(monkeypatch)
    evaluation = evaluate(run, pictures=pictures, threads=1)
    found = read_examples(run.evaluation_file, evaluation.encoder_digest)
    assert found is not None
    test = np.flatnonzero(pictures.is_test)
    chosen = test[spread_over(len(test), 6)]
    assert np.array_equal(found.images, pictures.images[chosen])
    counts = counted(torch.from_numpy(found.answers), torch.from_numpy(found.masks), CLASSES)
    low, high = evaluation.score(PIXELS).reach
    assert low - 0.15 < pixel_accuracy(counts.sum(0)) < high + 0.15  # six of the ten
    assert read_examples(run.evaluation_file, "of other weights") is None
    page = write_report(run).read_text()
    assert page.count(">mask</figcaption>") == 6
    for name in (*pictures.classes, "no class", "% right"):
        assert name in page
    examples_file(run.evaluation_file).write_bytes(b"damaged")
    assert "holds no examples of an evaluation" in write_report(run).read_text()


def test_more_classes_than_colours_share_the_last():
    masks = np.arange(16, dtype=np.uint8).repeat(16).reshape(1, 16, 16)
    names = tuple(f"class {number}" for number in range(20))
    drawn = segmentations({"ours": Examples(names, np.zeros((1, 16, 16, 3), np.uint8), masks, masks)})
    assert len(drawn.legend) == len({colour for colour, _ in drawn.legend}) == 10
    assert drawn.legend[-1][1] == "7 more classes"
    assert drawn.rows[0][-1].text == "ours, 100 % right"


def test_encoders_answer_side_by_side_about_the_same_pictures(run, pictures, tmp_path):
    first = RunEncoders.of(run)
    found = judge_all([first, first], [], tmp_path, EvaluationConfig(), HERE, pictures={16: pictures})
    page = write_transfer_page(tmp_path, found, "feral evaluate").read_text()
    assert page.count(">mask</figcaption>") == 6
    assert page.count(">run-2, ") == page.count(">run-1, ") == 6


def test_encoders_stand_in_a_table_of_masks_alone_and_are_judged_once(run, pictures, tmp_path):
    told: list[str] = []
    arguments = ([RunEncoders.of(run)], [], tmp_path / "out", EvaluationConfig(), HERE, told.append)
    found = judge_all(*arguments, pictures={16: pictures})
    assert told == ["run on voc"]
    titles, line, *_ = table(found, "voc")
    assert titles == ["encoder", MIOU, PIXELS]
    assert line[0] == "run"
    assert judge_all(*arguments, pictures={16: pictures}) == found
    assert told[1:] == ["run on voc: judged before"]
    judge_all(*arguments, pictures={16: replace(pictures, digest="another")})
    assert told[2:] == ["run on voc"]
