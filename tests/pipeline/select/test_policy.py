"""Every threshold of a policy drops what it says, in the order of the funnel, and counts it."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.ingest.blocklist import BlockList
from pipeline.select.policy import PRESETS, Funnel, Inputs, Policy, apply

EVERYTHING = PRESETS["none"][0]


def funnel(*samples: dict[str, Any]) -> Funnel:
    """Samples that differ in everything unless told otherwise."""
    rows = []
    for number, changes in enumerate(samples):
        captions = changes.get("captions", [])
        row = {
            "id": f"{number:064x}", "split": "train", "pixels": f"pixels {number}", "original_width": 400,
            "original_height": 300, "std": 50.0, "entropy": 7.0, "sharpness": 500.0,
            "phash": number * 0x9E3779B97F4A7C15,
            "thumb": bytes([(number * 37) % 256] * 48), "captions": captions, "languages": ["en"] * len(captions),
            "origin": f"host {number}",
        }  # fmt: skip
        rows.append({**row, **changes})
        rows[-1]["phash"] %= 2**64
    table = pa.Table.from_pylist(
        rows,
        schema=pa.schema(
            [
                ("id", pa.string()), ("split", pa.string()), ("pixels", pa.string()), ("original_width", pa.int32()),
                ("original_height", pa.int32()), ("std", pa.float32()), ("entropy", pa.float32()),
                ("sharpness", pa.float32()), ("phash", pa.uint64()), ("thumb", pa.binary(48)),
                ("captions", pa.list_(pa.string())), ("languages", pa.list_(pa.string())), ("origin", pa.string()),
            ]
        ),
    )  # fmt: skip
    return Funnel(table, np.full(len(rows), None, object), np.full(len(rows), -1, np.int64))


def reasons(policy: Policy, *samples: dict[str, Any], inputs: Inputs | None = None) -> list[str | None]:
    on_its_way = funnel(*samples)
    apply(policy, inputs or Inputs(), on_its_way)
    return on_its_way.decisions["reason"].to_pylist()


@pytest.mark.parametrize(
    ("threshold", "good", "bad", "reason"),
    [
        ({"min_side": 200}, {"original_height": 200}, {"original_height": 199}, "side_under_min"),
        ({"max_aspect": 3}, {"original_width": 900}, {"original_width": 901}, "aspect_over_max"),
        ({"max_aspect": 3}, {"original_height": 1200}, {"original_height": 1201}, "aspect_over_max"),
        ({"min_std": 2}, {"std": 2.0}, {"std": 1.9}, "blank"),
        ({"min_entropy": 3}, {"entropy": 3.0}, {"entropy": 2.9}, "entropy_under_min"),
        ({"min_sharpness": 20}, {"sharpness": 20.0}, {"sharpness": 19.0}, "blurred"),
        ({"require_caption": True}, {"captions": ["a"]}, {}, "caption_missing"),
        ({"min_caption_words": 3}, {"captions": ["a b c"]}, {"captions": ["a b"]}, "caption_short"),
        ({"min_caption_words": 3}, {"captions": ["a", "a b c"]}, {"captions": ["a", "b b"]}, "caption_short"),
        ({"min_caption_words": 3}, {}, {"captions": ["a b"]}, "caption_short"),
        ({"min_caption_characters": 6}, {"captions": ["äöüäöü"]}, {"captions": ["äöüäö"]}, "caption_short"),
        ({"languages": ("en", "de")}, {"captions": ["x"], "languages": ["de"]},
         {"captions": ["x"], "languages": ["fr"]}, "caption_language"),
        ({"drop_private": True}, {"captions": ["in 2024 at 10:30"]}, {"captions": ["call +49 170 1234567"]},
         "caption_private"),
        ({"drop_private": True}, {"captions": ["@home & away"]}, {"captions": ["write to a.b@c.org"]},
         "caption_private"),
    ],
)  # fmt: skip
def test_a_threshold_drops_what_is_beyond_it(
    threshold: dict[str, Any], good: dict[str, Any], bad: dict[str, Any], reason: str
) -> None:
    assert reasons(EVERYTHING.model_copy(update=threshold), good, bad, good) == [None, reason, None]
    assert reasons(EVERYTHING, good, bad) == [None, None]


def test_every_caption_rule_must_be_passed_by_the_same_caption() -> None:
    policy = EVERYTHING.model_copy(update={"min_caption_words": 3, "languages": ("en",)})
    mixed = {"captions": ["short", "ein langer Satz"], "languages": ["en", "de"]}
    assert reasons(policy, mixed) == ["caption_language"]


def test_a_caption_that_too_many_samples_share_does_not_count() -> None:
    policy = EVERYTHING.model_copy(update={"max_caption_repeats": 2})
    stock, own = {"captions": ["stock photo"]}, {"captions": ["stock photo", "my own words"]}
    assert reasons(policy, stock, stock, own) == ["caption_repeated", "caption_repeated", None]
    assert reasons(policy, stock, {"captions": ["stock photo", "stock photo"]}) == [None, None]


def test_a_duplicate_only_goes_for_one_that_passed_the_other_stages() -> None:
    small, large = {"pixels": "same", "original_height": 50}, {"pixels": "same"}
    policy = EVERYTHING.model_copy(update={"exact_duplicates": True, "min_side": 100})
    on_its_way = funnel(small, large, large)
    apply(policy, Inputs(), on_its_way)
    assert on_its_way.decisions.to_pylist() == [
        {"reason": "side_under_min", "because": None, "weight": None},
        {"reason": None, "because": None, "weight": None},
        {"reason": "dup_exact", "because": 1, "weight": None},
    ]


def test_near_copies_go_but_a_test_picture_stays() -> None:
    near = {"phash": 0b101, "thumb": bytes(48)}
    policy = EVERYTHING.model_copy(update={"near_distance": 3})
    assert reasons(policy, near, {**near, "phash": 0b1, "split": "test"}, {"phash": 2**63 - 1}) == [
        "dup_near", None, None,
    ]  # fmt: skip


def test_blocked_pictures_go_whatever_the_policy() -> None:
    listed = BlockList(frozenset({f"{1:064x}"}), (0xFF00FF00FF00FF00,))
    samples = {}, {}, {"phash": 0xFF00FF00FF00FF07}, {"phash": 0xFF00FF00FF00FF1F}
    assert reasons(EVERYTHING, *samples, inputs=Inputs(block_list=listed)) == [
        None, "blocklisted", "blocklisted", None,
    ]  # fmt: skip


def test_a_dominating_origin_is_cut_to_its_share_by_ids_alone() -> None:
    policy = EVERYTHING.model_copy(update={"max_origin_share": 0.25})
    samples = [{"origin": "big"}] * 60 + [{"origin": f"small {n}"} for n in range(40)]
    kept = [number for number, reason in enumerate(reasons(policy, *samples)) if reason is None]
    assert sum(number < 60 for number in kept) == 25
    assert len(kept) == 65
    backwards = [{**sample, "id": f"{number:064x}"} for number, sample in enumerate(samples)][::-1]
    again = [row["id"] for row, reason in zip(backwards, reasons(policy, *backwards), strict=True) if reason is None]
    assert sorted(int(id_, 16) for id_ in again) == kept
    assert reasons(policy, *[{"origin": "only"}] * 10) == [None] * 10


def test_presets_tighten_from_none_to_strict() -> None:
    generator = np.random.default_rng(0)
    samples: list[dict[str, Any]] = [
        {
            "original_width": int(generator.integers(10, 1000)), "original_height": int(generator.integers(10, 1000)),
            "std": float(generator.random() * 10), "entropy": float(generator.random() * 8),
            "sharpness": float(generator.random() * 60), "pixels": f"{generator.integers(0, 150)}",
            "captions": [["a dog", "a dog on a beach", "mail a@b.org or else"][generator.integers(0, 3)]],
        }
        for _ in range(200)
    ]  # fmt: skip
    kept = [sum(reason is None for reason in reasons(policy, *samples)) for policy, _ in PRESETS.values()]
    assert list(PRESETS) == ["none", "clean", "basic", "strict"]
    assert 200 == kept[0] > kept[1] > kept[2] > kept[3]
