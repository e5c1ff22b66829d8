"""The stream: what reaches a worker is what the plan says, through Ray Data as in this process."""

import errno
import os
import random
import time
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from pipeline.ingest import fetch
from pipeline.ingest.config import CurateConfig
from pipeline.ingest.store import Store
from pipeline.select.policy import PRESETS, Inputs
from pipeline.select.selecting import Stages, select
from pipeline.stream import batches, ray_reading
from pipeline.stream.batches import captioned, to_batch
from pipeline.stream.crops import CenterCrop, RandomCrops
from pipeline.stream.read import Reader
from pipeline.stream.views import ViewsConfig
from pipeline.train.worker import open_stream
from tests.pipeline.stores import curate_here, tiny_experiment, write_dump


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


def test_local_crops_are_cut_from_the_same_images(small_experiment, small_store):
    geometry = RandomCrops(small_experiment.views, 16, 2, seed=0)
    local = RandomCrops(small_experiment.views, 8, 3, seed=0, local=True)
    reader, plain = Reader(geometry, local=local), Reader(geometry)
    numbers, epochs = np.arange(20), np.arange(20) % 2
    columns = reader.read(reader.references(small_store, numbers, epochs))
    assert columns["local_crops"].shape == (20, 3, 8, 8, 3)
    assert reader.sample_bytes == columns["crops"][0].nbytes + columns["local_crops"][0].nbytes
    equal(
        plain.read(plain.references(small_store, numbers, epochs)),
        {k: v for k, v in columns.items() if "local" not in k},
    )
    alone = Reader(local).read(plain.references(small_store, numbers, epochs))
    assert np.array_equal(alone["crops"], columns["local_crops"])
    views = small_experiment.device_views(plain=True)
    one_epoch = {name: value[epochs == 0] for name, value in columns.items()}
    batch = to_batch(one_epoch, views, torch.device("cpu"))
    assert [view.shape[-1] for view in batch.views] == [16, 16, 8, 8, 8]


