"""What a sweep varies."""

import pytest

from jobs.recipes import RECIPES
from pipeline.cluster import ClusterConfig
from pipeline.tune.space import Range, parse_space
from pipeline.tune.trials import concurrent_trials


def test_lists_ranges_and_fixed_values_are_told_apart():
    space = parse_space(
        [
            "objective.temperature=0.1,0.5",
            "objective.projector_dims=[256,128],[512,64]",
            "optimizer.learning_rate=loguniform(1e-4,1e-2)",
            "data.store=stores/cifar10",
            "views.crop_scale=[0.2,1.0]",
        ]
    )
    assert space.choices == {"objective.temperature": [0.1, 0.5], "objective.projector_dims": [[256, 128], [512, 64]]}
    assert space.ranges == {"optimizer.learning_rate": Range("loguniform", 1e-4, 1e-2)}
    assert space.fixed == {"data.store": "stores/cifar10", "views.crop_scale": [0.2, 1.0]}
    assert len(space.combinations()) == 4


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["objective.temperature=0.1"], "nothing varies"),
        (["objective.temperature"], "write key=v1,v2"),
        (["optimizer.learning_rate=uniform(2,1)"], "needs low < high"),
        (["optimizer.learning_rate=loguniform(0,1)"], "low > 0 for loguniform"),
        (["optimizer.learning_rate=uniform(a,1)"], "are numbers"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        parse_space(arguments)


@pytest.mark.parametrize(
    "argument", ["objective.temperature=0.1,-1", "optimizer.learning_rate=uniform(-1,1)", "objective.tau=0.1,0.2"]
)
def test_a_value_that_no_trial_could_run_with_is_refused_before_any_starts(argument):
    with pytest.raises(ValueError, match=r"should be greater than 0|no such setting"):
        parse_space([argument]).check(RECIPES["simclr_32px"]())


def test_trials_leave_room_for_their_workers():
    assert concurrent_trials(ClusterConfig(workers=2), 8) == 2  # 3 CPUs and a little each
    with pytest.raises(ValueError, match="a trial needs 3 CPUs"):
        concurrent_trials(ClusterConfig(workers=2), 3)
