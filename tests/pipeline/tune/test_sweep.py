"""Sweeps: what is trained, what is kept, what is concluded. Most with trials that are made up, without Ray."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.cluster import QUIET_RAY
from pipeline.experiment import Experiment, build_experiment
from pipeline.run import Run
from pipeline.train.attempts import stop_requested
from pipeline.train.record import append_event
from pipeline.tune import sweep as sweeping
from pipeline.tune.sources import Budget
from pipeline.tune.space import parse_space
from pipeline.tune.sweep import Interrupted, Plan, front_of, sweep
from pipeline.tune.trial import FILE, Trial
from pipeline.tune.trials import trial_run

RATES = ["optimizer.learning_rate=0.1,0.2,0.3,0.4"]
QUERIES = 1000


def score_of(experiment: Experiment) -> float:
    """The larger the learning rate the better; seeds differ a little."""
    return 0.3 + experiment.optimizer.learning_rate + 0.002 * experiment.training.seed


class MadeUp:
    """In the place of Ray Tune: trials that take no time. `fails` and `dies` are learning rates."""

    def __init__(self, score: Callable[[Experiment], float] = score_of, fails: float = -1, dies: float = -1) -> None:
        self.score, self.fails, self.dies = score, fails, dies
        self.trained: list[str] = []

    def __call__(self, trial: Any, source: Any, directory: Path, concurrent: int) -> bool:
        while (config := source.next()) is not None:
            number, experiment = config["number"], build_experiment(json.loads(config["experiment"]))
            source.started(number)
            if experiment.optimizer.learning_rate == self.dies:
                return False
            self.trained.append(experiment.digest)
            run = Run.prepare(trial_run(experiment, directory), experiment, config["command"])
            self.train(run, experiment, config["judging"]["rungs"], lambda n=number, **of: source.reported(n, of))
            source.ended(number, None)
        return True

    def train(self, run: Run, experiment: Experiment, rungs: list[int], report: Callable[..., Any]) -> None:
        append_event(run.path, "command")
        batch, score = experiment.data.batch_size, self.score(experiment)
        facts: dict[str, Any] = {"error": "out of luck"}
        for images in [*rungs, experiment.training.images_seen]:
            step = images // batch
            row = {"step": step, "loss": 1.0, "seconds": 2.0, "images_per_second": 9.0, "peak_memory_bytes": 5}
            times = {"began": 1.0, "time": 3.0, "data_wait_seconds": 0.0, "attempt": 1, "restored_step": 0}
            with (run.path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(row | times) + "\n")
            append_event(run.path, "probe", step=step, knn=score)
            if images == experiment.training.images_seen:
                hits = np.arange(QUERIES) < round(score * QUERIES)
                packed = {"knn": np.packbits(hits).tobytes().hex()}
                facts = {"step": experiment.total_steps, "scores": {"knn": score}, "queries": QUERIES, "hits": packed}
            else:
                report(images=images, score=score)
                if stop_requested(run.path):
                    facts = {"step": step, "stopped": True}
                    break
        if experiment.optimizer.learning_rate == self.fails:
            facts = {"error": "out of luck"}
        (run.path / FILE).write_text(json.dumps(facts))
        append_event(run.path, "end", code=0)


@pytest.fixture
def run(small_experiment, small_store, tmp_path, monkeypatch) -> Callable[..., dict[str, Any]]:
    def swept(made_up: MadeUp, settings: list[str] = RATES, possible: int | None = 4, **asked: Any) -> dict[str, Any]:
        monkeypatch.setattr(sweeping, "run_source", made_up)
        space = parse_space(settings)
        base = small_experiment.override({**space.fixed, "optimizer.learning_rate": 0.1})
        plan = Plan("simclr_32px", base, space, **{"search": "grid", **asked})
        return sweep(plan, small_store, tmp_path / "s", possible, 1, lambda line: None)

    (tmp_path / "s").mkdir()
    return swept


def states(found: dict[str, Any]) -> list[str]:
    return [trial["state"] for trial in found["trials"] if trial["repeat"] is None]


def test_the_best_is_called_so_after_fresh_seeds_and_can_be_applied(run, tmp_path):
    found = run(MadeUp(), [*RATES, "data.lanes=8"])
    best = found["best"]
    assert best["changes"] == {"optimizer.learning_rate": 0.4}
    assert best["confirmed"]
    assert best["scores"] == pytest.approx([0.702, 0.704, 0.706])  # seeds 1, 2, 3; the search had 0
    assert best["default"]["scores"] == pytest.approx([0.402, 0.404, 0.406])
    assert "better than the recipe" in best["verdict"]
    assert json.loads((tmp_path / "s" / "best.json").read_text()) == {"data.lanes": 8, "optimizer.learning_rate": 0.4}
    assert json.loads((tmp_path / "s" / "sweep.json").read_text()) == json.loads(json.dumps(found))
    repeats = [(trial["repeat"], trial["seed"]) for trial in found["trials"] if trial["repeat"]]
    assert repeats == [(name, seed) for seed in (1, 2, 3) for name in ("best", "default")]
    first = found["trials"][0]
    assert (tmp_path / "s" / first["run"] / "experiment.json").exists()
    assert (first["images"], first["seconds"], first["curve"]) == (384, 2.0, [(384, 0.4)])


def test_what_seeds_and_images_explain_is_not_called_better(run):
    noisy = run(MadeUp(lambda e: 0.5 + 0.01 * e.optimizer.learning_rate + 0.1 * (e.training.seed % 2)), seeds=4)
    assert noisy["best"]["changes"] == {"optimizer.learning_rate": 0.4}
    assert not noisy["best"]["confirmed"]
    assert "not to be told from the recipe" in noisy["best"]["verdict"]


def test_settings_that_only_a_lucky_seed_made_best_are_given_up_for_the_recipe(run, tmp_path):
    found = run(MadeUp(lambda e: 0.9 if not e.training.seed and e.optimizer.learning_rate > 0.3 else 0.7 - score_of(e)))
    assert found["best"]["changes"] == {}
    assert "worse than the recipe" in found["best"]["verdict"]
    assert json.loads((tmp_path / "s" / "best.json").read_text()) == {}


def test_without_fresh_seeds_nothing_is_called_best(run):
    best = run(MadeUp(), seeds=0)["best"]
    assert (best["confirmed"], best["score_mean"], best["changes"]) == (False, None, {"optimizer.learning_rate": 0.4})
    assert "not confirmed" in best["verdict"]


def test_the_same_command_goes_on_and_trains_nothing_twice(run):
    first, second = MadeUp(dies=0.3), MadeUp()
    with pytest.raises(Interrupted, match="same command goes on"):
        run(first)
    found = run(second)
    assert len(first.trained) == 2
    assert not {*first.trained} & {*second.trained}
    assert states(found) == ["finished"] * 4
    third = MadeUp()
    assert json.dumps(run(third)) == json.dumps(found)
    assert third.trained == []


def test_a_trial_that_fails_fails_alone_and_is_tried_again_by_the_next_command(run):
    found = run(MadeUp(fails=0.2))
    assert states(found) == ["finished", "failed", "finished", "finished"]
    assert found["trials"][1]["error"] == "out of luck"
    again = MadeUp()
    assert states(run(again)) == ["finished"] * 4
    assert len(again.trained) == 1


def test_combinations_that_cannot_be_trained_are_counted_and_not_trained(run):
    made_up = MadeUp()
    found = run(made_up, ["data.batch_size=32,34,36", "optimizer.learning_rate=0.1,0.4"], possible=4)
    assert states(found).count("refused") == 2
    assert all("multiple of data.lanes" in t["error"] for t in found["trials"] if t["state"] == "refused")
    assert len(made_up.trained) == 4 + 6


def test_bad_trials_are_stopped_early_and_stay_so(run, tmp_path):
    rates = ["optimizer.learning_rate=0.4,0.3,0.2,0.1"]
    found = run(MadeUp(), rates, stop="asha", seeds=0)
    assert states(found) == ["finished", "stopped", "stopped", "stopped"]
    stopped = found["trials"][1]
    assert stopped["score"] is None
    assert 0 < stopped["images"] < 384
    assert stopped["curve"] == [(stopped["images"], 0.6)]
    again = MadeUp()
    assert states(run(again, rates, stop="asha", seeds=0)) == states(found)
    assert again.trained == []


def test_a_budget_of_images_says_how_many_trials_were_not_started_and_may_grow(run):
    found = run(MadeUp(), budget=Budget(images=1000), seeds=0)
    assert states(found).count("finished") == 2
    assert found["not_started"] == 2
    assert "768 of --images 1000 are used, and a trial sees 384" in found["why_not"]
    assert states(run(MadeUp(), budget=Budget(images=2000), seeds=0)) == ["finished"] * 4


def test_a_budget_of_time_starts_nothing_later(run):
    with pytest.raises(ValueError, match="no trial finished"):
        run(MadeUp(), budget=Budget(hours=0))
    with pytest.raises(ValueError, match="no trial finished"):
        run(MadeUp(fails=0.1), budget=Budget(worker_hours=1e-9))


def test_another_sweep_in_the_same_directory_is_refused(run):
    run(MadeUp(), seeds=0)
    with pytest.raises(ValueError, match=r"holds another sweep \(other space\)"):
        run(MadeUp(), ["optimizer.learning_rate=0.1,0.2"], seeds=0)


@pytest.mark.parametrize(
    ("settings", "asked", "says"),
    [
        (["optimizer.learning_rate=uniform(0.1,1)"], {"search": "grid"}, "is a range, which has no grid"),
        (["optimizer.learning_rate=uniform(0.1,1)"], {"search": "tpe"}, "draws without end"),
        (RATES, {"search": "grid", "trials": 3}, "a grid tries every combination"),
        (RATES, {"search": "tpe", "trials": 3, "stop": "asha", "cost": "seconds"}, "stopped early"),
        (["training.images_seen=384,768"], {"search": "grid", "stop": "median"}, "stand elsewhere on their curves"),
    ],
)
def test_what_does_not_go_together_is_refused(small_experiment, settings, asked, says):
    with pytest.raises(ValueError, match=says):
        Plan("simclr_32px", small_experiment, parse_space(settings), **asked)


def test_the_front_holds_those_that_none_beats_in_score_and_cost():
    points = [(0.5, 10.0), (0.6, 20.0), (0.55, 30.0), (0.7, 40.0), (0.4, 10.0), (None, 1.0)]
    trials = [Trial(i, {}, 0, "", "finished", score=score, seconds=cost) for i, (score, cost) in enumerate(points)]
    assert front_of(trials, "seconds") == [0, 1, 3]


# As many CPUs as one trial needs: drivers that held one would wait for their workers for ever. The second trial is told
# to stop as soon as it is judged.
ON_TWO_CPUS = """
import sys
from pathlib import Path
import ray
from pipeline.experiment import build_experiment
from pipeline.tune.search import Search
from pipeline.tune.space import parse_space
from pipeline.tune.sweep import Plan, sweep
from pipeline.tune.trials import concurrent_trials

