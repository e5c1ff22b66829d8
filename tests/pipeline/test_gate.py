"""The gate: what is regressed, collapsed, incomplete or not comparable is held, and every row says why (P20)."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.evaluate.outcomes import Outcomes
from pipeline.evaluate.protocol import Evaluation, Health, Score
from pipeline.gate import Judged, gate, paired_interval

COUNT = 2000
IDS = np.array([f"{number:064x}" for number in range(COUNT)])
RANDOM = Health(num_images=100, dim=16, rank=4.0, spread=0.5, mean_cosine=0.5)
HEALTHY = RANDOM.model_copy(update={"rank": 10.0})


def hits(share: float, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(COUNT) < share).astype(np.float32)


def judged(store: str = "store", health: Health = HEALTHY, protocol: str = "20-NN", **scores: np.ndarray) -> Judged:
    """An encoder whose queries were answered so."""
    found = [
        Score(
            name=name, protocol=protocol, num_queries=len(right), trained=float(right.mean()),
            random_encoder=0.1, raw_pixels=0.1, chance=0.1,
        )
        for name, right in scores.items()
    ]  # fmt: skip
    evaluation = Evaluation(
        checkpoint="step_000000012", step=12, store_digest=store, encoder_digest="e", scores=found, skipped=[],
        neighbours={}, seconds=1, health={"trained": health, "random": RANDOM},
    )  # fmt: skip
    return Judged(evaluation, Outcomes(IDS, dict(scores)))


def kinds(candidate: Judged, champion: Judged | None, **options) -> tuple[str, ...]:
    return gate([candidate], None if champion is None else [champion], **options).held_for


BETTER, WORSE, SAME = hits(0.7, 1), hits(0.5, 2), hits(0.6, 3)


def test_a_better_candidate_passes_and_the_table_says_by_how_much():
    found = gate([judged(knn_top1=BETTER, linear_top1=BETTER)], [judged(knn_top1=SAME, linear_top1=SAME)])
    assert found.passed
    assert found.held_for == ()
    assert found.reason == "better in knn_top1, linear_top1"
    row = next(check for check in found.checks if check.kind == "guard")
    assert row.difference == pytest.approx(BETTER.mean() - SAME.mean())
    assert row.interval is not None
    assert row.interval[0] < row.difference < row.interval[1]
    assert row.bound == -0.01


def test_one_score_may_stay_the_same_when_another_improves():
    assert kinds(judged(knn_top1=BETTER, linear_top1=SAME), judged(knn_top1=SAME, linear_top1=SAME)) == ()


def test_a_regressed_candidate_is_held_even_if_another_score_improves():
    before = judged(knn_top1=SAME, linear_top1=SAME)
    assert kinds(judged(knn_top1=BETTER, linear_top1=WORSE), before) == ("guard",)
    assert kinds(judged(knn_top1=WORSE, linear_top1=WORSE), before) == ("guard", "target")


def test_what_brings_nothing_is_held_for_the_target_alone():
    found = gate([judged(knn_top1=SAME)], [judged(knn_top1=SAME)])
    assert found.held_for == ("target",)
    assert "no score is better" in found.reason


def test_a_loss_within_the_tolerance_is_allowed_and_beyond_it_is_not():
    before = hits(0.6)
    lost = before.copy()
    lost[np.flatnonzero(before)[:10]] = 0  # half a point
    pair = judged(knn_top1=lost, linear_top1=BETTER), judged(knn_top1=before, linear_top1=SAME)
    assert kinds(*pair) == ()
    assert kinds(*pair, tolerance=0.005) == ("guard",)  # the interval reaches below


def test_a_collapsed_candidate_is_held_whatever_its_scores_say():
    alike = HEALTHY.model_copy(update={"mean_cosine": 0.999})
    assert kinds(judged(knn_top1=BETTER, health=alike), judged(knn_top1=SAME)) == ("collapse",)
    assert kinds(judged(knn_top1=BETTER, health=alike), None) == ("collapse",)
    unknown = judged(knn_top1=BETTER)
    assert unknown.evaluation is not None
    assert kinds(replace(unknown, evaluation=unknown.evaluation.model_copy(update={"health": {}})), None) == (
        "collapse",
    )


def test_the_first_candidate_need_only_be_complete_and_not_collapsed():
    found = gate([judged(knn_top1=WORSE)], None)
    assert found.passed
    assert {check.kind for check in found.checks} == {"complete", "collapse"}


@pytest.mark.parametrize("champion", [None, judged(knn_top1=SAME, linear_top1=SAME)])
def test_an_incomplete_candidate_is_held(champion):
    odd = hits(0.9)
    odd[0] = np.nan
    for candidate in (
        Judged(None, fault="not judged yet: feral evaluate runs/x"),
        judged(),
        judged(knn_top1=odd, linear_top1=BETTER),
        judged(mean_1shot=BETTER),
    ):
        assert "complete" in kinds(candidate, champion)
    assert kinds(judged(knn_top1=BETTER, linear_top1=BETTER), champion, unfinished="at step 4 of 12") == ("complete",)


@pytest.mark.parametrize(
    ("candidate", "champion", "why"),
    [
        (judged(knn_top1=BETTER), judged(knn_top1=SAME, linear_top1=SAME), "the candidate has not"),
        (judged(knn_top1=BETTER), judged(store="other", knn_top1=SAME), "different data: --on STORE"),
        (judged(knn_top1=BETTER), judged(protocol="10-NN", knn_top1=SAME), "asked in another way"),
        (judged(knn_top1=BETTER), replace(judged(knn_top1=SAME), outcomes=None), "not known of the champion"),
        (replace(judged(knn_top1=BETTER), outcomes=None), judged(knn_top1=SAME), "not known of the candidate"),
        (judged(knn_top1=BETTER), Judged(None, fault="not judged yet: feral evaluate x"), "champion: not judged yet"),
        (
            judged(knn_top1=BETTER),
            replace(judged(knn_top1=SAME), outcomes=Outcomes(np.char.add("x", IDS), {"knn_top1": SAME})),
            "no common query",
        ),
    ],
)
def test_what_cannot_be_compared_is_held_with_the_reason(candidate, champion, why):
    found = gate([candidate], [champion])
    assert found.held_for == ("complete",)
    assert why in found.reason


def test_few_queries_tell_nothing():
    few = [replace(one, outcomes=Outcomes(IDS[:20], {"knn_top1": right[:20]})) for one, right in (
        (judged(knn_top1=BETTER), np.ones(COUNT)), (judged(knn_top1=SAME), np.zeros(COUNT))
    )]  # fmt: skip
    found = gate([few[0]], [few[1]])
    assert found.held_for == ("guard", "target")
    assert "20 queries are too few" in found.reason


def test_every_store_must_do_no_harm_and_one_must_gain():
    def both(first: np.ndarray, second: np.ndarray) -> list[Judged]:
        return [judged(store="old", knn_top1=first), judged(store="new", knn_top1=second)]

    before = both(SAME, SAME)
    assert gate(both(SAME, BETTER), before).passed
    assert gate(both(WORSE, BETTER), before).held_for == ("guard",)
    with pytest.raises(ValueError, match="2 stores, the champion on 1"):
        gate(before, before[:1])


def test_one_target_among_many_must_be_better_by_more_than_one_alone():
    """At 95 % each, the more scores are tried, the likelier one is better by chance."""
    better = SAME.copy()
    better[np.flatnonzero(SAME == 0)[:30]] = 1
    better[np.flatnonzero(SAME == 1)[:14]] = 0  # 0.8 points more: an interval of 95 % just excludes zero
    alone = gate([judged(knn_top1=better)], [judged(knn_top1=SAME)])
    assert alone.passed
    others = dict.fromkeys(("linear_top1", "classifier_top1", "zero_shot_top1"), SAME)
    among = gate([judged(knn_top1=better, **others)], [judged(knn_top1=SAME, **others)])
    assert among.held_for == ("target",)
    intervals = {check.kind: check.interval for check in among.checks if check.what == "knn_top1"}
    assert intervals["target"][0] <= 0 < intervals["guard"][0]


def test_copies_of_one_picture_among_the_queries_are_paired_with_each_other():
    twice = np.append(IDS[:5], IDS[2])
    mine, theirs = (Outcomes(twice, {"knn_top1": np.arange(6.0)}), Outcomes(IDS[:5], {"knn_top1": np.arange(5.0)}))
    for pair in (mine.paired(theirs, "knn_top1"), theirs.paired(mine, "knn_top1"), mine.paired(mine, "knn_top1")):
        assert np.array_equal(*pair)


def test_only_queries_that_both_were_asked_are_compared_and_by_id():
    order = np.random.default_rng(0).permutation(COUNT)
    mine = Outcomes(IDS[order], {"knn_top1": BETTER[order]})
    right = SAME.copy()
    right[:500] = np.nan
    found, before = mine.paired(Outcomes(IDS, {"knn_top1": right}), "knn_top1")
    assert np.array_equal(found, BETTER[500:])
    assert np.array_equal(before, SAME[500:])


def test_the_interval_is_that_of_the_bootstrap_over_queries():
    """Against resampling rows of pairs, slowly; hits and misses, and shares."""
    generator = np.random.default_rng(5)
    for found, before in ((hits(0.6, 6), hits(0.55, 7)), (generator.integers(0, 4, 400) / 3, generator.random(400))):
        rows = generator.integers(0, len(found), (4000, len(found)))
        slow = np.quantile((found - before)[rows].mean(1), (0.025, 0.975))
        assert paired_interval(found, before) == pytest.approx(slow, abs=0.004)


def test_pairs_tell_more_than_two_intervals():
    """Queries that are hard for both do not blur what one answers better."""
    hard = hits(0.5, 8)
    better = hard.copy()
    better[np.flatnonzero(hard == 0)[:40]] = 1  # two points more, on a score that is known to ± 2.2
    assert paired_interval(better, hard)[0] > 0
    unpaired = paired_interval(better, np.random.default_rng(1).permutation(hard))
    assert unpaired[0] < 0


def test_the_interval_holds_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(9)
    inside = 0
    for _ in range(200):
        hard = generator.random(300)
        found, before = (generator.random(300) < hard * scale for scale in (0.9, 0.8))
        low, high = paired_interval(found, before)
        inside += low <= 0.05 <= high  # E[hard] · 0.1
    assert inside / 200 == pytest.approx(0.95, abs=0.045)
