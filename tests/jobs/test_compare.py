"""Comparisons: what is refused as unfair, what the numbers say, and a real one that is resumed."""

import html
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import jobs.recipes
from jobs.cli import app
from pipeline.evaluate.protocol import Evaluation, Health, Score
from pipeline.evaluate.spread import Spread
from pipeline.experiment import Experiment
from pipeline.ingest.config import CurateConfig
from pipeline.ingest.store import Store
from pipeline.report.comparison import cells, columns, explanation, markdown, write_comparison
from pipeline.report.comparison_page import verdict, write_comparison_page
from pipeline.run import Run
from pipeline.train.checkpoints import Checkpoint
from pipeline.train.cost import TrainingCost, cost_of
from pipeline.tune.compare import Contender, Trial, comparison_name, contenders, read_trials, refuse_unjudged
from pipeline.tune.comparison import PAIRS, Measure, apart, conclusions, table
from pipeline.tune.plot import plot_comparison
from pipeline.tune.progress import Progress
from pipeline.tune.trials import trial_run
from tests.pipeline.pages import ATTACK, Page, refuse_network
from tests.pipeline.stores import curate_here, tiny_experiment, write_dump

VIT = {"name": "vit_tiny_patch16_224", "image_size": 16, "patch_size": 8, "pool": "mean",
       "arguments": {"depth": 1, "embed_dim": 48, "num_heads": 3}}  # fmt: skip
HEALTHY = Health(num_images=500, dim=256, rank=60, spread=0.5, mean_cosine=0.7)
ALIKE = Health(num_images=500, dim=256, rank=2, spread=0.01, mean_cosine=0.9996)


def simclr(**changes: Any) -> Experiment:
    return tiny_experiment(Path("store")).override({"training.images_seen": 64, **changes})


def mae(**changes: Any) -> Experiment:
    objective = {"name": "mae", "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}
    return simclr(encoder=VIT, objective=objective, optimizer={"name": "adamw"}, **changes)


def trial(recipe: str, seed: int, knn: float, linear: float, random: float = 0.34, **more: Any) -> Trial:
    def score(name: str, trained: float) -> Score:
        return Score(name=name, protocol="", num_queries=10_000, trained=trained, random_encoder=random,
                     raw_pixels=0.46, chance=0.1)  # fmt: skip

    evaluation = Evaluation(
        checkpoint="c", step=2, store_digest="d", scores=[score("knn_top1", knn), score("linear_top1", linear)],
        skipped=[], neighbours={}, seconds=5, health=more.get("health", {"trained": HEALTHY, "random": HEALTHY}),
    )  # fmt: skip
    return Trial(recipe, seed, f"runs/{recipe}{seed}", evaluation, TrainingCost(60.0 + seed, 500, 10**9 + seed))


# ---- fairness ------------------------------------------------------------------------------------------------------


def test_methods_may_choose_objective_optimizer_and_views():
    first = simclr(**{"training.log_every": 7})
    second = simclr(**{"objective.temperature": 0.5, "optimizer.learning_rate": 0.2, "views.blur": 0.5})
    found = contenders({"a": first, "b": second}, {"training.images_seen": 128})
    assert [contender.recipe for contender in found] == ["a", "b"]
    assert {contender.experiment.training.images_seen for contender in found} == {128}
    assert [contender.experiment.views.blur for contender in found] == [0, 0.5]
    assert found[0].trial(2).training.seed == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training.images_seen", 96),
        ("training.precision", "bf16"),
        ("data.batch_size", 16),
        ("evaluation.neighbours", 5),
        ("encoder.stem", "small"),
        ("encoder.image_size", 24),
        ("cluster.workers", 2),
    ],
)
def test_what_no_method_may_choose_is_refused_with_the_way_out(key, value):
    first, second = simclr(), simclr(**{key: value})
    with pytest.raises(ValueError, match=f"{key} is .* in a, .* in b") as refused:
        contenders({"a": first, "b": second}, {})
    way_out = str(refused.value).split("for example ")[1].strip("'")
    assert way_out.startswith(f"{key}=")
    assert contenders({"a": first, "b": second}, {key: json.loads(way_out.split("=")[1])})


