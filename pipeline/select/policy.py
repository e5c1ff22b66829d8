"""The policy: what of a store is used. It reads what was measured, never a picture: it can be changed at will.

Stages are applied in the order of `apply`, each to what the stages before it kept; the first that objects names the
reason. So a duplicate is only dropped in favour of a sample that passed every stage before.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from pipeline.ingest.blocklist import NEAR, BlockList
from pipeline.ingest.refusals import Reason
from pipeline.ingest.store import Store
from pipeline.select.draws import draw, keys_of
from pipeline.select.duplicates import MAX_DISTANCE, exact_survivors, near_duplicates, near_pairs
from pipeline.stream.plan import MAX_WEIGHT
from ssl_models.config import Config

_CAPTION_RULES = (
    "require_caption", "min_caption_words", "min_caption_characters", "languages", "max_caption_repeats",
    "drop_private",
)  # fmt: skip
_PRIVATE = (  # RE2: e-mail, telephone, US social security, payment card
    r"(?i)[\w.+-]+@[\w-]+\.[a-z]{2,}|(?:\+|\b00)\d[\d ()/-]{7,}\d|\b\d{3}[- ]\d{2}[- ]\d{4}\b"
    r"|\b(?:\d{4}[- ]?){3}\d{4}\b"
)


class Policy(Config):
    """Thresholds of a selection. A sample with captions passes if one of them passes every caption rule."""

    min_side: int = Field(0, ge=0, description="shorter side of the source's picture, in pixels, at least")
    max_aspect: float | None = Field(None, ge=1, description="longer side ÷ shorter side, at most; None: any")
    min_std: float = Field(
        0, ge=0, le=128, description="spread of luminance (0..255), at least: blank pictures have none"
    )
    min_entropy: float = Field(0, ge=0, le=8, description="entropy of the luminance histogram, in bits, at least")
    min_sharpness: float = Field(
        0, ge=0, description="variance of the Laplacian of luminance, at least: blur has little"
    )
    require_caption: bool = Field(False, description="drop pictures without any caption")
    min_caption_words: int = Field(0, ge=0, description="words of a caption, at least")
    min_caption_characters: int = Field(0, ge=0, description="characters of a caption, at least")
    languages: tuple[str, ...] = Field((), description='languages of captions, ISO 639-1 ("und": undecided); none: any')
    max_caption_repeats: int | None = Field(
        None, ge=1, description="samples that may share a caption; None: any number"
    )
    drop_private: bool = Field(False, description="drop captions with e-mail addresses, telephone or card numbers")
    exact_duplicates: bool = Field(True, description="drop copies with the same bytes or pixels")
    near_distance: int | None = Field(
        NEAR,
        ge=0,
        le=MAX_DISTANCE,
        description="drop copies whose 64-bit perceptual hash differs in at most so many "
        "bits, which is always an even number, and whose colours agree; None: keep",
    )
    max_origin_share: float | None = Field(
        None, gt=0, le=1, description="share of the samples that one origin (host, container, folder) may give"
    )
    weight_by: Literal["label", "origin"] | None = Field(
        None, description="what training samples must share to have one weight; None: each comes once an epoch"
    )
    weights: dict[str, Annotated[float, Field(ge=0, le=MAX_WEIGHT)]] = Field(
        {},
        description='times that an epoch has a sample of a class or origin, as JSON: {"cat": 2, "dog": 0.5}; others: 1.'
        " A folder stands for every origin in it",
    )
    balance: float = Field(
        0, ge=0, le=1, description="evens out classes or origins: 0 leaves them as they are, 1 makes all of them alike"
    )

    @model_validator(mode="after")
    def _weighted(self) -> "Policy":
        if (self.weights or self.balance) and self.weight_by is None:
            raise ValueError("weights and balance: of what? add weight_by=label or weight_by=origin")
        if self.weight_by and not (self.weights or self.balance):
            raise ValueError(f'weight_by={self.weight_by} does nothing alone: add balance=0.5 or weights={{"NAME": 2}}')
        return self


PRESETS: dict[str, tuple[Policy, str]] = {
    "none": (
        Policy(exact_duplicates=False, near_distance=None),
        "everything that decodes; still never a picture of an evaluation set or of the block-list",
    ),
    "clean": (Policy(min_std=2.0), "no blank pictures, no exact or near duplicates"),
    "basic": (
        Policy(
            min_std=2.0, min_side=200, max_aspect=3, min_caption_words=3, min_caption_characters=6, languages=("en",)
        ),
        "clean, and the rules of DataComp's basic filter: English, > 2 words, > 5 characters, side ≥ 200, aspect ≤ 3",
    ),
    "strict": (
        Policy(
            min_std=6.0, min_side=200, max_aspect=3, min_entropy=3.0, min_sharpness=20.0,
            min_caption_words=3, min_caption_characters=6, languages=("en",), max_caption_repeats=10,
            drop_private=True, max_origin_share=0.2,
        ),
        "basic, and no flat or blurred pictures, no caption used over ten times, no private data, no dominating origin",
    ),
}  # fmt: skip


@dataclass
class Inputs:
    """What else decides: stores whose pictures must not be trained on, stores that came before, blocked hashes."""

    evaluation_sets: tuple[Path, ...] = ()
    history: tuple[Path, ...] = ()
    block_list: BlockList = field(default_factory=BlockList)

    @property
    def digests(self) -> dict[str, str]:
        """What each input held, for the selection's card."""
        named = {f"evaluation set {path}": path for path in self.evaluation_sets}
        named |= {f"history {path}": path for path in self.history}
        found = {name: Store(path).manifest.index_sha256 for name, path in named.items()}
        return found | ({"block-list": self.block_list.digest} if self.block_list != BlockList() else {})


