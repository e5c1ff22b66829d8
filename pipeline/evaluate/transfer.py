"""Several encoders on several stores, in one table: transfer, and others' encoders beside ours."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pipeline.evaluate.embed import Embedding
from pipeline.evaluate.encoders import Encoders
from pipeline.evaluate.examples import write_examples
from pipeline.evaluate.masks import Segmented
from pipeline.evaluate.outcomes import read_outcomes
from pipeline.evaluate.protocol import Evaluation, EvaluationConfig
from pipeline.evaluate.scoring import Answered
from pipeline.evaluate.segmentation import JOINED, MIOU, PIXELS
from pipeline.evaluate.suite import ON_DEMAND, asked, judge, judge_masks, write_evaluation
from pipeline.ingest.store import Store
from pipeline.ingest.write import replaced

# What stands in the table: enough to choose by. All scores are in the files beside it.
SHOWN = (
    "knn_top1", "linear_top1", "linear_top5", "linear_sgd_bn_top1", "linear_10pct", "linear_1pct", "mean_5shot",
    "cluster_top1", "zero_shot_top1", "retrieval_image_to_text_r1", "retrieval_text_to_image_r1", MIOU, PIXELS,
    MIOU + JOINED, PIXELS + JOINED,
)  # fmt: skip


@dataclass(frozen=True)
class Judged:
    encoder: str
    store: str
    file: Path
    evaluation: Evaluation
    place: Path | None = None  # of the store; None: pictures with masks


def judge_all(
    encoders: Sequence[Encoders],
    stores: Sequence[Store],
    folder: Path,
    config: EvaluationConfig,
    embedding: Embedding,
    tell: Callable[[str], None] = lambda line: None,
    also: Sequence[str] = (),
    pictures: Mapping[int, Segmented] = {},
    joined: bool = False,
) -> list[Judged]:
    """Judges every encoder on every store and on `pictures` with masks, of each encoder's image size (`joined`: also by
    its last four layers), and writes FOLDER/ENCODER--DATA.json of each. What was judged before, by the same weights on
    the same samples in the same way, is read from there. Ray must be connected.
    """
    data = [store.path.name for store in stores] + [one.name for one in list(pictures.values())[:1]]
    names = _names([one.name for one in encoders]), _names(data)
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for on, store in zip(names[1], [*stores, None], strict=False):
        for one, name in zip(encoders, names[0], strict=True):
            kept = replace(embedding, cache=folder / "embeddings" / _slug(name))
            file = judged_file(folder, name, on)
            if store is None:
                masks = pictures[one.sees.image_size]
                evaluation = _read(file, one.digest, masks.digest, ("layers",) if joined else ())
                make = partial(_on_masks, file, one, masks, kept, joined)
            else:
                evaluation = _read(file, one.digest, store.manifest.digest, also, asked(store, config))
                make = partial(_on_store, file, one, store, config, kept, also)
            if evaluation is None:
                tell(f"{name} on {on}")
                evaluation = make()
            else:
                tell(f"{name} on {on}: judged before")
            found.append(Judged(name, on, file, evaluation, store.path if store else None))
    return found


def judged_file(folder: Path, encoder: str, data: str) -> Path:
    """Where `judge_all` writes how an encoder was judged, and looks before it judges."""
    return folder / f"{_slug(encoder)}--{_slug(data)}.json"


def _on_store(
    file: Path, one: Encoders, store: Store, config: EvaluationConfig, embedding: Embedding, also: Sequence[str]
) -> Evaluation:
    answers: list[Answered] = []
    evaluation = judge(one, store, config, embedding, also=also, on_answers=answers.append)
    write_evaluation(file, evaluation, store, answers)
    return evaluation


def _on_masks(file: Path, one: Encoders, masks: Segmented, embedding: Embedding, joined: bool) -> Evaluation:
    evaluation, examples = judge_masks(one, masks, embedding, joined)
    if examples:
        write_examples(file, examples, evaluation.encoder_digest)
    with replaced(file) as written:
        written.write(evaluation.model_dump_json(indent=1).encode())
    return evaluation


def _read(file: Path, encoder: str, data: str, also: Sequence[str] = (), question: str = "") -> Evaluation | None:
    """What was judged before, if it was of the same weights and data, asked in the same way about the same samples;
    `question`: see `asked`, none of pictures with masks."""
    with suppress(OSError, ValueError):
        found = Evaluation.model_validate_json(file.read_text())
        same = (found.encoder_digest, found.store_digest, found.asked) == (encoder, data, question)
        if same and set(also) <= set(found.also) and (not question or read_outcomes(file, found)):
            return found
    return None


def _names(given: list[str]) -> list[str]:
    """With a number where two are called the same."""
    return [
        name if given.count(name) == 1 else f"{name}-{given[:place].count(name) + 1}"
        for place, name in enumerate(given)
    ]


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)


def table(found: Sequence[Judged], store: str) -> list[list[str]]:
    """Of one store: a line of titles, then one an encoder with its scores in percent, the best first by the first
    score; then each architecture before training, and raw pixels."""
    mine = [one for one in found if one.store == store]
    shown = [name for name in SHOWN if any(one.evaluation.score(name) for one in mine)]
    mine.sort(key=lambda one: -max((s.trained for s in one.evaluation.scores if s.name in shown[:1]), default=0))

    def line(name: str, one: Judged, column: str) -> list[str]:
        scores = [one.evaluation.score(score) for score in shown]
        return [name, *(score.shown(getattr(score, column)) if score else "–" for score in scores)]

    return [
        ["encoder", *shown],
        *(line(one.encoder, one, "trained") for one in mine),
        *(line(f"{one.encoder}, untrained", one, "random_encoder") for one in mine),
        *([line("raw pixels", mine[0], "raw_pixels"), line("chance", mine[0], "chance")] if mine else []),
    ]


def markdown(found: Sequence[Judged], command: str) -> str:
    """All tables, with the command that made them."""
    parts = [f"`{command}`"]
    for store in dict.fromkeys(one.store for one in found):
        lines = table(found, store)
        rows = [f"| {' | '.join(line)} |" for line in lines]
        queries = max((s.num_queries for one in found if one.store == store for s in one.evaluation.scores), default=0)
        parts.append(
            f"**{store}**, {queries:,} test images\n\n" + "\n".join([rows[0], "|---" * len(lines[0]) + "|", *rows[1:]])
        )
    return "\n\n".join(parts) + "\n"


def refuse_unknown(also: Sequence[str]) -> None:
    """Raises ValueError for a protocol that is not there."""
    for name in also:
        if name not in ON_DEMAND:
            raise ValueError(f"--also {name}: there are {', '.join(ON_DEMAND)}; all others are always computed")