def test_architecture_classes_are_groups_but_see_the_same_pixels():
    found = contenders({"a": simclr(), "m": mae(), "b": simclr(**{"objective.temperature": 0.5})}, {})
    assert [contender.family for contender in found] == ["resnet", "vit", "resnet"]
    with pytest.raises(ValueError, match=r"encoder.image_size is 16 in a, 24 in m"):
        contenders({"a": simclr(), "m": mae(**{"encoder.image_size": 24})}, {})
    with pytest.raises(ValueError, match=r"encoder.pool is \"mean\" in m, \"auto\" in n"):
        contenders({"a": simclr(), "m": mae(), "n": mae(**{"encoder.pool": "auto"})}, {})


def test_a_setting_that_a_recipe_lacks_names_the_recipe():
    with pytest.raises(ValueError, match=r"^m: objective.temperature: no such setting"):
        contenders({"a": simclr(), "m": mae()}, {"objective.temperature": 0.1})
    with pytest.raises(ValueError, match=r"^a: encoder.image_size=12|^m: .*patch"):
        contenders({"a": simclr(), "m": mae()}, {"encoder.image_size": 12})
    with pytest.raises(ValueError, match=r"--seeds N"):
        contenders({"a": simclr(), "b": simclr()}, {"training.seed": 1})


def test_views_may_be_made_the_same():
    own = {"a": simclr(**{"views.grayscale": 0.7}), "m": mae(**{"views.flip": 0.1})}
    same = contenders(own, {"views.blur": 0.3}, same_views=True)
    assert same[0].experiment.views == same[1].experiment.views
    assert (same[1].experiment.views.grayscale, same[1].experiment.views.blur) == (0.7, 0.3)
    assert [contender.views for contender in same] == ["2", "1"]


def test_a_comparison_is_named_by_what_is_compared(small_store: Store):
    a, b = (Contender(name, tiny_experiment(small_store.path).override({"objective.temperature": t}))
            for name, t in (("a", 0.2), ("b", 0.5)))  # fmt: skip
    name = comparison_name([a, b], small_store)
    assert name == comparison_name([b, a], small_store)
    longer = Contender("a", a.experiment.override({"training.images_seen": 640}))
    assert name != comparison_name([longer, b], small_store)


# ---- statistics and table ------------------------------------------------------------------------------------------


def measure(mean: float, std: float, count: int = 3, random: float = 0.34, num_queries: int = 10_000) -> Measure:
    spread = Spread(mean, std if count > 1 else None, count)
    return Measure(spread, Spread(random, 0.0, count), Spread(mean - random, spread.std, count), 0.4, 0.1, num_queries)


def test_spread_is_of_the_sample():
    assert Spread.of([0.1, 0.2, 0.3]) == Spread(pytest.approx(0.2), pytest.approx(0.1), 3)
    assert Spread.of([0.5]) == Spread(0.5, None, 1)
    assert Spread.of([0.581, 0.589]).percent() == "58.5 ± 0.6"
    assert Spread.of([0.5]).percent() == "50.0"


def test_methods_are_told_apart_by_seeds_and_test_images():
    from scipy.stats import ttest_ind_from_stats

    assert apart(measure(0.60, 0.003), measure(0.57, 0.003))
    assert not apart(measure(0.60, 0.02), measure(0.57, 0.02))
    assert not apart(measure(0.60, 0.003, num_queries=100), measure(0.57, 0.003, num_queries=100))
    assert not apart(measure(0.60, 0.003, count=1), measure(0.20, 0.003, count=1))  # nobody knows what a seed does
    for difference in (0.01, 0.02, 0.025, 0.03, 0.04):  # with test images without end it is Welch's test
        first, second = (measure(0.5 + d, std, num_queries=10**12) for d, std in ((difference, 0.01), (0, 0.012)))
        welch = ttest_ind_from_stats(0.5 + difference, 0.01, 3, 0.5, 0.012, 3, equal_var=False).pvalue < 0.05
        assert apart(first, second) == welch


