"""The order of samples is a function of (seed, epoch, selection)."""

import numpy as np
import pytest

from pipeline.stream.plan import Plan


def plan_of(shard_sizes=(300, 1, 77, 200, 500), batch_size=32, lanes=8, seed=0):
    shards = np.repeat(np.arange(len(shard_sizes)), shard_sizes)
    return Plan(shards, batch_size, lanes, seed, run_length=16, runs_per_chunk=4)


def rows(plan, step, stop, world_size=1):
    """Samples of each global batch, by rank: (steps, batch)."""
    parts = [plan.rank_rows(step, stop, rank, world_size)[0] for rank in range(world_size)]
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_a_global_batch_does_not_depend_on_the_number_of_workers(world_size):
    plan = plan_of()
    assert np.array_equal(rows(plan, 0, 50), rows(plan, 0, 50, world_size))  # over an epoch's end, and in order


def test_a_restart_anywhere_continues_the_same_order():
    plan = plan_of()
    whole = rows(plan, 0, 2 * plan.steps_per_epoch + 3)
    for step in (0, 1, plan.steps_per_epoch - 1, plan.steps_per_epoch, plan.steps_per_epoch + 5):
        assert np.array_equal(rows(plan_of(), step, len(whole)), whole[step:])


def test_an_epoch_sees_each_sample_at_most_once_and_drops_less_than_a_batch():
    plan = plan_of()
    for epoch in range(3):
        first = epoch * plan.steps_per_epoch
        seen = rows(plan, first, first + plan.steps_per_epoch).ravel()
        assert len(np.unique(seen)) == len(seen)
        assert len(plan.shards) - len(seen) < plan.batch_size


def test_epochs_and_seeds_differ():
    plan = plan_of()
    end = plan.steps_per_epoch
    first = rows(plan, 0, end)
    assert not np.array_equal(first, rows(plan, end, 2 * end))
    assert not np.array_equal(first, rows(plan_of(seed=1), 0, end))


def test_every_sample_comes_sooner_or_later():
    """What one epoch leaves out, another brings."""
    plan = plan_of()
    assert len(np.unique(rows(plan, 0, 8 * plan.steps_per_epoch))) == len(plan.shards)


def test_batches_mix_shards():
    plan = plan_of(shard_sizes=(400,) * 10, batch_size=64, lanes=16)
    mixed = [len(np.unique(plan.shards[batch])) for batch in rows(plan, 0, plan.steps_per_epoch)]
    assert np.median(mixed) >= 8


def test_epoch_numbers_travel_with_the_samples():
    plan = plan_of()
    _, epochs = plan.rank_rows(plan.steps_per_epoch - 1, plan.steps_per_epoch + 1, 0, 1)
    assert epochs[0].tolist() == [0] * 32
    assert epochs[1].tolist() == [1] * 32


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"batch_size": 30}, "not a multiple of data\\.lanes=8"),
        ({"shard_sizes": (20,)}, "fewer than one batch"),
    ],
)
def test_what_cannot_be_planned_is_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        plan_of(**arguments)


def test_a_world_that_does_not_divide_the_lanes_is_refused():
    with pytest.raises(ValueError, match=r"does not divide data\.lanes=8"):
        plan_of().rank_rows(0, 1, 0, 3)
