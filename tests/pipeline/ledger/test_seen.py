"""Takedowns of runs over several stores: the first step that held a sample is computed, in each of their orders."""

import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.experiment import Experiment
from pipeline.ingest.blocklist import BlockList, block
from pipeline.ingest.config import CurateConfig
from pipeline.ingest.store import BLOCKLIST, Store
from pipeline.ledger.lineage import dumps_of, fed
from pipeline.ledger.records import record_checkpoint, record_run
from pipeline.ledger.seen import first_step, saw
from pipeline.run import Run
from pipeline.stream.mixture import orders
from pipeline.train.attempts import Skips
from pipeline.train.record import METRICS
from pipeline.train.worker import open_batches
from tests.pipeline.ledger.runs import trained
from tests.pipeline.stores import curate_here, tiny_experiment, write_dump

SIZES = {"oldest": 70, "older": 90, "new": 80}


def curated(folder: Path) -> list[Store]:
    """Three dumps of other pictures, a fifth of each held out."""
    return [
        curate_here(write_dump(folder / f"dump-{name}", count, 20 + at), folder / name, CurateConfig(holdout=0.2))
        for at, (name, count) in enumerate(SIZES.items())
    ]


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> list[Store]:
    return curated(tmp_path_factory.mktemp("stores"))


def over(stores: list[Store], **changes) -> Experiment:
    *old, new = stores
    replay = {"data.replay": [str(store.path) for store in old]}
    return tiny_experiment(new.path).override({**replay, **changes}).fitted(new)


def computed(experiment: Experiment, stores: list[Store], which: int, number: int, steps: int, skips: Skips):
    order = next(one for one in orders(experiment.data) if which in one.stores)
    own = [stores[index] for index in order.stores]
    return first_step(experiment, own, number, steps, skips, order=order, which=order.stores.index(which))


def counted(experiment: Experiment, which: int, number: int, steps: int, skips: Skips) -> int | None:
    """The same from the batches, one after another."""
    batches, store = open_batches(experiment), experiment.open_stores()[which]
    for step in range(experiment.training.continue_step, steps):
        at = skips.plan_step(step)
        references = batches.references(at, at + 1, 0, 1)
        columns = {name: references[name].to_numpy() for name in ("store", "number")}
        origins = (batches.origin(columns, row) for row in range(len(references)))
        if any(origin.path == store.path and found == number for origin, found in origins):
            return step + 1
    return None


@settings(max_examples=25, deadline=None)
@given(
    share=st.sampled_from([None, 0.1, 0.25, 0.6]),
    begun=st.sampled_from([(0, 0), (5, 5), (5, 0), (9, 4)]),  # where the run goes on, and where its order begins
    skips=st.sampled_from([(), ((6, 2),), ((10, 3), (12, 1))]),
    samples=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 69)), min_size=3, max_size=3, unique=True),
    blocked=st.sets(st.tuples(st.integers(0, 2), st.integers(0, 69)), max_size=20),
    take_down=st.booleans(),
)
def test_seen_is_what_the_batches_of_a_mixture_hold(stores, share, begun, skips, samples, blocked, take_down):
    """Against every batch of the run: for new and replayed samples, kept, held out and blocked; for a run that goes
    on with the same data or with other data; and with batches left out."""
    step, order_begins = begun
    changes = {"training.continue_from": "elsewhere", "training.continue_digest": "0" * 64} if step else {}
    experiment = over(stores, **{"data.replay_share": share}).override(
        {**changes, "training.continue_step": step, "data.first_step": order_begins}
    )
    left_out, steps = Skips(skips), step + 9
    for which, number in samples:
        then = blocked - {(which, number)}  # when it was trained on, it was not blocked
        expected = _with_blocked(stores, then, lambda: counted(experiment, which, number, steps, left_out))  # noqa: B023
        now = then | {(which, number)} if take_down else then
        found = _with_blocked(stores, now, lambda: computed(experiment, stores, which, number, steps, left_out))  # noqa: B023
        assert found == expected


def _with_blocked(stores: list[Store], blocked: set[tuple[int, int]], look):
    for which, store in enumerate(stores):
        (store.path / BLOCKLIST).unlink(missing_ok=True)
        ids = store.column("id").to_pylist()
        block(store.path, BlockList(frozenset(ids[number] for index, number in blocked if index == which)))
    return look()


