"""Several stores in one run: each batch holds the share that was asked for, for any number of workers, at any step."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.experiment import Experiment
from pipeline.ingest.blocklist import block, parse_block_list
from pipeline.ingest.config import CurateConfig
from pipeline.ingest.selection import write_selection
from pipeline.ingest.store import Store
from pipeline.stream.batches import DataConfig
from pipeline.stream.mixture import Mixture, Supply, lane_shares, mixture
from pipeline.train.worker import open_batches, open_stream
from tests.pipeline.stores import curate_here, tiny_experiment, write_dump


def supply(count: int, weights: np.ndarray | None = None) -> Supply:
    """Of a store that is never read."""
    return Supply(SimpleNamespace(path=f"/{count}"), np.arange(count), weights, None)  # type: ignore[arg-type]


def mixed(old: list[Supply], new: Supply, seed: int = 0, **data) -> Mixture:
    given = {"batch_size": 32, "lanes": 8, "run_length": 4, "runs_per_chunk": 4, "replay": ["old"] * len(old), **data}
    return mixture([*old, new], DataConfig(**given), seed)


def entries(batches: Mixture, step: int, stop: int, world_size: int = 1) -> np.ndarray:
    """(steps, batch, 3): supply, row and visit of each sample of the global batches, rank after rank."""
    parts = [np.stack(batches.entries(step, stop, rank, world_size), axis=2) for rank in range(world_size)]
    return np.concatenate(parts, axis=1)


@settings(max_examples=40, deadline=None)
@given(
    share=st.floats(0.01, 0.99),
    sizes=st.lists(st.integers(60, 400), min_size=1, max_size=3),
    new=st.integers(60, 400),
    lanes=st.sampled_from([1, 2, 4, 8, 16, 32]),
    step=st.integers(0, 300),
    seed=st.integers(0, 9),
)
def test_a_batch_holds_the_share_and_does_not_depend_on_workers(share, sizes, new, lanes, step, seed):
    batches = mixed([supply(size) for size in sizes], supply(new), seed, replay_share=share, lanes=lanes)
    found = entries(batches, step, step + 9)
    replayed = (found[:, :, 0] < len(sizes)).sum(1)
    assert set(replayed) == {min(31, max(1, round(share * 32)))}
    for world_size in (2, 4, 8):
        if lanes % world_size == 0:
            assert np.array_equal(entries(batches, step, step + 9, world_size), found)
    assert np.array_equal(found[4:], entries(batches, step + 4, step + 9))  # any part is computed on its own
    for index, size in enumerate([*sizes, new]):
        assert found[found[:, :, 0] == index][:, 1].max(initial=0) < size


@settings(max_examples=20, deadline=None)
@given(
    share=st.sampled_from([None, 0.1, 0.25, 0.6]),
    sizes=st.lists(st.integers(60, 300), min_size=1, max_size=3),
    new=st.integers(64, 300),
)
def test_each_order_goes_on_by_itself_without_a_sample_coming_twice(share, sizes, new):
    """When a small new store begins again, the older ones do not; (sample, visit) never comes again."""
    batches = mixed([supply(size) for size in sizes], supply(new), replay_share=share)
    steps = 60
    found = entries(batches, 0, steps).reshape(-1, 3)
    assert len(np.unique(found, axis=0)) == len(found)
    for part, supplies in zip(batches.parts, ([*range(len(sizes))], [len(sizes)]), strict=False):
        own = range(len(sizes) + 1) if share is None else supplies
        seen = found[np.isin(found[:, 0], list(own))]
        epochs = -(-steps // part.plan.steps_per_epoch)
        times = np.unique(seen[:, :2], axis=0, return_counts=True)[1]
        assert times.max() <= epochs
        if share is not None:  # all of them have come, but for the rest of each epoch
            assert len(times) >= min(part.plan.samples, len(seen)) - part.plan.batch_size


def test_images_of_older_stores_come_alike():
    """Of one three times as large, three times as many; without a share all images of all stores come alike."""
    batches = mixed([supply(300), supply(100)], supply(500), replay_share=0.25)
    found = entries(batches, 0, 400)[:, :, 0]
    assert np.bincount(found.ravel()) == pytest.approx([0.75 * 3200, 0.25 * 3200, 9600], rel=0.02)
    batches = mixed([supply(300), supply(100)], supply(500), replay_share=None)
    found = entries(batches, 0, 400)[:, :, 0]
    assert np.bincount(found.ravel()) == pytest.approx(np.array([3, 1, 5]) / 9 * 12800, rel=0.02)
    weighted = mixed([supply(300, np.full(300, 0.5, np.float32)), supply(150)], supply(500), replay_share=0.5)
    found = entries(weighted, 0, 400)[:, :, 0]
    assert np.bincount(found.ravel()) == pytest.approx([3200, 3200, 6400], rel=0.02)


@given(samples=st.integers(0, 512), lanes=st.sampled_from([1, 2, 8, 16, 64]))
def test_lanes_share_as_evenly_as_can_be(samples, lanes):
    shares = lane_shares(samples, lanes)
    assert (len(shares), sum(shares)) == (lanes, samples)
    assert max(shares) - min(shares) <= 1


# ---- real stores ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> list[Store]:
    """Two dumps of other pictures, the second an index in place; a fifth of each is for testing."""
    folder, found = tmp_path_factory.mktemp("dumps"), []
    for name, classes, count, in_place in (("old", ("red", "cyan"), 90, False), ("new", ("warm", "cold"), 120, True)):
        dump = write_dump(folder / f"dump-{name}", count, 24 + count % 7, classes)
        config = CurateConfig(samples_per_shard=20, holdout=0.2, in_place=in_place)
        found.append(curate_here(dump, folder / name, config))
    return found


@pytest.fixture
def experiment(stores) -> Experiment:
    old, new = stores
    changes = {"data.replay": [str(old.path)], "data.store": str(new.path), "views.jitter_probability": 0.0}
    return tiny_experiment(new.path).override(changes).fitted(new)


def columns_of(experiment: Experiment, step: int, stop: int, world_size: int = 1) -> list[dict[str, np.ndarray]]:
    batches = open_batches(experiment)
    ranks = [list(batches.local(step, stop, rank, world_size)) for rank in range(world_size)]
    joined = []
    for parts in zip(*ranks, strict=True):
        joined.append({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    return joined


def test_batches_hold_the_pictures_of_their_stores(experiment, stores):
    """Numbers are unique over stores, and lead back to the picture; 2 ranks read what one does."""
    found = columns_of(experiment, 0, 6)
    batches = open_batches(experiment)
    for columns, halves in zip(found, columns_of(experiment, 0, 6, world_size=2), strict=True):
        assert np.bincount(columns["store"]).tolist() == [8, 24]
        assert batches.counts(columns) == (8, 24)
        for name, values in columns.items():
            assert np.array_equal(values, halves[name]), name
        for row in range(32):
            store, number = batches.origin(columns, row)
            assert columns["number"][row] == number + (90 if store.path == stores[1].path else 0)
            label = store.column("label")[number].as_py()
            assert columns["label"][row] == label
            red, green, _ = columns["crops"][row].reshape(-1, 3).mean(0)
            assert (red > green) == (store.manifest.classes[label] in ("warm", "red"))  # the hues of `write_dump`
    assert {number for columns in found for number in columns["number"]} <= set(range(210))


def test_views_of_a_store_alone_are_those_of_the_mixture(experiment, stores):
    """What a sample looks like is a function of (seed, visit, number): the older store's numbers stay as they were."""
    alone = open_stream(tiny_experiment(stores[0].path), stores[0])
    (columns,) = columns_of(experiment, 0, 1)
    old = np.flatnonzero(columns["store"] == 0)
    reader = alone.reader
    same = reader.read(reader.references(stores[0], columns["number"][old], columns["visit"][old]))
    assert np.array_equal(same["crops"], columns["crops"][old])


