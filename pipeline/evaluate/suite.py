"""The final stage of a run: every evaluator that the store's labels and captions allow, beside its baselines."""

import os
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from pipeline.evaluate.embed import BOTH, Embeddings, embed_samples, load_pair
from pipeline.evaluate.health import health
from pipeline.evaluate.image_text import (
    PixelsToWords,
    chance_recalls,
    embed_texts,
    prompts,
    recalls,
    zero_shot_classifier,
)
from pipeline.evaluate.probes import knn_predictions, linear_predictions, nearest
from pipeline.evaluate.protocol import Evaluation, EvaluationConfig, Score
from pipeline.experiment import Experiment
from pipeline.ingest.store import Store
from pipeline.run import Run
from pipeline.stream.batches import captioned
from ssl_models.objectives import OBJECTIVES, Objective
from ssl_models.objectives.image_text import ImageTextObjective
from ssl_models.objectives.supervised import Supervised

ENCODERS = ("trained", "random", "pixels")


def evaluate(run: Run, on_stage: Callable[[str], None] = lambda name: None) -> Evaluation:
    """Judges the newest checkpoint on the store's test split and writes `evaluation.json`. Ray must be connected.

    Raises:
        ValueError: the run has no whole checkpoint.
    """
    began = time.perf_counter()
    experiment, checkpoint = run.experiment, run.newest_checkpoint()
    if checkpoint is None:
        raise ValueError(f"{run.path} has no whole checkpoint to evaluate: run `feral pretrain` first")
    store = experiment.data.open()
    config = experiment.evaluation
    on_stage("embedding")
    few, blocked = experiment.data.few_labels, store.blocked
    bank = np.setdiff1d(experiment.training_samples(store)[0], blocked) if few else store.select("train")
    train_numbers, test_numbers = _limit(bank, config), _limit(store.select("test"), config)
    numbers = np.concatenate([train_numbers, test_numbers])  # in one pass: starting processes costs more than splitting
    found = embed_samples(experiment, checkpoint, store, numbers, os.cpu_count() or 1)
    scores: list[Score] = []
    skipped: list[str] = []
    neighbours: dict[int, list[int]] = {}
    if len(test_numbers) == 0:
        skipped.append("all: the store has no test split; curate with --holdout above 0")
    else:
        train, test = found.of(train_numbers), found.of(test_numbers)
        compares = issubclass(OBJECTIVES[experiment.objective.name], ImageTextObjective)
        evaluators = (classification, image_text) if compares else (classification,)
        for evaluator in evaluators:
            on_stage(evaluator.__name__.replace("_", "-"))
            for result in evaluator(experiment, run, store, train, test):
                (scores if isinstance(result, Score) else skipped).append(result)  # type: ignore[arg-type]
        neighbours = _example_neighbours(train, test)
    evaluation = Evaluation(
        checkpoint=checkpoint.path.name,
        step=checkpoint.step,
        store_digest=store.manifest.digest,
        scores=scores,
        skipped=skipped,
        neighbours=neighbours,
        seconds=time.perf_counter() - began,
        health={name: health(found.features[name]) for name in BOTH},
    )
    run.evaluation_file.write_text(evaluation.model_dump_json(indent=1))
    return evaluation