settings, directory = sys.argv[1:]
base = build_experiment(__import__("json").loads(settings))
Search.report = lambda self, draw, images, score: draw.number == 1
ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=150 * 2**20, log_to_driver=False)
at_once = concurrent_trials(base.cluster, ray.cluster_resources())
plan = Plan("r", base, parse_space(["training.seed=0,1"]), "grid", stop="asha", seeds=0)
for again in range(2):
    sweep(plan, base.data.open(), Path(directory), 2, at_once, lambda line: print(line, flush=True))
"""


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_on_two_cpus_trials_wait_for_nothing_and_a_stopped_one_has_saved(small_experiment, tmp_path):
    base = small_experiment.override(
        {"training.images_seen": 32 * 2000, "training.log_every": 20, "training.checkpoint_every": 2000}
    )
    (tmp_path / "s").mkdir()
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}  # of the session's Ray
    clean |= QUIET_RAY | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", ON_TWO_CPUS, base.model_dump_json(), str(tmp_path / "s")],
        capture_output=True, text=True, timeout=850, env=clean,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" starts: ") == 2
    assert done.stdout.endswith("2 trial(s) had ended before\n")
    first, second = json.loads((tmp_path / "s" / "sweep.json").read_text())["trials"]
    assert (first["state"], first["images"]) == ("finished", 64_000)
    curve = [images for images, _ in first["curve"]]
    assert (curve[0], curve[-1]) == (7_136, 64_000)  # the first rung, the end
    assert first["score"] > 0.5
    assert first["overhead_seconds"] > first["overhead"]["start-up"] > 0
    assert second["state"] == "stopped"
    assert 7_136 <= second["images"] < 64_000
    checkpoint = Run(tmp_path / "s" / second["run"]).newest_checkpoint()
    assert checkpoint is not None
    assert checkpoint.step * 32 == second["images"]
