"""Fair comparisons: recipes that differ in nothing but the method, each with several seeds, on Ray Tune."""

import json
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from pipeline.evaluate.protocol import Evaluation
from pipeline.evaluate.validation import judges
from pipeline.experiment import Experiment, build_experiment
from pipeline.ingest.store import Store
from pipeline.redaction import typed_command
from pipeline.run import Run
from pipeline.train.cost import TrainingCost, cost_of
from pipeline.train.record import append_event, read_metrics
from pipeline.tune.progress import Progress
from pipeline.tune.trials import Tell, last_line, run_trials, teller, trial_run
from ssl_models.objectives import build_objective

METHOD = ("objective", "optimizer", "views")  # what a method may choose
BOOKKEEPING = ("log_every", "checkpoint_every", "keep_checkpoints", "keep_best")  # of training: changes no result
DATA_OF_ENCODER = ("image_size", "mean", "std")  # what it sees, whatever its architecture


@dataclass(frozen=True, eq=False)
class Contender:
    """A recipe as it takes part: with the settings of all, fitted to the store."""

    recipe: str
    experiment: Experiment

    @property
    def family(self) -> str:
        """The architecture class of its encoder: scores are ranked within one."""
        name = self.experiment.encoder.name
        return "vit" if name.startswith("deit") else name.split("_")[0].rstrip("0123456789")

    @property
    def views(self) -> str:
        """Crops that the method processes of an image: "2", with local ones "2 + 6"."""
        local = self.experiment.views.local_crops
        return f"{self.experiment.num_views}" + (f" + {local}" if local else "")

    @property
    def parameters(self) -> int:
        """How many are trained, of encoder and heads."""
        with torch.device("meta"):
            objective = build_objective(self.experiment.objective, self.experiment.encoder)
        trained = {id(weight): weight.numel() for phase in objective.phases for _, weight in objective.trainable(phase)}
        return sum(trained.values())

    def trial(self, seed: int) -> Experiment:
        return self.experiment.override({"training.seed": seed})

    def fitted(self, store: Store) -> "Contender":
        """With what the objective wants to know of the data.

        Raises:
            ValueError: the recipe does not fit the store; names it.
        """
        experiment = self.experiment.fitted(store)
        try:
            experiment.check(store)
        except ValueError as error:
            raise ValueError(f"{self.recipe}: {error}") from None
        return replace(self, experiment=experiment)


def contenders(
    recipes: Mapping[str, Experiment], changes: Mapping[str, Any], *, same_views: bool = False
) -> list[Contender]:
    """Every recipe with the same changes; with `same_views`, also with the views of the first one.

    Raises:
        ValueError: a recipe does not take a change, or the recipes differ in more than the method; names the recipe
            and the way out.
    """
    if "training.seed" in changes:
        raise ValueError("training.seed is what a comparison varies: --seeds N trains every recipe with 0 … N − 1")
    first = next(iter(recipes.values())).views.model_dump(mode="json")
    found = []
    for recipe, experiment in recipes.items():
        try:
            changed = experiment.override({**({"views": first} if same_views else {}), **changes})
            changed.check_model()
        except ValueError as error:
            raise ValueError(f"{recipe}: {error}") from None
        found.append(Contender(recipe, changed))
    refuse_unfair(found)
    return found


def refuse_unfair(found: Sequence[Contender]) -> None:
    """Raises ValueError where contenders differ in what no method may choose. Encoders may be of another architecture
    class, for some methods need one; within a class they must be the same."""
    values: dict[str, dict[str, list[str]]] = {}  # setting → its values as JSON → the recipes that have it
    for contender in found:
        for key, value in _held_equal(contender).items():
            values.setdefault(key, {}).setdefault(json.dumps(value), []).append(contender.recipe)
    differing = {key: by_value for key, by_value in values.items() if len(by_value) > 1}
    if not differing:
        return
    words, way_out = [], []
    for key, by_value in differing.items():
        name = key.split(" ")[0]
        words.append(f"{name} is " + ", ".join(f"{value} in {_names(who)}" for value, who in by_value.items()))
        way_out.append(shlex.quote(f"{name}={next(iter(by_value))}"))
    raise ValueError(
        f"these recipes differ in more than the method: {'; '.join(words)}. Give one value for all, for example "
        f"{' '.join(way_out)}"
    )


def refuse_unjudged(found: Sequence[Contender], store: Store) -> None:
    """Raises ValueError where the store's test split cannot tell how good the contenders are: without labels only those
    are judged that compare images with captions."""
    if not store.count("test"):
        raise ValueError(f"{store.path} has no test split to compare on: curate with holdout=0.1")
    apart = [contender.recipe for contender in found if not judges(store, contender.experiment)]
    if apart:
        raise ValueError(
            f"{store.path} has no labels on both splits to judge trials by (class folders, .cls members, a label "
            f"column); without labels, only methods that compare images with captions can be: not {_names(apart)}"
        )


def _held_equal(contender: Contender) -> dict[str, Any]:
    """What must be equal, by setting; those of an encoder's architecture belong to its family only."""
    content = contender.experiment.model_dump(mode="json", exclude={*METHOD})
    held = {}
    for group, settings in content.items():
        for name, value in settings.items():
            if group == "training" and name in ("seed", *BOOKKEEPING):
                continue
            own = group == "encoder" and name not in DATA_OF_ENCODER
            held[f"{group}.{name}" + (f" {contender.family}" if own else "")] = value
    return held