def test_how_samples_are_packed_changes_no_batch(tmp_path):
    """One giant shard, tiny ones, one a sample: fewer shards than workers, or far more."""
    dump, read = write_dump(tmp_path / "dump", 36), []
    for samples_per_shard in (36, 7, 1):
        store = curate_here(dump, tmp_path / f"{samples_per_shard}", CurateConfig(samples_per_shard=samples_per_shard))
        assert len(store.manifest.shards) == -(-36 // samples_per_shard)
        experiment = tiny_experiment(store.path).override({"data.batch_size": 8})
        read.append(list(open_stream(experiment, store).local(0, 9, 1, 4)))
    for batches_ in zip(*read, strict=True):
        for other in batches_[1:]:
            equal(batches_[0], other)


@pytest.mark.parametrize("geometry", [CenterCrop(64), RandomCrops(ViewsConfig(crop_scale=(0.5, 1)), 64, 2, seed=0)])
def test_a_large_photo_is_decoded_smaller_and_looks_the_same(tmp_path, monkeypatch, geometry):
    """But for the resampling, which is that of two filters; a photo that cannot be decoded smaller is decoded whole."""
    waves = np.sin(np.linspace(0, 30, 701)[:, None] * np.linspace(0.5, 1, 501)[None] + np.arange(3)[:, None, None])
    photo = Image.fromarray((127 + 60 * waves.transpose(1, 2, 0)).astype(np.uint8))
    (tmp_path / "photos").mkdir()
    for name in "abc":
        photo.save(tmp_path / "photos" / f"{name}.jpg", quality=90)
        photo = photo.transpose(Image.Transpose.ROTATE_90)
    store = curate_here(tmp_path / "photos", tmp_path / "store", CurateConfig(in_place=True, holdout=0))
    reader = Reader(geometry, place=store.place)
    references = reader.references(store, np.arange(3), np.zeros(3, np.int64))
    decoded, sides = Reader._images, []

    def seen(self, *args):
        for row, image, is_reduced in decoded(self, *args):
            sides.append(max(image.shape) if is_reduced else None)
            yield row, image, is_reduced

    monkeypatch.setattr(Reader, "_images", seen)
    smaller = reader.read(references)["crops"].astype(int)
    assert set(sides) <= {351, 176}
    monkeypatch.setattr(JpegImageFile, "draft", lambda *args: (_ for _ in ()).throw(OSError("no")))
    whole = reader.read(references)["crops"].astype(int)
    assert sides[3:] == [None] * 3
    assert 0 < np.abs(smaller - whole).mean() < 1.5
    assert np.abs(smaller - whole).max() < 16


def test_storage_that_fails_now_and_then_gives_the_same_columns_and_is_counted(
    small_experiment, small_store, monkeypatch
):
    monkeypatch.setattr(fetch, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(fetch, "TRIES", 12)
    stream = open_stream(small_experiment, small_store)
    whole = list(stream.local(0, 4))
    pread, chance, failed = os.pread, random.Random(0), [0]

    def flaky(fd, length, offset):
        if chance.random() < 0.3:
            failed[0] += 1
            raise OSError(errno.ESTALE, "Stale file handle")
        return pread(fd, length // 2 + 1 if chance.random() < 0.3 else length, offset)

    monkeypatch.setattr(os, "pread", flaky)
    again = list(stream.local(0, 4))
    assert sum(columns.pop("retries").sum() for columns in again) == failed[0] > 5
    for one, other in zip(whole, again, strict=True):
        assert other.keys() == one.keys() - {"retries"}
        equal({name: one[name] for name in other}, other)


def test_only_what_is_referred_to_is_read(small_store):
    """The index stays on disk: neither its columns nor all captions are loaded to refer to samples."""
    store = Store(small_store.path)
    reader = Reader(CenterCrop(16), context_length=8)
    references = reader.references(store, np.array([5, 299, 5]), np.zeros(3, np.int64))
    assert store._loaded == {}
    captions = small_store.column("captions")
    assert references["captions"].to_pylist() == [captions[number].as_py() for number in (5, 299, 5)]
    assert np.array_equal(captioned(store, np.arange(300)), np.arange(300))


@pytest.mark.parametrize(("geometry", "length"), [((224, 1), 222), ((224, 10), 22), ((16, 2), 256), ((4000, 10), 1)])
def test_tasks_are_as_long_as_their_crops_allow(geometry, length):
    reader = Reader(CenterCrop(*geometry))
    assert ray_reading._block_samples(reader.sample_bytes) == length
    assert ray_reading._read_ahead(reader.sample_bytes, 256, 64) >= 3 * 64 * length * reader.sample_bytes


def test_processes_read_the_same_batches_in_the_same_order(small_experiment, small_store):
    stream = open_stream(small_experiment, small_store)
    for mine, theirs in zip(stream.local(3, 10, 1, 2), stream.processes(3, 10, 1, 2, processes=2), strict=True):
        assert mine.keys() == theirs.keys()
        assert all(np.array_equal(mine[name], theirs[name]) for name in mine)


class Operator(NamedTuple):
    running: int
    output_dependencies: tuple = ()

    def num_active_tasks(self):
        return self.running


class Waiting(NamedTuple):
    size: int

    def total_enqueued_output_blocks(self):
        return self.size

    def total_enqueued_output_blocks_bytes(self):
        return self.size


@pytest.mark.parametrize(
    ("running", "waiting", "starts"), [(0, 0, True), (1, 99, True), (2, 0, False), (0, 100, False), (3, 500, False)]
)
def test_a_task_starts_where_a_cpu_is_free_and_little_waits(running, waiting, starts):
    from ray.data import DataContext, ExecutionResources

    from pipeline.stream.read_ahead import ReadAhead

    context, reading = DataContext().copy(), Operator(running)
    context.execution_options.resource_limits = ExecutionResources.for_limits(cpu=2.5, object_store_memory=100)
    policy = ReadAhead(context, {reading: Waiting(waiting)}, None)
    assert policy.can_add_input(reading) == starts
    assert policy.max_task_output_bytes_to_read(reading) is None  # what has been made is always taken


@pytest.mark.cluster
@pytest.mark.parametrize("block_samples", [10, 1])  # a block a task; several
def test_ray_data_keeps_the_order(small_experiment, small_store, ray_local, monkeypatch, block_samples):
    """Several tasks and segments, an epoch's end, a start in mid-epoch, and two ranks."""
    monkeypatch.setattr(ray_reading, "BLOCK_SAMPLES", block_samples)
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
    monkeypatch.setattr(ray_reading, "BLOCK_SAMPLES", 32)
    monkeypatch.setattr(ray_reading, "READ_AHEAD_BYTES", 2**22)
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
