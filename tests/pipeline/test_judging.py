"""What is judged and how it is kept: encoders of runs and of other libraries, cached embeddings, many in one table."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.evaluate.encoders import RunEncoders
from pipeline.evaluate.foreign import find_encoders
from pipeline.evaluate.outputs import depths, feature_map
from pipeline.evaluate.protocol import Evaluation, EvaluationConfig
from pipeline.evaluate.suite import ALWAYS, ON_DEMAND, evaluate, judge
from pipeline.evaluate.transfer import judge_all, markdown, refuse_unknown, table
from pipeline.experiment import build_experiment
from pipeline.export.exporting import export
from pipeline.export.trained import Trained
from pipeline.ingest.blocklist import BlockList, block
from pipeline.ingest.store import Store
from pipeline.run import Run
from pipeline.train.checkpoints import save_checkpoint
from pipeline.train.worker import fresh_state
from tests.pipeline.embedding import HERE, embed_here
from tests.pipeline.test_export import POOLED, RESNET, SMALL, VIT, make_run

CPU = torch.device("cpu")
CONFIG = EvaluationConfig()


@pytest.fixture
def run(small_experiment, tmp_path) -> Run:
    found = Run.prepare(tmp_path / "run", small_experiment, ["feral", "pretrain"])
    save_checkpoint(found.checkpoints, fresh_state(small_experiment, CPU), keep=2)
    return found


@pytest.fixture
def embedded(monkeypatch) -> list[int]:
    return embed_here(monkeypatch)


def test_every_score_stands_with_its_baselines_and_an_interval(run, embedded):
    evaluation = evaluate(run, also=("depths", "knowledge", "projection"), threads=1)
    names = [score.name for score in evaluation.scores]
    assert names[:2] == ["knn_top1", "linear_top1"]
    assert {"mean_1shot", "mean_5shot", "linear_10pct", "cluster_top1", "nmi", "ari", "silhouette"} <= {*names}
    assert {"linear_top1_depth1", "knows_rotation_h", "knows_rotation_z", "knows_colour_z"} <= {*names}
    assert {"knn_top1_projection", "linear_top1_projection"} <= {*names}
    assert evaluation.score("linear_top1_projection").protocol.startswith("of the projection g(h): logistic regression")
    for score in evaluation.scores:
        assert score.interval is not None
        assert score.interval[0] <= score.trained <= score.interval[1], score
        assert score.trained == score.random_encoder, score  # nothing was trained yet
    knn = evaluation.score("knn_top1")
    assert knn is not None
    assert knn.raw_pixels > 0.9  # the hue tells the class
    assert evaluation.confusion is not None
    assert sum(map(sum, evaluation.confusion.counts)) == knn.num_queries
    assert sum(row[place] for place, row in enumerate(evaluation.confusion.counts)) == round(
        knn.trained * knn.num_queries
    )
    assert evaluation.map is not None
    assert np.abs(np.array(evaluation.map.points) - 0.5).max() <= 0.5
    assert any("linear_1pct" in reason for reason in evaluation.skipped)  # three labels are too few for a probe
    assert run.evaluation == evaluation


def test_embeddings_are_computed_once_a_checkpoint(run, embedded, small_experiment):
    first = evaluate(run)
    assert embedded == [300, small_experiment.data.open().count("test")]  # and two views of some
    assert evaluate(run).scores == first.scores
    assert len(embedded) == 2
    state = fresh_state(small_experiment.override({"training.seed": 5}), CPU)
    state.step = 3
    save_checkpoint(run.checkpoints, state, keep=2)
    assert evaluate(run).scores != first.scores
    assert len(embedded) == 4
    assert len(list(run.embeddings.iterdir())) == 2  # those of the weights before are gone


def test_kept_embeddings_that_were_cut_are_computed_anew(run, embedded):
    first = evaluate(run)
    file = next(run.embeddings.glob("*/pixels.npy"))
    file.write_bytes(file.read_bytes()[:-100])
    assert evaluate(run).scores == first.scores
    assert embedded[2:] == [300]


def test_an_evaluation_without_a_cache_leaves_nothing_and_says_the_same(run, embedded):
    apart = evaluate(run, keep_embeddings=False)
    assert not run.embeddings.exists()
    assert apart.scores == evaluate(run).scores


@pytest.mark.parametrize(
    ("form", "encoder"),
    [("safetensors", SMALL), ("safetensors", POOLED), ("safetensors", VIT), ("timm", RESNET), ("torchvision", RESNET)],
)
def test_an_exported_folder_is_judged_as_the_run_is(tmp_path, form, encoder):
    run = make_run(tmp_path / "run", "simclr", encoder)
    export(run, form, tmp_path / "out")
    ours, theirs = RunEncoders.of(run), find_encoders(str(tmp_path / "out"))
    assert theirs.sees == ours.sees
    images = torch.randn(2, 3, encoder["image_size"], encoder["image_size"])
    with torch.no_grad():
        expected, found = (one.load()["trained"].embed(images) for one in (ours, theirs))
        untrained = theirs.load()["random"].embed(images)
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))
    assert untrained.shape == found.shape
    assert not torch.allclose(untrained, found)


def test_an_exported_pair_of_towers_compares_texts(tmp_path):
    run = make_run(tmp_path / "run", "clip", RESNET)
    export(run, "open_clip", tmp_path / "out")
    pair, objective = find_encoders(str(tmp_path / "out")), Trained.of(run).objective
    images, tokens = torch.randn(2, 3, 64, 64), torch.randint(1, 400, (2, 16))
    assert (pair.context_length, pair.sees.image_size) == (16, 64)
    trained = pair.load()["trained"]
    with torch.no_grad():
        assert torch.allclose(trained.project_image(images), objective.project_image(images), atol=1e-4)
        assert torch.allclose(trained.project_text(tokens), objective.project_text(tokens), atol=1e-4)


@pytest.mark.parametrize(
    ("form", "objective", "parts"),
    [("safetensors", "simclr", 5), ("torchvision", "simclr", 0), ("open_clip", "clip", 0)],
)
def test_the_stages_of_anothers_encoder_are_told_where_it_gives_them(tmp_path, form, objective, parts):
    export(make_run(tmp_path / "run", objective, RESNET), form, tmp_path / "out")
    encoders = find_encoders(str(tmp_path / "out"))
    with torch.no_grad():
        found = depths(encoders.load()["trained"], torch.randn(2, 3, 64, 64), torch.arange(2), encoders.sees.views)
    assert len(found) == parts


@pytest.mark.parametrize("name", ["simclr", "colorization", "iic", "split_brain"])
def test_stages_are_those_of_what_the_network_sees(tmp_path, name):
    """Lightness alone, edges, or one half each: the last stage is what the embedding pools."""
    run = make_run(tmp_path / "run", name, RESNET)
    encoder, images = RunEncoders.of(run).load()["trained"], torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found = depths(encoder, images, torch.arange(2), run.experiment.device_views())
        assert torch.allclose(found[f"_depth{len(found)}"], feature_map(encoder, images).mean((2, 3)), atol=1e-5)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_an_encoder_of_a_library_embeds_with_the_weights_of_the_file(tmp_path, library):
    import timm
    import torchvision

    torch.manual_seed(1)
    model = timm.create_model("resnet18") if library == "timm" else torchvision.models.resnet18()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "weights.pth")
    images = torch.randn(1, 3, 64, 64)
    model.fc = torch.nn.Identity()
    with torch.no_grad():
        expected = model.eval()(images)
        for name in ("weights.safetensors", "weights.pth"):
            found = find_encoders(f"{library}:resnet18@{tmp_path / name}")
            assert torch.allclose(found.load()["trained"].embed(images), expected, atol=1e-5)
    assert found.sees.image_size == 224


def test_weights_that_hold_code_are_not_loaded(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "was_here"), "w"))

    torch.save({"state_dict": Hostile()}, tmp_path / "weights.pth")
    for library in ("timm", "torchvision", "open_clip"):
        model = "ViT-B-32" if library == "open_clip" else "resnet18"
        with pytest.raises(ValueError, match="cannot be loaded: "):
            find_encoders(f"{library}:{model}@{tmp_path / 'weights.pth'}")
    assert not (tmp_path / "was_here").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("timm:resnet18", "names no weights: give timm:resnet18@FILE"),
        ("timm:resnet18@nowhere", "there is no file nowhere"),
        ("keras:resnet18@x", "is no encoder: give a run's directory, a name in"),
        ("nowhere", "is no encoder"),
        ("timm:resnet1800@{file}", "timm has no model 'resnet1800'; similar: "),
        ("torchvision:resnet18@{file}", "cannot be loaded: Error.* loading state_dict"),
        ("{folder}", "is no encoder"),
    ],
)
def test_what_is_no_encoder_is_refused_in_words(tmp_path, text, message):
    save_file({"weight": torch.zeros(1)}, tmp_path / "file")
    (tmp_path / "file").rename(tmp_path / "file.safetensors")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=message):
        find_encoders(text.format(file=tmp_path / "file.safetensors", folder=tmp_path / "folder"))


def test_several_encoders_stand_in_one_table_and_are_judged_once(run, embedded, small_store, tmp_path):
    other = make_run(tmp_path / "other", "simclr", SMALL)
    encoders = [RunEncoders.of(run), RunEncoders.of(other)]
    told: list[str] = []
    found = judge_all(encoders, [small_store], tmp_path / "out", CONFIG, HERE, told.append)
    assert told == ["run on store", "other on store"]
    titles, *lines = table(found, "store")
    assert [line[0] for line in lines[2:]] == [f"{line[0]}, untrained" for line in lines[:2]] + ["raw pixels", "chance"]
    assert titles[:3] == ["encoder", "knn_top1", "linear_top1"]
    knn = {one.encoder: one.evaluation.score("knn_top1").trained for one in found}
    assert lines[0][0] == max(knn, key=knn.__getitem__)
    assert "| raw pixels |" in markdown(found, "feral evaluate")
    again = judge_all(encoders, [small_store], tmp_path / "out", CONFIG, HERE, told.append)
    assert told[2:] == ["run on store: judged before", "other on store: judged before"]
    assert again == found
    embedded.clear()
    judge_all(encoders[:1], [small_store], tmp_path / "out", CONFIG, HERE, also=("depths",))
    assert embedded == [300]  # of the stages; the embeddings are kept


def test_what_is_asked_otherwise_is_judged_again(run, embedded, small_store, tmp_path):
    """Other neighbours, or samples that were blocked since: a table never holds two protocols under one name."""
    store = Store(shutil.copytree(small_store.path, tmp_path / "blocked"))
    told: list[str] = []

    def judged(config: EvaluationConfig = CONFIG) -> Evaluation:
        return judge_all([RunEncoders.of(run)], [store], tmp_path / "out", config, HERE, told.append)[0].evaluation

    first = judged()
    assert judged(CONFIG.model_copy(update={"online_images": 500, "max_images": 50_000})) == first
    assert judged(CONFIG.model_copy(update={"neighbours": 3})).score("knn_top1").protocol.startswith("weighted 3-NN")
    assert judged().scores == first.scores
    block(store.path, BlockList(frozenset(store.column("id")[int(n)].as_py() for n in store.select("train")[:2])))
    store = Store(store.path)
    bank = int(re.search(r"bank of (\d+)", first.score("knn_top1").protocol)[1])
    assert f"bank of {bank - 2} " in judged().score("knn_top1").protocol
    assert [line.endswith("judged before") for line in told] == [False, True, False, False, False]


def test_two_of_one_name_are_told_apart(run, embedded, small_store, tmp_path):
    shutil.copytree(run.path, tmp_path / "elsewhere" / "run")
    encoders = [RunEncoders.of(run), RunEncoders.of(Run.open(tmp_path / "elsewhere" / "run"))]
    found = judge_all(encoders, [small_store], tmp_path / "out", CONFIG, HERE)
    assert [one.encoder for one in found] == ["run-1", "run-2"]


def test_an_unknown_protocol_is_refused():
    with pytest.raises(ValueError, match="--also colours: there are depths, knowledge, projection, sgd_probe"):
        refuse_unknown(["colours"])
    assert not {*ALWAYS} & {*ON_DEMAND}


def test_without_labels_what_needs_them_is_skipped_with_the_reason(run, embedded, small_store):
    encoders = RunEncoders.of(run)
    numbers = np.concatenate([small_store.select("train"), small_store.select("test")])
    found = HERE.samples(encoders, small_store, numbers)
    without = replace(found, labels=np.full(len(numbers), -1))

    class Unlabelled(type(HERE)):  # type: ignore[misc]
        def samples(self, encoders, store, numbers, *asked):
            return super().samples(encoders, store, numbers, *asked) if asked else without

    evaluation = judge(encoders, small_store, CONFIG, Unlabelled(HERE.cluster, 1))
    assert evaluation.scores == []
    assert len(evaluation.skipped) == 3
    assert all("no labels" in reason for reason in evaluation.skipped)
    assert evaluation.confusion is None
    assert json.loads(evaluation.model_dump_json())["health"]["trained"]["uniformity"] < 0


def test_masked_methods_have_the_probe_of_their_paper_and_others_on_demand(run, embedded, small_experiment, tmp_path):
    assert evaluate(run).score("linear_sgd_bn_top1") is None
    assert evaluate(run, also=("sgd_probe",)).score("linear_sgd_bn_top1") is not None
    content = small_experiment.model_dump(mode="json") | {"encoder": VIT, "objective": {"name": "mae"}}
    masked = build_experiment(content)
    of_mae = Run.prepare(tmp_path / "mae", masked, ["feral", "pretrain"])
    save_checkpoint(of_mae.checkpoints, fresh_state(masked, CPU), keep=2)
    evaluation = evaluate(of_mae, also=("sgd_probe",))
    assert [score.name for score in evaluation.scores].count("linear_sgd_bn_top1") == 1
    assert evaluation.also == ("sgd_probe",)


def test_alignment_is_of_two_views_under_the_augmentation_of_the_run(run, embedded, small_store):
    """Views without chance are equal, so their distance is 0; the run's own are not, and the same every time."""
    first = evaluate(run).health["trained"]
    assert first.alignment is not None
    assert 0 < first.alignment < 4
    assert evaluate(run, keep_embeddings=False).health["trained"] == first
    still = {"views.crop_scale": (1.0, 1.0), "views.crop_ratio": (1.0, 1.0), "views.flip": 0,
             "views.jitter_probability": 0, "views.grayscale": 0}  # fmt: skip
    encoders = RunEncoders.of(run)
    settings = encoders.experiment.override(still).model_dump(mode="json")
    numbers = small_store.select("test")[::3]  # these are square
    square = numbers[
        small_store.column("width").to_numpy()[numbers] == small_store.column("height").to_numpy()[numbers]
    ]
    views = HERE.samples(replace(encoders, settings=settings), small_store, square, ("trained",), "pairs").features
    assert len(square) > 3
    assert np.allclose(views["trained"], views["trained_view2"], atol=1e-5)
    changed = HERE.samples(encoders, small_store, square, ("trained",), "pairs").features
    assert not np.allclose(changed["trained"], changed["trained_view2"], atol=1e-5)


def test_a_setting_that_a_newer_version_adds_leaves_the_digest_of_older_encoders(run):
    encoders = RunEncoders.of(run)
    older = json.loads(run.experiment_file.read_text())
    assert older["objective"].pop("normalize") is True  # of a version that did not know it
    assert RunEncoders("run", older, encoders.checkpoint).digest == encoders.digest
    assert (
        replace(encoders, settings=encoders.settings | {"objective": older["objective"] | {"normalize": False}}).digest
        != encoders.digest
    )
