"""The final stage of a run: every evaluator that the store's labels and captions allow, beside its baselines."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from pipeline.evaluate.classification import classification, own_classifier, sgd_probe, with_few_labels
from pipeline.evaluate.embed import Embedding, Embeddings
from pipeline.evaluate.encoders import Encoders, RunEncoders
from pipeline.evaluate.examples import Examples, write_examples
from pipeline.evaluate.health import alignment, health
from pipeline.evaluate.image_text import image_text
from pipeline.evaluate.knowledge import depths, knowledge, projection
from pipeline.evaluate.maps import embedding_map
from pipeline.evaluate.masks import Segmented
from pipeline.evaluate.outcomes import write_outcomes
from pipeline.evaluate.outputs import PAIRS
from pipeline.evaluate.probes import nearest
from pipeline.evaluate.protocol import Confusion, Evaluation, EvaluationConfig, Health, Score
from pipeline.evaluate.scoring import Answered, Case, Evaluator
from pipeline.evaluate.segmentation import segmentation
from pipeline.evaluate.separation import separation, spread_over
from pipeline.evaluate.twin import beside_twin, twin_of
from pipeline.ingest.store import Store
from pipeline.ingest.write import replaced
from pipeline.run import Run
from ssl_models.objectives import MAE, SimMIM

ALWAYS: dict[str, Evaluator] = {
    "classification": classification,
    "own_classifier": own_classifier,
    "few_labels": with_few_labels,
    "separation": separation,
    "image_text": image_text,
}
# What costs more than it mostly tells. The probe by SGD is MAE's own, and its users need not ask for it.
ON_DEMAND: dict[str, Evaluator] = {
    "depths": depths,
    "knowledge": knowledge,
    "projection": projection,
    "sgd_probe": sgd_probe,
}

MAX_PAIRS = 1_000  # images, of two views each

OnStage = Callable[[str], None]


def evaluate(
    run: Run,
    on_stage: OnStage = lambda name: None,
    *,
    also: Sequence[str] = (),
    pictures: Segmented | None = None,
    joined: bool = False,
    threads: int | None = None,
    keep_embeddings: bool = True,
) -> Evaluation:
    """Judges the newest checkpoint on the store's test split, or the one that a name stands for, and writes
    `evaluation.json`, beside it what became of each query. Its supervised twin, if it was judged, stands beside it. Ray
    must be connected.

    Args:
        also: names of `ON_DEMAND`.
        pictures: with masks, of the encoder's image size: it is judged on them, too.
        joined: there also by the maps of its last four layers.
        threads: of an encoding process; None: all cores.
        keep_embeddings: in RUN/embeddings, for evaluations of this checkpoint to come.

    Raises:
        ValueError: the run has no whole checkpoint.
    """
    experiment = run.experiment
    embedding = Embedding(experiment.cluster, cache=run.embeddings if keep_embeddings else None)
    if threads is not None:
        embedding = replace(embedding, threads=threads)
    store = experiment.data.open()
    few = experiment.data.few_labels  # then nobody knows the others
    bank = np.setdiff1d(experiment.training_samples(store)[0], store.blocked) if few else None
    encoders = RunEncoders.of(run)
    answers: list[Answered] = []
    evaluation = judge(encoders, store, experiment.evaluation, embedding, on_stage, also, bank, answers.append)
    if pictures is not None:
        on_stage("segmentation")
        dense, examples = judge_masks(encoders, pictures, embedding, joined)
        if examples:
            write_examples(run.evaluation_file, examples, evaluation.encoder_digest)
        evaluation = evaluation.model_copy(
            update={name: getattr(evaluation, name) + getattr(dense, name) for name in ("scores", "skipped", "seconds")}
        )
    evaluation = beside_twin(evaluation, twin_of(run).evaluation)
    write_evaluation(run.evaluation_file, evaluation, store, answers)
    return evaluation


def write_evaluation(file: Path, evaluation: Evaluation, store: Store, answers: Sequence[Answered]) -> None:
    """Writes an evaluation, and beside it what became of each query."""
    write_outcomes(file, evaluation, store, answers)
    with replaced(file) as written:
        written.write(evaluation.model_dump_json(indent=1).encode())


def judge(
    encoders: Encoders,
    store: Store,
    config: EvaluationConfig,
    embedding: Embedding,
    on_stage: OnStage = lambda name: None,
    also: Sequence[str] = (),
    bank: np.ndarray | None = None,
    on_answers: Callable[[Answered], None] = lambda answers: None,
) -> Evaluation:
    """Judges an encoder on a store's test split, with the training samples in `bank`, by default all; Ray must be
    connected. `on_answers` receives what became of each query, for the scores that have some."""
    began = time.perf_counter()
    also = tuple(dict.fromkeys([*expected(type(encoders.load()["trained"])), *also]))
    on_stage("embedding")
    splits = _splits(store, config, bank)
    # in one pass: starting processes costs more than splitting
    found = embedding.samples(encoders, store, np.concatenate(splits))
    train, test = found.rows(slice(len(splits[0]))), found.rows(slice(len(splits[0]), None))
    evaluation = Evaluation(
        checkpoint=encoders.checkpoint_name,
        step=encoders.step,
        store_digest=store.manifest.digest,
        encoder_digest=encoders.digest,
        asked=_digest(config, splits),
        scores=[],
        skipped=[],
        neighbours={},
        seconds=0.0,
        also=also,
        health=_health(encoders, store, embedding, found, splits[1] if len(splits[1]) else splits[0]),
    )
    if len(test.numbers) == 0:
        evaluation.skipped.append("all: the store has no test split; curate with holdout=0.1")
    else:
        case, confusion = Case(encoders, store, config, train, test, embedding), None
        for name, evaluator in {**ALWAYS, **{name: ON_DEMAND[name] for name in also}}.items():
            on_stage(name.replace("_", "-"))
            for result in evaluator(case):
                if isinstance(result, Answered):
                    on_answers(result)
                    result = result.score
                if isinstance(result, Confusion):
                    confusion = result
                elif isinstance(result, Score):
                    evaluation.scores.append(result)
                else:
                    evaluation.skipped.append(result)
        on_stage("map")
        evaluation = evaluation.model_copy(
            update={
                "neighbours": _example_neighbours(train, test),
                "confusion": confusion,
                "map": embedding_map(test),
            }
        )
    return evaluation.model_copy(update={"seconds": time.perf_counter() - began})


def _health(
    encoders: Encoders, store: Store, embedding: Embedding, found: Embeddings, numbers: np.ndarray
) -> dict[str, Health]:
    """Of all embeddings; the alignment of at most 1,000 images, among `numbers`."""
    some, names = numbers[spread_over(len(numbers), MAX_PAIRS)], ("trained", "random")
    views = embedding.samples(encoders, store, some, names, PAIRS).features
    return {name: health(found.features[name], alignment(views[name], views[f"{name}_view2"])) for name in names}


def expected(objective: type) -> tuple[str, ...]:
    """What of `ON_DEMAND` readers of the method's paper look for."""
    return ("sgd_probe",) if issubclass(objective, MAE | SimMIM) else ()


