"""No copy of a held-out picture is trained on: within a store, nor in later dumps that name it as their history."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.ingest.blocklist import NEAR
from pipeline.ingest.config import CurateConfig
from pipeline.ingest.index import assign_splits
from pipeline.select import policy as policies
from pipeline.select.duplicates import THUMB_DISTANCE
from pipeline.select.policy import PRESETS, Funnel, Inputs, apply
from tests.pipeline.select.test_policy import funnel
from tests.pipeline.stores import EVERYTHING, curate_here, write_dump

CLEAN = PRESETS["clean"][0]


def id_of(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def test_held_out_are_the_same_in_every_dump_and_follow_no_digits_of_ids():
    ids = [id_of(number) for number in range(20_000)]
    splits = np.array(assign_splits(ids, [None] * len(ids), False, 0.1))
    assert (splits == "test").mean() == pytest.approx(0.1, abs=0.01)
    rows = np.random.default_rng(0).permutation(len(ids))
    assert assign_splits([ids[row] for row in rows], [None] * len(ids), False, 0.1) == splits[rows].tolist()
    larger = np.array(assign_splits(ids, [None] * len(ids), False, 0.2))
    assert set(np.flatnonzero(splits == "test")) <= set(np.flatnonzero(larger == "test"))
    first = np.array([int(id_[0], 16) for id_ in ids])  # a sixteenth of all ids each
    shares = [(splits[first == digit] == "test").mean() for digit in range(16)]
    assert max(shares) < 0.14
    assert min(shares) > 0.06


def test_the_membership_is_what_its_name_says():
    """sha256("holdout-v1" + id): written down here, for it must never change."""
    for number in range(200):
        share = int(hashlib.sha256(b"holdout-v1" + id_of(number).encode()).hexdigest(), 16) / 2**256
        assert assign_splits([id_of(number)], [None], False, 0.3) == ["test" if share < 0.3 else "train"]


def test_splits_that_a_source_names_stay(tmp_path):
    assert assign_splits(["a", "b"], ["test", None], True, 0.9) == ["test", "train"]
    source = tmp_path / "dump"
    for split in ("train", "test"):
        write_dump(source / split, 30, 20 + (split == "test"))
    told = curate_here(source, tmp_path / "told", CurateConfig(holdout=0.5)).manifest
    assert (told.splits, told.config.get("held_out_by")) == ({"train": 30, "test": 30}, None)
    drawn = curate_here(source / "train", tmp_path / "drawn", CurateConfig(holdout=0.5)).manifest
    assert drawn.config["held_out_by"] == "holdout-v1"
    none = curate_here(source / "train", tmp_path / "none", CurateConfig(holdout=0)).manifest
    assert "held_out_by" not in none.config


# ---- copies --------------------------------------------------------------------------------------------------------

# Pictures in families: a hash with some bits turned, a colour that differs a little or much, pixels that may be equal.
pictures = st.lists(
    st.tuples(st.integers(0, 3), st.sets(st.integers(0, 63), max_size=4), st.sampled_from([0, 8, 90]), st.booleans()),
    min_size=1, max_size=40,
)  # fmt: skip


def samples(made: list[tuple[int, set[int], int, bool]], first: int) -> list[dict[str, Any]]:
    found = []
    for number, (family, bits, colour, same) in enumerate(made, first):
        phash = family * 0x9E3779B97F4A7C15 % 2**64
        for bit in bits:
            phash ^= 1 << bit
        pixels = f"{family} {sorted(bits)} {colour}" if same else f"of {number}"
        found.append({"id": id_of(number), "phash": phash, "thumb": bytes([colour] * 48), "pixels": pixels})
    splits = assign_splits([one["id"] for one in found], [None] * len(found), False, 0.3)
    return [{**one, "split": split} for one, split in zip(found, splits, strict=True)]


def copies(one: dict[str, Any], other: dict[str, Any], distance: int) -> bool:
    apart = (one["phash"] ^ other["phash"]).bit_count()
    colour = abs(int(one["thumb"][0]) - int(other["thumb"][0]))
    return one["pixels"] == other["pixels"] or (apart <= distance and colour <= THUMB_DISTANCE)


def kept(made: Funnel, rows: list[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    return [rows[row] for row in made.rows if rows[row]["split"] == split]


@settings(max_examples=150, deadline=None)
@given(made=pictures, distance=st.sampled_from([0, 2, 4, 6]))
def test_within_a_store_no_copy_of_a_held_out_picture_is_trained_on(made, distance):
    """Against all pairs, with chains of near copies; and what is held out is not lost for it."""
    rows = samples(made, 0)
    on_its_way = funnel(*rows)
    apply(CLEAN.model_copy(update={"near_distance": distance}), Inputs(), on_its_way)
    held_out = kept(on_its_way, rows, "test")
    for trained in kept(on_its_way, rows, "train"):
        assert not any(copies(trained, one, distance) for one in held_out)
    for one in (row for row in rows if row["split"] == "test"):  # none is lost but to one that is held out, too
        assert any(copies(one, other, distance) for other in held_out)


@settings(max_examples=150, deadline=None)
@given(earlier=pictures, later=pictures, distance=st.sampled_from([None, 0, 2, 4, 6]), exact=st.booleans())
def test_no_copy_of_what_an_earlier_store_holds_out_is_trained_on_later(earlier, later, distance, exact):
    """Whatever the policy says of duplicates; and of the other pictures of the earlier store as it says."""
    before, rows = samples(earlier, 1000), samples(later, 0)
    on_its_way = funnel(*rows)
    chosen = CLEAN.model_copy(update={"near_distance": distance, "exact_duplicates": exact})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policies, "Store", lambda path: _Columns(funnel(*before)))
        apply(chosen, Inputs(history=(Path("earlier"),)), on_its_way)
    held_out = [one for one in before if one["split"] == "test"]
    reach = max(NEAR, distance or 0)
    for trained in kept(on_its_way, rows, "train"):
        assert not any(copies(trained, one, reach) for one in held_out)
    reasons = on_its_way.reasons
    for row, reason in zip(rows, reasons, strict=True):
        if reason == "eval_overlap":
            assert any(copies(row, one, NEAR) for one in held_out)


class _Columns:
    """The index of a store, without one."""

    def __init__(self, made: Funnel) -> None:
        self.table = made.table

    def columns(self, *names: str):
        return self.table.select(list(names))


def test_the_held_out_of_a_store_are_kept_out_of_a_later_dump_that_keeps_near_copies(tmp_path):
    """On real stores: the later dump has all pictures of the earlier one, as other JPEGs, and more."""
    from PIL import Image

    first = write_dump(tmp_path / "dump", 60, 40)
    store = curate_here(first, tmp_path / "first", CurateConfig(holdout=0.3))
    again = tmp_path / "again"
    for path in first.rglob("*.png"):
        to = again / path.parent.name / f"{path.stem}.jpg"
        to.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).save(to, quality=95)
    inputs = Inputs(history=(store.path,))
    later = curate_here(again, tmp_path / "later", CurateConfig(holdout=0.3), policy=EVERYTHING, inputs=inputs)
    names = {row["source"].rpartition("/")[2].partition(".")[0]: row["split"] for row in store.index.to_pylist()}
    trained = {
        later.index["source"][int(number)].as_py().rpartition("/")[2].partition(".")[0]
        for number in later.select("train")
    }
    assert trained
    assert {names[name] for name in trained} == {"train"}
    assert later.manifest.refused["eval_overlap"] >= sum(split == "test" for split in names.values())
