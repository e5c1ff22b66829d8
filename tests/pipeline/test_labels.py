"""Few labels: of every class, the same on every machine, and enough for a batch."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from pipeline.evaluate.classification import own_classifier
from pipeline.evaluate.embed import Embeddings
from pipeline.evaluate.encoders import RunEncoders
from pipeline.evaluate.probes import linear_predictions
from pipeline.evaluate.scoring import Answered, Case
from pipeline.experiment import Experiment, build_experiment
from pipeline.ingest.config import CurateConfig
from pipeline.ingest.store import Store
from pipeline.stream.labels import few_labels
from pipeline.train.worker import open_stream
from tests.pipeline.embedding import HERE
from tests.pipeline.stores import curate_here, tiny_experiment, write_dump
from tests.pipeline.test_start import begun


def classes(store: Store, numbers: np.ndarray) -> list[int]:
    return np.bincount(store.column("label").to_numpy()[numbers], minlength=3).tolist()


def experiment(store: Store, **changes) -> Experiment:
    content = tiny_experiment(store.path).model_dump(mode="json") | {"objective": {"name": "supervised"}}
    return build_experiment(content).override(changes).fitted(store)


def test_every_class_gives_its_share_and_at_least_one(small_store):
    train = small_store.select("train")
    whole = classes(small_store, train)
    for share in (0.001, 0.1, 0.5, 1.0):
        chosen = few_labels(small_store, train, share=share)
        assert classes(small_store, chosen) == [max(1, int(share * count + 0.5)) for count in whole]
        assert set(chosen) <= set(train)
        assert (np.diff(chosen) > 0).all()
    assert classes(small_store, few_labels(small_store, train, shots=5)) == [5, 5, 5]


def test_draws_differ_and_more_labels_contain_fewer(small_store):
    train = small_store.select("train")
    draws = [few_labels(small_store, train, shots=10, draw=draw) for draw in range(3)]
    assert len({tuple(draw) for draw in draws}) == 3
    assert set(few_labels(small_store, train, shots=3, draw=1)) < set(draws[1])
    assert set(draws[1]) < set(few_labels(small_store, train, share=0.5, draw=1))


def test_the_chosen_images_depend_on_themselves_alone(small_store, tmp_path):
    """In another store, with other images beside them, the same are chosen of those that both have."""
    fewer = curate_here(write_dump(tmp_path / "dump", 200), tmp_path / "store", CurateConfig(holdout=0.2))
    both = set(fewer.column("id").to_pylist())
    ids = [[store.column("id")[int(n)].as_py() for n in few_labels(store, store.select("train"), share=0.3)]
           for store in (small_store, fewer)]  # fmt: skip
    again = [image for image in ids[0] if image in both]
    assert len(again) > 10
    assert len(set(again) & set(ids[1])) > 0.7 * len(again)  # by chance 0.3


def test_more_shots_than_a_class_has_are_refused(small_store):
    with pytest.raises(ValueError, match=r"data.shots=500: class '\w+' has only \d+ training images; lower data.shots"):
        few_labels(small_store, small_store.select("train"), shots=500)


def test_the_stream_brings_no_other_images(small_store):
    chosen = experiment(small_store, **{"data.labels": 0.3})
    allowed = set(chosen.training_samples(small_store)[0])
    seen = [number for columns in open_stream(chosen, small_store).local(0, 12) for number in columns["number"]]
    assert set(seen) == allowed
    assert len(allowed) < 100


def test_fewer_images_than_a_batch_come_in_it_several_times_as_different_views(small_store):
    """Six images in batches of 32: an epoch has each six times, and leaves out four of the 36."""
    few = experiment(small_store, **{"data.shots": 2, "data.labels_draw": 3})
    few.check(small_store)
    for columns in open_stream(few, small_store).local(0, 4):
        _, counts = np.unique(columns["number"], return_counts=True)
        assert len(counts) == 6
        assert counts.max() <= 6
        pairs = set(zip(columns["number"].tolist(), columns["visit"].tolist(), strict=True))
        assert len(pairs) == 32  # no view twice


def test_a_batch_of_too_many_copies_is_refused(small_store):
    few = experiment(small_store, **{"data.shots": 1, "data.batch_size": 512, "training.images_seen": 512})
    with pytest.raises(ValueError, match=r"data.batch_size=512 is more than 100 times the 3 images .*use more labels"):
        few.check(small_store)


def test_a_probe_of_one_image_a_class_still_predicts():
    bank, labels = np.eye(2, dtype=np.float32), np.array([0, 1])
    assert linear_predictions(bank, labels, bank, iterations=50)[0].tolist() == [0, 1]


def test_a_supervised_run_is_also_judged_by_its_own_classifier(small_store, tmp_path):
    """Against its weights by hand; the network before training beside it."""
    few = experiment(small_store, **{"data.shots": 5})
    run = begun(few, tmp_path / "run", steps=12)
    train, test = few.training_samples(small_store)[0], small_store.select("test")
    generator, labels = np.random.default_rng(1), small_store.column("label").to_numpy()

    def embedded(numbers: np.ndarray) -> Embeddings:
        shape = {"trained": 16, "random": 16, "pixels": 12}
        features = {name: generator.normal(size=(len(numbers), dim)).astype(np.float32) for name, dim in shape.items()}
        return Embeddings(numbers, labels[numbers], features)

    asked = embedded(test)
    case = Case(RunEncoders.of(run), small_store, few.evaluation, embedded(train), asked, HERE)
    scores = {one.score.name: one.score for one in own_classifier(case) if isinstance(one, Answered)}
    assert list(scores) == ["classifier_top1"]
    state = load_file(run.newest_checkpoint().path / "objective.safetensors")
    weights, bias = state["classify.weight"], state["classify.bias"]
    right = (asked.features["trained"] @ weights.T + bias).argmax(1) == labels[test]
    assert scores["classifier_top1"].trained == pytest.approx(right.mean())
    assert scores["classifier_top1"].random_encoder != scores["classifier_top1"].trained
    assert scores["classifier_top1"].num_queries == len(test)