class IndexColumns:
    """Columns of the index at `path`, each read when it is first asked for."""

    def __init__(self, path: Path) -> None:
        self._path, self._read = path, dict[str, pa.ChunkedArray]()
        self.num_rows: int = pq.read_metadata(path).num_rows

    def __getitem__(self, name: str) -> pa.ChunkedArray:
        if name not in self._read:
            self._read[name] = pq.read_table(self._path, columns=[name])[name]
        return self._read[name]


@dataclass
class Funnel:
    """The samples of a store on their way through the stages: who is still in, and why the others are not."""

    table: IndexColumns | pa.Table
    reasons: np.ndarray  # (n,) object: None, or the reason
    because: np.ndarray  # (n,) int64: the sample that is kept instead; -1: none
    weights: np.ndarray | None = None  # (n,) float64, of which the decisions have what is still in for training
    notes: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def over(cls, index: Path) -> "Funnel":
        """All samples of the index at `index`, none dropped yet."""
        table = IndexColumns(index)
        return cls(table, np.full(table.num_rows, None, object), np.full(table.num_rows, -1, np.int64))

    @property
    def rows(self) -> np.ndarray:
        """The samples still in, ascending."""
        return np.flatnonzero(self.reasons == None)  # noqa: E711 - elementwise

    def numbers(self, name: str) -> np.ndarray:
        """A numeric column of the samples still in."""
        return self.column(name).to_numpy()

    def column(self, name: str) -> pa.ChunkedArray:
        """Any column of the samples still in."""
        rows, column = self.rows, self.table[name]
        return column if len(rows) == len(column) else column.take(pa.array(rows))

    @property
    def after_test(self) -> np.ndarray:
        """Of the samples still in: 0 for test, 1 for training."""
        return pc.not_equal(self.column("split"), "test").to_numpy(zero_copy_only=False).astype(np.int64)

    def drop(self, bad: np.ndarray, reason: Reason, because: np.ndarray | None = None) -> None:
        """Drops those of the samples still in for which `bad` (k,) bool is true."""
        rows = self.rows[bad]
        self.reasons[rows] = reason
        if because is not None:
            self.because[rows] = because[bad]

    @property
    def decisions(self) -> pa.Table:
        """`SELECTION_SCHEMA`."""
        because = pa.array(self.because, mask=self.because < 0)
        weights = np.ones(len(self.reasons), np.float32)
        if self.weights is not None:
            train = self.rows[self.after_test == 1]
            weights[train] = self.weights[train]
        columns = {"because": because, "weight": pa.array(weights, mask=weights == 1)}
        return pa.table({"reason": pa.array(self.reasons.tolist(), pa.string()), **columns})