def test_a_gain_over_the_random_encoder_must_be_more_than_chance():
    assert measure(0.40, 0.005).sign == "better"
    assert measure(0.345, 0.005).sign == "weak"  # test images explain it
    assert measure(0.30, 0.005).sign == "weak"
    assert measure(0.40, 0.05).sign == "unsure"  # only seeds that differ so much do
    assert measure(0.40, 0, count=1).sign == "better"


def compared() -> tuple[list[Contender], list[Trial]]:
    found = contenders({name: simclr() for name in "abcd"} | {"m": mae()}, {})
    trials = [trial("a", s, 0.585 + s / 500, 0.60) for s in range(3)] + [
        trial("b", s, 0.59 + s / 500, 0.62) for s in range(3)
    ]
    trials += [trial("c", s, 0.33, 0.38, health={"trained": ALIKE, "random": HEALTHY}) for s in range(3)]
    trials += [trial("m", s, 0.65 + s / 500, 0.70) for s in range(2)] + [
        Trial("m", 2, "", error="TrainingFailed: full disk")
    ]
    return found, trials + [Trial("d", s, "", error="boom") for s in range(3)]


def test_the_table_ranks_within_an_encoder_and_names_what_went_wrong():
    found, trials = compared()
    rows = table(found, trials)
    assert [row.recipe for row in rows] == ["b", "a", "c", "d", "m"]
    notes = {row.recipe: "; ".join(row.notes) for row in rows}
    assert notes["c"] == (
        "collapsed: all embeddings are alike (mean cosine 0.9996), 3 of 3 seeds; not better than the random encoder "
        "(k-NN); not better than raw pixels (k-NN, linear probe)"
    )
    assert notes["m"] == "seed 2 failed: TrainingFailed: full disk"
    assert notes["b"] == ""
    lines = [dict(zip(columns(rows), line, strict=True)) for line in cells(rows)]
    assert [line["method"] for line in lines] == [
        "b", "a", "c", "d", "random encoder", "raw pixels", "m", "random encoder", "raw pixels",
    ]  # fmt: skip
    assert lines[0]["k-NN %"] == "59.2 ± 0.2"
    assert lines[0]["Δ to random"] == "+25.2, +28.0"
    assert lines[0]["memory"] == "1,000 MB"
    assert lines[0]["time"] == "1 min 01 s"
    assert lines[3]["k-NN %"] == "–"
    assert lines[4]["k-NN %"] == "34.0"
    assert lines[8]["linear probe %"] == "46.0"


def test_without_labels_methods_are_ranked_by_retrieval():
    found, trials = compared()
    for evaluation in (one.evaluation for one in trials if one.evaluation):
        pairs = zip(evaluation.scores, PAIRS, strict=True)
        evaluation.scores[:] = [score.model_copy(update={"name": name}) for score, name in pairs]
    rows = table(found, trials)
    assert [row.recipe for row in rows] == ["b", "a", "c", "d", "m"]
    assert columns(rows)[2:4] == ("image→text R@10 %", "text→image R@10 %")
    assert cells(rows)[0][2] == "59.2 ± 0.2"
    assert str(conclusions(rows)[0]).startswith("image→text R@10, resnet18: b has the highest mean")


def test_methods_that_cannot_be_judged_are_refused(tmp_path: Path):
    dump = write_dump(tmp_path / "dump", 40, classes=("things",))
    store = curate_here(dump, tmp_path / "store", CurateConfig(holdout=0.2))
    without = curate_here(dump, tmp_path / "without", CurateConfig(holdout=0))
    text = {"text": {"width": 32, "layers": 1, "heads": 2, "context_length": 16}, "dim": 8}
    clip = Contender("clip", simclr(objective={"name": "clip", **text}))
    refuse_unjudged([clip], store)
    with pytest.raises(ValueError, match=r"has no labels .* only methods that compare images with captions .* not s$"):
        refuse_unjudged([clip, Contender("s", simclr())], store)
    captioning = Contender("c", simclr(objective={"name": "captioning", "text": text["text"]}))
    with pytest.raises(ValueError, match=r"not c$"):  # it reads captions, and answers none
        refuse_unjudged([captioning], store)
    with pytest.raises(ValueError, match="has no test split to compare on"):
        refuse_unjudged([clip], without)


