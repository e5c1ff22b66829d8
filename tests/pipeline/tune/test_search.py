"""What is drawn next, and what is stopped early."""

import pytest

from pipeline.experiment import Experiment, build_experiment
from pipeline.tune.search import Draw, Search
from pipeline.tune.space import Space, parse_space

BASE = build_experiment({"data": {"batch_size": 32, "lanes": 4}, "objective": {"name": "simclr"}})
RANGE = parse_space(["optimizer.learning_rate=loguniform(0.01,1)", "objective.temperature=0.1,0.5"])


def build(changes: dict) -> Experiment:
    return BASE.override(changes)


def search(directory, space: Space = RANGE, **how) -> Search:
    return Search(space, build, directory, **{"kind": "tpe", "images": 900, **how})


def worth(draw: Draw) -> float:
    return 1 - abs(draw.changes["optimizer.learning_rate"] - 0.3)


def drawn(one: Search, count: int) -> list[dict]:
    found = []
    for draw in one:
        found.append(draw.changes)
        one.tell(draw, [worth(draw)])
        if len(found) == count:
            break
    return found


@pytest.mark.parametrize("kind", ["random", "tpe"])
def test_a_killed_search_draws_what_an_undisturbed_one_draws(tmp_path, kind):
    for name in ("straight", "killed", "other"):
        (tmp_path / name).mkdir()
    expected = drawn(search(tmp_path / "straight", kind=kind), 14)
    drawn(search(tmp_path / "killed", kind=kind), 12)
    again = search(tmp_path / "killed", kind=kind)
    assert [draw.changes for draw in again.drawn] == expected[:12]
    for draw in again.drawn:
        again.tell(draw, [worth(draw)])
    assert drawn(again, 2) == expected[12:]
    assert drawn(search(tmp_path / "other", kind=kind, seed=1), 1) != expected[:1]


def test_tpe_finds_a_peak_that_random_draws_seldom_hit(tmp_path):
    (tmp_path / "tpe").mkdir()
    late = [changes["optimizer.learning_rate"] for changes in drawn(search(tmp_path / "tpe"), 40)][20:]
    assert sum(0.15 < rate < 0.6 for rate in late) > len(late) / 2  # of the range, in logarithm, that is 30 %


def test_a_grid_is_tried_whole_and_goes_on_where_it_was_killed(tmp_path):
    space = parse_space(["objective.temperature=0.1,0.5", "objective.projector_dims=[8],[16],[32]"])
    first = iter(search(tmp_path, space, kind="grid"))
    begun = [next(first).changes, next(first).changes]
    again = search(tmp_path, space, kind="grid")
    assert [draw.changes for draw in again.drawn] == begun
    assert begun + [draw.changes for draw in again] == space.combinations()


def test_nothing_is_drawn_twice_and_a_space_may_be_used_up(tmp_path):
    space = parse_space(["objective.temperature=choice(0.1,0.2)", "training.seed=choice(0,1,2)"])
    found = [tuple(draw.changes.values()) for draw in search(tmp_path, space)]
    assert len(found) == len(set(found)) == 6


def test_a_draw_that_cannot_be_trained_is_refused_with_its_reason_and_the_search_goes_on(tmp_path):
    space = parse_space(["data.batch_size=choice(32,34,36)", "training.seed=choice(0,1)"])
    one = search(tmp_path, space)
    draws = list(one)
    refused = [draw for draw in draws if draw.experiment is None]
    assert len(draws) == 6
    assert {draw.changes["data.batch_size"] for draw in refused} == {34}
    assert all("is not a multiple of data.lanes=4" in (draw.refused or "") for draw in refused)
    assert len(search(tmp_path, space).drawn) == 6  # refused ones too, by the next command


def test_asha_stops_who_is_not_among_the_best_of_a_rung(tmp_path):
    one = search(tmp_path, stop="asha")
    assert one.rungs == [100, 300]
    draws = [draw for draw, _ in zip(one, range(6), strict=False)]
    stopped = [one.report(draw, 128, score) for draw, score in zip(draws, (0.5, 0.6, 0.4, 0.3, 0.7, 0.2), strict=True)]
    assert stopped == [False, False, True, True, False, True]
    assert not one.report(draws[0], 200, 0.1)  # no new rung
    assert not one.report(draws[4], 310, 0.8)
    assert one.report(draws[0], 310, 0.7)


def test_median_stops_who_is_below_half_of_those_that_finished(tmp_path):
    one = search(tmp_path, stop="median")
    draws = [draw for draw, _ in zip(one, range(6), strict=False)]
    for draw, score in zip(draws[:4], (0.2, 0.4, 0.6, 0.8), strict=True):
        assert not one.report(draw, 180, score)  # too few have finished
        one.tell(draw, [score])
    assert one.report(draws[4], 200, 0.3)
    assert not one.report(draws[5], 180, 0.7)


def test_a_search_for_score_and_cost_draws_and_learns(tmp_path):
    one = search(tmp_path, with_cost=True)
    for draw, _ in zip(one, range(15), strict=False):
        if draw.number == 3:
            one.tell(draw, None, bad=True)
        else:
            one.tell(draw, [worth(draw), draw.changes["objective.temperature"]])
    best = one.study.best_trials
    assert best
    assert all(trial.values[1] == 0.1 for trial in best[:1])