def apply(policy: Policy, inputs: Inputs, funnel: Funnel) -> None:
    """Takes the funnel through every stage."""
    _blocked(inputs.block_list, funnel)
    _pictures(policy, funnel)
    _captions(policy, funnel)
    _references(inputs.evaluation_sets, "eval_overlap", policy, funnel)
    _references(inputs.history, "dup_exact", policy, funnel)
    if policy.near_distance is None or policy.near_distance < NEAR:
        _references(inputs.history, "eval_overlap", policy, funnel, held_out=True)
    _duplicates(policy, funnel)
    _quota(policy, funnel)


def _blocked(listed: BlockList, funnel: Funnel) -> None:
    funnel.drop(listed.blocks(funnel.column("id"), funnel.numbers("phash")), "blocklisted")


def _pictures(policy: Policy, funnel: Funnel) -> None:
    def sides() -> np.ndarray:  # (2, k)
        return np.stack([funnel.numbers("original_width"), funnel.numbers("original_height")])

    funnel.drop(sides().min(0) < policy.min_side, "side_under_min")
    if policy.max_aspect is not None:
        funnel.drop(sides().max(0) > policy.max_aspect * sides().min(0), "aspect_over_max")
    funnel.drop(funnel.numbers("std") < policy.min_std, "blank")
    funnel.drop(funnel.numbers("entropy") < policy.min_entropy, "entropy_under_min")
    funnel.drop(funnel.numbers("sharpness") < policy.min_sharpness, "blurred")