def test_the_conclusion_says_no_more_than_was_measured():
    rows = table(*compared())
    knn, linear, vit, _ = map(str, conclusions(rows))
    assert knn == (
        "k-NN, resnet18: b has the highest mean, 59.2 ± 0.2 %; not distinguishable from it: a; not better than its "
        "random encoder: c"
    )
    assert linear == "linear probe, resnet18: b has the highest mean, 62.0 ± 0.0 %; above all 2 others by more than " \
        "seeds and test images explain"  # fmt: skip
    assert vit == "k-NN, vit_tiny_patch16_224: m has the highest mean, 65.1 ± 0.1 %"
    assert "; above the other by more than seeds" in str(conclusions([row for row in rows if row.recipe in "bc"])[0])
    found, trials = compared()
    single = conclusions(table(found[:2], [trial for trial in trials if trial.seed == 0]))
    assert "a single seed tells no method from another: give --seeds 3" in str(single[0])
    assert conclusions(table(found, [])) == []


def test_a_gain_that_seeds_may_explain_asks_for_more_of_them(tmp_path: Path):
    found, trials = compared()
    trials = [trial("a", 0, 0.40, 0.60), trial("a", 1, 0.60, 0.60)] + [t for t in trials if t.recipe == "b"]
    rows = table(found[:2], trials)
    assert rows[1].notes == ("too few seeds to tell it from the random encoder (k-NN)",)
    assert str(conclusions(rows)[0]).endswith("; too few seeds to tell from its random encoder: a")
    said = verdict(rows, [])["more"]
    assert "Too few seeds to tell from the encoder before training (k-NN): a." in said
    assert not any("No better" in line for line in said)
    assert verdict(table(found[:1], trials), [])["tone"] == "close"  # the best is not sure to be better than nothing
    write_comparison(tmp_path, rows, trials, found[:2], explanation(found[:2], 3, 1), "feral compare a b")
    page = write_comparison_page(tmp_path).read_text()
    assert page.count('class="lane unsure"') == 1 + 1  # of its k-NN, and in the key


def test_files_say_how_they_were_made(tmp_path: Path):
    found, trials = compared()
    rows = table(found, trials)
    command = "feral compare a b c d m data.store=store"
    write_comparison(tmp_path, rows, trials, found, explanation(found, 3, 1), command)
    text = (tmp_path / "compare.md").read_text()
    assert text.startswith(f"`{command}`\n\n| method | encoder | k-NN % |")
    assert len({line.count(" | ") for line in text.splitlines() if line.startswith("| ")}) == 1
    assert "64 images seen of store in batches of 32" in text
    assert "nothing was chosen by them" in text
    assert "Ranked within an encoder only" in text
    assert "| encoder |" not in markdown(table(found[:2], trials), "", command)
    content = json.loads((tmp_path / "compare.json").read_text())
    assert content["command"] == command
    assert [row["recipe"] for row in content["rows"]] == ["b", "a", "c", "d", "m"]
    assert len(content["trials"]) == 15
    assert plot_comparison(rows, tmp_path / "compare.png").stat().st_size > 10_000
    assert plot_comparison([], tmp_path / "empty.png").exists()