def judge_masks(
    encoders: Encoders, pictures: Segmented, embedding: Embedding, joined: bool = False
) -> tuple[Evaluation, Examples | None]:
    """Judges an encoder by a linear layer on its feature map, `joined` also on those of its last four layers. With some
    examples of the last that could be judged. Ray must be connected where it uses GPUs."""
    began = time.perf_counter()
    results = segmentation(encoders, pictures, embedding.cluster, embedding.threads, joined)
    evaluation = Evaluation(
        checkpoint=encoders.checkpoint_name,
        step=encoders.step,
        store_digest=pictures.digest,
        encoder_digest=encoders.digest,
        scores=[result for result in results if isinstance(result, Score)],
        skipped=[result for result in results if isinstance(result, str)],
        neighbours={},
        seconds=time.perf_counter() - began,
        also=("layers",) if joined else (),
    )
    examples = [result for result in results if isinstance(result, Examples)]
    return evaluation, examples[-1] if examples else None


def asked(store: Store, config: EvaluationConfig) -> str:
    """The digest of how, and about which samples of a store, `judge` would ask now: none that is blocked."""
    return _digest(config, _splits(store, config))


def _splits(store: Store, config: EvaluationConfig, bank: np.ndarray | None = None) -> list[np.ndarray]:
    """Numbers of the training and of the test samples."""
    train = store.select("train") if bank is None else bank
    return [_limit(numbers, config) for numbers in (train, store.select("test"))]


def _digest(config: EvaluationConfig, splits: Sequence[np.ndarray]) -> str:
    found = sha256(config.model_dump_json(exclude={"online_images", "max_images"}).encode())
    for numbers in splits:
        found.update(np.ascontiguousarray(numbers, "<i8").tobytes() + b"/")
    return found.hexdigest()


def _limit(numbers: np.ndarray, config: EvaluationConfig) -> np.ndarray:
    """At most `max_images` of a split, the same ones in every run, ascending."""
    if len(numbers) <= config.max_images:
        return numbers
    return np.sort(np.random.default_rng(0).choice(numbers, config.max_images, replace=False))


def _example_neighbours(train: Embeddings, test: Embeddings, queries: int = 8, k: int = 8) -> dict[int, list[int]]:
    """A few test samples, spread over the split, and their nearest training samples."""
    rows = np.unique(np.linspace(0, len(test.numbers) - 1, queries).astype(int))
    _, found = nearest(train.features["trained"], test.features["trained"][rows], k)
    return {int(test.numbers[row]): train.numbers[hit].tolist() for row, hit in zip(rows, found, strict=True)}
