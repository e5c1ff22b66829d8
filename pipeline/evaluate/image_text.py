"""Evaluations of image-text encoders: zero-shot classification and retrieval."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.evaluate.encoders import ENCODERS, ComparesText
from pipeline.evaluate.scoring import Answered, Case, answered, score
from pipeline.stream.batches import captioned
from pipeline.stream.read import tokenize


def image_text(case: Case) -> Iterator[Answered | str]:
    """Zero-shot classification and retrieval; for encoders that compare images with text only."""
    context_length = case.encoders.context_length
    pair = {name: one for name, one in case.encoders.load().items() if isinstance(one, ComparesText)}
    if context_length is None or not pair:
        return
    towers = _Towers(case, pair, context_length)
    yield _zero_shot(case, towers)
    yield from _retrieval(case, towers)


def prompts(class_name: str) -> list[str]:
    """A class in the seven sentences that do nearly as well as CLIP's eighty (open_clip's short list)."""
    from open_clip import SIMPLE_IMAGENET_TEMPLATES

    return [template(class_name.replace("_", " ")) for template in SIMPLE_IMAGENET_TEMPLATES]


@torch.inference_mode()
def embed_texts(objective: ComparesText, texts: list[str], context_length: int) -> np.ndarray:
    """(T, D), L2-normalised."""
    parts = [texts[i : i + 512] for i in range(0, len(texts), 512)]
    return np.concatenate(
        [objective.project_text(torch.from_numpy(tokenize(part, context_length))).float().numpy() for part in parts]
    )


def zero_shot_classifier(embedded_prompts: np.ndarray, num_classes: int) -> np.ndarray:
    """The mean prompt of each class, normalised again: (C · P, D) → (C, D)."""
    means = embedded_prompts.reshape(num_classes, -1, embedded_prompts.shape[1]).mean(1)
    return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)


def recalls(similarities: np.ndarray, owner: np.ndarray, ks: tuple[int, ...] = (1, 5, 10)) -> dict[str, np.ndarray]:
    """Which queries of a retrieval with several captions an image are answered rightly; R@k are their means.

    text→image R@k: share of captions whose image is among the k nearest images. image→text R@k: share of images with
    at least one of their captions among the k nearest captions. A tie counts as ahead of the right answer.

    Args:
        similarities: (images, captions); owner: (captions,), the image of each caption.

    Returns:
        "text_to_image_r…" (captions,), "image_to_text_r…" (images,).
    """
    right = similarities[owner, np.arange(len(owner))]  # (captions,)
    rank_of_image = (similarities >= right[None]).sum(0) - 1
    own = owner[None] == np.arange(len(similarities))[:, None]
    best_own = np.where(own, similarities, -np.inf).max(1)  # (images,)
    rank_of_text = ((similarities >= best_own[:, None]) & ~own).sum(1)
    return {f"text_to_image_r{k}": rank_of_image < k for k in ks} | {
        f"image_to_text_r{k}": rank_of_text < k for k in ks
    }


def chance_recalls(owner: np.ndarray, num_images: int, ks: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
    """Expected recalls of a random ranking: k/images; 1 − C(T − c, k)/C(T, k) for an image with c of T captions."""
    total = len(owner)
    counts = np.bincount(owner, minlength=num_images)
    chance = {}
    for k in ks:
        chance[f"text_to_image_r{k}"] = min(1.0, k / num_images)
        misses = np.ones(num_images)
        for i in range(min(k, total)):
            misses *= np.maximum(total - counts - i, 0) / (total - i)
        chance[f"image_to_text_r{k}"] = float(1 - misses.mean())
    return chance


class _Towers:
    """Images and texts of each encoder in one space; raw pixels by ridge regression to words."""

    def __init__(self, case: Case, pair: dict[str, ComparesText], context_length: int) -> None:
        self.test, self.pair, self.context_length = case.test, pair, context_length
        captions = case.store.column("captions")
        told = np.flatnonzero(np.isin(case.train.numbers, captioned(case.store, case.train.numbers)))
        words = [captions[int(case.train.numbers[row])].as_py()[0] for row in told]
        self.words = PixelsToWords.fit(case.train.features["pixels"][told], words)

    @property
    def pixels(self) -> str:
        """What the baseline is, in a protocol."""
        return "ridge regression to words" if self.words else "chance, for no training image has a caption"

    def names(self) -> list[str]:
        """Of the encoders that can be asked."""
        return [name for name in ENCODERS if name != "pixels" or self.words]

    def texts(self, name: str, texts: list[str]) -> np.ndarray:
        if name == "pixels":
            assert self.words
            return self.words.texts(texts)
        return embed_texts(self.pair[name], texts, self.context_length)

    def images(self, name: str, rows: np.ndarray) -> np.ndarray:
        if name == "pixels":
            assert self.words
            return self.words.images(self.test.features["pixels"][rows])
        return self.test.features[f"{name}_projection"][rows]


def _zero_shot(case: Case, towers: _Towers) -> Answered | str:
    asked, classes = np.flatnonzero(case.test.labels >= 0), case.store.manifest.classes
    if len(classes) < 2 or not len(asked):
        return "zero_shot_top1: the store has no labelled test images"
    questions = [prompt for name in classes for prompt in prompts(name)]
    hits = {"pixels": np.full(len(asked), 1 / len(classes))}
    for name in towers.names():
        classifier = zero_shot_classifier(towers.texts(name, questions), len(classes))
        hits[name] = (towers.images(name, asked) @ classifier.T).argmax(1) == case.test.labels[asked]
    protocol = f"mean of {len(questions) // len(classes)} prompts a class; raw pixels: {towers.pixels}"
    return answered("zero_shot_top1", protocol, hits, 1 / len(classes), case.test.numbers[asked])


def _retrieval(case: Case, towers: _Towers) -> Iterator[Answered | str]:
    rows = np.flatnonzero(np.isin(case.test.numbers, captioned(case.store, case.test.numbers)))
    if len(rows) < 2:
        yield "retrieval: the test split has fewer than two captioned images"
        return
    captions = case.store.column("captions")
    lists = [captions[int(number)].as_py() for number in case.test.numbers[rows]]
    texts = [text for group in lists for text in group]
    owner = np.repeat(np.arange(len(rows)), [len(group) for group in lists])
    tables = {name: recalls(towers.images(name, rows) @ towers.texts(name, texts).T, owner) for name in towers.names()}
    chance = chance_recalls(owner, len(rows))
    protocol = f"{len(rows)} held-back images, {len(texts)} captions; raw pixels: {towers.pixels}"
    for measure in chance:
        found = {"pixels": chance[measure]} | {name: float(table[measure].mean()) for name, table in tables.items()}
        shown = score(f"retrieval_{measure}", protocol, len(rows), found, chance[measure], None)
        right = tables["trained"][measure]
        if measure.startswith("text"):  # captions of an image are no independent queries: it counts once
            right = np.bincount(owner, right) / np.bincount(owner)
        yield Answered(shown, case.test.numbers[rows], right)


@dataclass(frozen=True)
class PixelsToWords:
    """What raw pixels alone know of captions: ridge regression from thumbnails to the words of the caption (TF-IDF).
    The baseline of zero-shot and retrieval, fitted on the training split."""

    vectorizer: object
    ridge: object

    @classmethod
    def fit(cls, pixels: np.ndarray, captions: list[str]) -> "PixelsToWords | None":
        """None: the captions have no words."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import Ridge

        vectorizer = TfidfVectorizer(max_features=1000, stop_words="english")
        try:
            words = vectorizer.fit_transform(captions).toarray()
        except ValueError:  # scikit-learn's "empty vocabulary"
            return None
        return cls(vectorizer, Ridge(alpha=float(len(pixels)) ** 0.5).fit(pixels, words))

    def images(self, pixels: np.ndarray) -> np.ndarray:
        return _unit(self.ridge.predict(pixels))  # type: ignore[attr-defined]

    def texts(self, texts: list[str]) -> np.ndarray:
        return _unit(self.vectorizer.transform(texts).toarray())  # type: ignore[attr-defined]


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
