"""What an embedding still knows, and from where in the network: tables of SimCLR's and of the pretext tasks' kind."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pipeline.evaluate.classification import classification
from pipeline.evaluate.embed import Embeddings
from pipeline.evaluate.encoders import ENCODERS
from pipeline.evaluate.probes import linear_predictions
from pipeline.evaluate.protocol import Score
from pipeline.evaluate.scoring import Answered, Case, accuracy
from pipeline.evaluate.separation import spread_over

MAX_TRAIN, MAX_TEST = 2_000, 1_000  # images, each changed in several ways
QUESTIONS = {  # which of these is the image?
    "colour": ("as_is", "grey"),
    "rotation": ("as_is", "turned_90", "turned_180", "turned_270"),
    "corruption": ("as_is", "noisy"),
    "sobel": ("as_is", "edges"),
}
MAX_DEPTH_TRAIN, MAX_DEPTH_TEST = 10_000, 2_000


def knowledge(case: Case) -> Iterator[Score | str]:
    """What was done to an image, told from its embedding h and from the projection g(h) that the loss sees (Chen et al.
    2020, arXiv 2002.05709, table 3): a projector gives up what the loss wants forgotten, and the encoder need not."""
    bank, asked = _few(case, "variants", MAX_TRAIN, MAX_TEST)
    for place, title in (("h", "the embedding"), ("z", "the projection")):
        if f"trained_as_is_{place}" not in bank.features:
            yield "knows_…_z: this encoder has no projector"
            return
        for question, answers in QUESTIONS.items():
            labels, truth = (np.repeat(np.arange(len(answers)), len(part.numbers)) for part in (bank, asked))

            def stacked(part: Embeddings, one: str, place: str = place, answers: tuple = answers) -> np.ndarray:
                of = "h" if one == "pixels" else place
                return np.concatenate([part.features[f"{one}_{answer}_{of}"] for answer in answers])

            hits = {}
            for one in ENCODERS:
                told, _ = linear_predictions(
                    stacked(bank, one), labels, stacked(asked, one), case.config.linear_iterations
                )
                hits[one] = (told == truth).reshape(len(answers), -1).mean(0)  # ways of an image are one query
            protocol = f"linear probe of {title}: {', '.join(answers)}; {len(bank.numbers)} training images, each way"
            yield accuracy(f"knows_{question}_{place}", protocol, hits, 1 / len(answers))


def depths(case: Case) -> Iterator[Score | str]:
    """The linear probe after each part of the network: pretext tasks are at their best before the end."""
    labelled = case.labelled()
    if isinstance(labelled, str):
        yield f"linear_top1_depth: {labelled}"
        return
    case = Case(case.encoders, case.store, case.config, labelled.train, labelled.test, case.embedding)
    bank, asked = _few(case, "depths", MAX_DEPTH_TRAIN, MAX_DEPTH_TEST)
    number = 1
    while f"trained_depth{number}" in bank.features:
        columns = {"trained": f"trained_depth{number}", "random": f"random_depth{number}", "pixels": "pixels"}
        hits = {
            one: linear_predictions(
                bank.features[column], bank.labels, asked.features[column], case.config.linear_iterations
            )[0]
            == asked.labels
            for one, column in columns.items()
        }
        width = bank.features[columns["trained"]].shape[1]
        protocol = f"linear probe of the mean of map {number}, {width} channels; {len(bank.labels)} training images"
        yield accuracy(f"linear_top1_depth{number}", protocol, hits, 1 / labelled.num_classes)
        number += 1
    if number == 1:
        yield "linear_top1_depth: this encoder gives no maps of whole images by stage (timm's forward_intermediates)"


def projection(case: Case) -> Iterator[Answered | str]:
    """k-NN and linear probe of g(h), what the loss sees (Chen et al. 2020, arXiv 2002.05709, section 4.2: h is better
    by more than 10 points)."""
    objectives = case.encoders.load()
    if not all(hasattr(objectives[one], "projector") for one in ("trained", "random")):
        yield "…_projection: this encoder has no projector"
        return
    train, test = (_projected(part, objectives) for part in (case.train, case.test))
    for result in classification(replace(case, train=train, test=test)):
        if isinstance(result, str):
            yield result.replace("top1", "top1_projection")
        elif isinstance(result, Answered):
            found = result.score
            named = {"name": f"{found.name}_projection", "protocol": f"of the projection g(h): {found.protocol}"}
            yield replace(result, score=found.model_copy(update=named))


@torch.inference_mode()
def _projected(part: Embeddings, objectives: dict[str, Any]) -> Embeddings:
    features = {
        one: objectives[one].projector(torch.from_numpy(np.asarray(part.features[one]))).numpy()
        for one in ("trained", "random")
    }
    return replace(part, features=part.features | features)


def _few(case: Case, output: str, train: int, test: int) -> tuple[Embeddings, Embeddings]:
    """Some samples of both splits, embedded with what `output` tells."""
    parts = [
        part.numbers[spread_over(len(part.numbers), most)] for part, most in ((case.train, train), (case.test, test))
    ]
    found = case.embedding.samples(case.encoders, case.store, np.concatenate(parts), output=output)
    return found.rows(slice(len(parts[0]))), found.rows(slice(len(parts[0]), None))
