"""The order of samples is a function of (seed, epoch, selection)."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.bench import run
from pipeline.stream import plan as module
from pipeline.stream.plan import Plan, permuted
from ssl_models import batch

GOLDEN = [
    [509, 101, 96, 455, 67, 57, 186, 111, 880, 881, 399, 890],
    [134, 461, 454, 99, 183, 178, 117, 60, 887, 951, 402, 401],
]
GOLDEN_WEIGHTED = [
    [81, 406, 400, 764, 488, 831, 836, 481, 159, 325, 939, 331],
    [90, 96, 375, 1, 479, 487, 225, 260, 950, 301, 947, 232],
]
GOLDEN_FAR = [193176255486, 82184951156, 377992494241, 82184951151]
WEIGHTS = {
    "one heavy": np.array([7.25] + [1.0] * 400),
    "all halves": np.full(900, 0.5),
    "whole numbers": np.resize([0, 1, 2, 3, 0, 4], 600),
    "anything": np.random.default_rng(0).gamma(1, 1, 1000),
    "hardly any": np.append(np.full(300, 1e-9), np.full(500, 1.0)),
    "the most": np.append(np.full(3, 100.0), np.full(200, 0.3)),
}


def plan_of(samples: int = 1078, batch_size: int = 32, lanes: int = 8, seed: int = 0, **changes: Any) -> Plan:
    return Plan(samples, batch_size, lanes, seed, **{"run_length": 16, "runs_per_chunk": 4, **changes})


def weighted(name: str, **changes: Any) -> Plan:
    weights = WEIGHTS[name].astype(np.float32)
    return plan_of(len(weights), weights=weights, **changes)


def rows(plan: Plan, step: int, stop: int, world_size: int = 1) -> np.ndarray:
    """Samples of each global batch, by rank: (steps, batch)."""
    parts = [plan.rank_rows(step, stop, rank, world_size)[0] for rank in range(world_size)]
    return np.concatenate(parts, axis=1)


def counts(plan: Plan, epoch: int) -> np.ndarray:
    """How often an epoch has each sample."""
    first = epoch * plan.steps_per_epoch
    return np.bincount(rows(plan, first, first + plan.steps_per_epoch).ravel(), minlength=plan.samples)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_runs_are_permuted_by_a_bijection_of_any_size(size: int, key: int) -> None:
    found = permuted(np.arange(size), size, np.array([key], np.uint64))
    assert np.array_equal(np.sort(found), np.arange(size))


def test_the_bijection_sends_every_number_everywhere_alike() -> None:
    for size in (2, 3, 7, 12):
        sent = np.zeros((size, size))
        for key in range(600):
            sent[np.arange(size), permuted(np.arange(size), size, module._key(key, "test", 0))] += 1
        expected = 600 / size
        # chi-square with (size - 1)² degrees of freedom, at about five standard deviations
        assert ((sent - expected) ** 2 / expected).sum() < (size - 1) ** 2 + 7 * (size - 1) + 8


def test_a_huge_bijection_takes_single_numbers() -> None:
    size = 10**18 + 9
    some = np.arange(0, size, size // 1000)
    found = permuted(some, size, np.array([5], np.uint64))
    assert len(np.unique(found)) == len(some)
    assert found.min() >= 0
    assert found.max() < size
    assert abs(found.mean() / size - 0.5) < 0.05


def test_bits_are_those_of_the_models() -> None:
    ids = torch.arange(5)
    ours = module._hash(module._mix(np.array([17], np.uint64)), np.arange(5))
    theirs = batch._mix(batch._mix(torch.tensor(17)) + (ids + 1) * batch._GOLDEN)
    assert ours.astype(np.int64).tolist() == theirs.tolist()


@settings(max_examples=40, deadline=None)
@given(
    samples=st.integers(32, 3000), share=st.integers(1, 4), run_length=st.integers(1, 40),
    runs_per_chunk=st.integers(1, 9), seed=st.integers(0, 2**63), start=st.integers(0, 10**9),
)  # fmt: skip
def test_any_plan_gives_the_same_batches_to_any_workers_and_each_sample_once(
    samples: int, share: int, run_length: int, runs_per_chunk: int, seed: int, start: int
) -> None:
    plan = Plan(samples, 8 * share, 8, seed, run_length, runs_per_chunk)
    step = start // plan.steps_per_epoch * plan.steps_per_epoch
    whole = rows(plan, step, step + plan.steps_per_epoch)
    assert len(np.unique(whole)) == whole.size > samples - plan.batch_size
    assert 0 <= whole.min() <= whole.max() < samples
    for world_size in (2, 4, 8):
        assert np.array_equal(rows(plan, step, step + 3, world_size), rows(plan, step, step + 3))
    part = plan.steps_per_epoch // 2
    assert np.array_equal(rows(plan, step + part, step + plan.steps_per_epoch), whole[part:])


@pytest.mark.parametrize("make", [plan_of, lambda: weighted("anything")], ids=["unweighted", "weighted"])
def test_a_restart_anywhere_continues_the_same_order(make: Any) -> None:
    plan = make()
    whole = rows(plan, 0, 2 * plan.steps_per_epoch + 3)
    for step in (0, 1, plan.steps_per_epoch - 1, plan.steps_per_epoch, plan.steps_per_epoch + 5):
        for world_size in (1, 4):
            assert np.array_equal(rows(make(), step, len(whole), world_size), whole[step:])
    single = np.concatenate([rows(plan, step, step + 1) for step in range(len(whole))])
    assert np.array_equal(single, whole)


def test_the_order_is_what_it_always_was() -> None:
    """A change of these numbers changes what every run reads after it is resumed."""
    assert rows(plan_of(), 0, 2)[:, :12].tolist() == GOLDEN
    assert rows(weighted("anything"), 50, 52)[:, :12].tolist() == GOLDEN_WEIGHTED
    assert rows(Plan(10**12, 256, 16, 3, 16, 16), 10**12, 10**12 + 1)[0, :4].tolist() == GOLDEN_FAR


def test_epochs_and_seeds_differ() -> None:
    plan = plan_of()
    end = plan.steps_per_epoch
    first = rows(plan, 0, end)
    assert not np.array_equal(first, rows(plan, end, 2 * end))
    assert not np.array_equal(first, rows(plan_of(seed=1), 0, end))
    starts = {plan._points(epoch, np.array([0])).item() % 16 for epoch in range(200)}
    assert starts == set(range(16))  # where runs begin differs, too


def test_every_place_of_an_epoch_gets_every_sample_alike() -> None:
    """And what one epoch leaves out, another brings."""
    samples, epochs = 70, 1000
    plan = Plan(samples, 16, 4, 0, run_length=4, runs_per_chunk=3)
    order = rows(plan, 0, epochs * plan.steps_per_epoch).reshape(epochs, 64)
    places = np.arange(64).reshape(plan.steps_per_epoch, 16)[None].repeat(epochs, 0).reshape(epochs, 64)
    met = np.zeros((samples, 64))
    np.add.at(met, (order, places), 1)
    expected = epochs / samples
    freedom = 69 * 64
    assert ((met - expected) ** 2 / expected).sum() < freedom + 5 * np.sqrt(2 * freedom)
    assert np.abs(met.sum(1) / epochs - 64 / 70).max() < 0.03


def test_any_two_samples_of_different_runs_meet_alike() -> None:
    plan = Plan(64, 8, 4, 0, run_length=2, runs_per_chunk=4)
    batches = rows(plan, 0, 800 * plan.steps_per_epoch)
    met = np.zeros((64, 64))
    for one in batches.T:
        for other in batches.T:
            np.add.at(met, (one, other), 1)
    apart = np.abs(np.arange(64)[:, None] - np.arange(64))
    far = met[(apart > 3) & (apart < 61)] / 800
    assert far.std() < 1.3 * np.sqrt(far.mean() / 800)  # as the spread of counts by chance


def test_batches_mix_what_lies_together() -> None:
    plan = Plan(40_000, 64, 16, 0, 16, 16)
    batches = rows(plan, 0, plan.steps_per_epoch)
    shards = [len(np.unique(one // 1000)) for one in batches]  # of 40
    assert np.median(shards) > 28
    neighbours = (np.diff(np.sort(batches, axis=1), axis=1) == 1).sum(1)
    assert neighbours.mean() < 64 * 0.02
    first, second = (len(np.unique(rows(plan, step, step + 16) // 16)) for step in (0, 16))
    assert max(first, second) < 2 * 16 * 16  # 16 batches of 64 come from few runs: reading is near-sequential


@pytest.mark.parametrize("samples", [32, 33, 47, 63, 64, 65, 1000])
def test_few_samples_are_enough(samples: int) -> None:
    plan = plan_of(samples)
    assert counts(plan, 5).max() == 1
    assert counts(plan, 5).sum() == samples // 32 * 32
    assert sum(counts(plan, epoch) for epoch in range(40)).min() > 0


@pytest.mark.parametrize("name", WEIGHTS)
def test_an_epoch_has_a_sample_as_often_as_it_weighs(name: str) -> None:
    plan, weights = weighted(name), WEIGHTS[name]
    assert plan.entries == pytest.approx(weights.sum(), abs=1)
    total = np.zeros(len(weights))
    for epoch in range(150):
        found = counts(plan, epoch)
        assert (found <= np.ceil(weights)).all()
        assert np.maximum(np.floor(weights) - found, 0).sum() < plan.batch_size + 1
        total += found
    seen = plan.steps_per_epoch * plan.batch_size / weights.sum()
    spread = np.sqrt(np.maximum(weights, 1) / 150)  # of a mean over 150 epochs, at most about
    assert (np.abs(total / 150 - weights * seen) < 4.5 * spread).all()
    assert total.sum() == 150 * plan.steps_per_epoch * plan.batch_size


def test_weights_of_one_change_no_counts_and_zero_is_never() -> None:
    ones = plan_of(weights=np.ones(1078, np.float32))
    assert ones.entries == 1078
    assert counts(ones, 0).max() == 1
    weights = np.resize(np.array([0, 1], np.float32), 1078)
    total = sum(counts(plan_of(weights=weights), epoch) for epoch in range(30))
    assert (total[::2] == 0).all()
    assert total[1::2].min() > 20


@pytest.mark.parametrize("weight", [2.0, 3.0, 4.0, 2.5])
def test_copies_of_a_sample_meet_in_a_batch_no_more_often_than_chance(weight: float) -> None:
    samples = 20_000
    plan = Plan(samples, 128, 16, 0, weights=np.full(samples, weight, np.float32))
    batches = np.sort(rows(plan, 0, plan.steps_per_epoch), axis=1)
    met = sum(int((batches[:, by:] == batches[:, :-by]).sum()) for by in range(1, 4))
    found = counts(plan, 0)
    chance = (found * (found - 1) / 2).sum() * 127 / plan.entries
    assert met < chance + 5 * np.sqrt(chance)


def test_copies_are_told_apart() -> None:
    plan = weighted("whole numbers")
    found, epochs, copies = plan.rank_entries(0, 3 * plan.steps_per_epoch, 0, 1)
    assert copies.max() == 3
    assert (copies < WEIGHTS["whole numbers"][found]).all()
    each = np.stack([found, epochs, copies]).reshape(3, -1)
    assert len(np.unique(each, axis=1).T) == found.size
    assert not plan_of().rank_entries(0, 3, 0, 1)[2].any()


def test_sums_of_blocks_find_what_a_plain_sum_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer after layer, over blocks and slabs that do not divide the samples."""
    weights = np.random.default_rng(1).choice([0, 0.25, 1, 1.5, 3, 6.75], 700).astype(np.float32)
    layers = np.clip(weights.astype(np.float64) - np.arange(7)[:, None], 0, 1)
    ends = np.cumsum(layers) * 2**24
    points = np.random.default_rng(2).integers(0, int(ends[-1]), 5000)
    cells = np.searchsorted(ends, points, side="right")
    for block, table, slab in ((8, 2**20, 64), (8, 100, 16), (2**10, 2**20, 2**18)):
        for name, value in {"_BLOCK": block, "_TABLE": table, "_SLAB": slab}.items():
            monkeypatch.setattr(module, name, value)
        line = module._Line(weights)
        samples, copies = line.find(points)
        assert line.total == ends[-1]
        assert np.array_equal(samples, cells % 700)
        assert np.array_equal(copies, cells // 700)


def test_epoch_numbers_travel_with_the_samples() -> None:
    plan = plan_of()
    _, epochs = plan.rank_rows(plan.steps_per_epoch - 1, plan.steps_per_epoch + 1, 0, 1)
    assert epochs[0].tolist() == [0] * 32
    assert epochs[1].tolist() == [1] * 32


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"batch_size": 30}, "not a multiple of data\\.lanes=8"),
        ({"samples": 20}, "has 20 samples, fewer than one batch of data\\.batch_size=32: lower"),
        ({"samples": 60, "weights": np.full(60, 0.5)}, "60 samples, by their weights 30 entries an epoch, fewer than"),
        ({"samples": 60, "weights": np.ones(61)}, "61 weights for 60 samples"),
        ({"samples": 60, "weights": np.resize([1, -1], 60)}, "from -1 to 1: a weight must be between 0 and 100"),
        ({"samples": 60, "weights": np.resize([1, 101], 60)}, "from 1 to 101: a weight must be between 0 and 100"),
        ({"samples": 60, "weights": np.resize([1, np.nan], 60)}, "from nan to nan"),
    ],
)
def test_what_cannot_be_planned_is_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        plan_of(**arguments)


def test_a_world_that_does_not_divide_the_lanes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"does not divide data\.lanes=8"):
        plan_of().rank_rows(0, 1, 0, 3)


def test_the_benchmark_shows_that_size_does_not_matter() -> None:
    costs, copies = run("plan", {"samples": 3_000_000, "small": 100_000, "steps": 5})
    assert [row[:2] for row in costs.rows] == [
        (kind, samples) for kind in ("every sample once", "weighted") for samples in (100_000, 3_000_000)
    ]
    memory = [row[costs.columns.index("peak MB")] for row in costs.rows]
    assert all(isinstance(peak, float) and 0 < peak < 24 for peak in memory)  # one int64 a sample would be 24
    assert {row[0] for row in copies.rows} >= {"all 2", "all 4"}
