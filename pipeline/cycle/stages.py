"""The stages of a production cycle, in their order."""

from pipeline.cycle.curating import curate_dump, curate_inputs
from pipeline.cycle.job import Stage
from pipeline.cycle.judging import (
    evaluate_candidate,
    evaluate_inputs,
    promote_candidate,
    promote_inputs,
    report_candidate,
    report_inputs,
)
from pipeline.cycle.training import cooldown_inputs, train_candidate, train_inputs, train_plateau
from pipeline.experiment import Experiment
from pipeline.pretrain import Progress

UNREAD = ("sealed", "verified")  # earlier dumps in these: what is new in a later one is not known yet
MIDWAY = ("trained", "evaluated")  # dumps in these: what is gone on from is not decided yet


def stages_of(recipe: Experiment, progress: Progress) -> tuple[Stage, ...]:
    """All of them; the first dump is trained on by the recipe."""
    return (
        Stage("curate", ("verified",), UNREAD, (), curate_inputs, curate_dump),
        Stage(
            "train", ("curated",), (*UNREAD, "curated"), MIDWAY, lambda job: train_inputs(job, recipe),
            lambda job, digest: train_plateau(job, recipe, progress),
        ),
        Stage("cooldown", ("trained",), (), (), cooldown_inputs, lambda job, digest: train_candidate(job, progress)),
        Stage("evaluate", ("trained",), (), (), evaluate_inputs, evaluate_candidate),
        Stage("promote", ("evaluated",), (), (), promote_inputs, promote_candidate),
        Stage("report", ("promoted", "held"), (), (), report_inputs, report_candidate),
    )  # fmt: skip
