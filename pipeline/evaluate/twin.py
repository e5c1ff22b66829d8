"""The scores of a run beside those of its supervised twin, where there is one and it was asked the same."""

from pipeline.evaluate.protocol import Evaluation, Score
from pipeline.run import Run

FOLDER = "supervised"  # of the run


def twin_of(run: Run) -> Run:
    """The run where its twin is, or would be."""
    return Run(run.path / FOLDER)


def called(run: Run) -> str:
    """For people: a run by its folder, a twin by the run that it is of, too."""
    is_twin = run.path.name == FOLDER and Run(run.path.parent).experiment_file.exists()
    return "/".join(run.path.parts[-2:]) if is_twin else run.path.name


def beside_twin(evaluation: Evaluation, twin: Evaluation | None) -> Evaluation:
    """With the twin's value in each score that both have: of the same samples, by the same protocol."""
    theirs = {}
    if twin and (twin.store_digest, twin.asked) == (evaluation.store_digest, evaluation.asked):
        theirs = {_measured(score): score.trained for score in twin.scores}
    scores = [score.model_copy(update={"supervised": theirs.get(_measured(score))}) for score in evaluation.scores]
    return evaluation.model_copy(update={"scores": scores})


def _measured(score: Score) -> tuple[str, str, int]:
    return score.name, score.protocol, score.num_queries
