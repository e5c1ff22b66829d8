"""Balanced image-text pairs: at most about t pairs a concept (MetaCLIP, arXiv 2309.16671, section 3 and Algorithm 1).

A concept is a word or a phrase. A pair matches a concept that occurs in one of its captions between word boundaries.
A concept with `count` matches keeps each of them with probability min(1, t / count), and a pair stays if any of its
concepts keeps it: so common concepts are cut, rare ones are not, and what matches nothing goes.

Unlike the paper's code, case is ignored, a caption's several texts count once, each draw is a hash of (seed, sample,
concept), and characters of scripts that put no spaces between words (Chinese, Japanese, Thai ...) are words.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.select.blocks import in_order
from pipeline.select.draws import draw, keys_of

_SAMPLES = 2**17  # a task: seconds of one core
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_PUNCTUATION = (  # and symbols, arrows, emoji
    r"!-/:-@\[-`{-\u00bf\u2010-\u2027\u2030-\u205e\u2190-\u2bff\u3000-\u303f\uff00-\uff0f\uff1a-\uff20"
    r"\U0001f000-\U0001faff"
)
_TOKEN = re.compile(rf"[{_UNSPACED}]|[^\s{_PUNCTUATION}{_UNSPACED}]+|[{_PUNCTUATION}]")
_MARK = re.compile(rf"[{_PUNCTUATION}]")


class Matches(NamedTuple):
    """Which concepts each pair matches: those of pair i are concepts[offsets[i]:offsets[i + 1]], ascending."""

    offsets: np.ndarray  # (N + 1,) int64
    concepts: np.ndarray  # (matches,) int32, indices into `entries`
    entries: tuple[str, ...]  # as given, without those that are the same once case is ignored

    @property
    def counts(self) -> np.ndarray:
        """Pairs that match each concept: (E,) int64."""
        return np.bincount(self.concepts, minlength=len(self.entries)).astype(np.int64)


def match_concepts(captions: Sequence[Sequence[str]], entries: Sequence[str]) -> Matches:
    """Finds the concepts in the captions of N pairs, with a look-up per word, whatever the number of concepts.

    Raises:
        ValueError: no entry has a word.
    """
    spelled: dict[str, str] = {}  # words joined by spaces -> as given
    for entry in entries:
        words = " ".join(tokens_of(entry))
        if words and not all(_MARK.fullmatch(word) for word in words.split()):
            spelled.setdefault(words, entry)
    if not spelled:
        raise ValueError(
            "the list of concepts holds no word: give one concept a line, or derive them from the captions"
        )
    chunks = [captions[start : start + _SAMPLES] for start in range(0, len(captions), _SAMPLES)]
    parts = list(in_order(_match, chunks, "\n".join(spelled)))
    sizes = np.concatenate([np.zeros(1, dtype=np.int64), *(part[0] for part in parts)])
    found = np.concatenate([np.empty(0, dtype=np.int32), *(part[1] for part in parts)])
    return Matches(np.cumsum(sizes), found, tuple(spelled.values()))


def balance(matches: Matches, keys: np.ndarray, cap: float, seed: int) -> tuple[np.ndarray, pa.Table]:
    """Draws the pairs to keep; of those without a concept, none.

    Args:
        keys: (N,) int64 from `keys_of` the samples' ids.
        cap: t, the number of pairs from which on a concept is cut; the paper takes 20,000 for 400 million pairs.

    Returns:
        kept (N,) bool, and a table of concept, count (pairs that match it), kept (those that stay; more than t where
        other concepts keep them), most frequent first.

    Raises:
        ValueError: cap not above 0.
    """
    chance = _chances(matches, cap)
    pair = np.repeat(np.arange(len(keys)), np.diff(matches.offsets))
    both = keys[pair] + keys_of(matches.entries)[matches.concepts]  # wraps: a key of (sample, concept)
    drawn = draw(seed, both, "concepts") < chance[matches.concepts]
    kept = np.bincount(pair[drawn], minlength=len(keys)) > 0
    counts = matches.counts
    stay = np.bincount(matches.concepts[kept[pair]], minlength=len(counts))
    order = np.argsort(-counts, kind="stable")
    names = pa.array([matches.entries[index] for index in order.tolist()], pa.string())
    return kept, pa.table({"concept": names, "count": counts[order], "kept": stay[order].astype(np.int64)})


def expected_size(matches: Matches, cap: float) -> float:
    """How many matched pairs `balance` keeps on average: Σ over pairs of 1 − Π over its concepts of (1 − p)."""
    lost = 1 - _chances(matches, cap)[matches.concepts]
    starts = matches.offsets[:-1][np.diff(matches.offsets) > 0]
    return float((1 - np.multiply.reduceat(lost, starts)).sum()) if len(starts) else 0.0


def cap_for(matches: Matches, target: int) -> float:
    """The cap whose expected size is `target` (within half a pair); the largest count where fewer pairs match.

    Raises:
        ValueError: target below 1.
    """
    if target < 1:
        raise ValueError(f"target is {target}, but must be at least 1 pair")
    low, high = 0.0, float(max(1, matches.counts.max(initial=1)))
    if expected_size(matches, high) <= target:
        return high
    while high - low > 1e-9 * high:  # the expected size grows with the cap
        middle = (low + high) / 2
        size = expected_size(matches, middle)
        if abs(size - target) < 0.5:
            return middle
        low, high = (middle, high) if size < target else (low, middle)
    return high


def concepts_from(
    captions: Sequence[Sequence[str]],
    *,
    min_count: int,
    max_words: int = 2,
    max_share: float = 0.5,
) -> list[str]:
    """Words and phrases that occur in at least `min_count` pairs, most frequent first: a list for those who have none.

    Words in more than `max_share` of the pairs are taken for stop words: they are no concepts, and no phrase begins or
    ends with one. A share low enough to catch every stop word would also catch the subject of a narrow corpus; the
    default is high, and common words that get through do no harm, for `balance` cuts them the most.

    Raises:
        ValueError: a bound out of range.
    """
    if min_count < 1 or max_words < 1 or not 0 < max_share <= 1:
        raise ValueError(
            f"min_count is {min_count} and max_words {max_words} (at least 1), max_share {max_share} (above 0, up to 1)"
        )
    chunks = [captions[start : start + _SAMPLES] for start in range(0, len(captions), _SAMPLES)]
    frequent: dict[str, int] = {}  # phrases of the length before, stop words among them: longer ones grow from these
    concepts: Counter[str] = Counter()
    stop: set[str] = set()
    for length in range(1, max_words + 1):
        counted: Counter[str] = Counter()
        for part in in_order(_count_phrases, chunks, length, frozenset(frequent)):
            counted.update(part)
        frequent = {phrase: count for phrase, count in counted.items() if count >= min_count}
        if length == 1:
            stop = {word for word, count in frequent.items() if count > max_share * len(captions)}
        for phrase, count in frequent.items():
            words = phrase.split(" ")
            if words[0] not in stop and words[-1] not in stop:
                concepts[phrase] = count
    return sorted(concepts, key=lambda phrase: (-concepts[phrase], phrase))


def tokens_of(text: str) -> list[str]:
    """Words in lower case and punctuation marks, in order; marks stay, so that no phrase reaches across one."""
    return _TOKEN.findall(unicodedata.normalize("NFC", text.casefold()))


def _chances(matches: Matches, cap: float) -> np.ndarray:
    if not cap > 0:
        raise ValueError(f"the cap of pairs a concept is {cap}, but must be above 0")
    return np.minimum(1, cap / np.maximum(matches.counts, 1))


@lru_cache(maxsize=1)
def _lookup(spelled: str) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
    """From the concepts, one a line: phrase to index, and first word to the lengths of the phrases it begins."""
    index = {phrase: number for number, phrase in enumerate(spelled.split("\n"))}
    lengths: dict[str, set[int]] = {}
    for phrase in index:
        words = phrase.split(" ")
        lengths.setdefault(words[0], set()).add(len(words))
    return index, {word: tuple(sorted(found)) for word, found in lengths.items()}


def _match(captions: Sequence[Sequence[str]], spelled: str) -> tuple[np.ndarray, np.ndarray]:
    """Number of matched concepts of each pair (n,), and the concepts of all of them in a row."""
    index, lengths = _lookup(spelled)
    sizes, concepts = [], []
    for texts in captions:
        found = set()
        for text in texts:
            words = tokens_of(text)
            for start, word in enumerate(words):
                for length in lengths.get(word, ()):
                    phrase = word if length == 1 else " ".join(words[start : start + length])
                    if phrase in index:
                        found.add(index[phrase])
        sizes.append(len(found))
        concepts.extend(sorted(found))
    return np.array(sizes, dtype=np.int64), np.array(concepts, dtype=np.int32)


def _count_phrases(captions: Sequence[Sequence[str]], length: int, shorter: frozenset[str]) -> Counter[str]:
    """In how many pairs each phrase of `length` words occurs, if its first `length` − 1 words are frequent."""
    counted: Counter[str] = Counter()
    for texts in captions:
        found = set()
        for text in texts:
            words = tokens_of(text)
            for start in range(len(words) - length + 1):
                phrase = words[start : start + length]
                if length > 1 and " ".join(phrase[:-1]) not in shorter:
                    continue
                if not any(_MARK.fullmatch(word) for word in phrase):
                    found.add(" ".join(phrase))
        counted.update(found)
    return counted
