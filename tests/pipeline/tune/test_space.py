"""What a sweep varies."""

import pytest

from jobs.recipes import RECIPES
from pipeline.tune.space import Range, parse_space
from ssl_models.optimizers import scaled_learning_rate

SIMCLR = RECIPES["simclr_32px"]()


def built(changes: dict) -> None:
    SIMCLR.override(changes).check_model()


def test_lists_ranges_and_fixed_values_are_told_apart():
    space = parse_space(
        [
            "objective.temperature=0.1,0.5",
            "objective.projector_dims=[256,128],[512,64]",
            "optimizer.learning_rate=loguniform(1e-4,1e-2)",
            "training.log_every=randint(1,9)",
            "data.store=stores/cifar10",
            "views.crop_scale=[0.2,1.0]",
        ]
    )
    assert space.lists == {"objective.temperature": [0.1, 0.5], "objective.projector_dims": [[256, 128], [512, 64]]}
    assert space.ranges == {
        "optimizer.learning_rate": Range("loguniform", 1e-4, 1e-2),
        "training.log_every": Range("randint", 1, 9),
    }
    assert space.fixed == {"data.store": "stores/cifar10", "views.crop_scale": [0.2, 1.0]}
    assert len(space.combinations()) == 4
    assert space.drawn


def test_values_may_be_anything_that_a_setting_takes():
    space = parse_space(
        [
            "a=grid(true,false)",
            'b=[{"channels": [8, 16]}, 1],null',
            'c=grid("x,y",z)',
        ]
    )
    assert space.lists == {"a": [True, False], "b": [[{"channels": [8, 16]}, 1], None], "c": ["x,y", "z"]}
    assert not space.drawn
    assert parse_space(["a=choice([1,2],[3])"]).drawn


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["objective.temperature=0.1"], "nothing varies"),
        (["objective.temperature"], "write key=v1,v2"),
        (["objective.temperature=choice(0.1)"], "varies nothing: give two values"),
        (["objective.temperature=0.1,0.1"], "varies nothing: give two values"),
        (["optimizer.learning_rate=uniform(2,1)"], "needs low < high"),
        (["optimizer.learning_rate=loguniform(0,1)"], "low > 0 for loguniform"),
        (["optimizer.learning_rate=uniform(a,1)"], "are numbers"),
        (["optimizer.learning_rate=uniform(1)"], "are numbers"),
        (["training.log_every=lograndint(1,2.5)"], "give whole bounds, or use loguniform"),
        (["training.seed=1", "training.seed=1,2"], "given twice"),
        (["cluster.workers=1,2"], "nothing that it computes"),
        (["data.store=a,b"], "scores on different images do not compare"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        parse_space(arguments)


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("objective.temperature=0.1,-1", "should be greater than 0"),
        ("optimizer.learning_rate=uniform(-1,1)", "should be greater than 0"),
        ("objective.tau=0.1,0.2", "no such setting"),
        ("training.log_every=uniform(1,9)", "should be a valid integer"),
    ],
)
def test_a_value_that_no_trial_could_run_with_is_refused_before_any_starts(argument, says):
    with pytest.raises(ValueError, match=says):
        parse_space([argument]).refuse_impossible(built)


def test_combinations_that_cannot_be_trained_are_told_and_the_others_stay():
    reasons = parse_space(["data.batch_size=64,100", "data.lanes=10,16"]).refuse_impossible(built)
    assert len(reasons) == 2  # 64 in 10 lanes, 100 in 16
    assert "data.batch_size=64 is not a multiple of data.lanes=10" in reasons[0]


def test_a_queue_longer_than_the_store_is_refused_before_it_starts():
    moco = RECIPES["moco_32px"]().override({"objective.num_samples": 2000, "objective.queue_size": 1024})
    space = parse_space(["objective.queue_size=1024,4096", "data.batch_size=128,256"])
    with pytest.raises(ValueError, match=r"objective\.queue_size=4096 exceeds the 2000 samples"):
        space.refuse_impossible(lambda changes: moco.override(changes).check_model())


def test_another_batch_size_keeps_the_learning_rate_per_256_images():
    rates = {}
    for changes in parse_space(["data.batch_size=128,256,512"]).combinations():
        found = SIMCLR.override(changes)
        assert found.optimizer.learning_rate == SIMCLR.optimizer.learning_rate
        rates[found.data.batch_size] = scaled_learning_rate(found.optimizer, found.data.batch_size)
        assert found.total_steps * found.data.batch_size == pytest.approx(SIMCLR.training.images_seen, abs=512)
    assert rates == {size: pytest.approx(SIMCLR.optimizer.learning_rate * size / 256) for size in (128, 256, 512)}