def _names(recipes: list[str]) -> str:
    return ", ".join(recipes) if len(recipes) < 4 else f"{recipes[0]} and {len(recipes) - 1} others"


def comparison_name(found: Sequence[Contender], store: Store) -> str:
    """Names what is compared on what; the number of seeds may grow, and the order of the recipes does not count."""
    content = sorted(contender.experiment.digest for contender in found)
    return "compare-" + sha256(json.dumps([content, store.manifest.digest]).encode()).hexdigest()[:8]


# ---- trials --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """One recipe with one seed, and what came of it."""

    recipe: str
    seed: int
    run: str
    evaluation: Evaluation | None = None  # none: it failed, or has not ended
    cost: TrainingCost | None = None
    error: str | None = None

    def accuracy(self, name: str) -> float | None:
        score = self.evaluation.score(name) if self.evaluation else None
        return score.trained if score else None


def compare(
    found: Sequence[Contender],
    seeds: int,
    directory: Path,
    store: Store,
    concurrent: int = 1,
    tell: Tell = lambda line: None,
    record: Callable[[Sequence[Trial]], object] = lambda trials: None,
    also: Sequence[str] = (),
    curves: bool = False,
) -> list[Trial]:
    """Trains and evaluates every contender with the seeds 0 … `seeds` − 1, all with one seed before the next; `also`:
    see `evaluate`. `curves`: the contenders are supervised, and judged along the way, see `judge_convergence`.

    Ray must be connected, unless all trials were finished before: those are read from their run directories. A trial
    that was begun goes on from its newest checkpoint; a failing one fails alone. `tell` receives a line whenever a
    trial starts or ends, `record` all trials, as far as they have ended, whenever one has.

    Raises:
        ValueError: a trial in `directory` was judged on another state of the store.
    """
    planned = [(contender, seed) for seed in range(seeds) for contender in found]
    trials = read_trials(found, seeds, directory, store, also)
    left = [place for place, trial in enumerate(trials) if trial.evaluation is None]
    if len(left) < len(planned):
        tell(f"{len(planned) - len(left)} of {len(planned)} trials were finished before")
    if left:
        progress = Progress(
            trials, left, concurrent, tell, lambda place: read_trial(*planned[place], directory, store, also), record
        )
        results = run_trials(
            _trial,
            _space([contender.trial(seed) for contender, seed in planned], left, also, curves),
            directory,
            concurrent,
            teller(progress.starts, progress.ends, progress.fails),
        )
        for result in results:
            place = result.config["place"]
            contender, seed = planned[place]
            trials[place] = read_trial(contender, seed, directory, store, also, result.error)
    return trials


def read_trials(
    found: Sequence[Contender], seeds: int, directory: Path, store: Store, also: Sequence[str] = ()
) -> list[Trial]:
    """The state of all trials, those of a seed together."""
    return [read_trial(contender, seed, directory, store, also) for seed in range(seeds) for contender in found]


def _space(experiments: list[Experiment], left: list[int], also: Sequence[str], curves: bool) -> dict[str, Any]:
    from ray import tune

    return {
        "place": tune.grid_search(left),
        "experiments": [experiment.model_dump_json() for experiment in experiments],
        "command": typed_command(),
        "also": list(also),
        "curves": curves,
    }


def read_trial(
    contender: Contender,
    seed: int,
    directory: Path,
    store: Store,
    also: Sequence[str] = (),
    error: BaseException | None = None,
) -> Trial:
    """What the run directory of a trial holds, if it is finished and was asked for all of `also`."""
    experiment = contender.trial(seed)
    run = Run(trial_run(experiment, directory))
    evaluation = run.evaluation
    judged = evaluation is not None and evaluation.step == experiment.total_steps and {*also} <= {*evaluation.also}
    if error is not None or evaluation is None or not judged:
        return Trial(contender.recipe, seed, str(run.path), error=last_line(error) if error else None)
    if evaluation.store_digest != store.manifest.digest:
        raise ValueError(
            f"{run.path} was judged on another state of {store.path}, which has been curated anew: remove "
            f"{directory / 'trials'}, or work in another directory (--to)"
        )
    return Trial(contender.recipe, seed, str(run.path), evaluation, cost_of(read_metrics(run.path)))


def _trial(config: dict[str, Any]) -> None:
    """Runs in a process of its own on the cluster: trains, evaluates and reports, as `feral pretrain` would."""
    from ray import tune

    from pipeline.cluster import cores_each
    from pipeline.evaluate.convergence import judge_convergence, judged_steps
    from pipeline.evaluate.suite import evaluate
    from pipeline.report.run_report import write_report
    from pipeline.train.fit import fit

    experiment = build_experiment(json.loads(config["experiments"][config["place"]]))
    run = Run.prepare(trial_run(experiment, Path(config["directory"])), experiment, config["command"])
    append_event(run.path, "command", pid=os.getpid())
    code, threads = 1, cores_each(config["sharing"])
    steps = judged_steps(experiment, experiment.data.open()) if config["curves"] else []
    try:
        fit(experiment, run, sharing=config["sharing"], keep_at=steps)
        append_event(run.path, "evaluate")
        if steps:
            judge_convergence(run, steps, threads)
        evaluate(run, also=config["also"], threads=threads, keep_embeddings=False)
        append_event(run.path, "evaluated")
        code = 0
    finally:
        append_event(run.path, "end", code=code)
    write_report(run)
    tune.report({"done": True})