@pytest.mark.cluster
def test_ray_reads_what_this_process_reads(experiment, ray_local):
    batches = open_batches(experiment)
    for expected, found in zip(batches.local(3, 9), batches.distributed(3, 9), strict=True):
        for name, values in expected.items():
            assert np.array_equal(values, found[name]), name


def test_the_block_list_of_every_store_is_honoured(experiment, stores, tmp_path):
    before = columns_of(experiment, 0, 8)
    for store, name in zip(stores, ("data.replay", "data.store"), strict=True):
        copy = Path(shutil.copytree(store.path, tmp_path / store.path.name))
        experiment = experiment.override({name: [str(copy)] if name == "data.replay" else str(copy)})
        taken = [store.column("id")[int(number)].as_py() for number in store.select("train")[:10]]
        block(copy, parse_block_list(taken, "test"))
    after, batches = columns_of(experiment, 0, 8), open_batches(experiment)
    gone = {(str(tmp_path / store.path.name), int(n)) for store in stores for n in store.select("train")[:10]}
    for old, new in zip(before, after, strict=True):
        origins = [batches.origin(new, row) for row in range(32)]
        assert not gone & {(str(store.path), number) for store, number in origins}
        assert np.array_equal(old["store"], new["store"])
        assert (old["number"] == new["number"]).mean() > 0.5  # the others stand where they stood