def _captions(policy: Policy, funnel: Funnel) -> None:
    """A caption counts as long as it passes; a sample that had captions and has none left is dropped."""
    if all(getattr(policy, name) == Policy.model_fields[name].default for name in _CAPTION_RULES):
        return  # captions are the largest column
    captions = funnel.column("captions")
    counts = pc.list_value_length(captions).to_numpy(zero_copy_only=False)
    if policy.require_caption:
        funnel.drop(counts == 0, "caption_missing")
        captions = funnel.column("captions")
        counts = counts[counts > 0]
    if not counts.sum():
        return
    sample = np.repeat(np.arange(len(counts)), counts)  # of each caption
    texts = pc.list_flatten(captions)
    good = np.ones(len(texts), bool)
    lost = np.full(len(counts), None, object)  # the rule that took a sample's last caption

    def keep(passes: pa.ChunkedArray | np.ndarray, reason: Reason) -> None:
        nonlocal good
        good &= np.asarray(passes, bool)
        left = np.bincount(sample[good], minlength=len(counts))
        lost[(counts > 0) & (left == 0) & (lost == None)] = reason  # noqa: E711

    words = pc.add(pc.count_substring(texts, " "), 1).to_numpy(zero_copy_only=False)  # white space was collapsed
    characters = pc.utf8_length(texts).to_numpy(zero_copy_only=False)
    keep((words >= policy.min_caption_words) & (characters >= policy.min_caption_characters), "caption_short")
    if policy.languages:
        spoken = pc.list_flatten(funnel.column("languages"))
        keep(pc.is_in(spoken, pa.array(policy.languages)).to_numpy(zero_copy_only=False), "caption_language")
    if policy.drop_private:
        private = pc.match_substring_regex(texts, _PRIVATE).to_numpy(zero_copy_only=False)
        keep(~private.astype(bool), "caption_private")
    if policy.max_caption_repeats is not None:
        codes = texts.combine_chunks().dictionary_encode().indices.to_numpy()
        once = np.unique(codes.astype(np.int64) * len(counts) + sample)  # (caption, sample)
        uses = np.bincount(once // len(counts))
        keep(uses[codes] <= policy.max_caption_repeats, "caption_repeated")
    for reason in ("caption_short", "caption_language", "caption_private", "caption_repeated"):
        bad = lost == reason
        funnel.drop(bad, reason)
        lost = lost[~bad]


def _thumbs(column: pa.ChunkedArray) -> np.ndarray:
    """(n, 48) uint8."""
    values = column.combine_chunks()
    values = values.chunk(0) if isinstance(values, pa.ChunkedArray) else values
    data = np.frombuffer(values.buffers()[1], np.uint8) if len(values) else np.empty(0, np.uint8)
    return data[48 * values.offset : 48 * (values.offset + len(values))].reshape(-1, 48)


def _references(
    stores: tuple[Path, ...], reason: Literal["eval_overlap", "dup_exact"], policy: Policy, funnel: Funnel, *,
    held_out: bool = False,
) -> None:  # fmt: skip
    """Drops what is also in other stores: the same bytes or pixels, and what is near to one of their pictures; of those
    that they hold out, only."""
    for path in stores:
        other = Store(path).columns("id", "pixels", "phash", "thumb", *["split"] * held_out)
        if held_out:
            other = other.filter(pc.equal(other["split"], "test"))
        same = pc.or_(pc.is_in(funnel.column("id"), other["id"]), pc.is_in(funnel.column("pixels"), other["pixels"]))
        funnel.drop(same.to_numpy(zero_copy_only=False), reason)
        distance = NEAR if reason == "eval_overlap" else policy.near_distance  # an evaluation set is always kept apart
        if distance is None:
            continue
        count = other.num_rows
        hashes = np.concatenate([other["phash"].to_numpy(), funnel.numbers("phash")])
        thumbs = np.concatenate([_thumbs(other["thumb"]), _thumbs(funnel.column("thumb"))])
        # The others come first; among ours, copies of one another are dealt with later.
        near = _near_to_first(hashes, thumbs, distance, count)
        funnel.drop(near, "eval_overlap" if reason == "eval_overlap" else "dup_near")


def _near_to_first(hashes: np.ndarray, thumbs: np.ndarray, distance: int, count: int) -> np.ndarray:
    """Which of the rows from `count` on are near to one of the first `count`; bool."""
    pairs = near_pairs(hashes, thumbs, distance).rows
    across = (pairs[:, 0] < count) & (pairs[:, 1] >= count)
    near = np.zeros(len(hashes) - count, bool)
    near[pairs[across, 1] - count] = True
    return near


def _duplicates(policy: Policy, funnel: Funnel) -> None:
    """Within the store. A test picture survives before a training picture: training never sees a copy of it."""
    if policy.exact_duplicates:
        rows = funnel.rows
        keys = funnel.column("pixels").combine_chunks().dictionary_encode().indices.to_numpy()
        survivors = exact_survivors(keys, funnel.after_test)
        funnel.drop(survivors != np.arange(len(rows)), "dup_exact", rows[survivors])
    if policy.near_distance is not None:
        rows = funnel.rows
        survivors, skipped = near_duplicates(
            funnel.numbers("phash"), _thumbs(funnel.column("thumb")), policy.near_distance, funnel.after_test
        )
        funnel.drop(survivors != np.arange(len(rows)), "dup_near", rows[survivors])
        funnel.notes["near comparisons skipped"] = skipped


def _quota(policy: Policy, funnel: Funnel) -> None:
    """Caps every origin; which of its samples go is decided by their ids. Nothing is capped where there are too few
    origins for any to be within its share."""
    if policy.max_origin_share is None:
        return
    codes = funnel.column("origin").combine_chunks().dictionary_encode().indices.to_numpy()
    sizes = np.bincount(codes)
    if len(sizes) * policy.max_origin_share < 1:
        funnel.notes["no quota"] = f"{len(sizes)} origins are too few for a share of {policy.max_origin_share:g}"
        return
    order = np.lexsort((draw(0, keys_of(funnel.column("id").to_pylist()), "quota"), codes))
    place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # within its origin
    bad = np.empty(len(order), bool)
    bad[order] = place >= policy.max_origin_share * len(order)
    funnel.drop(bad, "over_quota")
