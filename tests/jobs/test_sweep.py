"""The command `feral sweep`, as far as no trial is started."""

import json

import pytest

from jobs.pretrain import read_override
from jobs.sweep import _show, planned

SETTINGS = ["optimizer.learning_rate=0.1,0.2", "encoder.image_size=16"]


@pytest.fixture
def settings(small_store) -> list[str]:
    return [*SETTINGS, f"data.store={small_store.path}", "data.batch_size=32", "training.images_seen=64"]


def test_lists_make_a_grid_and_what_is_drawn_a_search(settings):
    assert planned("simclr_32px", settings)[0].search == "grid"
    assert planned("simclr_32px", settings, trials=2)[0].search == "tpe"
    drawn = [*settings, "objective.temperature=choice(0.1,0.2)"]
    assert planned("simclr_32px", drawn, trials=2)[0].search == "tpe"
    assert planned("simclr_32px", drawn, search="grid")[0].search == "grid"


def test_the_directory_is_named_by_what_is_searched_not_by_how_much(settings):
    name = planned("simclr_32px", settings)[0].name
    assert planned("simclr_32px", settings[::-1], seeds=1)[0].name == name
    assert planned("simclr_32px", settings, stop="asha")[0].name != name


@pytest.mark.parametrize(
    ("extra", "asked", "says"),
    [
        ([], {"stop": "pbt"}, "no recipe can hold"),
        ([], {"stop": "early"}, "--stop early is unknown: use none, asha, median"),
        (["objective.temperature=uniform(0.1,1)"], {}, "say how many with --trials N"),
        (["objective.temperatur=0.1,0.2"], {}, "no such setting"),
    ],
)
def test_a_mistake_is_told_before_anything_starts(settings, extra, asked, says):
    with pytest.raises(ValueError, match=says):
        planned("simclr_32px", [*settings, *extra], **asked)


def test_combinations_that_cannot_be_trained_are_told(settings):
    settings = settings[:-2]
    plan, _, reasons = planned("simclr_32px", [*settings, "data.batch_size=32,64", "data.lanes=16,64"])
    assert len(reasons) == 2  # with either learning rate
    assert "data.batch_size=32 is not a multiple of data.lanes=64" in reasons[0]
    changes = {"optimizer.learning_rate": 0.2, "data.batch_size": 64}
    assert plan.build(changes, plan.base.data.open()).optimizer.learning_rate == 0.2


def test_what_a_sweep_found_is_shown_with_failures_and_what_the_machinery_cost(capsys):
    common = {"repeat": None, "seed": 0, "scores": {}, "curve": [], "overhead": {"start-up": 20.0, "evaluation": 4.0}}
    common |= {"seconds": 30.0, "overhead_seconds": 24.0, "images_per_second": 99.0, "peak_memory_bytes": 5 * 10**6}
    trials = [
        common | {"number": n, "changes": {"a": n, "b": [n]}, "run": f"trials/r{n}", "loss": 1.0, "error": error}
        | {"score": score, "state": "failed" if error else "finished", "images": 64}
        for n, (score, error) in enumerate([(0.5, None), (0.625, None), (None, "out of luck")])
    ]  # fmt: skip
    found = {"metric": "knn", "cost": "seconds", "space": {"a": {}, "b": {}}, "trials": trials, "front": [1]}
    _show(found | {"not_started": 3, "why_not": "--hours 1 are over"})
    shown = capsys.readouterr().out
    assert shown.index("62.5% *") < shown.index("50.0%") < shown.index("failed")
    assert "trial 2 failed: out of luck" in shown
    assert "2 finished, 1 failed; 3 not started: --hours 1 are over" in shown
    assert "a trial trained 30 s, and took 24 s beside it (start-up 20, evaluation 4)" in shown


def test_an_override_is_a_file_of_settings(tmp_path):
    path = tmp_path / "best.json"
    path.write_text(json.dumps({"objective.temperature": 0.2}))
    assert read_override(path) == {"objective.temperature": 0.2}
    path.write_text("[1]")
    with pytest.raises(ValueError, match="holds no settings"):
        read_override(path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_override(tmp_path / "nothing.json")