def test_stores_that_change_are_noticed_and_count_in_the_digest(experiment, stores, tmp_path):
    assert len(experiment.data.digests) == 2
    assert experiment.digest != experiment.override({"data.digests": ["0" * 64, "1" * 64]}).digest
    copy = Path(shutil.copytree(stores[0].path, tmp_path / "copy"))
    moved = experiment.override({"data.replay": [str(copy)]})
    moved.open_stores()  # the same content elsewhere
    card = copy / "selections" / "default" / "selection.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"digest": "0" * 64}))
    with pytest.raises(ValueError, match=r"copy, selection 'default', has other samples than when the run began"):
        open_batches(moved)


def select(store: Store, name: str, numbers: np.ndarray) -> None:
    kept = np.isin(np.arange(store.manifest.admitted), numbers)
    decisions = pa.table(
        {"reason": pa.array(np.where(kept, None, "other"), pa.string()), "because": pa.nulls(len(kept), pa.int64()),
         "weight": pa.nulls(len(kept), pa.float32())}
    )  # fmt: skip
    columns = store.columns("id", "split")
    facts = {"based_on": None, "policy": {}, "inputs": {}, "notes": {}}
    write_selection(store.path, name, store.manifest.index_sha256, columns["id"], columns["split"], decisions, **facts)


def test_selections_of_one_store_share_its_numbers_but_no_image(stores, tmp_path):
    copy = Path(shutil.copytree(stores[0].path, tmp_path / "copy"))
    store = Store(copy)
    train = store.select("train")
    select(store, "first", train[:40])
    select(store, "second", train[30:])
    changes = {"data.replay": f"[{copy}@first]", "data.selection": "second", "data.batch_size": 16}
    asked = tiny_experiment(copy).override(changes)
    with pytest.raises(ValueError, match=r"10 training images of .* are in the selection 'first' and in 'second'"):
        asked.fitted(store).check(store)
    select(store, "second", train[40:])
    experiment = asked.fitted(store)
    experiment.check(store)
    for columns in columns_of(experiment, 0, 3):
        for name, part in ((0, train[:40]), (1, train[40:])):
            assert set(columns["number"][columns["store"] == name]) <= set(part)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"objective": {"name": "supervised"}}, "old has other classes than .*new: labels are counted by each store"),
        ({"objective": {"name": "supervised"}, "data.shots": 3}, "few labels .* are of one store"),
        ({"data.replay_share": 0.99, "data.batch_size": 128}, "127 of the .* images of a batch are to come from .*old"),
        ({"objective": {"name": "instdisc", "num_samples": 120}}, "num_samples=120 is less than the 210 samples of"),
        ({"data.replay": "nowhere"}, "no store at .*nowhere"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(stores, experiment, changes, says):
    def begin() -> None:
        asked = experiment.override({"data.digests": [], **changes})
        asked.fitted(stores[1]).check(stores[1])

    with pytest.raises(ValueError, match=says):
        begin()


def test_a_bank_has_a_slot_for_each_sample_of_all_stores(stores, experiment):
    asked = experiment.override({"objective": {"name": "instdisc", "negatives": 16}}).fitted(stores[1])
    assert asked.objective.num_samples == 210
    asked.check(stores[1])
