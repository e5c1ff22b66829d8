"""A mistake is refused before anything starts: what, value, bound, way out."""

import json
from hashlib import sha256

import pytest

from jobs.recipes import RECIPES, find_recipe
from pipeline.experiment import ADDED, build_experiment
from pipeline.settings import describe, parse_overrides, settings


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_can_be_built_shown_and_read_back(name):
    experiment = RECIPES[name]()
    experiment.check_model()
    assert experiment.override({}) == experiment
    assert [key for key, _, _ in describe(experiment) if key.startswith("encoder.")]
    document = RECIPES[name].__doc__ or ""
    for part in ("Paper:", "Result:", "Cost:", "Command:"):
        assert part in document


def test_every_setting_says_what_it_means():
    undocumented = {key for name in RECIPES for key, _, meaning in describe(RECIPES[name]()) if not meaning}
    assert undocumented <= {
        "encoder.name", "objective.name", "optimizer.name", "views.jitter_probability",
        "objective.decoder_depth", "objective.decoder_heads", "objective.text.layers",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"objective.temprature": 0.1}, "did you mean objective.temperature"),
        ({"temperature": 0.1}, "did you mean objective.temperature"),
        ({"objective.temperature": -1}, r"objective.temperature=-1: should be greater than 0"),
        ({"objective.temperature": "warm"}, r"objective.temperature='warm': should be a valid number"),
        ({"data.batch_size": 100}, r"data.batch_size=100 is not a multiple of data.lanes=16.*data.batch_size=112"),
        ({"cluster.workers": 3}, r"3 workers .*do not divide data.lanes=16.*a multiple of 3"),
        ({"training.images_seen": 10}, r"training.images_seen=10 is less than one batch of 256"),
        ({"encoder.patch_size": 9}, r"encoder.image_size=32 is not a multiple.*encoder.image_size=36"),
        ({"views.crop_scale": [0.5, 0.2]}, r"crop_scale=\(0.5, 0.2\) must be 0 < low <= high"),
        ({"optimizer.name": "adam"}, "optimizer.name='adam': should be 'sgd', 'adamw' or 'lars'"),
    ],
)
def test_a_mistake_is_explained(changes, says):
    with pytest.raises(ValueError, match=says) as caught:
        RECIPES["simclr_32px"]().override(changes)
    assert "\n" not in str(caught.value)


def test_an_objective_that_does_not_fit_the_encoder_is_refused():
    with pytest.raises(ValueError, match="needs a ViT"):
        RECIPES["mae_64px"]().override(
            {"encoder.name": "resnet18", "encoder.patch_size": None, "encoder.arguments": {}}
        ).check_model()


def test_views_are_not_turned_where_directions_are_learned():
    with pytest.raises(ValueError, match=r"views.rotate=0.5: objective 'rotation' learns directions.*views.rotate=0"):
        RECIPES["rotation_32px"]().override({"views.rotate": 0.5})
    assert RECIPES["simclr_32px"]().override({"views.rotate": 0.5}).views.rotate == 0.5


def test_needs_of_the_objective_are_compared_with_the_store(small_experiment, small_store):
    small_experiment.check(small_store)
    with pytest.raises(ValueError, match=r"data.batch_size=512 exceeds the \d+ training images"):
        small_experiment.override({"data.batch_size": 512, "training.images_seen": 1024}).check(small_store)


def supervised(small_experiment, **changes):
    content = small_experiment.model_dump(mode="json") | {"objective": {"name": "supervised"}}
    return build_experiment(content).override(changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data.labels": 0.1, "data.shots": 1}, "data.labels=0.1 and data.shots=1 are two budgets"),
        ({"data.labels_draw": 1}, "data.labels_draw=1 draws labels: give data.labels or data.shots"),
        ({"data.labels": 0.0}, "data.labels=0.0: should be greater than 0"),
        ({"objective.mixup": 0.8, "data.batch_size": 12, "data.lanes": 4, "cluster.workers": 4},
         "each of 4 workers has 3 of data.batch_size=12, which is odd: use data.batch_size=24"),
        ({"training.start_digest": "ab"}, "give training.start_from=RUN"),
        ({"optimizer.layer_decay": 1.5}, "optimizer.layer_decay=1.5: should be less than or equal to 1"),
    ],
)  # fmt: skip
def test_settings_of_fine_tuning_that_do_not_fit_are_explained(small_experiment, changes, says):
    with pytest.raises(ValueError, match=says):
        supervised(small_experiment, **changes)


def test_few_labels_need_an_objective_that_reads_them(small_experiment):
    with pytest.raises(ValueError, match="objective 'simclr' learns from no labels; use objective supervised"):
        small_experiment.override({"data.labels": 0.1})


def test_settings_that_came_later_change_no_digest_where_they_are_off(small_experiment):
    """Trials and runs are named by it: those of version 0.1 must be found again."""
    for experiment in (small_experiment, supervised(small_experiment)):
        content = experiment.model_dump(mode="json", exclude={"cluster"})
        for key in ADDED:
            group, name = key.split(".")
            content[group].pop(name, None)
        assert experiment.digest == sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    few = {supervised(small_experiment, **{"data.labels": share}).digest for share in (None, 0.1, 0.2)}
    assert len(few) == 3


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean simclr_32px"):
        find_recipe("simclr_32")


def test_overrides_are_read_as_json_or_text():
    assert parse_overrides(["a.b=0.5", "c=[1,2]", "d=null", "e=resnet18", "f=None", "g=true"]) == {
        "a.b": 0.5, "c": [1, 2], "d": None, "e": "resnet18", "f": None, "g": True,
    }  # fmt: skip
    with pytest.raises(ValueError, match="write key=value"):
        parse_overrides(["--temperature"])


def test_where_it_runs_is_not_what_it_is(small_experiment):
    assert small_experiment.override({"cluster.workers": 2}).digest == small_experiment.digest
    assert small_experiment.override({"training.seed": 1}).digest != small_experiment.digest
    assert settings({"a": {"b": 1, "c": {}}}) == {"a.b": 1, "a.c": {}}
