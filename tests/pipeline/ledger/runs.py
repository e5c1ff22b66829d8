"""Runs that were trained for some steps, and evaluations of any outcome, made by hand."""

from pathlib import Path

import numpy as np
import torch

from pipeline.evaluate.encoders import RunEncoders
from pipeline.evaluate.protocol import Evaluation, Health, Score
from pipeline.evaluate.scoring import Answered
from pipeline.evaluate.suite import write_evaluation
from pipeline.experiment import Experiment
from pipeline.run import Run
from pipeline.train.checkpoints import save_checkpoint
from pipeline.train.worker import fresh_state

HEALTH = {
    "random": Health(num_images=100, dim=16, rank=4.0, spread=0.5, mean_cosine=0.5),
    "trained": Health(num_images=100, dim=16, rank=9.0, spread=0.7, mean_cosine=0.1),
}


def trained(experiment: Experiment, path: Path, *, step: int | None = None, seed: int = 0) -> Run:
    """A run with a checkpoint after `step` steps, by default at its end; its weights are drawn."""
    run = Run.prepare(path, experiment.override({"training.seed": seed}), ["feral"])
    state = fresh_state(run.experiment, torch.device("cpu"))
    state.step = experiment.total_steps if step is None else step
    with torch.no_grad():
        for parameter in state.objective.parameters():
            parameter.add_(0.01 * state.step)
    save_checkpoint(run.checkpoints, state, keep=2)
    return run


def judge(run: Run, share: float, **changes) -> None:
    """Lets a run have been judged: of the test images, the first `share` are answered rightly."""
    store, encoders = run.experiment.data.open(), RunEncoders.of(run)
    numbers = store.select("test")
    right = np.arange(len(numbers)) < share * len(numbers)
    score = Score(
        name="knn_top1", protocol="20-NN", num_queries=len(numbers), trained=float(right.mean()), random_encoder=0.3,
        raw_pixels=0.3, chance=0.3,
    )  # fmt: skip
    facts = {
        "checkpoint": encoders.checkpoint_name, "step": encoders.step, "store_digest": store.manifest.digest,
        "encoder_digest": encoders.digest, "scores": [score], "skipped": [], "neighbours": {}, "seconds": 1.0,
        "health": HEALTH,
    }  # fmt: skip
    evaluation = Evaluation.model_validate(facts | changes)
    write_evaluation(run.evaluation_file, evaluation, store, [Answered(score, numbers, right)])