def test_a_million_samples_are_looked_through_in_seconds():
    """Slowest is a sample that a whole epoch did not hold, where samples have weights."""
    old = np.arange(900_000)
    weights = np.linspace(0.5, 1.5, len(old), dtype=np.float32)
    experiment = tiny_experiment(Path("new")).override({"data.replay": ["old"], "data.batch_size": 256})
    again, _ = orders(experiment.data)
    plan = again.plan([(old, weights)], experiment.data, experiment.training.seed)
    steps = plan.steps_per_epoch
    missing = np.setdiff1d(old, plan.rank_rows(0, steps, 0, 1)[0])
    asked = SimpleNamespace(**dict(experiment), training_samples=lambda store: (old, weights))
    store = SimpleNamespace(blocked=np.array([], np.int64))
    begun = time.perf_counter()
    assert first_step(asked, [store], int(missing[0]), steps, order=again) is None  # type: ignore[arg-type, list-item]
    assert time.perf_counter() - begun < 30  # 1 s on two shared cores


# ---- through the ledger --------------------------------------------------------------------------------------------


def record(ledger, run: Run) -> str:
    checkpoint = run.newest_checkpoint()
    with ledger.writing() as connection:
        record_run(connection, run)
        return record_checkpoint(connection, run, checkpoint)


@pytest.fixture
def own(tmp_path, stores) -> list[Store]:
    """Copies that a test may take away."""
    for store in stores:
        (store.path / BLOCKLIST).unlink(missing_ok=True)
    return [Store(Path(shutil.copytree(store.path, tmp_path / store.path.name))) for store in stores]


@pytest.fixture
def mixed(ledger, own, tmp_path) -> tuple[Run, str]:
    run = trained(over(own), tmp_path / "mixed", step=2)
    rows = ({"step": step, "attempt": 1, "stores": [1, 7, 24]} for step in (1, 2))
    (run.path / METRICS).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return run, record(ledger, run)


def test_a_recorded_mixture_tells_who_saw_a_sample_of_each_of_its_stores(ledger, own, mixed):
    run, digest = mixed
    with ledger.reading() as connection:
        lineage = fed(connection, digest)
        assert [(one.role, one.consumed) for one in lineage[0].inputs] == [("replay", 2), ("replay", 14), ("new", 48)]
        assert dumps_of(lineage) == [store.manifest.digest for store in own]
        for which, store in enumerate(own):
            firsts = {int(n): counted(run.experiment, which, int(n), 2, Skips()) for n in store.select("train")}
            for wanted in {*firsts.values()}:  # 1, 2 and None
                number = next(n for n, first in firsts.items() if first == wanted)
                found = saw(connection, store.column("id")[number].as_py())
                assert [(one.first, one.inexact) for one in found.readers] == [(wanted, None)]
                assert [row.digest for row in found.tainted] == ([digest] if wanted else [])


def test_a_mixture_that_was_recorded_on_its_way_is_brought_up_to_date(ledger, mixed):
    """As a run that was held before its end, and promoted after it."""
    run, digest = mixed
    with (run.path / METRICS).open("a") as file:
        file.write(json.dumps({"step": 3, "attempt": 1, "stores": [2, 6, 24]}) + "\n")
    assert record(ledger, run) == digest
    with ledger.reading() as connection:
        read = [(one.role, one.consumed) for one in fed(connection, digest)[0].inputs]
    assert read == [("replay", 4), ("replay", 20), ("new", 72)]


def test_only_where_a_store_of_the_same_order_is_gone_all_that_is_listed_counts_as_seen(ledger, own, mixed):
    """What is new has an order of its own; the two older ones share theirs."""
    run, digest = mixed
    oldest, older, new = own
    oldest.path.rename(oldest.path.with_name("away"))
    with ledger.reading() as connection:
        fresh = orders(run.experiment.data)[1].plan([run.experiment.training_samples(new)], run.experiment.data, 0)
        held = new.select("train")[fresh.rank_rows(0, 2, 0, 1)[0]]
        unseen = int(np.setdiff1d(new.select("train"), held)[0])
        found = saw(connection, new.column("id")[unseen].as_py())
        assert [(one.first, one.inexact) for one in found.readers] == [(None, None)]
        for split, first in (("train", 1), ("test", None)):
            found = saw(connection, older.column("id")[int(older.select(split)[0])].as_py())
            (reader,) = found.readers
            assert reader.first == first
            assert f"no store at {oldest.path}" in reader.inexact
            assert [row.digest for row in found.tainted] == ([digest] if first else [])
            assert len(found.unreadable) == 1
