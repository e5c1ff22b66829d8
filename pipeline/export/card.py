"""The README beside exported weights: what they are, how good, how to load them."""

import inspect
import json
from importlib.metadata import version
from textwrap import dedent

from pipeline.export.forms import Form
from pipeline.export.trained import Trained

MADE_BY = "trained by feral"


def card(trained: Trained, form: str, chosen: Form, difference: float | None) -> str:
    """Markdown."""
    experiment, config = trained.experiment, trained.config
    side, name = config.image_size, chosen.load.__name__
    code = inspect.getsource(chosen.load)
    checked = (
        f"On {len(trained.examples)} made pictures it gave the run's embeddings, {agreement(difference)}."
        if difference is not None
        else "It was not tried here: its library was not installed."
    )
    seen = trained.checkpoint.step * experiment.data.batch_size
    head = f"""\
        # {config.name}, pretrained by {experiment.objective.name}

        An image encoder, {MADE_BY} {version("feral")} without labels{_but_labels(trained)} on {seen:,} images
        (repeats counted) of {side} × {side} pixels. Form: `{form}`, {chosen.what}.

        ## Load it

        `pip install {chosen.packages}`; feral is not needed. {checked}

        ```python
        """
    use = f"""\
        ```

        An image becomes pixels by cutting the largest square out of its middle and shrinking it to {side} × {side}
        (bilinear, antialiased); values are divided by 255. The code above, or the graph, subtracts the mean and divides
        by the standard deviation.

        ## How good it is

        """
    rest = f"""\

        ## Where it comes from

        - run `{trained.run.path.name}`, `{trained.checkpoint.path.name}`, experiment `{experiment.digest[:12]}`
        - data: a sealed store, digest `{_store_digest(trained)}`, selection `{experiment.data.selection}`
        - encoder: `{json.dumps(config.model_dump(mode="json"))}`
        - objective: `{json.dumps(experiment.objective.model_dump(mode="json"))}`
        """
    example = f'\n\nembed = {name}("FOLDER")  # this folder\nembeddings = embed(pixels)\n'
    return dedent(head) + code.rstrip() + example + dedent(use) + _scores(trained) + dedent(rest)


def agreement(difference: float) -> str:
    return f"to {difference:.0e} of the greatest value" if difference else "to the last bit"


def _but_labels(trained: Trained) -> str:
    return " but those of the supervised baseline" if trained.experiment.objective.name == "supervised" else ""


def _store_digest(trained: Trained) -> str:
    evaluation = trained.run.evaluation
    return evaluation.store_digest[:12] if evaluation else "not evaluated"


def _scores(trained: Trained) -> str:
    evaluation = trained.run.evaluation
    if evaluation is None or not evaluation.scores:
        return "Not evaluated: `feral evaluate RUN` first.\n"
    if evaluation.step != trained.checkpoint.step:
        return f"Another checkpoint (step {evaluation.step}) was evaluated: `feral evaluate RUN` again.\n"
    columns = evaluation.columns
    lines = ["| score | " + " | ".join(columns.values()) + " |", "|---" * (len(columns) + 1) + "|"]
    for score in evaluation.scores:
        values = (score.shown(getattr(score, name)) for name in columns)
        lines.append(f"| {score.name}: {score.protocol} | " + " | ".join(values) + " |")
    lines += ["", "Random encoder: the same before training."]
    if evaluation.has_twin:
        lines[-1] += " Supervised twin: the same, trained from scratch with labels on the same images."
    return "\n".join(lines) + "\n"
