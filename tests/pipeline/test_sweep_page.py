"""The page of a sweep: whole in itself, deaf to what strangers wrote, and true to sweep.json."""

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.report.sweep_page import parallel, words, write_sweep_page
from tests.pipeline.pages import ATTACK, Page, refuse_network, sweep_of


def written(folder: Path, sweep: dict[str, Any]) -> Page:
    (folder / "sweep.json").write_text(json.dumps(sweep))
    return Page(write_sweep_page(folder).read_text())


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "trials" / "0003").mkdir(parents=True)
    (folder / "trials" / "0003" / "report.html").touch()
    return written(folder, sweep_of(24))


def test_it_is_whole_in_itself_and_what_strangers_wrote_is_text(page: Page) -> None:
    refuse_network(page, scripts=1)
    assert page.text.count("<script>") == 1  # its own
    assert ATTACK not in page.text
    assert page.text.count(html.escape(ATTACK)) >= 4  # recipe, command, onward, error
    assert page.ids == ["headline", "settings", "importance", "slices", "cost", "curves", "trials", "failures",
                        "reproduce"]  # fmt: skip
    assert "trials/0003/report.html" in page.links
    assert "trials/0004/report.html" not in page.links


def test_it_says_what_is_best_what_matters_and_what_went_wrong(page: Page) -> None:
    for words_ in ("Best: optimizer.learning_rate=", "with fresh seeds.", "Better than the recipe", "21 finished",
                   "3 stopped", "1 failed", "1 refused", "loss is not finite", "does not fit", "after 12,800 images",
                   "optimizer.learning_rate", "no more than chance", "no other trial beats in both",
                   "2 fresh seeds", "31.0 ± 1.0 %"):  # fmt: skip
        assert words_ in page.text, words_


def test_the_command_to_go_on_has_the_settings_exactly(page: Page, tmp_path: Path) -> None:
    best = sweep_of(24)["best"]["changes"]
    blocks = [html.unescape(block) for block in re.findall("<pre>(.*?)</pre>", page.text)]
    assert f"optimizer.learning_rate={best['optimizer.learning_rate']!r}" in blocks[0]
    assert blocks[0].startswith("feral pretrain 'simclr <script>")
    assert "'data.store=a store'" in blocks[0]
    assert words({"a": 0.123456789, "b": [1, 2], "c": "x"}) == "a=0.1235, b=[1, 2], c=x"


def test_a_line_of_the_parallel_axes_ends_at_the_score_or_before_it(tmp_path: Path) -> None:
    page = written(tmp_path, sweep_of(24))
    lines = re.findall(r'<polyline class="([a-z ]*)" points="([^"]*)"', page.text.split('id="importance"')[0])
    assert len(lines) == 24 + 1  # a failed one, too
    for look, points in lines:
        places = [tuple(map(float, point.split(","))) for point in points.split()]
        assert [x for x, _ in places] == [0, 25, 50, 75, 100][: 4 if look.split() in (["stopped"], ["failed"]) else 5]
        assert all(-1 <= y <= 101 for _, y in places)
    assert lines[-1][0] == "best tinted"


def test_a_sweep_that_has_just_begun_has_a_page(tmp_path: Path) -> None:
    sweep = sweep_of(3)
    for trial in sweep["trials"]:
        trial |= {"state": "running", "score": None, "scores": {}, "curve": [], "images": None, "seconds": None,
                  "overhead_seconds": None, "loss": None, "peak_memory_bytes": None, "images_per_second": None,
                  "error": None, "repeat": None}  # fmt: skip
    page = written(tmp_path, sweep | {"best": None})
    assert "no trial has finished" in page.text
    assert "0 trials have finished" in page.text
    page = written(tmp_path, sweep | {"best": None, "trials": [], "why_not": "the budget is spent", "not_started": 5})
    assert "The budget is spent." in page.text
    assert "5 trials that were asked for were not started." in page.text


def test_a_sweep_without_stops_failures_and_repeats_has_a_page(tmp_path: Path) -> None:
    sweep = sweep_of(6)
    sweep["trials"] = [trial for trial in sweep["trials"] if trial["state"] == "finished" and not trial["repeat"]]
    for trial in sweep["trials"]:
        trial["curve"] = trial["curve"][-1:]
    sweep["best"] |= {
        "score_mean": None,
        "score_std": None,
        "seeds": 0,
        "default": None,
        "confirmed": False,
        "verdict": "",
    }
    page = written(tmp_path, sweep)
    assert "failures" not in page.ids
    assert "Best of the search, not confirmed with fresh seeds: optimizer.learning_rate=" in page.text
    assert "No trial was judged while it trained." in page.text


def test_what_is_no_sweep_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("[]")
    with pytest.raises(ValueError, match=r"sweep\.json is no sweep of this version"):
        write_sweep_page(tmp_path)
    assert not (tmp_path / "sweep.html").exists()


def test_trials_of_one_category_are_spread_around_it() -> None:
    from pipeline.report.axes import of_categories

    trials = [{"number": n, "changes": {"k": "ab"[n % 2]}, "score": 0.1 * n, "state": "finished"} for n in range(6)]
    drawn = parallel({"k": of_categories("k", ["a", "b"])}, trials, trials, "k-NN")
    starts = [float(line.points.split()[0].split(",")[1]) for line in drawn["lines"]]
    assert len(set(starts)) == 6
    assert all(abs(start - (75 if n % 2 == 0 else 25)) < 8 for n, start in enumerate(starts))
