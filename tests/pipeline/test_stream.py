"""The stream: what reaches a worker is what the plan says, through Ray Data as in this process."""

import time

import numpy as np
import pytest

from pipeline.ingest.store import Store
from pipeline.select.policy import PRESETS, Inputs
from pipeline.select.selecting import Stages, select
from pipeline.stream import batches
from pipeline.train.worker import open_stream
from tests.pipeline.stores import tiny_experiment


def equal(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert np.array_equal(value, other[key]), key


def test_batches_are_the_stored_samples(small_experiment, small_store):
    stream = open_stream(small_experiment, small_store)
    (first,) = stream.local(0, 1)
    assert first["crops"].shape == (32, 2, 16, 16, 3)
    labels = small_store.index["label"].to_numpy()
    assert np.array_equal(first["label"], labels[first["number"]])
    # The hue tells the class: red, green and blue pictures have their greatest mean there.
    brightest = first["crops"].mean(axis=(1, 2, 3)).argmax(1)
    assert np.array_equal(
        brightest, np.array([["red", "green", "blue"].index(c) for c in small_store.manifest.classes])[first["label"]]
    )


def test_training_never_reads_the_test_split(small_experiment, small_store):
    stream = open_stream(small_experiment, small_store)
    seen = np.concatenate([columns["number"] for columns in stream.local(0, stream.plan.steps_per_epoch)])
    assert not set(seen) & set(small_store.select("test"))
    assert len(set(seen)) == len(seen)


def test_ranks_share_the_batch(small_experiment, small_store):
    stream = open_stream(small_experiment, small_store)
    (whole,) = stream.local(3, 4)
    parts = [next(iter(stream.local(3, 4, rank, 2))) for rank in range(2)]
    equal(whole, {key: np.concatenate([part[key] for part in parts]) for key in whole})


def test_captions_are_chosen_by_epoch_and_tokenised(small_store, small_experiment):
    experiment = small_experiment.override(
        {"objective": {"name": "clip", "dim": 8, "text": {"width": 16, "layers": 1, "heads": 2, "context_length": 12}}}
    )
    stream = open_stream(experiment, small_store)
    (first,) = stream.local(0, 1)
    assert first["tokens"].shape == (32, 12)
    assert (first["tokens"].max(1) == 49407).all()  # the end token is always there
    assert (first["tokens"][:, 0] == 49406).all()


def test_a_shard_that_changed_after_sealing_is_named(small_experiment, small_store, tmp_path):
    import shutil

    copy = shutil.copytree(small_store.path, tmp_path / "copy")
    shard = next(iter(sorted((copy / "shards").iterdir())))
    shard.write_bytes(bytes(shard.stat().st_size))
    experiment = small_experiment.override({"data.store": str(copy)})
    with pytest.raises(ValueError, match=r"sample \d+ of the sealed store is damaged: .*00000"):
        list(open_stream(experiment, Store(copy)).local(0, 7))


@pytest.mark.cluster
def test_ray_data_keeps_the_order(small_experiment, small_store, ray_local, monkeypatch):
    """Several tasks and segments, an epoch's end, a start in mid-epoch, and two ranks."""
    monkeypatch.setattr(batches, "TASK_SAMPLES", 10)
    monkeypatch.setattr(batches, "SEGMENT_SAMPLES", 160)
    stream = open_stream(small_experiment, small_store)
    for rank, world_size in ((0, 1), (1, 2)):
        streamed = list(stream.distributed(3, 12, rank, world_size, cpus=2))
        expected = list(stream.local(3, 12, rank, world_size))
        assert len(streamed) == len(expected) == 9
        for one, other in zip(streamed, expected, strict=True):
            equal(one, other)


@pytest.mark.cluster
@pytest.mark.slow
def test_a_consumer_that_is_busy_elsewhere_is_left_alone(small_experiment, small_store, ray_local, monkeypatch):
    """Ray Data's scheduling loop runs in the training process: when it is far enough ahead it must sleep."""
    monkeypatch.setattr(batches, "TASK_SAMPLES", 32)
    monkeypatch.setattr(batches, "READ_AHEAD_BYTES", 2**24)
    stream = open_stream(small_experiment, small_store)
    iterator = stream.distributed(0, 3000, cpus=2)
    next(iterator)
    time.sleep(3)  # the read-ahead fills
    before = time.process_time()
    time.sleep(4)
    burnt = time.process_time() - before
    next(iterator)  # it goes on
    iterator.close()
    assert burnt < 1.6, f"{burnt:.1f} of 4 seconds"  # without sleeping: nearly all of them


def test_training_reads_the_selection_that_is_named_and_no_other_sample(small_store: Store) -> None:
    policy = PRESETS["none"][0].model_copy(update={"max_aspect": 1.0})
    select(small_store, "squares", policy, Inputs(), Stages())
    experiment = tiny_experiment(small_store.path).override({"data.selection": "squares", "data.batch_size": 16})
    stream = open_stream(experiment, experiment.data.open())
    read = np.unique(np.concatenate([columns["number"] for columns in stream.local(0, stream.plan.steps_per_epoch)]))
    sizes = small_store.columns("original_width", "original_height")
    squares = np.flatnonzero(sizes["original_width"].to_numpy() == sizes["original_height"].to_numpy())
    assert 16 <= len(read) < len(small_store.select("train"))
    assert np.isin(read, squares).all()
    other = experiment.override({"data.selection": "circles"})
    with pytest.raises(ValueError, match="has no selection 'circles'"):
        other.check(other.data.open())