def test_the_page_gives_the_verdict_first_and_can_be_drawn_again(tmp_path: Path):
    found, trials = compared()
    found = [Contender(f"a {ATTACK}" if one.recipe == "a" else one.recipe, one.experiment) for one in found]
    for place, one in enumerate(trials):
        run = tmp_path / "trials" / f"run{place}"
        run.mkdir(parents=True)
        (run / "report.html").touch()
        rows = [{"step": n, "images_seen": 32 * n, "loss": 5 / n} for n in (1, 2, 3)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        event = {"event": "probe", "step": 2, "knn": 0.3 + place / 100}
        (run / "events.jsonl").write_text(json.dumps(event) + "\n")
        recipe = f"a {ATTACK}" if one.recipe == "a" else one.recipe
        error = f"{one.error} {ATTACK}" if one.error else None
        trials[place] = replace(one, recipe=recipe, run=f"/elsewhere/trials/run{place}", error=error)  # was moved
    write_comparison(tmp_path, table(found, trials), trials, found, explanation(found, 3, 2), f"feral compare {ATTACK}")
    result = CliRunner().invoke(app, ["report", str(tmp_path)], catch_exceptions=False)
    assert result.output == f"report {tmp_path / 'compare.html'}\n"
    page = Page((tmp_path / "compare.html").read_text())
    refuse_network(page, scripts=1)
    assert ATTACK not in page.text
    assert page.ids == ["headline", "scores", "cost", "table", "curves", "failures", "protocol", "reproduce"]
    text = html.unescape(page.text)
    first = text.index("b has the highest mean, 59.2 ± 0.2 %; not distinguishable from it: a")
    assert first < text.index("No better than the encoder before training (k-NN): c.") < text.index('id="scores"')
    for words in ("11 of 15 trials ended, 4 failed", "c: collapsed: all embeddings are alike", "full disk",
                  "m has the highest mean, 65.1 ± 0.1 %", "their speeds and times do not compare well",
                  "sampling of test images explain, at 95 %", "k-NN of held-back training images"):  # fmt: skip
        assert words in text, words
    assert page.text.count("<polyline") == 15 + 15  # losses and probes; all cost the same
    assert {f"trials/run{place}/report.html" for place in range(15)} <= {*page.links}


def test_a_comparison_that_has_just_begun_has_a_page(tmp_path: Path):
    found = contenders({"a": simclr(), "b": simclr(**{"objective.temperature": 0.5})}, {})
    trials = [Trial(name, 0, "runs/x") for name in "ab"]
    write_comparison(tmp_path, table(found, trials), trials, found, explanation(found, 1, 1), "feral compare a b")
    text = write_comparison_page(tmp_path).read_text()
    for words in ("no trial has ended", "0 of 2 trials ended", "No trial has logged a loss yet"):
        assert words in text
    (tmp_path / "compare.json").write_text("{}")
    with pytest.raises(ValueError, match="is no comparison"):
        write_comparison_page(tmp_path)


# ---- trials --------------------------------------------------------------------------------------------------------


def test_the_time_left_knows_which_recipe_is_slow(monkeypatch: pytest.MonkeyPatch):
    class Started:
        def __init__(self, place: int) -> None:
            self.config, self.path = {"place": place}, "/trial"

    planned = [Trial(recipe, seed, "") for seed in range(2) for recipe in ("fast", "slow")]
    clock, lines, ended = [0.0], list[str](), list[int]()
    monkeypatch.setattr("pipeline.tune.progress.time.monotonic", lambda: clock[0])

    def read(place: int) -> Trial:
        return trial(planned[place].recipe, planned[place].seed, 0.5, 0.6)

    def record(trials: Sequence[Trial]) -> None:
        ended.append(sum(trial.evaluation is not None for trial in trials))

    progress = Progress(planned, range(4), 1, lines.append, read, record)
    for place, seconds in enumerate((60, 600)):
        progress.starts(1, Started(place))
        clock[0] += seconds
        progress.ends(Started(place))
    progress.starts(1, Started(2))
    progress.fails(Started(2))
    assert lines[0] == "fast seed 0 starts; 4 of 4 trials left"
    assert lines[1] == (
        "fast seed 0: knn_top1 50.0% (random 34.0%), linear_top1 60.0% (random 34.0%) after 1 min 00 s; 3 of 4 trials "
        "left, about 3 min 00 s"
    )
    assert lines[3].endswith("2 of 4 trials left, about 11 min 00 s")
    assert ended == [1, 2]
    assert lines[5] == "fast seed 1 failed, its errors are in /trial; 1 of 4 trials left, about 10 min 00 s"


def test_a_trial_that_was_not_asked_for_everything_is_judged_again(small_store, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.tune.compare.cost_of", lambda rows: TrainingCost(1.0, 500, None))
    contender = Contender("a", simclr(**{"data.store": str(small_store.path)}))
    evaluation = trial("a", 0, 0.5, 0.6).evaluation
    assert evaluation is not None
    update = {"store_digest": small_store.manifest.digest, "also": ("depths", "projection")}
    run = Run.prepare(trial_run(contender.trial(0), tmp_path), contender.trial(0), ["feral", "study"])
    run.evaluation_file.write_text(evaluation.model_copy(update=update).model_dump_json())
    for also, finished in (((), True), (("depths",), True), (("depths", "knowledge"), False)):
        assert (read_trials([contender], 1, tmp_path, small_store, also)[0].evaluation is not None) == finished


def test_cost_is_read_from_the_record():
    rows = [
        {"step": step, "attempt": attempt, "seconds": seconds, "images_per_second": rate, **memory}
        for step, attempt, seconds, rate, memory in
        [(1, 1, 2.0, 100, {}), (2, 1, 4.0, 300, {"peak_memory_bytes": 5}), (3, 2, 1.5, 200, {"peak_memory_bytes": 4})]
    ]  # fmt: skip
    assert cost_of(rows) == TrainingCost(5.5, 200, 5)
    assert cost_of(rows[:1]).peak_memory_bytes is None


def test_a_command_that_compares_nothing_is_refused():
    for arguments in (["simclr_32px"], ["simclr_32px", "simclr_32px"], ["data.store=x", "demo"]):
        result = CliRunner().invoke(app, ["compare", *arguments])
        assert isinstance(result.exception, ValueError)
        assert "two or more different recipes" in str(result.exception)


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.long
def test_two_recipes_with_two_seeds_are_compared_and_resumed(ray_local, small_store, tmp_path, monkeypatch):
    recipes = {
        "sharp": lambda: simclr(**{"data.store": str(small_store.path)}),
        "soft": lambda: simclr(**{"objective.temperature": 1.0, "data.store": str(small_store.path)}),
    }
    monkeypatch.setattr(jobs.recipes, "RECIPES", recipes)
    arguments = ["compare", "sharp", "soft", "training.checkpoint_every=1", "--to", str(tmp_path / "c")]

    def command(seeds: int) -> str:
        result = CliRunner().invoke(app, [*arguments, "--seeds", str(seeds)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    printed = command(1)
    assert "sharp seed 0 starts; 2 of 2 trials left" in printed
    assert "soft seed 0: knn_top1 " in printed
    assert "a single seed tells no method from another" in printed
    found = contenders({name: recipe() for name, recipe in recipes.items()}, {"training.checkpoint_every": 1})
    first = read_trials(found, 1, tmp_path / "c", small_store)
    assert all(trial.evaluation and trial.cost and trial.cost.peak_memory_bytes > 10**8 for trial in first)
    assert {*first[0].evaluation.health} == {"trained", "random"}
    assert (Run(Path(first[0].run)).report_file).exists()

    second_run = Run(Path(first[1].run))  # as if the command had been killed after its first step
    checkpoint = second_run.newest_checkpoint()
    assert isinstance(checkpoint, Checkpoint)
    shutil.rmtree(checkpoint.path)
    second_run.evaluation_file.unlink()
    before = Run(Path(first[0].run)).evaluation_file.stat().st_mtime_ns
    printed = command(2)
    assert "1 of 4 trials were finished before" in printed
    assert Run(Path(first[0].run)).evaluation_file.stat().st_mtime_ns == before
    events = [json.loads(line) for line in (second_run.path / "events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "attempt"] == [0, 1]
    trials = read_trials(found, 2, tmp_path / "c", small_store)
    assert all(trial.evaluation for trial in trials)

    assert "4 of 4" not in command(2)  # nothing is started again
    content = json.loads((tmp_path / "c" / "compare.json").read_text())
    assert [row["seeds"] for row in content["rows"]] == [2, 2]
    assert (tmp_path / "c" / "compare.png").exists()
    assert "k-NN" in (tmp_path / "c" / "compare.html").read_text()