def classification(
    experiment: Experiment, run: Run, store: Store, train: Embeddings, test: Embeddings
) -> Iterator[Score | str]:
    """k-NN and linear probe on frozen embeddings, and the classifier of an objective that has one; needs labels. With
    few labels the bank is those that were trained with."""
    known, asked = train.labels >= 0, test.labels >= 0
    num_classes = len(np.unique(train.labels[known]))
    if num_classes < 2 or not asked.any():
        yield "knn_top1, linear_top1: the store has no labels (class folders, .cls or a label column) on both splits"
        return
    config = experiment.evaluation
    bank_labels, truth = train.labels[known], test.labels[asked]

    def score(name: str, protocol: str, predict: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Score:
        found = {
            encoder: float((predict(train.features[encoder][known], test.features[encoder][asked]) == truth).mean())
            for encoder in ENCODERS
        }
        return _score(name, protocol, len(truth), found, 1 / num_classes)

    k = min(config.neighbours, len(bank_labels))
    yield score(
        "knn_top1",
        f"weighted {k}-NN, cosine, T={config.neighbour_temperature}, bank of {len(bank_labels)} clean images",
        lambda bank, queries: knn_predictions(bank, bank_labels, queries, k, config.neighbour_temperature),
    )
    linear = score(
        "linear_top1",
        f"logistic regression on standardised frozen embeddings, {len(bank_labels)} images, L-BFGS "
        f"≤ {config.linear_iterations} iterations, C chosen on a tenth of the training images",
        lambda bank, queries: linear_predictions(bank, bank_labels, queries, config.linear_iterations)[0],
    )
    yield linear
    if experiment.needs_labels:
        own = {
            name: float((classified(objective, test.features[name][asked]) == truth).mean())
            for name, objective in _pair(experiment, run).items()
        }
        protocol = "by the classifier that was trained with the encoder; raw pixels: their linear probe"
        yield _score("classifier_top1", protocol, len(truth), own | {"pixels": linear.raw_pixels}, 1 / num_classes)


@torch.inference_mode()
def classified(objective: Objective, embeddings: np.ndarray) -> np.ndarray:
    """The class (Q,) that a supervised objective's own classifier gives to each embedding (Q, dim)."""
    assert isinstance(objective, Supervised)
    return objective.classify(torch.from_numpy(embeddings)).argmax(1).numpy()


def image_text(
    experiment: Experiment, run: Run, store: Store, train: Embeddings, test: Embeddings
) -> Iterator[Score | str]:
    """Zero-shot classification and retrieval; needs an objective that compares images with text."""
    context_length = experiment.context_length
    assert context_length is not None
    pair = {name: o for name, o in _pair(experiment, run).items() if isinstance(o, ImageTextObjective)}
    captions = store.column("captions")
    told = np.flatnonzero(np.isin(train.numbers, captioned(store, train.numbers)))
    words = PixelsToWords.fit(
        train.features["pixels"][told], [captions[int(train.numbers[row])].as_py()[0] for row in told]
    )

    def embed(name: str, texts: list[str]) -> np.ndarray:
        return words.texts(texts) if name == "pixels" else embed_texts(pair[name], texts, context_length)

    def images(name: str, rows: np.ndarray) -> np.ndarray:
        if name == "pixels":
            return words.images(test.features["pixels"][rows])
        return test.features[f"{name}_projection"][rows]

    asked = np.flatnonzero(test.labels >= 0)
    classes = store.manifest.classes
    if len(classes) < 2 or not len(asked):
        yield "zero_shot_top1: the store has no labelled test images"
    else:
        questions = [prompt for name in classes for prompt in prompts(name)]
        found = {}
        for name in ENCODERS:
            classifier = zero_shot_classifier(embed(name, questions), len(classes))
            found[name] = float(((images(name, asked) @ classifier.T).argmax(1) == test.labels[asked]).mean())
        protocol = f"mean of {len(questions) // len(classes)} prompts a class; raw pixels: ridge regression to words"
        yield _score("zero_shot_top1", protocol, len(asked), found, 1 / len(classes))

    rows = np.flatnonzero(np.isin(test.numbers, captioned(store, test.numbers)))
    if len(rows) < 2:
        yield "retrieval: the test split has fewer than two captioned images"
        return
    lists = [captions[int(number)].as_py() for number in test.numbers[rows]]
    texts = [text for group in lists for text in group]
    owner = np.repeat(np.arange(len(rows)), [len(group) for group in lists])
    tables = {name: recalls(images(name, rows) @ embed(name, texts).T, owner) for name in ENCODERS}
    chance = chance_recalls(owner, len(rows))
    protocol = f"{len(rows)} held-back images, {len(texts)} captions; raw pixels: ridge regression to words"
    for measure in chance:
        found = {name: table[measure] for name, table in tables.items()}
        yield _score(f"retrieval_{measure}", protocol, len(rows), found, chance[measure])


def _pair(experiment: Experiment, run: Run) -> dict[str, Objective]:
    checkpoint = run.newest_checkpoint()
    assert checkpoint is not None
    return load_pair(experiment, checkpoint)


def _score(name: str, protocol: str, num_queries: int, found: dict[str, float], chance: float) -> Score:
    return Score(
        name=name,
        protocol=protocol,
        num_queries=num_queries,
        trained=found["trained"],
        random_encoder=found["random"],
        raw_pixels=found["pixels"],
        chance=chance,
    )


def _limit(numbers: np.ndarray, config: EvaluationConfig) -> np.ndarray:
    """At most `max_images` of a split, the same ones in every run."""
    if len(numbers) <= config.max_images:
        return numbers
    return np.random.default_rng(0).choice(numbers, config.max_images, replace=False)


def _example_neighbours(train: Embeddings, test: Embeddings, queries: int = 8, k: int = 8) -> dict[int, list[int]]:
    """A few test samples, spread over the split, and their nearest training samples."""
    rows = np.unique(np.linspace(0, len(test.numbers) - 1, queries).astype(int))
    _, found = nearest(train.features["trained"], test.features["trained"][rows], k)
    return {int(test.numbers[row]): train.numbers[hit].tolist() for row, hit in zip(rows, found, strict=True)}
