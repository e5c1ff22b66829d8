"""Lineage both ways (P21): what fed a checkpoint, which checkpoints saw a sample, and what descends from them."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from pipeline.ingest.blocklist import BlockList, block
from pipeline.ingest.store import Store
from pipeline.ledger.database import Ledger
from pipeline.ledger.dumps import add_source, discover, seal
from pipeline.ledger.lineage import descendants, dumps_of, fed, find_checkpoint
from pipeline.ledger.overview import overview
from pipeline.ledger.records import record_checkpoint, record_run, record_store
from pipeline.ledger.seen import first_step, saw
from pipeline.run import Run
from pipeline.train.attempts import Skips
from pipeline.train.checkpoints import save_checkpoint
from pipeline.train.worker import fresh_state, open_stream
from tests.pipeline.ledger.runs import judge, trained
from tests.pipeline.stores import curate_here, write_dump


def record(ledger: Ledger, run: Run, **options) -> str:
    checkpoint = run.newest_checkpoint()
    assert checkpoint is not None
    with ledger.writing() as connection:
        record_run(connection, run, **options)
        return record_checkpoint(connection, run, checkpoint)


@pytest.fixture
def store(tmp_path) -> Store:
    """Of its own: block-lists are written to it."""
    return curate_here(write_dump(tmp_path / "dump", 90), tmp_path / "store")


@pytest.fixture
def chain(small_experiment, store, tmp_path) -> list[Run]:
    """Three runs, each from the one before; the second stops after 4 of 12 steps."""
    found: list[Run] = []
    for name, step in (("first", 12), ("second", 4), ("third", 12)):
        changes = {"data.store": str(store.path)}
        if found:
            before = found[-1].newest_checkpoint()
            changes |= {"training.start_from": str(found[-1].path), "training.start_digest": before.digest}
        found.append(trained(small_experiment.override(changes), tmp_path / name, step=step))
    return found


def ids(store: Store) -> list[str]:
    return store.column("id").to_pylist()


def test_what_fed_a_checkpoint_goes_back_to_the_first_run(ledger, chain, store):
    """Recording the last records those that it comes from."""
    digest = record(ledger, chain[-1])
    with ledger.reading() as connection:
        lineage = fed(connection, digest)
        assert [one.run.path for one in lineage] == [str(run.path) for run in reversed(chain)]
        assert [one.step for one in lineage] == [12, 4, 12]
        assert dumps_of(lineage) == [store.manifest.digest]
        read = lineage[1].inputs[0]
        assert (read.role, read.planned, read.consumed, read.store) == ("new", 384, 128, str(store.path))
        assert lineage[0].run.versions.keys() == {"feral", "torch", "timm", "ray"}
        after = descendants(connection, [chain[0].newest_checkpoint().digest])
        assert [row.path for row in after] == [str(run.newest_checkpoint().path) for run in chain[1:]]
        assert descendants(connection, [digest]) == []


def test_recording_again_doubles_nothing_and_a_moved_run_is_found_in_its_new_place(ledger, chain, tmp_path):
    digest = record(ledger, chain[0])
    assert record(ledger, chain[0]) == digest
    chain[0].path.rename(tmp_path / "moved")
    record(ledger, Run(tmp_path / "moved"))
    with ledger.reading() as connection:
        assert {part: len(rows) for part, rows in overview(connection).items()} == {
            "names": 0, "runs": 1, "dumps": 1, "work": 0, "gaps": 0, "deliveries": 0
        }  # fmt: skip
        assert find_checkpoint(connection, digest[:8]).path.startswith(str(tmp_path / "moved"))
        assert find_checkpoint(connection, str(tmp_path / "moved")).digest == digest
        with pytest.raises(ValueError, match="knows no elsewhere: give a name"):
            find_checkpoint(connection, "elsewhere")


def test_a_run_from_weights_that_nobody_knows_any_more_says_so(ledger, chain):
    import shutil

    shutil.rmtree(chain[0].path)
    digest = record(ledger, chain[1])
    with ledger.reading() as connection:
        lineage = fed(connection, digest)
    assert len(lineage) == 1
    assert lineage[0].run.base == chain[1].experiment.training.start_digest


def test_an_ancestor_whose_store_is_gone_is_recorded_without_its_data(ledger, chain, small_store, tmp_path):
    before = chain[0].newest_checkpoint()
    changes = {"training.start_from": str(chain[0].path), "training.start_digest": before.digest}
    after = trained(chain[0].experiment.override(changes | {"data.store": str(small_store.path)}), tmp_path / "after")
    chain[0].experiment.data.open().path.rename(tmp_path / "away")
    digest = record(ledger, after)
    with ledger.reading() as connection:
        assert [len(one.inputs) for one in fed(connection, digest)] == [1, 0]
    with pytest.raises(ValueError, match="no store at"):
        record(ledger, chain[1])


def test_a_store_belongs_to_the_dump_that_a_scheduler_sealed(ledger, store):
    manifest = store.manifest
    with ledger.writing() as connection:
        add_source(connection, "web", "s3://bucket")
        discover(connection, "web", manifest.source, manifest.listing)
        sealed = seal(connection, manifest.source, manifest.listing, "the-dump", files=1, size=1, seq=7)
        assert record_store(connection, store, sealed.dump_id) == record_store(connection, store)
        assert [(row.dump_id, row.source_id) for row in overview(connection)["dumps"]] == [("the-dump", "web")]


def test_a_store_that_was_made_anew_since_is_not_taken_for_what_was_trained_on(ledger, chain):
    judge(chain[0], 0.5, store_digest="of another content")
    with pytest.raises(ValueError, match="made anew since"):
        record(ledger, chain[0])


def test_seen_is_what_the_stream_yielded(small_experiment, small_store):
    """Against the batches that a worker reads, for samples of every fate; over more than one epoch."""
    experiment = small_experiment.override({"training.images_seen": 320})
    numbers = experiment.training_samples(small_store)[0]
    plan = open_stream(experiment, small_store).plan
    rows = numbers[plan.rank_rows(0, 10, 0, 1)[0]]  # (steps, batch)
    for number in [*np.unique(rows)[:20], *np.setdiff1d(numbers, rows)[:3]]:
        steps = np.flatnonzero((rows == number).any(1))
        assert first_step(experiment, [small_store], int(number), 10) == (steps[0] + 1 if len(steps) else None)
    test = int(small_store.select("test")[0])
    assert first_step(experiment, [small_store], test, 10) is None


def test_batches_that_were_left_out_were_not_seen(small_experiment, small_store):
    numbers = small_experiment.training_samples(small_store)[0]
    rows = numbers[open_stream(small_experiment, small_store).plan.rank_rows(0, 12, 0, 1)[0]]
    skips = Skips(((2, 3),))  # from step 2 on, the plan is read 3 steps later
    kept = rows[[0, 1, 5, 6]]
    for number in np.unique(rows[:7])[::7]:
        steps = np.flatnonzero((kept == number).any(1))
        found = first_step(small_experiment, [small_store], int(number), 4, skips)
        assert found == (steps[0] + 1 if len(steps) else None)


def test_a_takedown_finds_every_checkpoint_that_saw_a_sample_and_what_descends_from_it(ledger, chain, store):
    digests = [record(ledger, run) for run in chain]
    experiment = chain[0].experiment
    numbers = store.select("train")
    firsts = {int(n): first_step(experiment, [store], int(n), 12) for n in numbers}
    early = next(n for n, first in firsts.items() if first == 1)
    second = chain[1].experiment
    late = next((n for n, first in firsts.items() if first and first_step(second, [store], n, 4) is None), None)
    block(store.path, BlockList(frozenset({ids(store)[early]})))  # the takedown itself changes no answer
    with ledger.reading() as connection:
        found = saw(connection, ids(store)[early][:16])
        assert found.sample == ids(store)[early]
        assert found.places[0].blocked
        assert [reader.first is not None for reader in found.readers] == [True, True, True]
        assert {row.digest for row in found.tainted} == {*digests}
        if late is not None:
            found = saw(connection, ids(store)[late])
            assert [len(reader.saw) for reader in found.readers][1] == 0  # its four steps did not hold it
            assert digests[1] in {row.digest for row in found.tainted}  # but it starts from what did
        held = saw(connection, ids(store)[int(store.select("test")[0])])
        assert held.places[0].split == "test"
        assert held.tainted == []
        unknown = saw(connection, "f" * 64)
        assert (unknown.places, unknown.tainted) == ((), [])
        for wrong in ("zz", "12345", "g" * 64):
            with pytest.raises(ValueError, match="is no sample id"):
                saw(connection, wrong)


def test_a_checkpoint_before_the_first_sight_did_not_see_it(ledger, small_experiment, store, tmp_path):
    experiment = small_experiment.override({"data.store": str(store.path)})
    run = trained(experiment, tmp_path / "run", step=1)
    early = record(ledger, run)
    state = fresh_state(experiment, torch.device("cpu"))
    state.step = 12
    save_checkpoint(run.checkpoints, state, keep=2)
    late = record(ledger, run)
    number = next(int(n) for n in store.select("train") if (first_step(experiment, [store], int(n), 12) or 0) > 1)
    with ledger.reading() as connection:
        assert [row.digest for row in saw(connection, ids(store)[number]).tainted] == [late]
    assert early != late


def test_a_sample_that_stood_in_for_a_blocked_one_counts_as_seen(small_experiment, store):
    """Its own place in the plan may come later than that of the one that it replaced."""
    experiment = small_experiment.override({"data.store": str(store.path)})
    numbers = store.select("train", with_blocked=True)
    firsts = {int(n): first_step(experiment, [store], int(n), 12) for n in numbers}
    pair = next(
        (int(a), int(b)) for a, b in pairwise(numbers)
        if (firsts[int(a)] or 99) < (firsts[int(b)] or 99)
    )  # fmt: skip
    block(store.path, BlockList(frozenset({ids(store)[pair[0]]})))
    assert first_step(experiment, [store], pair[1], 12) == firsts[pair[0]]
    assert first_step(experiment, [store], pair[0], 12) == firsts[pair[0]]  # of the blocked one itself, as ever


def test_a_store_that_is_gone_is_named_and_not_passed_over_in_silence(ledger, chain, store):
    record(ledger, chain[0])
    sample = ids(store)[0]
    store.path.rename(store.path.with_name("away"))
    with ledger.reading() as connection:
        found = saw(connection, sample)
    assert len(found.unreadable) == 1
    assert str(store.path) in found.unreadable[0]
